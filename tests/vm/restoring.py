# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine whose images are captured on its host and resumed later, and what its tests do with it again and again.

Its NVDIMM is a file on the host, which is where images are captured and staged while
it is off. One machine and one test at a time.
"""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import evidence, play, ram_root, workload
from tests.vm.conftest import off
from tests.vm.lab import Lab, Machine
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
    """Send the machine to sleep, and wait until it is off, with an image on its NVDIMM if it has one."""
    machine.ssh("systemd-run -q --on-active=1s systemctl hibernate")
    machine.wait_off()
    assert not machine.settings.nvdimm or evidence.signature(machine) == evidence.IMAGE, "no image was written"


def wake(machine: Machine) -> None:
    machine.power_on()
    machine.wait_up()


def initramfs_of(machine: Machine) -> bytes:
    """That of the running kernel of the machine, which is on."""
    return base64.b64decode(machine.ssh("base64 /boot/initrd.img-$(uname -r)", timeout=600))


def capture(case: Case, event: str) -> dict[str, Any]:
    """Store what the NVDIMM of the machine, which is off, holds, with the state of the machine's filesystems."""
    with ram_root.raw_disk(case.machine) as disk:
        return case.store.done(
            "put", case.nvdimm, "--machine", case.machine.name, "--kind", "hibernation", "--event", event, "--machine-disk", disk
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
        store.done("arm", case.nvdimm, "--machine-disk", disk, "--root", case.tree)
    is_resumed(case, compression, memories[compression])


def brings_about(lab: Lab, case: Case, state: str, **options: Any) -> dict[str, Any]:
    """Have ``boot_image``, on this host, bring a state about: in check mode, then in fact, then once more.

    Check mode must say that it would, and change nothing; once more must change nothing. Returns what the module answered in
    fact.
    """
    arguments = {**case.store.options, "state": state, **options}
    once = {"nvm.fastboot.boot_image": arguments, "delegate_to": "localhost"}
    before = case.store.done("list")["versions"], evidence.digest(case.machine)
    would = play.tasks(lab, case.machine, [once], "--check", become=False).ok().result("boot_image")
    assert would["changed"] and "answer" in would, would
    assert (case.store.done("list")["versions"], evidence.digest(case.machine)) == before, "check mode changed something"
    played = play.tasks(lab, case.machine, [once, once], become=False).ok()
    did, again = (task["result"] for task in played.tasks)
    assert did["changed"] and not again["changed"], (did, again)
    return dict(did)


def looked_at(lab: Lab, case: Case, **options: Any) -> dict[str, Any]:
    """What ``boot_image_info`` says, on this host."""
    task = {"nvm.fastboot.boot_image_info": {**case.store.options, **options}, "delegate_to": "localhost"}
    return play.tasks(lab, case.machine, [task], become=False).ok().result("boot_image_info")


def state_of(lab: Lab, case: Case, image: str) -> str | None:
    """What ``boot_image_info`` says has become of a version; None if it is not there."""
    images = looked_at(lab, case, machine=case.machine.name)["images"]
    return next((str(one["state"]) for one in images if one["id"] == image), None)


class WithWords(Machine):
    """The same machine, to be switched on with its own kernel and initramfs and other words on the kernel's command line. QEMU loads
    both, in place of somebody who edits the bootloader's entry."""

    def __init__(self, machine: Machine, initramfs: Path, words: str) -> None:
        super().__init__(machine.folder, machine.settings)
        self._kernel = ("-kernel", "vmlinuz", "-initrd", str(initramfs), "-append", words)

    def command(self) -> list[str]:
        return [*super().command(), *self._kernel]


class Rescue(WithWords):
    """The same machine, but so that an image on its NVDIMM stays there.

    ``noresume`` has the kernel not resume it, and ``systemd.swap=0`` keeps systemd from taking the swap area into use, which
    would take the image away.
    """

    def __init__(self, machine: Machine, initramfs: Path, words: str) -> None:
        """``words``: the kernel's command line otherwise."""
        super().__init__(machine, initramfs, f"{words} noresume systemd.swap=0")


def is_captured_from_rescue(lab: Lab, case: Case, image: str) -> None:
    """The image that is on the machine, which is off, once more, out of a rescue system; it is left to be resumed."""
    machine, before = case.machine, (evidence.digest(case.machine), ram_root.disk_digest(case.machine))
    words = f"{(case.tree / 'proc/cmdline').read_text().strip()} {ram_root.WORDS}"
    wake(Rescue(machine, case.folder / "initramfs", words))
    assert machine.ssh("cat /proc/swaps").count("\n") == 1, "a swap area is in use"
    options = {
        "state": "captured", "machine": machine.name, "event": "rescue", "source_command": read_by_ssh(machine),
        "tags": {"fs.source": "machine"},  # of a machine that mounts nothing writable
    }  # fmt: skip
    task = {"nvm.fastboot.boot_image": {**case.store.options, **options}, "delegate_to": "localhost"}
    again = play.tasks(lab, machine, [task], become=False).ok().result("boot_image")["image"]
    off(machine)
    assert case.store.done("diff", image, again["id"])["ranges"] == []
    assert case.store.done("inspect", again["id"])["state"] == "armed"
    assert (evidence.digest(machine), ram_root.disk_digest(machine)) == before, "it can't be resumed any more"


def read_by_ssh(machine: Machine) -> list[str]:
    """A command of this host that prints what is on the NVDIMM of a machine that is on."""
    ssh = shlex.join(["ssh", *machine.ssh_options(), "root@127.0.0.1", "lz4 -1 -c /dev/NVM_SWAP"])
    return ["bash", "-o", "pipefail", "-c", f"{ssh} | lz4 -dc"]


def refusals(case: Case, image: str, tree: Path, disk: Path | None) -> set[str]:
    """The codes of the failed checks of an image. Without its disk the filesystems cannot be compared."""
    options: list[str | Path] = ["--machine-disk", disk] if disk else []
    answer = case.store("preflight", image, "--root", tree, *options)
    codes = {one["code"] for one in answer.record["refusals"]}
    assert (answer.code == 5) == bool(codes), answer
    return codes


def boots_cold(case: Case, memories: dict[str, evidence.Memory]) -> None:
    """Switch the machine on, and off again; it must boot without any of the images, and find its swap area."""
    machine = case.machine
    wake(machine)
    assert evidence.boot_id(machine) not in {memory.boot_id for memory in memories.values()}, "half an image was resumed"
    assert "/dev/pmem0" in machine.ssh("cat /proc/swaps")
    assert machine.ssh("dmesg | grep -i 'EXT4-fs error'", check=False) == ""
    off(machine)
