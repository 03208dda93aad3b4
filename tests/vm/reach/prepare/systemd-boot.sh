#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Starts the machine by systemd-boot, as an administrator does who changes to it; GRUB stays installed.
set -e
bootctl --no-variables install || bootctl install
for kernel in /lib/modules/*; do
    version=${kernel##*/}
    kernel-install add "$version" "/boot/vmlinuz-$version" "/boot/initrd.img-$version"
done
bootctl install
