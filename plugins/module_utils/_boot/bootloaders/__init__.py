# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's bootloader: what the kernel is told at every boot, by settings of our own.

Used by C(boot_resume) and C(nvm_reservation) to set arguments of the kernel, and by C(nvm_info) to read what the next
boot will do. One class per bootloader in C(SUPPORTED); adding one touches this table and one new file. What is
recognised but not supported stands in C(UNSUPPORTED): it is refused by name and never half configured.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import Bootloader, Entry
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import Grub
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.unsupported import UNSUPPORTED
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

__all__ = ["SUPPORTED", "Bootloader", "Entry", "detect"]

SUPPORTED = (Grub,)


def detect(host):
    """The Bootloader of the machine.

    Refused C(bootloader_unsupported) for one that is recognised, C(bootloader_unknown) where none is.
    """
    for name, evidence in UNSUPPORTED:
        found = evidence(host)
        if found:
            raise Refused(
                "bootloader_unsupported",
                "The machine is started by %s (%s), which is not supported yet." % (name, found),
                "Supported: %s. Where that file is only left over from an earlier bootloader, remove it."
                % ", ".join(kind.title for kind in SUPPORTED),
            )
    for kind in SUPPORTED:
        bootloader = kind.find(host)
        if bootloader is not None:
            return bootloader
    raise Refused(
        "bootloader_unknown",
        "No bootloader was recognised; looked for %s." % "; ".join(kind.evidence() for kind in SUPPORTED),
        "Install one of them on the machine (%s)." % ", ".join(kind.title for kind in SUPPORTED),
    )
