# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's bootloader, and the kernel arguments that it passes at every boot.

C(SUPPORTED) has one class per bootloader; a new bootloader takes a row there and a file. Bootloaders that are recognised
but not supported are in C(UNSUPPORTED): they are refused by name and left unchanged.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, Bootloader
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import Grub
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.unsupported import UNSUPPORTED
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

__all__ = ["SUPPORTED", "BootEntry", "Bootloader", "detect"]

SUPPORTED = (Grub,)


def detect(host):
    """The Bootloader of the machine.

    Refused C(bootloader_unsupported) if it is in UNSUPPORTED, C(bootloader_unknown) if none is recognised.
    """
    for name, evidence in UNSUPPORTED:
        sign = evidence(host)
        if sign:
            raise Refused(
                "bootloader_unsupported",
                "The machine boots with %s (%s), which is not supported." % (name, sign),
                "Supported: %s. If that file is a remnant of an earlier bootloader, remove it."
                % ", ".join(kind.title for kind in SUPPORTED),
            )
    for kind in SUPPORTED:
        bootloader = kind.find(host)
        if bootloader is not None:
            return bootloader
    raise Refused(
        "bootloader_unknown",
        "No supported bootloader found; looked for %s." % "; ".join(kind.evidence() for kind in SUPPORTED),
        "Install one of them on the machine (%s)." % ", ".join(kind.title for kind in SUPPORTED),
    )
