# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of an installed kernel, and their dependencies: modules.dep(5) and modules.builtin.

Read from the files, without a command.
"""

from __future__ import annotations

import re

MODULES_DIRECTORY = "/lib/modules/%s"
SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?$")


class KernelModules:
    """The modules of the installed kernel C(version) on C(host)."""

    def __init__(self, host, version):
        self.version = version
        directory = MODULES_DIRECTORY % version
        self.installed = host.exists(directory)
        self._files = {}
        for line in host.read(directory + "/modules.dep", "").splitlines():
            path, colon, needs = line.partition(":")
            if colon:
                self._files[name_of(path)] = (path, needs.split())
        self._builtin = {name_of(path) for path in host.read(directory + "/modules.builtin", "").splitlines()}

    def has(self, module):
        """Whether the kernel has C(module), as a file or built in."""
        return name_of(module) in self._files or name_of(module) in self._builtin

    def loadable(self, module):
        """Whether C(module) is a file that has to be loaded."""
        return name_of(module) in self._files

    def files(self, module):
        """The files of C(module) and its dependencies, relative to the kernel's directory, without a compression suffix.

        modules.dep(5) also lists indirect dependencies. Empty for a built-in module.
        """
        path, needs = self._files.get(name_of(module), (None, []))
        return [] if path is None else [SUFFIX.sub(".ko", each) for each in [path] + needs]


def name_of(path):
    """The name of a module in the kernel's spelling: C(lzo_rle) for C(kernel/crypto/lzo-rle.ko.xz)."""
    return SUFFIX.sub("", path.rsplit("/", 1)[-1]).replace("-", "_")
