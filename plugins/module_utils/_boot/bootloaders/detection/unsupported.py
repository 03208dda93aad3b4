# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootloaders that are recognised only to refuse them by name: C((find(host), remedy)), where C(find) returns
C((name, sign)) as phrases, or None.

They are checked before the supported ones, because GRUB's files often remain after a change of the bootloader.
"""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import files
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import Firmware
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import (
    GRUB_CONFIGURATIONS,
    other_configuration,
    other_loader,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.defaults import (
    Defaults,
    scripts_mention,
)

KERNELSTUB = "/etc/kernelstub/configuration"
BLS_SETTING = "GRUB_ENABLE_BLSCFG"  # without an effect where no script in /etc/grub.d asks for it, as in Debian 12 and 13


def _boot_loader_specification(host):
    """A setting that grub-mkconfig has not acted on yet: the next one replaces the entries that are there."""
    if any(re.search(r"^\s*blscfg\b", host.read(path, ""), re.M) for path in GRUB_CONFIGURATIONS):
        return None
    defaults = Defaults(host)
    if defaults.true(BLS_SETTING) and scripts_mention(host, "blscfg"):
        return "%s has %s=true" % (defaults.file(BLS_SETTING), BLS_SETTING)
    return None


def _other_grub(host):
    return next((sign for path in GRUB_CONFIGURATIONS if host.exists(path) for sign in [other_configuration(host, path)] if sign), None)


def _proxmox(host):
    return _named("copies of /boot that proxmox-boot-tool makes", files.copied_by_proxmox(host) and "%s lists where" % files.PROXMOX)


def _kernelstub(host):
    """Pop!_OS: every new kernel or initramfs has it write the entries again, with the arguments in its own configuration."""
    written = host.exists(KERNELSTUB) and host.which("kernelstub") and Firmware(host).text("LoaderInfo").startswith("systemd-boot")
    return _named("systemd-boot whose entries kernelstub writes", written and "%s is there" % KERNELSTUB)


FIRMWARE = "To use GRUB, have the firmware start it (efibootmgr --bootorder, with the number of its entry first), and reboot."
OTHER_MACHINE = "The collection cannot configure this machine; resume= is set by hand there, in %s."
NAMED = {
    "zipl": "Linux does not hibernate on s390x since 5.3. Remove the machine from the hosts of the collection.",
    "Petitboot": OTHER_MACHINE % "the configuration that Petitboot reads",
    "LILO": "Install GRUB (apt-get install grub-pc, grub-install DISK), take lilo off the machine, and reboot.",
    "Limine": "Have the firmware start GRUB, systemd-boot or rEFInd (efibootmgr lists what is installed), and reboot.",
    "Syslinux": "Install it beside its menu, in /boot/extlinux or /boot/syslinux (extlinux --install DIRECTORY). With EFI or by network, "
                "where the menu is elsewhere, have the firmware start GRUB (efibootmgr).",
    "U-Boot": "Have U-Boot start the kernel by /boot/extlinux/extlinux.conf (apt-get install u-boot-menu writes it), and reboot.",
}  # fmt: skip
# Kernels and entries that a program of the distribution copies and writes for GRUB or systemd-boot
WRITTEN = (
    (_kernelstub, OTHER_MACHINE % (KERNELSTUB + ", with kernelstub --add-options")),
    (_proxmox, OTHER_MACHINE % "/etc/kernel/cmdline (systemd-boot) or /etc/default/grub (GRUB), before proxmox-boot-tool refresh"),
)
UNSUPPORTED = (
    *((lambda host, name=name: _only(name, other_loader(host)), remedy) for name, remedy in NAMED.items()),
    (other_loader, FIRMWARE + " A virtual machine must not be given a kernel by its hypervisor (-kernel)."),
    (lambda host: _named("the GRUB of another system", _other_grub(host)),
     "Configure that system to start this one through this system's GRUB, or have the firmware start this one (efibootmgr)."),
    (lambda host: _named("a GRUB menu that was not generated since its settings were changed", _boot_loader_specification(host)),
     "Run update-grub (or grub2-mkconfig -o /boot/grub2/grub.cfg), or set %s=false, and run the module again." % BLS_SETTING),
)


def _named(name, sign):
    return (name, sign) if sign else None


def _only(name, found):
    return found if found and found[0] == name else None
