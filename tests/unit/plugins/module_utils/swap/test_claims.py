# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that are swap now and hold no image after a power cycle: ephemeral ones, and those that others take."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, devices, fstab, target
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.swap_machine import (
    BLKID,
    MKSWAP,
    OURS,
    SIZE,
    Machine,
    header,
)

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

FSTAB = "/dev/vda1 / ext4 defaults 0 1\n%s none swap sw 0 0\n"


def block(host: Host, plant: Plant, name: str, **files: str) -> str:
    """A block device C(name) with the attributes C(files), __ for / in their names. Returns its path."""
    numbers = {path.replace("__", "/"): text for path, text in files.items()}
    for path, text in dict({"dev": "251:0", "size": "2048", "ro": "0"}, **numbers).items():
        plant({"/sys/class/block/%s/%s" % (name, path): text + "\n"})
    plant({"/dev/" + name: header()})
    return "/dev/" + name


def below(host: Host, name: str, slave: str) -> None:
    """C(name) is a mapping on C(slave)."""
    os.makedirs(host.path("/sys/class/block/%s/slaves" % name), exist_ok=True)
    os.symlink("../../" + slave, host.path("/sys/class/block/%s/slaves/%s" % (name, slave)))


def link(host: Host, path: str, target: str) -> None:
    os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
    os.symlink(host.path(target), host.path(path))


def refusals(host: Host, path: str) -> list[Refused]:
    found = devices.block_device(host, path)
    every: list[Refused] = claims.ephemeral(host, found) + claims.claimed_by_others(host, found)
    assert all(each.message and each.remedy for each in every)
    return every


@pytest.mark.parametrize("name, why", [
    ("zram0", "ordinary memory"),
    ("ram3", "ordinary memory"),
    ("nullb0", "null_blk"),
    ("loop7", "over /srv/swap.img"),
    ("nbd0", "network"),
    ("rbd1", "network"),
    ("zd16", "ZFS"),
    ("bcache0", "bcache"),
])
def test_devices_that_hold_nothing_after_a_power_cycle(host: Host, plant: Plant, name: str, why: str) -> None:
    path = block(host, plant, name, **({"loop__backing_file": "/srv/swap.img"} if name == "loop7" else {}))
    (found,) = refusals(host, path)
    assert found.code == "device_ephemeral" and why in found.message
    mapping = block(host, plant, "dm-0", dm__name="vg-swap", dm__uuid="LVM-abc")
    below(host, "dm-0", name)
    (found,) = refusals(host, mapping)
    assert found.code == "device_ephemeral" and "%s is on %s, which" % (mapping, name) in found.message


@pytest.mark.parametrize("name", ["pmem0", "pmem0s", "vda", "sda2", "nvme0n1p3", "md127", "mmcblk0p2"])
def test_devices_that_keep_their_contents(host: Host, plant: Plant, name: str) -> None:
    assert refusals(host, block(host, plant, name)) == []
    plant({"/etc/crypttab": "# cryptswap /dev/%s /dev/urandom swap\nother /dev/sdz9 /dev/urandom swap\nbroken\n" % name})
    assert refusals(host, "/dev/" + name) == []


def test_a_partition_of_a_device_of_memory(host: Host, plant: Plant) -> None:
    path = block(host, plant, "nbd0p1", partition="1")
    assert [each.code for each in refusals(host, path)] == ["device_ephemeral"]


@pytest.mark.parametrize("model", ["Amazon EC2 NVMe Instance Storage    ", "Microsoft NVMe Direct Disk v2"])
def test_disks_of_an_instance(host: Host, plant: Plant, model: str) -> None:
    path = block(host, plant, "nvme1n1", device__model=model)
    (found,) = refusals(host, path)
    assert found.code == "device_ephemeral" and "instance is stopped" in found.message
    assert refusals(host, block(host, plant, "nvme0n1", device__model="Amazon Elastic Block Store")) == []


