# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that hibernates to a disk, and whose images are resumed from slots of its NVDIMM, whichever the kernel's command line says.

Its kernel and initramfs are the distribution's; only the command line is another one at each boot.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import evidence, ram_root
from tests.vm.lab import Machine
from tests.vm.restoring import Case, WithWords, another_memory, wake
from tests.vm.store import tree_of

DISK = 1024  # MiB
SWAP = "/dev/disk/by-id/virtio-lab-disk"
# What was swapped out comes back, and the kernel need not swap anything out to make an image: a slot has no place for it.
NO_SWAPPING = (
    "echo 0 >/proc/sys/vm/swappiness; echo 1000000000000 >/sys/power/image_size; sync; echo 3 >/proc/sys/vm/drop_caches;"
    " for area in $(awk 'NR > 1 { print $1 }' /proc/swaps); do swapoff $area && swapon $area || exit 1; done"
)


@dataclass
class Slotted:
    """``words``: the kernel's command line without ``resume=``. ``nvdimm``: device numbers of the NVDIMM, which initramfs-tools takes
    for a device that holds nothing it knows (docs/slots.md)."""

    case: Case
    disk: Path
    words: str
    nvdimm: str
    tree: Path

    def booted(self, *words: str) -> Machine:
        """The machine, switched on with these words on the kernel's command line."""
        machine = self.case.machine
        wake(WithWords(machine, self.case.folder / "initramfs", " ".join([self.words, *words])))
        return machine

    def hibernated(self, event: str) -> tuple[evidence.Memory, dict[str, Any]]:
        """Have the machine, which is on, hibernate to its disk, and store that; what was in its memory, and the version."""
        machine = self.case.machine
        memory = another_memory(machine)
        machine.ssh(f"echo {event} >/root/event")
        machine.ssh(NO_SWAPPING)
        machine.ssh("systemd-run -q --on-active=1s sh -c 'echo shutdown >/sys/power/disk; echo disk >/sys/power/state'")
        machine.wait_off()
        with ram_root.raw_disk(machine) as disk:
            words = ("--machine", machine.name, "--kind", "hibernation", "--event", event, "--machine-disk", disk)
            return memory, self.case.store.done("put", self.disk, *words)

    def armed(self, slot: int) -> dict[str, Any]:
        """Have a slot armed. The machine must be off."""
        with ram_root.raw_disk(self.case.machine) as disk:
            return self.case.store.done(
                "arm", self.case.nvdimm, "--slot", str(slot), "--root", self.tree, "--machine-disk", disk
            )  # fmt: skip

    def is_resumed(self, slot: dict[str, Any], event: str, memory: evidence.Memory) -> None:
        """Switch the machine on; it must go on with the memory and the files of the image in a slot, and only once."""
        offset = slot["resume_offset"]
        assert evidence.signature(self.case.machine, offset * 4096) == evidence.IMAGE
        machine = self.booted(f"resume={self.nvdimm}", f"resume_offset={offset}")
        evidence.same_memory(memory, machine, power_was_off=True)
        assert machine.ssh("cat /root/event") == f"{event}\n"
        assert evidence.signature(machine, offset * 4096) == evidence.PLAIN, "the image can be resumed a second time"


def slotted(case: Case) -> Slotted:
    """The machine of a case, which is off, with another disk, to which it hibernates; it is on then. Its root filesystem is in memory."""
    machine = case.machine
    disk = machine.add_disk(DISK)
    told = (case.tree / "proc/cmdline").read_text().split()
    words = " ".join([word for word in told if not word.startswith("resume=")] + [ram_root.WORDS])
    made = Slotted(case, disk, words, "", case.folder / "slotted")
    made.booted("systemd.swap=0")
    numbers = f"$((0x$(stat -c %t {SWAP}))):$((0x$(stat -c %T {SWAP})))".replace("stat", "stat -L")
    machine.ssh(f"swapoff -a && mkswap {SWAP} && echo {numbers} >/sys/power/resume && swapon {SWAP}")
    made.nvdimm = machine.ssh("cat /sys/block/pmem0/dev").strip()
    tree_of(machine, made.tree)
    return made
