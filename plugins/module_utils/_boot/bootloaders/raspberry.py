# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware of the Raspberry Pi, which starts the kernel itself, as C(config.txt) says, with the command line in C(cmdline.txt).

Both are on a FAT filesystem at C(/boot/firmware), or C(/boot) in older systems. Debian's package raspi-firmware writes them again with
every initramfs, and takes the end of the command line from C(/etc/default/raspi-extra-cmdline). Both files are changed in place.

Settings of config.txt may be for some boards only (C([pi4])). Which filter holds is not asked: a value in one may hold, or not. Those for
C([tryboot]) do not hold after power-off. C(os_prefix) is in front of the names of kernel, initramfs and command line: Ubuntu has them in
C(current/).
"""

from __future__ import annotations

import glob
import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, NextBoot
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import Record, words_of
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import (
    RASPBERRY,
    other_loader,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import InPlace, Place
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

PLACES = ("/boot/firmware", "/boot")
HOOK = "/etc/initramfs/post-update.d/z50-raspi-firmware"  # copies the newest kernel and its initramfs, and writes both files
EXTRA = "/etc/default/raspi-extra-cmdline"
SETTING = re.compile(r"(?m)^[ \t]*(?:\[([^\]\n]*)\]|(\w+)[ \t]*[= \t][ \t]*([^\r\n]*?))[ \t]*\r?$")
# Without kernel=, the first that is there and that the board starts; with what auto_initramfs=1 loads beside it
KERNELS = {"kernel_2712.img": "initramfs_2712", "kernel8.img": "initramfs8", "kernel7l.img": "initramfs7l", "kernel7.img": "initramfs7",
           "kernel.img": "initramfs"}  # fmt: skip
INSTALLED = "/boot/vmlinuz-"
NEVER = ("none", "tryboot")  # filters
DEEPEST = 8  # files that include one another


class Raspberry(InPlace):
    """See Bootloader."""

    name = "raspberry"
    title = "the Raspberry Pi's firmware with cmdline.txt"

    @classmethod
    def find(cls, host):
        started = other_loader(host)
        if started is None or started[0] != RASPBERRY:
            return None
        place = _place(host)
        if place is None:
            raise Refused(
                "boot_not_mounted",
                "The machine was started by the Raspberry Pi's firmware, and the filesystem with its config.txt is not mounted.",
                "Mount it at /boot/firmware, add it to /etc/fstab, and run the module again.",
            )
        return cls(host, place)

    @classmethod
    def find_for_removal(cls, host):
        found = cls.find(host)
        place = _place(host)
        return cls(host, place) if found is None and place and Record(host, cls.name).files else found

    @classmethod
    def evidence(cls):
        return "config.txt in %s" % ", ".join(PLACES)

    def __init__(self, host, place):
        super().__init__(host)
        self._place = place
        self.configuration = place + "/config.txt"
        if host.exists(HOOK):
            self.update = "update-initramfs -u"

    def places(self):
        found = [Place(path, _first_line) for path in self._command_lines() if self._starts(path)]
        return found + ([Place(EXTRA, _first_line)] if self.host.exists(HOOK) else [])

    def _settings(self):
        return _settings(self.host, self.configuration, {"cmdline": ["cmdline.txt"]}, 0)

    def _path(self, name):
        return os.path.join(self._place, name.lstrip("/"))

    def _prefixes(self, settings):
        """The values of C(os_prefix) for which there are files; the firmware ignores another."""
        return [each for each in settings.get("os_prefix", []) if self.host.glob(glob.escape(self._path(each)) + "*")] or [""]

    def _command_lines(self):
        settings = self._settings()
        return [self._path(prefix + name) for prefix in self._prefixes(settings) for name in settings["cmdline"]]

    def _words(self, path):
        return words_of(self.host.read(path, "").partition("\n")[0])

    def _starts(self, path):
        """Whether the command line in C(path) is of this system."""
        return self._system.starts(self._words(path))

    # entries ---------------------------------------------------------------------------------------------------------

    def entries(self):
        return [entry for _title, entries in self._choices() for entry in entries]

    def _choices(self):
        """Each kernel that may start with each command line, as in NextBoot."""
        settings = self._settings()
        for prefix in self._prefixes(settings):
            for path in [self._path(prefix + name) for name in settings["cmdline"]]:
                for kernel in self._kernels(settings, prefix):
                    title = "%s with %s" % (os.path.basename(kernel), os.path.basename(path))
                    entry = BootEntry(title, self._installed(kernel), self._words(path), self._initrds(settings, prefix, kernel))
                    yield title, [entry] if self._starts(path) else []

    def _kernels(self, settings, prefix):
        default = next((name for name in KERNELS if self.host.exists(self._path(prefix + name))), "")
        names = [name or default for name in settings.get("kernel", [""])]
        return [path for path in (self._path(prefix + name) for name in names if name) if self.host.exists(path)]

    def _installed(self, path):
        """The kernel in /boot that C(path) is a copy of, by its name or its content, or C(path)."""
        found = self.host.glob(INSTALLED + "*")
        named = [each for each in found if os.path.basename(each) == os.path.basename(path)]
        return next((each for each in named or found if named or copies.same(self.host, each, path)), path)

    def _initrds(self, settings, prefix, kernel):
        names = [value.split()[0] for value in settings.get("initramfs", []) + settings.get("ramfsfile", []) if value.strip()]
        if not names and "1" in settings.get("auto_initramfs", []):
            names = [KERNELS.get(os.path.basename(kernel), "")]
        return tuple(path for path in (self._path(prefix + name) for name in names if name) if self.host.exists(path))

    def next_boot(self):
        def remedy(kernel=None):
            if self.update:
                return "Set KERNEL=auto in /etc/default/raspi-firmware, remove the kernels that are newer, and run: update-initramfs -u."
            wanted = "kernel=%s" % os.path.basename(kernel) if kernel else "kernel= and initramfs"
            return "Set %s in %s, for all boards." % (wanted, self.configuration)

        return NextBoot(list(self._choices()), self.configuration, remedy)

    # copies ----------------------------------------------------------------------------------------------------------

    def outdated(self):
        return ["%s is not the same as %s" % each for each in self._outdated()]

    def _outdated(self):
        """Copies of an initramfs that are not the same as the image in /boot, as C((copy, image))."""
        for entry in self.entries():
            found = entry.kernel.startswith(INSTALLED) and copies.outdated(self.host, entry.kernel[len(INSTALLED):], entry.initrds)
            if found:
                yield found

    def ensure(self, tx, purpose, arguments, drop=()):
        copied = self._copy(tx)
        return super().ensure(tx, purpose, arguments, drop) or copied

    def _copy(self, tx):
        """Copy images that were built since, with the hook of raspi-firmware if it is there. Returns whether there were any."""
        outdated = list(self._outdated())
        for copy, image in outdated:
            tx.note(copy, "an earlier copy of %s" % image, "a copy of %s" % image)
            if not tx.check_mode and not self.host.exists(HOOK):
                copies.replace(self.host, image, copy)
        if outdated and not tx.check_mode and self.host.exists(HOOK):
            self.host.run([HOOK])
        return bool(outdated)


def _place(host):
    return next((each for each in PLACES if host.exists(each + "/config.txt") or host.exists(each + "/cmdline.txt")), None)


def _first_line(text):
    return [[(0, len(text.partition("\n")[0].rstrip("\r")))]]


def _settings(host, path, values, depth):
    """What C(path), a config.txt, may set, as C({name: [value]}): what it sets for all boards replaces what was set before. What it sets
    for some boards alone is a further value; an empty one stands for the default of the others."""
    applies, every = True, True
    for match in SETTING.finditer(host.read(path, "") if depth < DEEPEST else ""):
        conditions, name, value = match.groups()
        if conditions is not None:
            applies, every = conditions not in NEVER, conditions == "all"
        elif name == "include" and applies:
            _settings(host, os.path.join(os.path.dirname(path), value), values, depth + 1)
        elif applies:
            values[name] = [value] if every else values.get(name, [""]) + [value]
    return values
