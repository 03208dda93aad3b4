#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Syslinux in the boot sectors of the disk and of the root filesystem, with a menu written by hand; GRUB stays installed, but is not started.
set -e
rm -rf /boot/extlinux /etc/u-boot-menu
mkdir -p /boot/extlinux
words=$(sed -e 's/BOOT_IMAGE=[^ ]* *//' /proc/cmdline)
version=$(uname -r)
cat >/boot/extlinux/extlinux.conf <<MENU
# Two ways to start
PROMPT 0
DEFAULT linux
LABEL linux
	LINUX /boot/vmlinuz-$version
	APPEND $words resume_offset=0  initrd=/boot/initrd.img-$version
LABEL rescue
	LINUX ../vmlinuz-$version
	INITRD ../initrd.img-$version
	APPEND $words single
MENU
extlinux --install /boot/extlinux
sfdisk --no-reread --no-tell-kernel --part-attrs /dev/vda 2 LegacyBIOSBootable
dd if=/usr/lib/syslinux/mbr/gptmbr.bin of=/dev/vda bs=440 count=1 conv=notrunc,fsync
