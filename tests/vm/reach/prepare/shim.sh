#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Has GRUB started by shim, as Secure Boot wants it.
set -e
grub-install --target=x86_64-efi --efi-directory=/boot/efi --no-nvram --force-extra-removable
