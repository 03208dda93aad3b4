# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that start by C(extlinux.conf): by Syslinux (EXTLINUX, with BIOS), or by U-Boot.

People write the file, or Debian's u-boot-update does (u_boot_menu). Its command lines are changed in place either way.
"""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, NextBoot, matches
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import (
    GRUB_CONFIGURATIONS,
    other_loader,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.extlinux import u_boot_menu
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.extlinux.menu import LOADER, Menu
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import InPlace, Place

NAMES = ("Syslinux", "U-Boot")
FILES = ("extlinux.conf", "syslinux.cfg")
DIRECTORIES = ("/boot/extlinux", "/boot/syslinux", "/boot", "/extlinux", "/syslinux")
U_BOOT = ("/boot/extlinux/extlinux.conf", "/extlinux/extlinux.conf")


class Extlinux(InPlace):
    """See Bootloader."""

    name = "extlinux"
    title = "Syslinux or U-Boot with extlinux.conf"

    @classmethod
    def find(cls, host):
        started = other_loader(host)
        if started is None and any(host.exists(path) for path in GRUB_CONFIGURATIONS):
            return None
        if started is not None and started[0] not in NAMES:
            return None
        configuration = _configuration(host, started[0] if started else "")
        return cls(host, configuration) if configuration else None

    @classmethod
    def find_for_removal(cls, host):
        found = cls.find(host)
        configuration = _configuration(host, "")
        if found is None and configuration and (cls(host, configuration)._record.files or u_boot_menu.files(host)):
            return cls(host, configuration)
        return found

    @classmethod
    def remains(cls, host, purpose, leftovers=()):
        path = u_boot_menu.path(purpose)
        return super().remains(host, purpose, leftovers) + [each for each in (path,) if host.exists(each)]

    @classmethod
    def evidence(cls):
        return "%s in %s" % (" or ".join(FILES), ", ".join(DIRECTORIES))

    def __init__(self, host, configuration):
        super().__init__(host)
        self.configuration = configuration
        self._generated = u_boot_menu.generates(host, configuration)
        if self._generated:
            self.update = u_boot_menu.COMMAND

    def _menu(self):
        return Menu(self.host, self.configuration)

    def places(self):
        return [Place(path, self._lines_in(path)) for path in self._menu().files]

    def _lines_in(self, path):
        def lines(text):
            menu = Menu(self.host, self.configuration, {path: text})
            holders = (menu.holder(label) for label in self._own(menu))
            return [[span] for span in dict.fromkeys(each.span for each in holders if each and each.path == path)]

        return lines

    def _own(self, menu):
        """The Labels that start a kernel of this system."""
        return [label for label in menu.labels if menu.kernel(label) and self._system.starts(menu.words(label))]

    # settings of u-boot-update ----------------------------------------------------------------------------------------

    def set(self, tx, purpose, arguments, drop=()):
        changed = super().set(tx, purpose, arguments, drop)
        return (self._generated and u_boot_menu.set_(tx, purpose, arguments, drop)) or changed

    def unset(self, tx, purpose):
        changed = super().unset(tx, purpose)
        return u_boot_menu.unset(tx, purpose) or changed

    def find_setting(self, words):
        found = super().find_setting(words)
        return (u_boot_menu.find(self.host, found[1]) if found and self._generated else None) or found

    # entries ---------------------------------------------------------------------------------------------------------

    def entries(self):
        menu = self._menu()
        return [self._entry(menu, label) for label in self._own(menu)]

    def _entry(self, menu, label, more=()):
        arguments = [word for word in menu.words(label) if not matches(word, ("initrd",))]
        return BootEntry(label.title or label.name, menu.kernel(label), arguments + list(more), menu.initrds(label))

    def next_boot(self):
        menu = self._menu()
        label, more, reason = menu.starts()
        own = self._own(menu)
        title = (label.title or label.name) if label else reason
        choices = [(title, [self._entry(menu, label, more)] if label in own else [])] if label or menu.labels else []

        def remedy(kernel=None):
            name = next((each.name for each in own if kernel in (None, menu.kernel(each))), None)
            if reason.startswith("extlinux --once"):
                return "Run: extlinux --clear-once %s." % os.path.dirname(self.configuration)
            if name is None:
                return "Add an entry for it to %s." % self.configuration
            if self._generated:
                return "Set U_BOOT_DEFAULT=%s in %s, and run %s." % (name, u_boot_menu.DEFAULTS, u_boot_menu.COMMAND)
            return "Set DEFAULT %s in %s, and remove ONTIMEOUT, MENU DEFAULT and MENU SAVE from it." % (name, self.configuration)

        return NextBoot(choices, reason, remedy)


def _configuration(host, started):
    """The configuration that the loader C(started) reads, or None.

    Syslinux is installed in a directory, where it looks first. With EFI, by network or on another filesystem it reads another file, and
    one that is here is only left over.
    """
    paths = ["%s/%s" % (directory, name) for directory in DIRECTORIES for name in FILES]
    installed = [host.exists(os.path.join(os.path.dirname(path), LOADER)) for path in paths]
    if started == "U-Boot":
        paths = list(U_BOOT)
    elif started and (host.exists("/sys/firmware/efi") or not any(installed)):
        return None
    else:
        paths = [path for wanted in (True, False) for path, there in zip(paths, installed) if there is wanted]
    return next((path for path in paths if host.exists(path)), None)
