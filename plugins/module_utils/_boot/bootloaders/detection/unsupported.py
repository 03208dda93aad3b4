# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootloaders that are recognised only to refuse them by name: C((find(host), remedy)), where C(find) returns
C((name, sign)) as phrases, or None.

They are checked before the supported ones, because GRUB's files often remain after a change of the bootloader.
"""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import (
    other_configuration,
    other_loader,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.defaults import (
    Defaults,
    scripts_mention,
)

GRUB_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
BLS_SETTING = "GRUB_ENABLE_BLSCFG"  # without an effect where no script in /etc/grub.d asks for it, as in Debian 12 and 13


def _boot_loader_specification(host):
    """grubby and blscfg: the arguments are in the entries, which grub-mkconfig does not change."""
    for path in GRUB_CONFIGURATIONS:
        if re.search(r"^\s*blscfg\b", host.read(path, ""), re.M):
            return "%s reads its entries from /boot/loader/entries with blscfg" % path
    defaults = Defaults(host)
    if defaults.true(BLS_SETTING) and scripts_mention(host, "blscfg"):
        return "%s has %s=true" % (defaults.file(BLS_SETTING), BLS_SETTING)
    return None


def _other_grub(host):
    return next((sign for path in GRUB_CONFIGURATIONS if host.exists(path) for sign in [other_configuration(host, path)] if sign), None)


FIRMWARE = "To use GRUB, have the firmware start it (efibootmgr --bootorder, with the number of its entry first), and reboot."
UNSUPPORTED = (
    (other_loader, FIRMWARE + " A virtual machine must not be given a kernel by its hypervisor (-kernel)."),
    (lambda host: _named("the GRUB of another system", _other_grub(host)),
     "Configure that system to start this one through this system's GRUB, or have the firmware start this one (efibootmgr)."),
    (lambda host: _named("GRUB with Boot Loader Specification entries", _boot_loader_specification(host)),
     "Where grub-mkconfig reads /etc/default/grub.d, set %s=false, run update-grub, and run the module again." % BLS_SETTING),
)


def _named(name, sign):
    return (name, sign) if sign else None
