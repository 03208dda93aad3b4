#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# A filesystem on the empty disk, at /srv: xfs or btrfs.
set -eu
kind=$1
disk=$(readlink -f /dev/disk/by-id/virtio-lab-disk)
"mkfs.$kind" -q "$disk"
udevadm settle
echo "UUID=$(blkid -p -s UUID -o value "$disk") /srv $kind defaults 0 0" >>/etc/fstab
mount /srv
sync
