# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvm_swap does to a device, with the commands recorded or real."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import area, headers
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.swap_machine import (
    BLKID,
    BLKID_SWAP,
    EXT4,
    GPT,
    MKSWAP,
    MKSWAP_FORCED,
    OTHER,
    OURS,
    PAGE,
    SIZE,
    Machine,
    header,
)

# present: what is right stays


def test_what_is_right_costs_no_command(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(10)
    transaction, result = machine.present()
    assert not transaction.changed
    assert machine.transcript.calls == []
    assert result == {
        "device": "/dev/NVM_SWAP",
        "block_device": "/dev/pmem0",
        "uuid": OURS,
        "label": "NVM_SWAP",
        "size": SIZE - PAGE,
        "active": True,
        "priority": 10,
        "signature": "swap",
        "warnings": [],
    }


def test_force_does_not_format_what_is_right(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(10)
    assert not machine.present(force=True)[0].changed


def test_a_priority_of_the_kernels_choice(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(-3)
    transaction, result = machine.present(priority=-1)
    assert not transaction.changed and result["priority"] == -3


def test_a_blank_device_is_formatted_and_used(machine: Machine) -> None:
    machine.transcript.record(BLKID, rc=2)
    machine.answers(MKSWAP, "swapon -p 10 /dev/pmem0")
    transaction, result = machine.present()
    assert machine.transcript.calls == [BLKID, MKSWAP, "swapon -p 10 /dev/pmem0"]
    assert transaction.changed and "type: nothing" in transaction.diff[0]["before"]
    assert (result["signature"], result["size"], result["priority"]) == (None, SIZE - PAGE, 10)
    assert not machine.present()[0].changed


def test_udev_is_waited_for(machine: Machine) -> None:
    machine.plant({"/run/udev/control": ""})
    machine.transcript.record(BLKID, rc=2)
    machine.answers(MKSWAP, "udevadm settle --timeout=30")
    machine.present(active=False)
    assert machine.transcript.calls[-1] == "udevadm settle --timeout=30"


def test_check_mode_changes_nothing(machine: Machine) -> None:
    machine.transcript.record(BLKID, rc=2)
    before = machine.content()
    transaction, result = machine.present(check=True)
    assert transaction.changed and result["active"] and result["priority"] == 10
    assert machine.transcript.calls == [BLKID] and machine.content() == before


def test_check_mode_assumes_a_device_that_is_to_be_made(machine: Machine) -> None:
    os.unlink(machine.host.path("/dev/NVM_SWAP"))
    transaction, result = machine.present(check=True)
    assert transaction.changed and result["block_device"] is None and "does not exist" in result["warnings"][0]
    assert machine.transcript.calls == []


def test_another_name_is_changed_without_formatting(machine: Machine) -> None:
    machine.write(header(OTHER, "old"))
    machine.transcript.record(BLKID, out=BLKID_SWAP)
    machine.answers("swaplabel -U %s -L NVM_SWAP /dev/pmem0" % OURS)
    transaction, result = machine.present(active=False)
    assert transaction.changed and result["uuid"] == OURS
    assert "uuid: %s\nlabel: old" % OTHER in transaction.diff[0]["before"]


def test_an_active_area_is_taken_out_of_use_to_be_renamed(machine: Machine) -> None:
    machine.write(header(OTHER))
    machine.swaps(-2, used=1024)
    machine.transcript.record(BLKID, out=BLKID_SWAP)
    label = "swaplabel -U %s -L NVM_SWAP /dev/pmem0" % OURS
    machine.answers("swapoff /dev/pmem0", label, "swapon -p 10 /dev/pmem0")
    machine.present()
    assert machine.transcript.calls == ["swapoff /dev/pmem0", BLKID, label, "swapon -p 10 /dev/pmem0"]


def test_another_priority_only_switches(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(-2)
    machine.answers("swapoff /dev/pmem0", "swapon -p 10 /dev/pmem0")
    assert machine.present()[1]["priority"] == 10


def test_it_is_not_taken_out_of_use_where_memory_is_short(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(-2, used=4096)
    assert machine.refused() == "swap_needed"
    assert machine.refused(check=True) == "swap_needed"
    assert machine.refused(active=False) == "swap_needed"


def test_inactive_on_request(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(10)
    machine.answers("swapoff /dev/pmem0")
    _transaction, result = machine.present(active=False)
    assert (result["active"], result["priority"]) == (False, None)
    assert not machine.present(active=False)[0].changed


def test_a_failure_puts_it_in_use_again_as_it_was(machine: Machine) -> None:
    machine.write(header(OTHER))
    machine.swaps(7)
    machine.transcript.record(BLKID, out=BLKID_SWAP)
    machine.answers("swapoff /dev/pmem0", "swapon -p 7 /dev/pmem0")
    machine.transcript.record("swaplabel -U %s -L NVM_SWAP /dev/pmem0" % OURS, rc=1, err="swaplabel: failed")
    assert machine.refused() == "command_failed"
    assert machine.transcript.calls[-1] == "swapon -p 7 /dev/pmem0"


def test_a_smaller_area_is_left_and_said(machine: Machine) -> None:
    machine.write(header(size=SIZE // 2))
    machine.swaps(10)
    transaction, result = machine.present()
    assert not transaction.changed and "524288 bytes" in result["warnings"][0]


def test_what_was_made_is_read_back(machine: Machine) -> None:
    machine.transcript.record(BLKID, rc=2)
    machine.transcript.record(MKSWAP)
    assert machine.refused() == "verify_failed"


def test_swapon_is_read_back(machine: Machine) -> None:
    machine.write(header())
    machine.transcript.record(BLKID, out=BLKID_SWAP)
    machine.transcript.record("swapon -p 10 /dev/pmem0")
    assert machine.refused() == "verify_failed"


# present: what is precious stays


@pytest.mark.parametrize("page", [4096, 16384, 65536])
@pytest.mark.parametrize("magic", list(headers.SUSPEND))
def test_a_pending_image_is_never_touched(machine: Machine, magic: bytes, page: int) -> None:
    machine.write(header(magic=magic, page=page))
    for options in ({}, {"active": False}, {"uuid": OTHER}, {"check": True}):
        assert machine.refused(**options) == "image_pending"
    assert machine.transcript.calls == []


def test_force_gives_up_a_pending_image(machine: Machine) -> None:
    machine.write(header(magic=b"S1SUSPEND"))
    machine.transcript.record(BLKID, out=BLKID_SWAP.replace("swap\n", "swsuspend\n"))
    machine.answers("wipefs --all /dev/pmem0", MKSWAP_FORCED)
    _transaction, result = machine.present(active=False, force=True)
    assert result["signature"] == "swsuspend"
    assert not headers.pending_image(machine.host, "/dev/pmem0")


def test_an_image_that_appears_in_between_is_not_switched_on(machine: Machine) -> None:
    machine.write(header(OTHER))
    machine.transcript.record(BLKID, out=BLKID_SWAP)
    machine.transcript.record(
        "swaplabel -U %s -L NVM_SWAP /dev/pmem0" % OURS, effect=lambda: machine.write(header(magic=b"S1SUSPEND"))
    )
    with pytest.raises(Refused):
        machine.present()
    assert not any(call.startswith("swapon") for call in machine.transcript.calls)


@pytest.mark.parametrize(
    ("out", "rc", "named"),
    [
        (EXT4, 0, "ext4"),
        (GPT, 0, "gpt"),
        ("", 8, "several"),
        ("TYPE=crypto_LUKS\n", 0, "LUKS"),
        ("TYPE=LVM2_member\n", 0, "LVM"),
    ],
)
def test_another_content_is_refused(machine: Machine, out: str, rc: int, named: str) -> None:
    machine.transcript.record(BLKID, out=out, rc=rc)
    assert machine.refused() == "holds_filesystem"
    assert machine.transcript.calls == [BLKID]


def test_force_gives_up_another_content(machine: Machine) -> None:
    machine.transcript.record(BLKID, out=EXT4)
    machine.answers("wipefs --all /dev/pmem0", MKSWAP_FORCED)
    _transaction, result = machine.present(active=False, force=True)
    assert result["signature"] == "ext4"
    assert machine.transcript.calls == [BLKID, "wipefs --all /dev/pmem0", MKSWAP_FORCED]


@pytest.mark.parametrize("active", [True, False])
def test_a_swap_header_beside_something_else_is_refused(machine: Machine, active: bool) -> None:
    machine.write(header(OTHER))
    machine.transcript.record(BLKID, out=BLKID_SWAP + "PTTYPE=gpt\n")
    assert machine.refused(active=active) == "holds_filesystem"


@pytest.mark.parametrize(
    "content",
    [header(page=16384), header(version=2), header(last=0), header(size=SIZE * 2), header(magic=b"SWAP-SPACE")],
)
def test_a_header_that_does_not_fit_is_refused(machine: Machine, content: bytes) -> None:
    machine.write(content)
    assert machine.refused() == "header_mismatch"
    machine.transcript.record(BLKID, out=BLKID_SWAP)
    machine.answers("wipefs --all /dev/pmem0", MKSWAP_FORCED)
    assert machine.present(active=False, force=True)[0].changed


def test_an_active_area_without_a_header_is_refused(machine: Machine) -> None:
    machine.swaps(10)
    assert machine.refused(force=True) == "header_mismatch"
    assert machine.refused("absent", force=True) == "header_mismatch"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"/proc/self/mountinfo": "40 22 259:0 / /mnt/x rw - xfs /dev/pmem0 rw\n"}, "mounted at /mnt/x"),
        ({"/sys/class/block/pmem0/holders/dm-3/dev": "254:3\n"}, "held by dm-3"),
        ({"/sys/class/block/loop4/loop/backing_file": "/dev/pmem0\n"}, "the backing of loop4"),
        (
            {
                "/sys/class/block/pmem0/pmem0p1/partition": "1\n",
                "/sys/class/block/pmem0p1/dev": "259:1\n",
                "/proc/self/mountinfo": "40 22 259:1 / /srv rw - xfs /dev/pmem0p1 rw\n",
            },
            "mounted at /srv",
        ),
    ],
)
def test_a_device_in_use_is_refused_even_with_force(machine: Machine, files: dict[str, str], named: str) -> None:
    machine.plant(files)
    for force in (False, True):
        with pytest.raises(Refused) as caught:
            machine.present(force=force)
        assert caught.value.code == "device_in_use" and named in caught.value.message
    assert machine.transcript.calls == []


def test_a_device_claimed_by_the_kernel_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def busy(path: str, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_EXCL and not flags & os.O_CREAT:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", busy)
    assert machine.refused(force=True) == "device_in_use"


def test_a_header_that_changed_since_is_noticed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_change(host: Host, device: str) -> headers.Signature | None:
        signature: headers.Signature | None = headers.read_header(host, device)
        machine.write(header(OTHER))
        return signature

    monkeypatch.setattr(area, "read_header", read_and_change)
    with pytest.raises(Refused) as caught:
        machine.present()
    assert caught.value.code == "device_changed"
    assert machine.transcript.calls == []


def test_devices_that_cannot_be_one(machine: Machine) -> None:
    assert machine.refused(label="sixteen bytes it") == "label_invalid"
    assert machine.refused(label="ü" * 8) == "label_invalid"
    assert machine.refused(label="a\nb") == "label_invalid"
    assert machine.refused(priority=32768) == "priority_invalid"
    assert machine.refused(priority=-2) == "priority_invalid"
    machine.plant({"/sys/class/block/pmem0/ro": "1\n"})
    assert machine.refused() == "device_read_only"
    machine.plant({"/sys/class/block/pmem0/size": "79\n"})
    assert machine.refused() == "device_too_small"
    os.unlink(machine.host.path("/sys/class/block/pmem0/dev"))
    assert machine.refused() == "not_block_device"
    os.unlink(machine.host.path("/dev/NVM_SWAP"))
    assert machine.refused() == "device_missing"


# absent


def test_absent_erases_ten_bytes(machine: Machine) -> None:
    machine.write(header() + b"\xaa" * (SIZE - PAGE))
    before = machine.content()
    machine.swaps(10)
    machine.answers("swapoff /dev/pmem0")
    transaction, result = machine.absent()
    assert transaction.changed and result["signature"] == "swap" and not result["active"]
    assert machine.content() == before[:4086] + bytes(10) + before[4096:]
    assert not machine.absent()[0].changed


def test_absent_in_check_mode(machine: Machine) -> None:
    machine.write(header())
    machine.swaps(10)
    before = machine.content()
    assert machine.absent(check=True)[0].changed
    assert machine.content() == before and machine.transcript.calls == []


def test_absent_leaves_what_is_not_ours(machine: Machine) -> None:
    machine.write(header(OTHER))
    assert machine.refused("absent") == "not_ours"
    machine.write(header(magic=b"S1SUSPEND"))
    assert machine.refused("absent") == "image_pending"
    machine.write(header())
    machine.swaps(10, used=4096)
    assert machine.refused("absent") == "swap_needed"


def test_absent_with_force(machine: Machine) -> None:
    machine.write(header(OTHER, magic=b"S1SUSPEND", page=16384))
    assert machine.absent(force=True)[0].changed
    assert headers.read_header(machine.host, "/dev/pmem0") is None


def test_absent_leaves_a_device_in_use(machine: Machine) -> None:
    machine.write(header())
    machine.plant({"/sys/class/block/pmem0/holders/dm-3/dev": "254:3\n"})
    assert machine.refused("absent", force=True) == "device_in_use"


def test_absent_where_there_is_nothing(machine: Machine) -> None:
    machine.write(b"a filesystem")
    assert not machine.absent()[0].changed
    os.unlink(machine.host.path("/sys/class/block/pmem0/dev"))
    assert not machine.absent()[0].changed
    os.unlink(machine.host.path("/dev/NVM_SWAP"))
    assert not machine.absent()[0].changed


# with the tools themselves


@pytest.mark.skipif(
    not all(shutil.which(name) for name in ("mkswap", "swaplabel", "blkid", "wipefs")), reason="needs util-linux"
)
def test_the_real_tools_agree(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], data: str | None = None) -> tuple[int, str, str]:
        argv = [machine.host.path(word) if word.startswith("/dev/") else word for word in argv]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout, done.stderr

    machine.host = Host(run, root=machine.host.root)
    for module in (headers, area):
        monkeypatch.setattr(module, "page_size", lambda: os.sysconf("SC_PAGE_SIZE"))
    transaction, result = machine.present(active=False)
    assert transaction.changed and result["signature"] is None
    assert not machine.present(active=False)[0].changed
    machine.present(active=False, uuid=OTHER, label="")
    found = headers.read_header(machine.host, "/dev/NVM_SWAP")
    assert (found.uuid, found.label, found.size) == (OTHER, "", result["size"])
    assert headers.contents(machine.host, "/dev/pmem0") == "swap"
    machine.absent(uuid=OTHER)
    assert headers.read_header(machine.host, "/dev/pmem0") is None
    assert headers.contents(machine.host, "/dev/pmem0") is None
    machine.write(header(magic=b"S1SUSPEND"))
    assert headers.contents(machine.host, "/dev/pmem0") == "swsuspend"
    assert machine.present(active=False, force=True)[1]["signature"] == "swsuspend"
    assert not machine.present(active=False)[0].changed
