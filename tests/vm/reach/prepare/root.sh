#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Moves the system of a BIOS machine to the empty disk, in one of several ways of keeping a root filesystem: btrfs, xfs, luks-lvm, raid1,
# or read-only. The boot sector of the first disk stays, and reads /boot there.
set -eu
kind=$1
disk=$(readlink -f /dev/disk/by-id/virtio-lab-disk)
new=/mnt/new

partition() {
    printf '%s\n' "label: gpt" "$@" | sfdisk -q "$disk"
    udevadm settle
}

root_btrfs() {
    partition "type=linux"
    mkfs.btrfs -q "${disk}1"
    mkdir -p /mnt/top
    mount "${disk}1" /mnt/top
    btrfs subvolume create /mnt/top/@
    umount /mnt/top
    root=${disk}1 type=btrfs options=,subvol=@
}

root_xfs() {
    partition "type=linux"
    mkfs.xfs -q "${disk}1"
    root=${disk}1 type=xfs options=,relatime
}

# /boot apart; the key file of the root is in the initramfs, and swap is on LVM beside it.
root_luks_lvm() {
    partition "size=256MiB, type=linux" "type=linux"
    mkfs.ext4 -q "${disk}1"
    mkdir -p /etc/keys
    dd if=/dev/urandom of=/etc/keys/root.key bs=64 count=1 status=none
    chmod 600 /etc/keys/root.key
    cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "${disk}2" /etc/keys/root.key
    cryptsetup open --key-file /etc/keys/root.key "${disk}2" system
    pvcreate -q /dev/mapper/system
    vgcreate -q vg0 /dev/mapper/system
    lvcreate -q -y -L 128M -n swap vg0
    lvcreate -q -y -l 100%FREE -n root vg0
    mkfs.ext4 -q /dev/vg0/root
    mkswap -q /dev/vg0/swap
    echo "system UUID=$(blkid -s UUID -o value "${disk}2") /etc/keys/root.key luks,initramfs" >>/etc/crypttab
    echo 'KEYFILE_PATTERN="/etc/keys/*.key"' >>/etc/cryptsetup-initramfs/conf-hook
    echo 'UMASK=0077' >>/etc/initramfs-tools/initramfs.conf
    root=/dev/vg0/root type=ext4 options=,errors=remount-ro boot=${disk}1
    more="/dev/mapper/vg0-swap none swap sw 0 0"
}

root_raid1() {
    partition "size=1700MiB, type=raid" "size=1700MiB, type=raid"
    mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean "${disk}1" "${disk}2"
    mdadm --detail --scan >>/etc/mdadm/mdadm.conf
    mkfs.ext4 -q /dev/md0
    root=/dev/md0 type=ext4 options=,errors=remount-ro
}

root_read_only() {
    partition "type=linux"
    mkfs.ext4 -q "${disk}1"
    root=${disk}1 type=ext4 options=ro
    more="tmpfs /tmp tmpfs mode=1777 0 0
tmpfs /var/log tmpfs mode=0755 0 0"
}

boot='' more=''
"root_$(echo "$kind" | tr - _)"

mkdir -p "$new"
mount -t "$type" -o "rw${options#ro}" "$root" "$new"
if [ "$boot" ]; then
    mkdir "$new/boot"
    mount "$boot" "$new/boot"
fi
cp -ax /. "$new"
{
    echo "UUID=$(blkid -s UUID -o value "$root") / $type ${options#,} 0 1"
    [ ! "$boot" ] || echo "UUID=$(blkid -s UUID -o value "$boot") /boot ext4 defaults 0 2"
    echo "$more"
} >"$new/etc/fstab"
for each in dev proc sys run; do
    mount --rbind "/$each" "$new/$each"
done
chroot "$new" update-initramfs -u -k all
chroot "$new" update-grub
chroot "$new" grub-install /dev/vda
sync
