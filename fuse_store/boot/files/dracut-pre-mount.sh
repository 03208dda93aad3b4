#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Has the kernel resume one of the slots, before the root filesystem is checked and mounted.
# Written by 'fuse-store boot install'. dracut sources it.

PATH=/usr/lib/fuse-store/bin:$PATH /usr/lib/fuse-store/busybox sh /usr/lib/fuse-store/select.sh
