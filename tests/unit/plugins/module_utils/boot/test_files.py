# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether /boot is what the next boot reads, on recorded machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import files
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

ROOT = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
BTRFS = "22 1 0:25 /@ / rw,relatime shared:1 - btrfs /dev/vda1 rw,subvolid=256,subvol=/@\n"
BOOT = "30 22 254:2 / /boot rw shared:9 - ext4 /dev/vda2 rw\n"
OTHER = "30 22 254:3 / /boot rw shared:9 - ext4 /dev/vda3 rw\n"
AUTOFS = "29 22 0:40 / /boot rw - autofs systemd-1 rw,fd=50\n"
FSTAB = "UUID=1 / ext4 defaults 0 1\n%s\n"
NOAUTO = FSTAB % "UUID=2 /boot ext4 noauto 0 2"
DIRECT = "BOOT_IMAGE=/boot/vmlinuz-6.1.0-50-amd64 root=UUID=1 ro"
SEPARATE = "BOOT_IMAGE=/vmlinuz-6.1.0-50-amd64 root=UUID=1 ro"
DISK = "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.1.0-50-amd64 root=UUID=1 ro"


@pytest.fixture
def machine(host: Host, plant: Plant) -> Plant:
    plant({"/boot/vmlinuz-6.1.0-50-amd64": "", "/dev/vda2": "", "/dev/vda3": "", "/dev/disk/by-uuid/.keep": ""})
    os.symlink("../../vda2", host.path("/dev/disk/by-uuid/2"))

    def _machine(found: dict[str, str]) -> None:
        plant({"/proc/self/mountinfo": found["mounts"], "/etc/fstab": found["fstab"], "/proc/cmdline": found["cmdline"] + "\n"})

    return _machine


@pytest.mark.parametrize(
    ("mounts", "fstab", "cmdline"),
    [
        ("", NOAUTO, DIRECT),  # unknown
        (ROOT, FSTAB % "", DIRECT),
        (ROOT, FSTAB % "#UUID=2 /boot ext4 noauto 0 2", DIRECT),
        (ROOT, FSTAB % "", "root=/dev/vda1"),  # not loaded by GRUB
        (ROOT, FSTAB % "", "BOOT_IMAGE=/vmlinuz root=/dev/vda1"),  # a link, as old systems have it
        (ROOT + BOOT, NOAUTO, SEPARATE),
        (ROOT + BOOT, NOAUTO, DISK),
        (ROOT + AUTOFS + BOOT, NOAUTO, SEPARATE),
        (ROOT + BOOT, FSTAB % "", SEPARATE),
        (ROOT + BOOT, FSTAB % "UUID=9 /boot ext4 defaults 0 2", SEPARATE),  # not there: nothing to compare
        (BTRFS, FSTAB % "", "BOOT_IMAGE=/@/boot/vmlinuz-6.1.0-50-amd64 root=UUID=1 rootflags=subvol=@"),
        (BTRFS + "30 22 0:25 /@boot /boot rw - btrfs /dev/vda1 rw\n", FSTAB % "UUID=2 /boot btrfs subvol=@boot", SEPARATE),
    ],
)
def test_the_files_that_the_next_boot_reads(machine: Plant, host: Host, mounts: str, fstab: str, cmdline: str) -> None:
    machine({"mounts": mounts, "fstab": fstab, "cmdline": cmdline})
    files.check(host)


@pytest.mark.parametrize(
    ("mounts", "fstab", "cmdline", "code", "says"),
    [
        (ROOT, NOAUTO, SEPARATE, "boot_not_mounted", "UUID=2 is to be mounted at /boot (/etc/fstab)"),
        (ROOT + AUTOFS, NOAUTO, SEPARATE, "boot_not_mounted", "UUID=2 is to be mounted"),
        (ROOT, FSTAB % "/dev/vda2 /boot/ ext4 defaults 0 2", DIRECT, "boot_not_mounted", "/dev/vda2 is to be mounted"),
        (ROOT, FSTAB % "", SEPARATE, "boot_not_mounted", "loaded /vmlinuz-6.1.0-50-amd64 from a filesystem of its own"),
        (ROOT, FSTAB % "", DISK, "boot_not_mounted", "loaded /vmlinuz-6.1.0-50-amd64 from a filesystem of its own"),
        (ROOT + OTHER, NOAUTO, SEPARATE, "boot_elsewhere", "/dev/vda3 is mounted at /boot, and /etc/fstab says UUID=2"),
        (ROOT + BOOT, NOAUTO, DIRECT, "boot_elsewhere", "loaded /boot/vmlinuz-6.1.0-50-amd64 from the root filesystem"),
    ],
)
def test_files_that_the_next_boot_does_not_read(
    machine: Plant, host: Host, mounts: str, fstab: str, cmdline: str, code: str, says: str
) -> None:
    machine({"mounts": mounts, "fstab": fstab, "cmdline": cmdline})
    with pytest.raises(Refused) as refused:
        files.check(host)
    assert refused.value.code == code and says in refused.value.message and refused.value.remedy


def test_a_mount_unit_and_a_boot_in_boot(machine: Plant, host: Host, plant: Plant) -> None:
    machine({"mounts": ROOT + BOOT, "fstab": NOAUTO, "cmdline": DIRECT})
    os.symlink(".", host.path("/boot/boot"))  # so that /boot/vmlinuz is on the filesystem for /boot as well
    files.check(host)
    machine({"mounts": ROOT, "fstab": "", "cmdline": DIRECT})
    plant({files.UNIT: "[Mount]\nWhat=/dev/vda2\nWhere=/boot\n"})
    with pytest.raises(Refused) as refused:
        files.check(host)
    assert refused.value.code == "boot_not_mounted" and files.UNIT in refused.value.message


OVERLAY = """\
22 1 0:30 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay,workdir=/w
24 22 254:1 / /media/root-ro ro - ext4 /dev/vda1 ro
25 22 0:31 / /media/root-rw rw - tmpfs tmpfs-root rw
"""


def test_files_that_are_in_memory_only(host: Host, plant: Plant) -> None:
    plant({"/proc/self/mountinfo": OVERLAY, "/boot/grub/grub.cfg": "new", "/boot/initrd.img-1": "old"})
    paths = ["/boot/grub/grub.cfg", "/boot/initrd.img-1"]
    with pytest.raises(Refused):
        files.check_kept(host, paths)  # where the overlay has them is not to be seen
    plant({"/media/root-rw/overlay/etc/motd": ""})
    files.check_kept(host, paths)  # as on the disk
    plant({"/media/root-rw/overlay/boot/grub/grub.cfg": "new"})
    with pytest.raises(Refused) as refused:
        files.check_kept(host, paths)
    assert refused.value.code == "root_is_overlay" and "/boot/grub/grub.cfg" in refused.value.message
    plant({"/proc/self/mountinfo": OVERLAY + BOOT})
    files.check_kept(host, paths)
