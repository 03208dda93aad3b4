#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# kernel-install makes unified kernel images. "menu": systemd-boot starts them, with a file for the command line. "firmware": the firmware
# does, without such a file. GRUB stays installed.
set -e
update-initramfs -u
echo 'layout=uki' >/etc/kernel/install.conf
if [ "$1" = menu ]; then
    sed 's/BOOT_IMAGE=[^ ]* //' /proc/cmdline >/etc/kernel/cmdline
    bootctl install
fi
for kernel in /lib/modules/*; do
    version=${kernel##*/}
    kernel-install add "$version" "/boot/vmlinuz-$version" "/boot/initrd.img-$version"
done
if [ "$1" = firmware ]; then
    efibootmgr --create --disk /dev/vda --part 1 --label 'Debian' --loader "\\EFI\\Linux\\$(cat /etc/machine-id)-$(uname -r).efi"
fi
