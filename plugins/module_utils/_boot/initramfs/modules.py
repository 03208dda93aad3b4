# SPDX-License-Identifier: GPL-3.0-or-later
"""Which modules an installed kernel has, and which of them one module needs: modules.dep(5) and modules.builtin.

Used by the initramfs classes to know what has to be inside an image. Read from the files, without a command.
"""

from __future__ import annotations

import re

FOLDER = "/lib/modules/%s"
SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?$")


class KernelModules:
    """The modules of the installed kernel C(version) on C(host)."""

    def __init__(self, host, version):
        self.version = version
        folder = FOLDER % version
        self.installed = host.exists(folder)
        self._files = {}
        for line in host.read(folder + "/modules.dep", "").splitlines():
            path, colon, needs = line.partition(":")
            if colon:
                self._files[name_of(path)] = (path, needs.split())
        self._builtin = {name_of(path) for path in host.read(folder + "/modules.builtin", "").splitlines()}

    def has(self, module):
        """Whether the kernel has C(module), as a file or built in."""
        return name_of(module) in self._files or name_of(module) in self._builtin

    def loadable(self, module):
        """Whether C(module) is a file that has to be loaded."""
        return name_of(module) in self._files

    def files(self, module):
        """The files of C(module) and of all it needs, below the kernel's folder and without a compression's suffix.

        modules.dep(5) lists indirect needs too. Empty for what is built in.
        """
        path, needs = self._files.get(name_of(module), (None, []))
        return [] if path is None else [SUFFIX.sub(".ko", each) for each in [path] + needs]


def name_of(path):
    """The name of a module as the kernel writes it: C(kernel/crypto/lzo-rle.ko.xz) is C(lzo_rle)."""
    return SUFFIX.sub("", path.rsplit("/", 1)[-1]).replace("-", "_")
