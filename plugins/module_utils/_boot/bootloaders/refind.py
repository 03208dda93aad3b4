# SPDX-License-Identifier: GPL-3.0-or-later
"""rEFInd, which finds the kernels in C(/boot) by itself, and takes their command lines from C(/boot/refind_linux.conf).

Each line there is a title and a command line, both in quotes; the first line is the default, the others are in the submenu of each
kernel. A kernel gets the initramfs with the same version in its name, unless the line has an C(initrd=).
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, NextBoot
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import (
    running,
    slashes,
    words_of,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import other_loader
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import InPlace, Place

CONFIGURATION = "/boot/refind_linux.conf"
LINE = re.compile(r'(?m)^[ \t]*"([^"\n]*)"[ \t]+"((?:[^"\n]|"")*)"')  # within quotes, "" is one
NO_KERNEL = re.compile(r"\.(old|bak|sig|rpmsave|rpmnew)$|\.dpkg-")
INITRDS = ("/boot/initrd.img-%s", "/boot/initramfs-%s.img", "/boot/initrd-%s")


class Refind(InPlace):
    """See Bootloader."""

    name = "refind"
    title = "rEFInd with /boot/refind_linux.conf"
    configuration = CONFIGURATION

    @classmethod
    def find(cls, host):
        started = other_loader(host)
        return cls(host) if started is not None and started[0] == "rEFInd" else None

    @classmethod
    def evidence(cls):
        return CONFIGURATION

    def places(self):
        return [Place(CONFIGURATION, self._own_lines, self._missing())]

    def _own_lines(self, text):
        """The command lines that start this system."""
        return [[match.span(2)] for match in LINE.finditer(text) if self._system.starts(_words(match.group(2)))]

    def _missing(self):
        """What rEFInd's mkrlconf writes for the running kernel. Without the file, rEFInd makes a command line up from /etc/fstab."""
        return '"Boot with standard options"  "%s"\n' % running(self.host)

    def entries(self):
        return [entry for entries in self._by_kernel() for entry in entries]

    def _by_kernel(self):
        text = self.host.read(CONFIGURATION, "")
        lines = [(title, _words(line)) for title, line in LINE.findall(text)]
        return [[self._entry(path, title, words) for title, words in lines if self._system.starts(words)] for path in self._kernels()]

    def _kernels(self):
        paths = self.host.glob("/boot/vmlinu[xz]-*") + self.host.glob("/boot/bzImage-*") + self.host.glob("/boot/kernel-*")
        return [path for path in paths if not NO_KERNEL.search(path)]

    def _entry(self, path, title, words):
        version = os.path.basename(path).partition("-")[2]
        named = [_local(word[len("initrd="):].replace("%v", version)) for word in words if word.startswith("initrd=")]
        initrds = tuple(each for each in named or [name % version for name in INITRDS] if self.host.exists(each))
        arguments = [word for word in words if not word.startswith("initrd=")]
        return BootEntry("%s (%s)" % (title, version), path, arguments, initrds)

    def next_boot(self):
        """rEFInd starts the kernel that was started last, or the one whose file was written last: any may be it, with the first line."""
        choices = [(entries[0].title, entries[:1]) for entries in self._by_kernel() if entries]
        return NextBoot(choices, "rEFInd chooses by itself", lambda kernel=None: (
            "Remove the other kernels, or set default_selection in refind.conf%s, and reboot."
            % (" to %s" % os.path.basename(kernel) if kernel else "")))


def _words(line):
    return words_of(line.replace('""', '"'))


def _local(path):
    """The path on this machine of C(path) on the filesystem with the kernel."""
    name = slashes(path)
    return name if name.startswith("/boot/") else "/boot/" + os.path.basename(name)
