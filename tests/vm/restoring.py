# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine whose images are captured on its host and resumed later, and what its tests do with it again and again.

Used by the tests that restore images. Its NVDIMM is a file on the host, which is where images are captured and staged while
it is off. One machine and one test at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import evidence, ram_root, workload
from tests.vm.lab import Machine
from tests.vm.store import Store


@dataclass
class Case:
    """The machine, its store, and what one test leaves to the next."""

    machine: Machine
    store: Store
    folder: Path
    nvdimm: Path
    tree: Path


def hibernate(machine: Machine) -> None:
    """Send the machine to sleep, and wait until it is off with an image on its NVDIMM."""
    machine.ssh("systemd-run -q --on-active=1s systemctl hibernate")
    machine.wait_off()
    assert evidence.signature(machine) == evidence.IMAGE, "no image was written"


def wake(machine: Machine) -> None:
    machine.power_on()
    machine.wait_up()


def capture(case: Case, event: str) -> dict[str, Any]:
    """Store what the NVDIMM of the machine, which is off, holds, with the state of the machine's filesystems."""
    with ram_root.raw_disk(case.machine) as disk:
        return case.store.done(
            "put", case.nvdimm, "--machine", case.machine.name, "--kind", "hibernation", "--event", event, "--evidence-disk", disk
        )  # fmt: skip


def several_images(case: Case, *events: str) -> tuple[dict[str, evidence.Memory], dict[str, str]]:
    """Boot the machine, which is off, and capture an image for each event, all of one boot and of one disk; then it is off.

    Returns what was in its memory, and the ids.
    """
    machine = case.machine
    disks = {ram_root.disk_digest(machine)}
    wake(machine)
    mounts = [line.split() for line in machine.ssh("cat /proc/mounts").splitlines()]
    assert [one[2] for one in mounts if one[1] == "/"] == ["overlay"], mounts
    assert all("ro" in one[3].split(",") for one in mounts if one[2] == "ext4"), mounts
    memories: dict[str, evidence.Memory] = {}
    images: dict[str, str] = {}
    for event in events:
        if memories:
            wake(machine)
        memories[event] = another_memory(machine)
        machine.ssh(f"echo {event} >/root/event")
        hibernate(machine)
        disks.add(ram_root.disk_digest(machine))
        images[event] = capture(case, event)["id"]
    assert len(disks) == 1, "the disk is not the same for all images"
    assert len({memory.boot_id for memory in memories.values()}) == 1, "an image was lost"
    return memories, images


def is_resumed(case: Case, event: str, memory: evidence.Memory) -> None:
    """Switch the machine on; it must go on with the memory and the files that it had then."""
    wake(case.machine)
    evidence.same_memory(memory, case.machine, power_was_off=True)
    assert case.machine.ssh("cat /root/event") == f"{event}\n"
    assert evidence.signature(case.machine) == evidence.PLAIN, "the image can be resumed a second time"


def another_memory(machine: Machine) -> evidence.Memory:
    """New state in the memory of the machine, in place of what is there."""
    machine.ssh(f"systemctl stop workload; rm -f {workload.SOCKET}", check=False)
    return evidence.remember(machine)


def resumes_the_first(case: Case, compression: str) -> None:
    """Of two images, compressed in that way, that the machine, which is off, makes; then it is on, with the first's memory."""
    store = case.store
    memories, images = several_images(case, compression, "later")
    assert store.done("inspect", images[compression], "--check")["compression"] == compression
    store.done("disarm", case.nvdimm)
    store.done("stage", images[compression], case.nvdimm)
    with ram_root.raw_disk(case.machine) as disk:
        store.done("arm", case.nvdimm, "--evidence-disk", disk, "--root", case.tree)
    is_resumed(case, compression, memories[compression])
