# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB whose menu has entries of the Boot Loader Specification (C(blscfg)), beside entries that grub-mkconfig generates or without any.

The entries are changed in place, as those of systemd-boot, by which kernel-install writes them. Where grub-mkconfig reads
C(/etc/default/grub.d), the generated ones get their arguments there, as with GRUB alone.
"""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import Record
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import LAYOUTS, Grub, bls
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.menu import Menu
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import Place
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot import (
    CMDLINE,
    Entry,
    SystemdBoot,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts

NAME = "grub-bls"


class LoaderEntries(SystemdBoot):
    """The entries in the files that C(paths()) returns, as Bootloader says of all of a bootloader's."""

    name = NAME

    def __init__(self, host, paths):
        super().__init__(host)
        self._paths = paths

    def places(self):
        """Also entries that GRUB no longer reads, while they have arguments of ours."""
        left = [path for path in self._record.files if path.endswith(".conf") and self.host.exists(path)]
        others = [place for place in super().places() if not place.path.endswith(".conf")] if self._installed() else []
        paths = dict.fromkeys([entry.path for entry in self._own()] + left)
        return [Place(path, bls.options) for path in paths] + others

    def _installed(self):
        """Whether kernel-install writes entries, or is to have a command line for those to come."""
        token = self.host.attribute("/etc/kernel/entry-token") or self.host.attribute("/etc/machine-id") or ""
        names = [os.path.basename(entry.path) for entry in self._all()]
        return self.host.exists(CMDLINE) or any(token and name.startswith(token + "-") for name in names)

    def _own(self):
        return [entry for entry in self._all() if self.host.exists(entry.kernel) and self._system.starts(entry.arguments)]

    def _all(self):
        return [entry for entry in (self._here(path) for path in self._paths()) if entry is not None]

    def _here(self, path):
        """The Entry of the file C(path), with paths on this machine."""
        entry = self._parse(path, "")
        if entry is None:
            return None
        images = [word for each in entry.initrds for word in each.split()]  # GRUB takes each word for a file
        kernel, *initrds = (mounts.local(self.host, path, each) or "" for each in (entry.kernel, *images))
        return Entry(path, "", entry.title, entry.version, "", "", kernel, tuple(initrds), entry.arguments)


class GrubBls(Grub):
    """See Bootloader. C(generates): whether grub-mkconfig is there and reads C(/etc/default/grub.d)."""

    name = NAME
    title = "GRUB with blscfg"

    def __init__(self, host, command, configuration):
        super().__init__(host, command, configuration)
        self.generates = command is not None and "default/grub.d" in host.read(command, "")
        if not self.generates:
            self.update = ""
        self._snippets = LoaderEntries(host, lambda: [each.path for each in self._menu().files if each.path.endswith(".conf")])

    @classmethod
    def find(cls, host):
        return next((found for found in cls._layouts(host) if found._menu().asks), None)

    @classmethod
    def find_for_removal(cls, host):
        found = cls.find(host)
        return found or (next(cls._layouts(host), None) if Record(host, NAME).files else None)

    @classmethod
    def _layouts(cls, host):
        return (cls(host, host.which(name), configuration) for name, configuration in LAYOUTS if host.exists(configuration))

    @classmethod
    def evidence(cls):
        return "blscfg in %s" % " or ".join(configuration for _name, configuration in LAYOUTS)

    @classmethod
    def remains(cls, host, purpose, leftovers=()):
        return LoaderEntries.remains(host, purpose, leftovers)

    def _menu(self):
        return Menu(self.host, self.configuration, self.host.read(self.configuration, ""))

    def owned(self, purpose):
        return self._snippets.owned(purpose)

    def set(self, tx, purpose, arguments, drop=()):
        changed = self._snippets.ensure(tx, purpose, arguments, drop)
        return (self.generates and super().set(tx, purpose, arguments, drop)) or changed

    def unset(self, tx, purpose):
        return self.generates and super().unset(tx, purpose)

    def forget(self, tx, purpose, leftovers=()):
        changed = self._snippets.forget(tx, purpose, leftovers)
        return super().forget(tx, purpose, leftovers) or changed

    def after_hooks(self, tx):
        self._snippets.after_hooks(tx)

    def regenerate(self, tx):
        if self.generates:
            super().regenerate(tx)

    def unfinished(self):
        return self.generates and super().unfinished()

    def find_setting(self, words):
        return (super().find_setting(words) if self.generates else None) or self._snippets.find_setting(words)

    def outdated(self):
        return self._snippets.outdated()
