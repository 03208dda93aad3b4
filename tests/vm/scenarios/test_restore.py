# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of a machine that were captured into a store, and resumed out of it by the machine's own kernel. Or not.

One machine for all of it, in this order: with its ordinary root filesystem, which goes on being used, so that its image must
not be resumed any more; then with a root filesystem that only lives in memory, so that any of its images may be. Its NVDIMM
is a file on the host, which is where images are captured and staged while it is off.
"""

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
from tests.vm.restoring import (
    Case,
    brings_about,
    capture,
    hibernate,
    initramfs_of,
    is_captured_from_rescue,
    is_resumed,
    looked_at,
    read_by_ssh,
    several_images,
    state_of,
    wake,
)
from tests.vm.store import Store, tree_of


@pytest.fixture(scope="module")
def case(lab: Lab, configured: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("restore")
    with switched_on(lab.copy(configured, "restored")) as machine:
        tree = tree_of(machine, folder / "tree")
        yield Case(machine, Store(folder), folder, machine.folder / "nvdimm.img", tree)


def refusals(case: Case, image: str, tree: Path, disk: Path | None) -> set[str]:
    """The codes of the failed checks of an image. Without its disk the filesystems cannot be compared."""
    options: list[str | Path] = ["--machine-disk", disk] if disk else []
    answer = case.store("preflight", image, "--root", tree, *options)
    codes = {one["code"] for one in answer.record["refusals"]}
    assert (answer.code == 5) == bool(codes), answer
    return codes


def test_an_image_of_disks_that_were_used_since_is_refused(lab: Lab, case: Case) -> None:
    """And one of another size of memory. The machine boots as ever, and what was written since is there."""
    machine = case.machine
    before = evidence.remember(machine)
    hibernate(machine)
    image = capture(case, "ordinary")["id"]
    with ram_root.raw_disk(machine) as disk:
        assert refusals(case, image, case.tree, disk) == set()
    wake(machine)
    evidence.same_memory(before, machine, power_was_off=True)
    is_captured_again(lab, case, image)
    machine.ssh("echo precious >/root/since && sync")
    off(machine)

    case.store.done("stage", image, case.nvdimm)
    staged = evidence.digest(machine)
    with ram_root.raw_disk(machine) as disk:
        assert refusals(case, image, case.tree, disk) == {"filesystems_changed"}
        refused = case.store("arm", case.nvdimm, "--root", case.tree, "--machine-disk", disk)
    assert refused.code == 5 and "filesystems_changed" in refused.error["cause"], refused
    assert evidence.digest(machine) == staged, "bytes on the NVDIMM changed"

    machine.settings = replace(machine.settings, memory=MEMORY + 256)
    wake(machine)
    assert evidence.boot_id(machine) != before.boot_id, "the image was resumed"
    assert machine.ssh("cat /root/since") == "precious\n"
    assert machine.ssh("dmesg | grep -i 'EXT4-fs error'", check=False) == ""
    larger = tree_of(machine, case.folder / "larger")
    (case.folder / "initramfs").write_bytes(initramfs_of(machine))
    ram_root.adopt(machine)
    off(machine)
    with ram_root.raw_disk(machine) as disk:
        assert refusals(case, image, larger, disk) == {"filesystems_changed", "memory_map", "memory_size"}


def is_captured_again(lab: Lab, case: Case, image: str) -> None:
    """After its resume, out of the running machine: the same image, but for the page with the signature."""
    machine, store = case.machine, case.store
    variables = {**store.variables, "nvm_source_command": read_by_ssh(machine)}
    before, swaps = store.done("list"), machine.ssh("cat /proc/swaps")
    would = play.play(lab, [machine], "nvm.fastboot.capture", variables, "--check").ok().result("boot_image")
    assert would["changed"] and would["image"] is None, would
    assert (store.done("list"), machine.ssh("cat /proc/swaps")) == (before, swaps), "check mode changed something"
    again = play.play(lab, [machine], "nvm.fastboot.capture", variables).ok().result("boot_image")
    changes = store.done("diff", image, again["image"]["id"])["ranges"]
    assert [(one["change"], one["offset"], one["length"]) for one in changes] == [("changed", 0, PAGE)], changes
    assert store.done("inspect", again["image"]["id"])["state"] == "disarmed"
    assert "/dev/pmem0" in machine.ssh("cat /proc/swaps"), "the swap area was not put back into use"


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


def boots_cold(case: Case, memories: dict[str, evidence.Memory]) -> None:
    """Switch the machine on, and off again; it must boot without any of the images, and find its swap area."""
    machine = case.machine
    wake(machine)
    assert evidence.boot_id(machine) not in {memory.boot_id for memory in memories.values()}, "half an image was resumed"
    assert "/dev/pmem0" in machine.ssh("cat /proc/swaps")
    assert machine.ssh("dmesg | grep -i 'EXT4-fs error'", check=False) == ""
    off(machine)


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
