#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# rEFInd starts the kernel itself, and not the GRUB that it finds as well.
set -e
refind-install --yes --alldrivers
mkrlconf --force
printf 'timeout 1\ndefault_selection vmlinuz\ndont_scan_dirs ESP:/EFI/debian,EFI/debian\n' >>/boot/efi/EFI/refind/refind.conf
