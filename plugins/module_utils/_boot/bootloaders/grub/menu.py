# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB's menu: all entries of a configuration, and the one that starts when no person chooses.

The variable C(default) names it, by number, title or id, with C(>) before an entry of a submenu (grub-core/normal/menu.c). It comes
from C(GRUB_DEFAULT), and through C(grubenv) from grub-set-default, grub-reboot and C(GRUB_SAVEDEFAULT).
"""

from __future__ import annotations

import os
import re
import shlex

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import ESP
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import bls
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.defaults import FILE
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.program import Program
from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts

NUMBER = re.compile(r"\s*(0[xX][0-9a-fA-F]+|\d+)")  # grub_strtoul: what follows the digits does not count
HEADER = "# GRUB Environment Block"
LARGEST = 1 << 20  # bytes of grubenv that are read; it has 1024


class Menu:
    """The menu of the configuration C(text), which is the file C(configuration) of C(host)."""

    def __init__(self, host, configuration, text):
        self._host = host
        self._configuration = configuration
        self.files: list = []  # with an entry each, as bls.Snippets
        self._names_first = False  # rhboot's get_entry_number_helper(): a machine id may begin with digits
        self.asks = False  # for files with entries, by a command that this GRUB has
        directory = os.path.dirname(configuration)
        self._environment = directory + "/grubenv"
        self._edit = os.path.basename(directory) + "-editenv"  # grub-editenv, grub2-editenv
        self.environment = read_environment(host, self._environment)
        variables = {
            "prefix": directory,
            "config_directory": directory,
            "grub_platform": "efi" if host.exists("/sys/firmware/efi") else "pc",
            "feature_menuentry_id": "y",
            "menuentry_id_option": "--id",
        }
        known = {name: frozenset([value]) for name, value in variables.items()}
        self._program = Program(self, self.environment, known).run(text)

    # files, for Program

    def size(self, path):
        try:
            return os.stat(self._host.path(path)).st_size
        except OSError:
            return None

    def text(self, path):
        return self._host.read(path)

    def block(self, path):
        """The variables in the environment block C(path), which is the one of this menu then. Only GRUB of Fedora and RHEL names it."""
        self._names_first = True
        self._environment, self.environment = path, read_environment(self._host, path)
        return self.environment

    def snippets(self, command, roots, directory):
        """The bls.Snippets of the files in C(directory) on the filesystems C(roots), possible values of C($root)."""
        if not self._has(command):
            return []
        self.asks = True
        suffix = bls.DIRECTORIES[command][1]
        found = []
        for place in self._directories(roots, directory):
            for path in self._host.glob("%s/*%s" % (place, suffix)):
                found.append(bls.snippet(path, self._host.read(path, "") if suffix == ".conf" else ""))
        self.files += [each for each in found if each is not None]
        return [each for each in found if each is not None]

    def _has(self, command):
        """Whether this GRUB has C(command); True where its modules are inside its program."""
        lists = self._host.glob(os.path.dirname(self._configuration) + "/*/command.lst")
        return not lists or any(re.search(r"(?m)^\*?%s:" % command, self._host.read(path, "")) for path in lists)

    def _directories(self, roots, directory):
        """Where C(directory) may be on this machine, as paths."""
        device, _parenthesis, path = directory[1:].partition(")") if directory.startswith("(") else ("", "", directory)
        known = [self._mounted(root) for root in ([device] if device else roots)]
        if not known:
            known = [self._configuration]
        elif None in known:
            known = [self._configuration] + [each for each in ESP if self._host.exists(each + path)]
        found: dict = {}
        for beside in known:
            local = mounts.local(self._host, beside, path)
            if local is not None and self._host.exists(local):
                found.setdefault(self._host.real(local), local)
        return list(found.values())

    def _mounted(self, root):
        """A path on the filesystem C(root), a value of C($root), or None if it is not known."""
        link = "/dev/disk/by-uuid/" + root[len("UUID="):]
        if not root.startswith("UUID=") or not self._host.exists(link):
            return None
        device = self._host.real(link)
        return next((mount.place for mount in mounts.mounts(self._host) if self._host.real(mount.device) == device), None)

    def entries(self):
        """Every entry, as C((title, id, [Start or None])); None stands for something that is not Linux."""
        found = [entry for _name, entry in self._named()]
        if self._program.starts:  # commands outside of entries
            found.append(("", "", self._program.starts))
        return found

    def _named(self):
        """Every entry, with what names it for C(default)."""
        return list(_walk(self._program))

    def defaults(self):
        """The entries that may start when no person chooses, as in C(entries), each once. Empty if the menu is."""
        chosen = []
        for spec in self._specs():
            entry = _choose(self._program, spec, self._names_first)
            if entry is not None and entry not in chosen:
                chosen.append(entry)
        return chosen

    def _specs(self):
        return sorted(self._program.variables.get("default", {""}))

    def reason(self):
        """Why C(defaults) are what they are, as a phrase."""
        for name in ("next_entry", "saved_entry"):
            if self.environment.get(name) in self._specs():
                return "%s=%s in %s" % (name, self.environment[name], self._environment)
        return "GRUB's default=%s" % " or ".join(self._specs())

    def remedy(self, generator, saved, file, wanted):
        """How to have an entry start next for which C(wanted((title, id, starts))) is true, as a sentence.

        C(generator) is the command that writes the configuration, C(saved) whether that takes the default from C(grubenv)
        (C(GRUB_DEFAULT=saved)), C(file) the path of what sets C(GRUB_DEFAULT), or None.
        """
        if self.environment.get("next_entry") in self._specs():
            return "Run: %s %s unset next_entry." % (self._edit, self._environment)
        name = next((name for name, entry in self._named() if wanted(entry)), None)
        if name is None:
            return "Run %s, so that the menu has an entry for it." % generator
        if saved:
            return "Run: %s %s set saved_entry=%s." % (self._edit, self._environment, shlex.quote(name))
        return "Set GRUB_DEFAULT=%s in %s, and run %s." % (shlex.quote(name), file or FILE, generator)


def read_environment(host, path):
    """The variables in GRUB's environment block C(path), as C({name: value}); empty without one."""
    text = (host.read_bytes(path, b"", LARGEST) or b"").decode("utf-8", "surrogateescape")
    if not text.startswith(HEADER):
        return {}
    variables, lines = {}, text.replace("\\\n", "\0").split("\n")
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            variables[name] = re.sub(r"\\(.)", r"\1", value).replace("\0", "\n")
    return variables


def _walk(program, above=""):
    for item in program.items:
        inner = program.inside(item)
        name = above + (item.identifier or item.title).replace(">", ">>")
        if item.submenu:
            yield from _walk(inner, name + ">")
        else:
            yield name, (item.title, item.identifier, inner.starts)


def _choose(program, spec, names_first=False):
    """The entry that C(spec) names in the menu of C(program), and the first one where it names none. C(names_first): a name that begins
    with digits is one, and not their number."""
    if not program.items:
        return None
    name, rest = _split(spec)
    number, named = NUMBER.match(spec), [at for at, item in enumerate(program.items) if name in (item.title, item.identifier)]
    if number and not (names_first and named):
        digits = number.group(1)
        index = int(digits, 16 if digits[1:2] in ("x", "X") else 10)
    else:
        index = named[0] if named else 0
    item = program.items[index if index < len(program.items) else 0]
    inner = program.inside(item)
    return _choose(inner, rest, names_first) if item.submenu else (item.title, item.identifier, inner.starts)


def _split(spec):
    """C(spec) up to the first C(>), with C(>>) as C(>), and what follows it."""
    name, _mark, rest = spec.replace(">>", "\0").partition(">")
    return name.replace("\0", ">"), rest.replace("\0", ">>")
