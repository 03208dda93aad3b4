#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# As extlinux.sh, with the menu that Debian's u-boot-update writes. U-Boot reads the same file.
set -e
printf 'U_BOOT_PARAMETERS="ro %s"\n' "$(sed -e 's/BOOT_IMAGE=[^ ]* *//' -e 's/root=[^ ]* *//' -e 's/\bro *//' /proc/cmdline)" >>/etc/default/u-boot
u-boot-update
extlinux --install /boot/extlinux
sfdisk --no-reread --no-tell-kernel --part-attrs /dev/vda 2 LegacyBIOSBootable
dd if=/usr/lib/syslinux/mbr/gptmbr.bin of=/dev/vda bs=440 count=1 conv=notrunc,fsync
