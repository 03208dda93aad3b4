# SPDX-License-Identifier: GPL-3.0-or-later
"""More images of a store that are resumed than ``make test`` has time for (``make vm-test-restored``): one that the kernel compressed, and
two side by side in slots. What is refused, and what ends in the middle, is in scenarios/test_restore.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import ram_root
from tests.vm.conftest import off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.restored import slots
from tests.vm.restoring import Case, initramfs_of, resumes_the_first, wake
from tests.vm.store import Store, tree_of


@pytest.fixture(scope="module")
def case(lab: Lab, configured: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The machine is on, with a root filesystem that only lives in memory."""
    folder = tmp_path_factory.mktemp("restored")
    with switched_on(lab.copy(configured, "restored")) as machine:
        made = Case(machine, Store(folder), folder, machine.folder / "nvdimm.img", tree_of(machine, folder / "tree"))
        (folder / "initramfs").write_bytes(initramfs_of(machine))
        ram_root.adopt(machine)
        off(machine)
        wake(machine)
        yield made


def test_a_compressed_image_is_resumed(case: Case) -> None:
    """The same with LZO, the kernel's own choice: the first of two."""
    machine = case.machine
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
