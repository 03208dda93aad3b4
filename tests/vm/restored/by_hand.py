# SPDX-License-Identifier: GPL-3.0-or-later
"""More images of a store that are resumed than ``make test`` has time for (``make vm-test-restored``), in this order, on one machine: the
second of three, with all that the modules say and refuse on the way; one that the kernel compressed; two side by side in slots."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm import evidence, play, ram_root
from tests.vm.conftest import MEMORY, off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.powercycle import PAGE
from tests.vm.restored import slots
from tests.vm.restoring import (
    Case,
    boots_cold,
    brings_about,
    initramfs_of,
    is_captured_from_rescue,
    is_resumed,
    looked_at,
    refusals,
    resumes_the_first,
    several_images,
    state_of,
    wake,
)
from tests.vm.store import Store, tree_of


@pytest.fixture(scope="module")
def case(lab: Lab, configured: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The machine is off, and has a root filesystem that only lives in memory. ``folder`` has as ``larger`` what it is with more memory."""
    folder = tmp_path_factory.mktemp("restored")
    with switched_on(lab.copy(configured, "restored")) as machine:
        made = Case(machine, Store(folder), folder, machine.folder / "nvdimm.img", tree_of(machine, folder / "tree"))
        (folder / "initramfs").write_bytes(initramfs_of(machine))
        off(machine)
        machine.settings = replace(machine.settings, memory=MEMORY + 256)
        wake(machine)
        tree_of(machine, folder / "larger")
        ram_root.adopt(machine)
        off(machine)
        yield made


def test_the_second_of_three_images_is_resumed(lab: Lab, case: Case) -> None:
    """With its memory and its files, not the third's. What has changed in the copy, or in the store, is found before. Staging
    and arming end in the middle once, as when the power goes: the machine boots as if nothing stood there."""
    machine, store, nvdimm = case.machine, case.store, case.nvdimm
    machine.settings = replace(machine.settings, memory=MEMORY)
    memories, images = several_images(case, "first", "second", "third")
    is_captured_from_rescue(lab, case, images["third"])
    chosen = store.done("select", "--machine", machine.name, "--event", "second")["id"]
    assert chosen == images["second"]
    brings_about(lab, case, "verified", image=chosen)
    with flipped(largest_pack(store)):
        assert store("verify").code == 4
    assert store.done("verify", chosen)["sound"] == 1
    assert store("stage", chosen, nvdimm).code == 5, "the third image, which is armed, was written over"
    brings_about(lab, case, "disarmed", device=str(nvdimm))
    store.killed("stage pages", "stage", chosen, nvdimm)
    boots_cold(case, memories)
    brings_about(lab, case, "staged", image=chosen, device=str(nvdimm))
    with ram_root.raw_disk(machine) as disk:
        store.killed("arm recorded", "arm", nvdimm, "--machine-disk", disk, "--root", case.tree)
    boots_cold(case, memories)
    assert state_of(lab, case, chosen) == "armed"
    brings_about(lab, case, "failed", image=chosen)
    assert state_of(lab, case, chosen) == "failed"
    store.done("stage", chosen, nvdimm)
    with ram_root.raw_disk(machine) as disk:
        here = ("--machine-disk", disk, "--root")
        refused = store("arm", nvdimm, *here, case.folder / "larger")
        assert refused.code == 5 and "memory_size" in refused.error["cause"], refused
        with flipped(nvdimm, a_page_of_the_image(nvdimm)):
            changed = store("arm", nvdimm, *here, case.tree)
        assert changed.code == 4, changed
        assert evidence.signature(machine) == evidence.PLAIN
        assert refusals(case, chosen, case.tree, disk) == set()
        situation = {"root": str(case.tree), "machine_disks": [str(disk)]}
        brings_about(lab, case, "armed", device=str(nvdimm), image=chosen, **situation)
        assert looked_at(lab, case, device=str(nvdimm))["device"]["state"] == "armed"
        brings_about(lab, case, "disarmed", device=str(nvdimm))
        place = {"nvm_image_file": str(nvdimm), "nvm_machine_root": str(case.tree), "nvm_machine_disks": [str(disk)]}
        played = play.play(lab, [machine], "nvm.fastboot.restore", {**store.variables, **place, "nvm_event": "second"}).ok()
        armed = played.result("boot_image")
    assert armed["image"]["id"] == chosen and armed["image"]["state"] == "armed", armed
    is_resumed(case, "second", memories["second"])
    brings_about(lab, case, "resumed", image=chosen)
    assert state_of(lab, case, chosen) == "resumed"
    brings_about(lab, case, "absent", image=images["third"])
    assert state_of(lab, case, images["third"]) is None
    assert refusals(case, chosen, case.tree, None) >= {"already_used"}


