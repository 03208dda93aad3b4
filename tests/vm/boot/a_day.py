# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that selects at boot, by itself, which of its snapshots it resumes, and goes on with all that ran on it.

One machine, on Debian 12 with initramfs-tools and a kernel for any hardware: its firmware keeps the last words of a kernel, it has a
watchdog, and PostgreSQL counts in memory (``make vm-test-boot``). scenarios/test_boot_selection.py has what ``make test`` has time for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    restarts,
    slots_of,
    taken,
    wake,
)
from tests.vm.boot.till import open_till, sell, sold
from tests.vm.conftest import off, switched_on
from tests.vm.evidence import Memory
from tests.vm.lab import Lab, Machine
from tests.vm.store import Store

MEMORY = 768
EVENTS = ("first", "second", "third")


@dataclass
class Taken:
    """What was in memory, the slot, and the count of the till."""

    memory: Memory
    slot: int
    count: int


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(
        lab.create("selection", "debian12-two-kernels", memory=MEMORY, nvdimm=0, disk=1280, erst=True, watchdog=True)
    ) as machine:
        machine.ssh("rm /boot/*-cloud-* && update-grub", timeout=600)  # the other kernel has drivers of watchdogs
        off(machine)
        wake(machine)
        machine.ssh("modprobe i6300esb")
        prepare(machine)
        yield machine


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("selection"))


@pytest.fixture(scope="module")
def snapshots(machine: Machine) -> dict[str, Taken]:
    """Three points of a day: the till goes on after each."""
    open_till(machine)
    made = {}
    for event in EVENTS:
        count = sell(machine)
        made[event] = Taken(*taken(machine, event), count)
        assert sold(machine) == count
    sell(machine)
    return made


def came_back(machine: Machine, at: Taken, event: str, happened: str) -> dict[str, object]:
    """The machine must be at that point, and the till must go on from there; the boot report."""
    found = is_resumed(machine, at.memory, at.slot, event, happened)
    assert sold(machine) == at.count and sell(machine) == at.count + 1
    return found


def test_after_a_power_cut_at_the_newest(machine: Machine, snapshots: dict[str, Taken]) -> None:
    newest = snapshots["third"]
    assert [at.count for at in snapshots.values()] == [1, 2, 3]
    cut(machine)
    came_back(machine, newest, "third", "power_loss")
    states = {number: (one.state, one.attempts) for number, one in slots_of(machine).items()}
    assert states[newest.slot] == ("complete", 0), "the restored system has not said that the image came up"


def test_by_choice_at_an_older_one(machine: Machine, snapshots: dict[str, Taken]) -> None:
    older = snapshots["first"]
    machine.ssh(f"fuse-store boot select --slot {older.slot}; echo lost >/root/lost")
    cut(machine)
    came_back(machine, older, "first", "power_loss")


def test_after_a_panic_as_the_policy_says(machine: Machine, snapshots: dict[str, Taken]) -> None:
    """The last words of the kernel are in the firmware; without them it would be the newest."""
    panics(machine)
    found = came_back(machine, snapshots["first"], "first", "panic")
    assert "dmesg-erst-" in str(found["records"]), found


def test_after_a_reset_by_the_watchdog_as_the_policy_says(machine: Machine, snapshots: dict[str, Taken]) -> None:
    machine.ssh("rmmod i6300esb; modprobe i6300esb heartbeat=5")
    dog = "/dev/" + machine.ssh("grep -l ^i6300ESB /sys/class/watchdog/*/identity").split("/")[-2]  # there may be another one
    restarts(machine, f"exec 3>{dog}; echo 1 >&3; sleep 3600")
    came_back(machine, snapshots["second"], "second", "watchdog")


def test_a_damaged_one_is_passed_over(machine: Machine, snapshots: dict[str, Taken], store: Store) -> None:
    """All three are in a store by then."""
    newest = snapshots["third"].slot
    machine.power_cut()
    put = store.done("put", machine.folder / "disk2.img", "--slots")
    assert len(put["slots"]) == len(EVENTS), put
    damage(machine, newest)
    wake(machine)
    found = came_back(machine, snapshots["second"], "second", "power_loss")
    assert found["passed_over"] == [{"slot": newest, "reason": "its checksum is wrong"}]


def test_it_comes_back_out_of_the_store(machine: Machine, snapshots: dict[str, Taken], store: Store) -> None:
    """In place of the damaged one."""
    newest, disk = snapshots["third"], machine.folder / "disk2.img"
    machine.power_cut()
    chosen = store.done("select", "--machine", machine.name, "--application", "shop", "--event", "third")["id"]
    store.done("slots", "remove", disk, "--slot", str(newest.slot))
    newest.slot = store.done("stage", chosen, disk, "--slot")["slot"]
    wake(machine)
    came_back(machine, newest, "third", "power_loss")


def test_a_normal_boot_says_why(machine: Machine, snapshots: dict[str, Taken]) -> None:
    """One image was tried too often; the filesystem that the others need was written to."""
    machine.ssh("mount -o remount,rw /media && echo precious >/media/root/since && mount -o remount,ro /media")
    first, second, third = (snapshots[event].slot for event in EVENTS)
    machine.power_cut()
    change(machine, lambda table: exhausted(table, third))
    wake(machine)
    found = report(machine)
    assert found["selected"] is None and found["reason"] == "after power_loss no slot can be resumed"
    uuid = machine.ssh("findmnt -n -o UUID /media").strip()
    tried, changed = "it was tried 2 times, and did not come up", f"the filesystem {uuid} has changed since the snapshot"
    reasons = [{"slot": third, "reason": tried}, {"slot": second, "reason": changed}, {"slot": first, "reason": changed}]
    assert found["passed_over"] == reasons
    assert machine.ssh("cat /root/since") == "precious\n"
    said = machine.ssh("journalctl -b -o cat -t fuse-store")  # journald takes what the kernel's log has before the colon for a name
    assert f"slot {third} is passed over: {tried}" in said and f"slot {first} is passed over: {changed}" in said
    unit = "fuse-store-boot-report"  # perhaps not begun yet
    printed = machine.ssh(f"systemctl start {unit} && journalctl --sync && journalctl -b -o cat -u {unit}")
    assert "normal after power_loss no slot can be resumed" in printed
