# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of a machine that were captured into a store, and resumed out of it by the machine's own kernel. Or not.

One machine for all of it, in this order: with its ordinary root filesystem, which goes on being used, so that its image must
not be resumed any more; then with a root filesystem that only lives in memory, so that any of its images may be. Its NVDIMM
is a file on the host, which is where images are captured and staged while it is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.vm import evidence, play, ram_root
from tests.vm.conftest import MEMORY, off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.powercycle import PAGE
from tests.vm.restoring import (
    Case,
    boots_cold,
    capture,
    hibernate,
    initramfs_of,
    is_resumed,
    read_by_ssh,
    refusals,
    several_images,
    wake,
)
from tests.vm.store import Store, tree_of


@pytest.fixture(scope="module")
def case(lab: Lab, configured: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("restore")
    with switched_on(lab.copy(configured, "restored")) as machine:
        tree = tree_of(machine, folder / "tree")
        yield Case(machine, Store(folder), folder, machine.folder / "nvdimm.img", tree)


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


def test_the_older_of_two_images_is_resumed(lab: Lab, case: Case) -> None:
    """With its memory and its files, by the playbook. Staging ends in the middle once, as when the power goes: the machine boots as if
    nothing stood there. tests/vm/restored has three images, and all that the modules say and refuse."""
    machine, store, nvdimm = case.machine, case.store, case.nvdimm
    machine.settings = replace(machine.settings, memory=MEMORY)
    memories, images = several_images(case, "first", "second")
    chosen = store.done("select", "--machine", machine.name, "--event", "first")["id"]
    assert chosen == images["first"]
    assert store("stage", chosen, nvdimm).code == 5, "the second image, which is armed, was written over"
    store.done("disarm", nvdimm)
    store.killed("stage pages", "stage", chosen, nvdimm)
    boots_cold(case, memories)
    with ram_root.raw_disk(machine) as disk:
        place = {"nvm_image_file": str(nvdimm), "nvm_machine_root": str(case.tree), "nvm_machine_disks": [str(disk)]}
        played = play.play(lab, [machine], "nvm.fastboot.restore", {**store.variables, **place, "nvm_event": "first"}).ok()
        armed = played.result("boot_image")
    assert armed["image"]["id"] == chosen and armed["image"]["state"] == "armed", armed
    is_resumed(case, "first", memories["first"])
