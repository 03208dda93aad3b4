# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that selects at boot, by itself, which of its snapshots it resumes.

One machine, on Debian 12 with initramfs-tools: its firmware keeps the last words of a kernel. tests/vm/boot/by_hand.py has more, which
takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.boot.selecting import (
    change,
    cut,
    damage,
    exhausted,
    is_resumed,
    panics,
    prepare,
    report,
    slots_of,
    taken,
    wake,
)
from tests.vm.conftest import switched_on
from tests.vm.evidence import Memory
from tests.vm.lab import Lab, Machine

MEMORY = 768
Taken = tuple[Memory, int]


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("selection", memory=MEMORY, nvdimm=0, disk=1024, erst=True)) as machine:
        prepare(machine)
        yield machine


@pytest.fixture(scope="module")
def snapshots(machine: Machine) -> dict[str, Taken]:
    return {event: taken(machine, event) for event in ("first", "second")}


def test_after_a_power_cut_at_the_newest(machine: Machine, snapshots: dict[str, Taken]) -> None:
    memory, slot = snapshots["second"]
    cut(machine)
    is_resumed(machine, memory, slot, "second", "power_loss")
    states = {number: (one.state, one.attempts) for number, one in slots_of(machine).items()}
    assert states[slot] == ("complete", 0), "the restored system has not said that the image came up"


def test_by_choice_at_an_older_one(machine: Machine, snapshots: dict[str, Taken]) -> None:
    memory, slot = snapshots["first"]
    machine.ssh(f"fuse-store boot select --slot {slot}; echo lost >/root/lost")
    cut(machine)
    is_resumed(machine, memory, slot, "first", "power_loss")


def test_after_a_panic_as_the_policy_says(machine: Machine, snapshots: dict[str, Taken]) -> None:
    """The last words of the kernel are in the firmware; without them it would be the newest."""
    memory, slot = snapshots["first"]
    panics(machine)
    found = is_resumed(machine, memory, slot, "first", "panic")
    assert any(name.startswith("dmesg-erst-") for name in found["records"]), found


def test_a_damaged_one_is_passed_over(machine: Machine, snapshots: dict[str, Taken]) -> None:
    (memory, slot), (_memory, newest) = snapshots["first"], snapshots["second"]
    machine.power_cut()
    damage(machine, newest)
    wake(machine)
    found = is_resumed(machine, memory, slot, "first", "power_loss")
    assert found["passed_over"] == [{"slot": newest, "reason": "its checksum is wrong"}]


def test_a_normal_boot_says_why(machine: Machine, snapshots: dict[str, Taken]) -> None:
    machine.power_cut()
    change(machine, exhausted)
    wake(machine)
    found = report(machine)
    assert found["selected"] is None and found["reason"] == "after power_loss no slot can be resumed"
    reason = "it was tried 2 times, and did not come up"
    assert found["passed_over"] == [{"slot": slot, "reason": reason} for _memory, slot in (snapshots["second"], snapshots["first"])]
    said = machine.ssh("journalctl -b -o cat -t fuse-store")  # journald takes what the kernel's log has before the colon for a name
    assert f"slot {snapshots['first'][1]} is passed over: {reason}" in said
    unit = "fuse-store-boot-report"  # perhaps not begun yet
    printed = machine.ssh(f"systemctl start {unit} && journalctl --sync && journalctl -b -o cat -u {unit}")
    assert "normal after power_loss no slot can be resumed" in printed