@pytest.mark.parametrize("name", ["azure/resource", "by-id/google-local-nvme-ssd-0", "by-id/google-local-ssd-0"])
def test_disks_of_an_instance_by_their_links(host: Host, plant: Plant, name: str) -> None:
    path = block(host, plant, "sdb")
    link(host, "/dev/disk/" + name, "/dev/sdc")
    assert refusals(host, path) == []
    os.unlink(host.path("/dev/disk/" + name))
    link(host, "/dev/disk/" + name, "/dev/sdb")
    assert "instance is stopped" in refusals(host, path)[0].message


@pytest.mark.parametrize("where, codes", [
    ("platform/host3/session1/target3:0:0/3:0:0:1/block/sdb", ["device_ephemeral"]),
    ("virtual/nvme-fabrics/ctl/nvme1/sdb", ["device_ephemeral"]),
    ("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sdb", []),
])
def test_disks_over_a_network(host: Host, plant: Plant, where: str, codes: list[str]) -> None:
    plant({"/sys/devices/%s/%s" % (where, name): text for name, text in (("dev", "8:16"), ("size", "2048"))})
    plant({"/dev/sdb": header()})
    link(host, "/sys/class/block/sdb", "/sys/devices/" + where)
    assert [each.code for each in refusals(host, "/dev/sdb")] == codes


@pytest.mark.parametrize("uuid, line, why", [
    ("CRYPT-PLAIN-cs", "cs /dev/pmem0 /dev/urandom swap,cipher=aes-xts-plain64,size=256", "line 1 (cs /dev/pmem0 /dev/urandom"),
    ("CRYPT-PLAIN-cs", "cs PARTUUID=7 /dev/random plain", "new random key"),
    ("CRYPT-PLAIN-cs", "cs /dev/pmem0 /etc/key swap", "is formatted at each boot"),
    ("CRYPT-PLAIN-cs", "cs /dev/pmem0 - tmp=ext4", "is formatted at each boot"),
    ("CRYPT-LUKS2-0f-cs", "cs /dev/pmem0 /etc/key luks,swap", "is formatted at each boot"),
    ("CRYPT-PLAIN-cs", "", "not in /etc/crypttab"),
    ("CRYPT-PLAIN-cs", "cs /dev/pmem0 /etc/key plain", None),
    ("CRYPT-LUKS2-0f-cs", "cs /dev/pmem0 none luks,discard", None),
    ("CRYPT-LUKS2-0f-cs", "", None),
])
def test_encrypted_devices(host: Host, plant: Plant, uuid: str, line: str, why: str | None) -> None:
    path = block(host, plant, "dm-0", dm__name="cs", dm__uuid=uuid)
    plant({"/etc/crypttab": line + "\n"})
    found = refusals(host, path)
    assert [each.code for each in found] == ["device_ephemeral"] * (why is not None)
    assert why is None or why in found[0].message


@pytest.mark.parametrize("spec", ["/dev/pmem0", "/dev/NVM_SWAP", "UUID=77aa", "/dev/disk/by-partlabel/x", "PARTLABEL=x"])
@pytest.mark.parametrize("options, overwrites", [("/dev/urandom swap", True), ("none luks", False), ("", False)])
def test_crypttab_takes_the_device(machine: Machine, spec: str, options: str, overwrites: bool) -> None:
    link(machine.host, "/dev/disk/by-uuid/77aa", "/dev/pmem0")
    link(machine.host, "/dev/disk/by-partlabel/x", "/dev/pmem0")
    machine.plant({"/etc/crypttab": "# none\n\ncs\t%s %s\n" % (spec, options)})
    machine.write(header())
    (found,) = refusals(machine.host, "/dev/NVM_SWAP")
    assert found.code == "device_claimed" and "/etc/crypttab, line 3 (cs %s" % spec in found.message
    assert ("overwrites it" in found.message) == overwrites


