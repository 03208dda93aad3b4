# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB's menu: all entries of a configuration, and the one that starts when no person chooses.

The variable C(default) names it, by number, title or id, with C(>) before an entry of a submenu (grub-core/normal/menu.c). It comes
from C(GRUB_DEFAULT), and through C(grubenv) from grub-set-default, grub-reboot and C(GRUB_SAVEDEFAULT).
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub_program import Program

NUMBER = re.compile(r"\s*(0[xX][0-9a-fA-F]+|\d+)")  # grub_strtoul: what follows the digits does not count
HEADER = "# GRUB Environment Block"
LARGEST = 1 << 20  # bytes of grubenv that are read; it has 1024


class Menu:
    """The menu of the configuration C(text), which is the file C(configuration) of C(host)."""

    def __init__(self, host, configuration, text):
        self._host = host
        self._directory = os.path.dirname(configuration)
        self.environment = read_environment(host, self._directory + "/grubenv")
        variables = {
            "prefix": self._directory,
            "config_directory": self._directory,
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

    def entries(self):
        """Every entry, as C((title, id, [Start or None])); None stands for something that is not Linux."""
        found = list(_walk(self._program))
        if self._program.starts:  # commands outside of entries
            found.append(("", "", self._program.starts))
        return found

    def defaults(self):
        """The entries that may start when no person chooses, as in C(entries), each once. Empty if the menu is."""
        chosen = []
        for spec in sorted(self._program.variables.get("default", {""})):
            entry = _choose(self._program, spec)
            if entry is not None and entry not in chosen:
                chosen.append(entry)
        return chosen

    def reason(self):
        """Why C(defaults) are what they are, as a phrase."""
        if self.environment.get("next_entry"):
            return "next_entry=%s in %s/grubenv" % (self.environment["next_entry"], self._directory)
        values = sorted(self._program.variables.get("default", {""}))
        if self.environment.get("saved_entry") in values:
            return "saved_entry=%s in %s/grubenv" % (self.environment["saved_entry"], self._directory)
        return "default=%s" % " or ".join(values)


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


def _walk(program):
    for item in program.items:
        inner = program.inside(item)
        if item.submenu:
            yield from _walk(inner)
        else:
            yield item.title, item.identifier, inner.starts


def _choose(program, spec):
    """The entry that C(spec) names in the menu of C(program), and the first one where it names none."""
    if not program.items:
        return None
    name, rest = _split(spec)
    number = NUMBER.match(spec)
    if number:
        digits = number.group(1)
        index = int(digits, 16 if digits[1:2] in ("x", "X") else 10)
    else:
        index = next((at for at, item in enumerate(program.items) if name in (item.title, item.identifier)), 0)
    item = program.items[index if index < len(program.items) else 0]
    inner = program.inside(item)
    return _choose(inner, rest) if item.submenu else (item.title, item.identifier, inner.starts)


def _split(spec):
    """C(spec) up to the first C(>), with C(>>) as C(>), and what follows it."""
    name, _mark, rest = spec.replace(">>", "\0").partition(">")
    return name.replace("\0", ">"), rest.replace("\0", ">>")
