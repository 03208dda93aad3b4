# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's bootloader, and the kernel arguments that it passes at every boot.

C(SUPPORTED) has one class per bootloader; a new bootloader takes a row there and a file. Bootloaders that are recognised
but not supported are in C(UNSUPPORTED): they are refused by name and left unchanged.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, Bootloader
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.unsupported import (
    UNSUPPORTED,
    WRITTEN,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.efi_stub import EfiStub
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.extlinux import Extlinux
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import Grub
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.loader_entries import GrubBls
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.raspberry import Raspberry
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.refind import Refind
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot import SystemdBoot
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot.uki import Uki
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

__all__ = ["SUPPORTED", "BootEntry", "Bootloader", "detect", "detect_for_removal"]

# Those that are looked for before the unsupported ones are not mistaken for others; the files of GRUB are there on many machines that
# something else starts.
CERTAIN = (EfiStub, Uki, SystemdBoot, Refind, Extlinux, Raspberry)
BY_FILES = (GrubBls, Grub)
SUPPORTED = (*CERTAIN, *BY_FILES)


def detect(host):
    """The Bootloader of the machine.

    Refused C(bootloader_unsupported) if it is in WRITTEN or UNSUPPORTED, C(bootloader_unknown) if none is recognised.
    """
    for unsupported, kinds in ((WRITTEN, CERTAIN), (UNSUPPORTED, BY_FILES)):
        for find, remedy in unsupported:
            found = find(host)
            if found:
                raise Refused(
                    "bootloader_unsupported",
                    "The machine boots with %s (%s), which is not supported." % found,
                    "Supported: %s. %s" % (", ".join(kind.title for kind in SUPPORTED), remedy),
                )
        bootloader = _first(host, kinds)
        if bootloader is not None:
            return bootloader
    raise Refused(
        "bootloader_unknown",
        "No supported bootloader found; looked for %s." % "; ".join(kind.evidence() for kind in SUPPORTED),
        "Install one of them on the machine (%s)." % ", ".join(kind.title for kind in SUPPORTED),
    )


def _first(host, kinds):
    return next((bootloader for bootloader in (kind.find(host) for kind in kinds) if bootloader is not None), None)


def detect_for_removal(host, purpose, leftovers=()):
    """The Bootloader that settings for C(purpose) are to be removed from, whichever one starts the machine now; see also C(forget).

    None if no supported bootloader has such settings, nor one of the arguments C(leftovers) in its configuration. Refused
    C(settings_remain) if one has, and its configuration cannot be changed.
    """
    reason = "its configuration cannot be generated without them: %s is not there" % "; ".join(
        kind.evidence() for kind in SUPPORTED)
    found = []
    for kind in SUPPORTED:
        try:
            bootloader = kind.find_for_removal(host)
        except Refused as refused:
            bootloader, reason = None, refused.message.rstrip(".")
        if bootloader is not None:
            found.append(bootloader)
    names = [bootloader.name for bootloader in found]
    places = [path for kind in SUPPORTED if kind.name not in names for path in kind.remains(host, purpose, leftovers)]
    if places:
        raise Refused(
            "settings_remain",
            "Settings for '%s' are in %s, and %s. Nothing was changed." % (purpose, " and ".join(places), reason),
            "Have what is missing in place (mount /boot; install the package with the command), and run the module again. If "
            "that bootloader is no longer used, take the settings out of the named files by hand first.",
        )
    return found[0] if found else None


def forget(tx, bootloader, purpose, leftovers=()):
    """Remove the settings for C(purpose) from C(bootloader), of detect_for_removal, and from every other one that has some."""
    bootloader.forget(tx, purpose, leftovers)
    for kind in SUPPORTED:
        if kind.name != bootloader.name and kind.remains(tx.host, purpose, leftovers):
            other = kind.find_for_removal(tx.host)
            if other is not None:
                other.forget(tx, purpose, leftovers)
