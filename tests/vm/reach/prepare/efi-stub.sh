#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# The firmware starts the kernel itself, from copies on the EFI system partition that no hook makes again; GRUB stays installed.
set -e
version=$(uname -r)
update-initramfs -u
mkdir -p /boot/efi/EFI/debian
cp "/boot/vmlinuz-$version" /boot/efi/EFI/debian/vmlinuz.efi
cp "/boot/initrd.img-$version" /boot/efi/EFI/debian/initrd.img
line=$(sed 's/BOOT_IMAGE=[^ ]* //' /proc/cmdline)
efibootmgr --create --disk /dev/vda --part 1 --label 'Debian by stub' --loader '\EFI\debian\vmlinuz.efi' \
    --unicode "$line initrd=\\EFI\\debian\\initrd.img"