@pytest.mark.parametrize("files, place", [
    ({"/etc/systemd/zram-generator.conf": "[zram0]\nwriteback-device=/dev/pmem0\n"}, "/etc/systemd/zram-generator.conf, line 2"),
    ({"/usr/lib/systemd/zram-generator.conf": "[zram0]\nwriteback-device = /dev/NVM_SWAP\n"}, "zram-generator.conf, line 2"),
    ({"/usr/lib/systemd/zram-generator.conf": "[zram0]\nwriteback-device=/dev/pmem0\n",
      "/etc/systemd/zram-generator.conf": "[zram0]\n"}, None),
    ({"/etc/systemd/zram-generator.conf.d/a.conf": "[zram1]\n\nwriteback-device=/dev/pmem0\n"}, "a.conf, line 3"),
    ({"/etc/systemd/zram-generator.conf.d/a.conf": "[zram1]\nwriteback-device=/dev/pmem0\n",
      "/run/systemd/zram-generator.conf.d/a.conf": ""}, None),
    ({"/etc/systemd/zram-generator.conf.d/a.conf": "[zram1]\nwriteback-device=/dev/pmem0\n",
      "/etc/systemd/zram-generator.conf.d/b.conf": "[zram1]\nwriteback-device=/dev/vdb\n"}, None),
    ({"/etc/systemd/zram-generator.conf": "[zram0]\n#writeback-device=/dev/pmem0\nzram-size=ram\n"}, None),
    ({"/etc/systemd/zram-generator.conf": "[other]\nwriteback-device=/dev/pmem0\n"}, None),
])
def test_zram_takes_the_device(machine: Machine, files: dict[str, str], place: str | None) -> None:
    machine.plant(files)
    found = refusals(machine.host, "/dev/NVM_SWAP")
    assert [each.code for each in found] == ["device_claimed"] * (place is not None)
    assert place is None or place in found[0].message


@pytest.mark.parametrize("files, place", [
    ({"/etc/fstab": "# /dev/pmem0 /a ext4\n/dev/vda1 / ext4 defaults 0 1\n/dev/pmem0 /srv xfs dax,nofail 0 2\n"}, "/etc/fstab, line 3"),
    ({"/etc/fstab": "/dev/NVM_SWAP none swap sw 0 0\n/dev/pmem0\n/dev/pmem00 /a ext4 sw 0 0\n"}, None),
    ({"/etc/systemd/system/srv.mount": "[Mount]\nWhat=/dev/pmem0\nWhere=/srv\n"}, "/etc/systemd/system/srv.mount, line 2"),
])
def test_a_mount_takes_the_device(machine: Machine, files: dict[str, str], place: str | None) -> None:
    machine.plant(files)
    found = refusals(machine.host, "/dev/NVM_SWAP")
    assert [each.code for each in found] == ["device_claimed"] * (place is not None)
    assert place is None or place in found[0].message


def test_slots_of_the_store_are_contents(machine: Machine) -> None:
    """blkid does not know them, and a swap area on the device would overwrite the images in them."""
    machine.write(b"fuse-store-slots 1\n")
    machine.transcript.record(BLKID, rc=2)
    assert machine.refused() == "holds_filesystem"
    machine.write(b"\0" * SIZE)
    machine.answers(MKSWAP, "swapon -p 10 /dev/pmem0")
    assert machine.present()[0].changed


