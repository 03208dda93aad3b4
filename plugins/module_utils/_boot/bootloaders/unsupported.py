# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootloaders that are recognised only to refuse them by name: C((name, sign(host) -> phrase or None, remedy)).

They are checked before the supported ones, because GRUB's files often remain after a change of the bootloader.
"""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub_defaults import (
    Defaults,
    scripts_mention,
)

# Boot Loader Interface: the name of the running boot loader, UTF-16 after four bytes of attributes
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GRUB_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
BLS_SETTING = "GRUB_ENABLE_BLSCFG"  # without an effect where no script in /etc/grub.d asks for it, as in Debian 12 and 13


def _systemd_boot(host):
    content = host.read_bytes(LOADER_INFO, b"")[4:].decode("utf-16-le", "replace").rstrip("\0")
    if content.startswith("systemd-boot"):
        return "the EFI variable LoaderInfo is '%s'" % content
    if not any(host.exists(path) for path in GRUB_CONFIGURATIONS):
        return next(
            ("%s exists" % path for path in ("/boot/efi/loader/loader.conf", "/efi/loader/loader.conf",
                                             "/boot/loader/loader.conf") if host.exists(path)),
            None,
        )
    return None


def _boot_loader_specification(host):
    """grubby and blscfg: the arguments are in the entries, which grub-mkconfig does not change."""
    for path in GRUB_CONFIGURATIONS:
        if re.search(r"^\s*blscfg\b", host.read(path, ""), re.M):
            return "%s reads its entries from /boot/loader/entries with blscfg" % path
    defaults = Defaults(host)
    if defaults.true(BLS_SETTING) and scripts_mention(host, "blscfg"):
        return "%s has %s=true" % (defaults.file(BLS_SETTING), BLS_SETTING)
    return None


UNSUPPORTED = (
    ("systemd-boot", _systemd_boot,
     "To use GRUB, have the firmware start it (efibootmgr), reboot, and run the module again."),
    ("GRUB with Boot Loader Specification entries", _boot_loader_specification,
     "Where grub-mkconfig reads /etc/default/grub.d, set %s=false, run update-grub, and run the module again." % BLS_SETTING),
)
