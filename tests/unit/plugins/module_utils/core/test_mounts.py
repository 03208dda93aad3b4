# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a machine's files is in memory only, or cannot be changed; and what a changed file keeps."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import ACL, Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._core.mounts import memory_holding, mounts, writable_boot

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

DISK = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
RUN = "23 22 0:24 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=98744k\n"
BOOT = "30 22 254:2 / /boot rw shared:9 - ext4 /dev/vda2 rw\n"
TMPFS = "22 1 0:30 / / rw - tmpfs tmpfs rw\n"
OVERLAYROOT = """\
22 1 0:30 / / rw,relatime shared:1 - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay,workdir=/w
24 22 254:1 / /media/root-ro ro,relatime shared:2 - ext4 /dev/vda1 ro
25 22 0:31 / /media/root-rw rw shared:3 - tmpfs tmpfs-root rw
"""
ON_DISK = OVERLAYROOT.replace("0:31 / /media/root-rw rw shared:3 - tmpfs tmpfs-root rw", "254:3 / /media/root-rw rw - ext4 /dev/vda3 rw")
DRACUT = "22 1 0:30 / / rw - overlay LiveOS_rootfs rw,lowerdir=/run/rootfsbase,upperdir=/run/overlayfs,workdir=/run/ovlwork\n" + RUN
UNSEEN = "22 1 0:30 / / rw - overlay overlay rw,lowerdir=/cow/l,upperdir=/cow/upper,workdir=/cow/work\n"
READ_ONLY = "22 1 0:30 / / ro - overlay overlay ro,lowerdir=/a:/b\n"


@pytest.mark.parametrize(
    ("mountinfo", "cmdline", "path", "lost"),
    [
        ("", "", "/etc/fstab", False),
        (DISK + RUN, "", "/etc/fstab", False),
        (DISK + RUN, "", "/run/x", False),  # expected to go
        (TMPFS, "", "/etc/fstab", True),
        (TMPFS, "", "/runner", True),
        (OVERLAYROOT, "", "/etc/fstab", True),
        (OVERLAYROOT + BOOT, "", "/boot/grub/grub.cfg", False),
        (OVERLAYROOT + BOOT, "", "/bootstrap", True),
        (ON_DISK, "overlayroot=/dev/vda3", "/etc/fstab", False),
        (DRACUT, "", "/etc/fstab", True),
        (UNSEEN, "boot=casper quiet", "/etc/fstab", True),
        (UNSEEN, "systemd.volatile=overlay", "/etc/fstab", True),
        (UNSEEN, "root=/dev/sda1 overlayroot=disabled", "/etc/fstab", False),  # a container
        (READ_ONLY, "boot=live", "/etc/fstab", False),  # fails by itself
        (DISK + "31 22 0:40 / /etc rw - overlay o rw,lowerdir=/etc,upperdir=/run/etc,workdir=/run/w\n" + RUN, "", "/etc/fstab", True),
    ],
)
def test_what_is_lost_at_the_next_boot(host: Host, plant: Plant, mountinfo: str, cmdline: str, path: str, lost: bool) -> None:
    plant({"/proc/self/mountinfo": mountinfo, "/proc/cmdline": cmdline + "\n"})
    assert (memory_holding(host, path) is not None) is lost


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_change_that_would_be_lost_is_refused(host: Host, plant: Plant, check_mode: bool) -> None:
    plant({"/proc/self/mountinfo": OVERLAYROOT, "/proc/cmdline": "ro overlayroot=tmpfs:swap=1 quiet\n", "/etc/fstab": "old\n"})
    with Transaction(host, check_mode) as tx:
        assert not tx.write("/etc/fstab", "old\n")  # nothing to change, nothing to refuse
    with pytest.raises(Refused) as refused, Transaction(host, check_mode) as tx:
        tx.write("/etc/fstab", "new\n")
    assert refused.value.code == "root_is_overlay" and "without overlayroot=tmpfs:swap=1" in refused.value.remedy
    assert host.read("/etc/fstab") == "old\n" and not tx.changed


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(("locked", "remedy"), [("/srv/fstab", "Run: chattr -i /srv/fstab."), ("/srv", "Run: chattr -i /srv.")])
def test_a_file_with_an_attribute_that_keeps_it(
    host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch, check_mode: bool, locked: str, remedy: str
) -> None:
    """chattr +i /etc/fstab; also where the name is a link, and for the directory."""
    plant({"/srv/fstab": "old\n", "/etc/hosts": ""})
    os.symlink("../srv/fstab", host.path("/etc/fstab"))
    assert host.locked("/etc/fstab") is None and host.locked("/missing") is None
    monkeypatch.setattr(Host, "locked", lambda self, path: "i" if path == locked else None)
    with Transaction(host, check_mode) as tx:
        assert not tx.write("/etc/fstab", "old\n") and tx.write("/etc/hosts", "x")
    with pytest.raises(Refused) as refused, Transaction(host, check_mode) as tx:
        tx.write("/etc/fstab", "new\n")
    assert refused.value.code == "not_writable" and refused.value.remedy.startswith(remedy)
    assert host.read("/etc/fstab") == "old\n" and not tx.changed


def test_a_list_of_access_rights_is_kept(host: Host, plant: Plant) -> None:
    plant({"/etc/fstab": "old\n"})
    entries = ((1, 6, -1), (2, 4, 1000), (4, 0, -1), (16, 4, -1), (32, 0, -1))  # user::rw user:1000:r group:: mask::r other::
    rights = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(host.path("/etc/fstab"), ACL, rights)
    except OSError:
        pytest.skip("the filesystem has no access control lists")
    with Transaction(host) as tx:
        assert tx.write("/etc/fstab", "new\n") and tx.write("/etc/other", "x")
    assert os.getxattr(host.path("/etc/fstab"), ACL) == rights and host.read("/etc/fstab") == "new\n"


def test_a_live_system(host: Host, plant: Plant) -> None:
    plant({"/proc/cmdline": "boot=live components quiet\n"})
    assert "install it to a disk" in writable_boot(host)


def test_names_with_blanks(host: Host, plant: Plant) -> None:
    plant({"/proc/self/mountinfo": "22 1 8:1 / /srv/a\\040b rw - ext4 /dev/x\\040y rw\nnonsense\n"})
    (mount,) = mounts(host)
    assert (mount.place, mount.device) == ("/srv/a b", "/dev/x y")
