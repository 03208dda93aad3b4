# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootloaders that are recognised only to refuse them by name: C((name, sign(host) -> phrase or None)).

They are checked before the supported ones, because GRUB's files often remain after a change of the bootloader.
"""

from __future__ import annotations

import re

# Boot Loader Interface: the name of the running boot loader, UTF-16 after four bytes of attributes
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GRUB_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")


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
    if re.search(r"^\s*GRUB_ENABLE_BLSCFG=[\"']?true\b", host.read("/etc/default/grub", ""), re.M):
        return "/etc/default/grub has GRUB_ENABLE_BLSCFG=true"
    return None


UNSUPPORTED = (
    ("systemd-boot", _systemd_boot),
    ("GRUB with Boot Loader Specification entries", _boot_loader_specification),
)