def test_a_compressed_image_is_resumed(case: Case) -> None:
    """The same with LZO, the kernel's own choice: the first of two."""
    machine = case.machine
    if not machine.is_on():  # where this test runs alone
        machine.settings = replace(machine.settings, memory=MEMORY)
        wake(machine)
    machine.ssh("mount -o remount,rw /media && sed -i 's/ hibernate=nocompress//' /media/boot/grub/grub.cfg && mount -o remount,ro /media")
    off(machine)
    resumes_the_first(case, "lzo")


def test_two_images_side_by_side_in_slots(case: Case) -> None:
    """The older one is resumed by its resume_offset=, then the newer one, each with its own memory; neither is harmed by the other. The
    machine swaps to a disk, and its images say that nothing was swapped out."""
    machine, store, nvdimm = case.machine, case.store, case.nvdimm
    off(machine)
    slotted = slots.slotted(case)
    older, first = slotted.hibernated("older")
    slotted.booted(f"resume={slots.SWAP}")
    newer, second = slotted.hibernated("newer")
    store.done("disarm", slotted.disk)
    store.done("slots", "init", nvdimm)
    staged = [store.done("stage", version["id"], nvdimm, "--slot") for version in (first, second)]
    assert [one["swap"] for one in store.done("slots", "list", nvdimm)["slots"]] == ["unused", "unused"]
    assert "already_used" not in str(slotted.armed(staged[1]["slot"]))
    assert slotted.armed(staged[0]["slot"])["disarmed"] == [staged[1]["slot"]]
    slotted.is_resumed(staged[0], "older", older)
    off(machine)
    store.done("report", first["id"], "resumed")
    slotted.armed(staged[1]["slot"])
    slotted.is_resumed(staged[1], "newer", newer)
    store.done("report", second["id"], "resumed")
    states = [(one["slot"], one["state"], one["armed"]) for one in store.done("slots", "list", nvdimm)["slots"]]
    assert states == [(1, "used", False), (2, "armed", False)]


def a_page_of_the_image(nvdimm: Path) -> int:
    """Where a page of memory stands in the image on the NVDIMM: the last one of its first swap map page."""
    with open(nvdimm, "rb") as file:
        (first_map,) = struct.unpack_from("<Q", file.read(PAGE), PAGE - 32)
        file.seek(first_map * PAGE)
        entries = struct.unpack("<511Q", file.read(511 * 8))
    return int(entries[-1]) * PAGE


def largest_pack(store: Store) -> Path:
    return max(store.folder.glob("packs/*/*.pack"), key=lambda path: path.stat().st_size)


@contextlib.contextmanager
def flipped(path: Path, offset: int | None = None) -> Iterator[None]:
    """One bit of a file, by default in its middle, is another one meanwhile."""

    def flip() -> None:
        with open(path, "r+b") as file:  # not open in between: the file of an NVDIMM that another program has open is refused
            at = path.stat().st_size // 2 if offset is None else offset
            file.seek(at)
            value = file.read(1)[0]
            file.seek(at)
            file.write(bytes([value ^ 0x10]))

    flip()
    try:
        yield
    finally:
        flip()
