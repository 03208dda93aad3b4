# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of machines that are tried: a row each, with what makes such a machine of a guest that the laboratory builds."""

from __future__ import annotations

from dataclasses import dataclass

# Starts the machine by systemd-boot, as an administrator does who changes to it; GRUB stays installed.
SYSTEMD_BOOT = """
set -e
bootctl --no-variables install || bootctl install
for kernel in /lib/modules/*; do
    version=${kernel##*/}
    kernel-install add "$version" "/boot/vmlinuz-$version" "/boot/initrd.img-$version"
done
bootctl install
"""
# rEFInd starts the kernel itself, and not the GRUB that it finds as well.
REFIND = """
set -e
refind-install --yes --alldrivers
mkrlconf --force
printf 'timeout 1\\ndefault_selection vmlinuz\\ndont_scan_dirs ESP:/EFI/debian,EFI/debian\\n' >>/boot/efi/EFI/refind/refind.conf
"""


@dataclass(frozen=True)
class Cell:
    """``recipe``: of the guest. ``prepare``: a script for it, after which it is rebooted. ``bootloader``: its name in the results of
    modules."""

    name: str
    recipe: str
    bootloader: str = "grub"
    prepare: str = ""


CELLS = (
    Cell("debian12-dracut", "debian12-dracut"),
    Cell("debian13-initramfs-tools", "debian13-initramfs-tools"),
    Cell("debian14", "debian14"),
    Cell("debian13-systemd-boot", "debian13-systemd-boot", "systemd-boot", SYSTEMD_BOOT),
    Cell("debian12-systemd-boot", "debian12-systemd-boot", "systemd-boot", SYSTEMD_BOOT),
    Cell("debian12-refind", "debian12-refind", "refind", REFIND),
)