def test_nvm_swap_refuses_and_force_does_not_help(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(priority=10)
    machine.plant({"/etc/crypttab": "cs /dev/NVM_SWAP /dev/urandom swap\n"})
    for force in (False, True):
        assert machine.refused(force=force) == "device_claimed"
        assert machine.refused(force=force, check=True) == "device_claimed"
    machine.answers("swapoff /dev/pmem0")
    machine.absent()  # our swap area can be removed all the same


def test_zram_that_writes_to_the_device_now_is_a_use(machine: Machine) -> None:
    machine.plant({"/sys/class/block/zram0/backing_dev": "/dev/pmem0\n", "/sys/class/block/zram1/backing_dev": "none\n"})
    assert devices.users(machine.host, devices.block_device(machine.host, "/dev/pmem0")) == ["the backing of zram0"]
    assert machine.refused() == "device_in_use"


def test_the_line_of_a_device_with_a_random_key_stays(host: Host, plant: Plant) -> None:
    """The device of the line works, and has another UUID at each boot: a line with its UUID of today would not."""
    block(host, plant, "dm-0", dm__name="cs", dm__uuid="CRYPT-PLAIN-cs")
    link(host, "/dev/mapper/cs", "/dev/dm-0")
    text = FSTAB % "/dev/mapper/cs"
    plant({"/etc/fstab": text, "/etc/crypttab": "cs /dev/vdb /dev/urandom swap\n"})
    for check in (False, True):
        with Transaction(host, check) as transaction, pytest.raises(Refused) as caught:
            fstab.present(transaction, "/dev/mapper/cs", uuid=OURS)
        assert caught.value.code == "device_ephemeral"
    assert host.read("/etc/fstab") == text


def test_the_line_of_a_claimed_device_stays(machine: Machine) -> None:
    text = FSTAB % "/dev/mapper/cs"
    machine.plant({"/etc/fstab": text, "/etc/crypttab": "cs /dev/pmem0 /dev/urandom swap\n"})
    machine.write(header())
    with Transaction(machine.host) as transaction, pytest.raises(Refused) as caught:
        fstab.present(transaction, "/dev/NVM_SWAP")
    assert caught.value.code == "device_claimed" and machine.host.read("/etc/fstab") == text


def program(host: Host, plant: Plant, name: str) -> None:
    plant({"/usr/sbin/" + name: ""})
    os.chmod(host.path("/usr/sbin/" + name), 0o755)


@pytest.mark.parametrize(
    ("path", "text", "claimed"),
    [
        ("/var/swap", None, True),  # its default
        ("/var/swap", "#CONF_SWAPFILE=/elsewhere\nCONF_SWAPSIZE=100\n", True),
        ("/srv/swap", 'CONF_SWAPFILE="/srv/swap" # here\n', True),
        ("/var/swap", "CONF_SWAPFILE=/srv/swap\n", False),
        ("/var/swap", "CONF_SWAPSIZE=0\n", False),  # switched off
        ("/swapfile", "CONF_SWAPSIZE=100\n", False),
    ],
)
def test_a_swap_file_that_is_made_again_at_a_boot(host: Host, plant: Plant, path: str, text: str | None, claimed: bool) -> None:
    """dphys-swapfile of Raspberry Pi OS: a file of another size is deleted, and the image in it."""
    block(host, plant, "vda1")
    plant({"/proc/self/mountinfo": "25 1 251:0 / / rw - ext4 /dev/vda1 rw\n", "/etc/dphys-swapfile": text or ""})
    place = target.expected(host, path)
    place.check(host)
    program(host, plant, "dphys-swapfile")
    if not claimed:
        place.check(host)
        return
    with pytest.raises(Refused) as caught:
        place.check(host)
    assert caught.value.code == "device_claimed" and path in caught.value.message and "purge dphys-swapfile" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "path", "remedy"),
    [
        ("hibernation-setup-tool", "/swapfile", "Remove that program first (apt-get purge hibernation-setup-tool)."),  # unlinks any
        ("hibinit-agent", "/swap-hibinit", "Remove that program first (apt-get purge ec2-hibinit-agent), or give another path."),
        ("hibinit-agent", "/swapfile", ""),
    ],
)
def test_agents_of_clouds_that_make_a_swap_file_again(host: Host, plant: Plant, name: str, path: str, remedy: str) -> None:
    program(host, plant, name)
    assert [refused.remedy for refused in claims.file_claimed(host, path)] == ([remedy] if remedy else [])
