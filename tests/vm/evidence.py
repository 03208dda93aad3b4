# SPDX-License-Identifier: GPL-3.0-or-later
"""What proves that a machine kept or lost its memory, seen from inside it and from its NVDIMM's file on the host.

``remember`` before, ``same_memory`` after: the boot id, a process that holds what exists nowhere
but in its memory, a file in tmpfs, and the QEMU process, which must be another one if the power was off.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import sys
import time
from dataclasses import dataclass

from tests.vm import workload
from tests.vm.lab import Lab, LabError, Machine
from tests.vm.powercycle import PAGE, SIGNATURE, wake_command

MAGIC = slice(PAGE - 10, PAGE)  # kernel/power/swap.c, struct swsusp_header: sig at the end of the first page
PLAIN = b"SWAPSPACE2"
IMAGE = SIGNATURE


@dataclass(frozen=True)
class Memory:
    """What identifies a machine's memory, and the power-on it lives in."""

    state: workload.State
    marker: str
    qemu: int | None

    @property
    def boot_id(self) -> str:
        return self.state.boot_id


def boot_id(machine: Machine) -> str:
    return machine.ssh("cat /proc/sys/kernel/random/boot_id").strip()


def remember(machine: Machine) -> Memory:
    """Leave a marker in tmpfs, and the workload in the machine's memory unless it is there already."""
    marker = secrets.token_hex(8)
    machine.ssh(f"echo {marker} >/run/marker")
    try:
        state = workload.ask(machine)
    except LabError:
        state = workload.start(machine, mebibytes=32)
    return Memory(state, marker, machine.pid())


def same_memory(before: Memory, machine: Machine, *, power_was_off: bool) -> None:
    """Assert that the machine has the memory it had, and whether it lost power in between."""
    assert boot_id(machine) == before.boot_id, "the machine booted afresh"
    marker = machine.ssh("cat /run/marker").strip()
    assert marker == before.marker, f"the marker in /run is {marker!r}, and was {before.marker!r}"
    state = workload.ask(machine)
    assert before.state.lives_on_in(state), f"the process was {before.state}, and is {state}"
    assert (machine.pid() != before.qemu) == power_was_off, "the power was not off" if power_was_off else "the power was off"


# from the host -------------------------------------------------------------------------------------------------------


def signature(machine: Machine, offset: int = 0) -> bytes:
    """The ten bytes that say whether the swap area at ``offset`` of the NVDIMM holds an image: PLAIN or IMAGE."""
    with open(machine.folder / "nvdimm.img", "rb") as file:
        file.seek(offset)
        return file.read(PAGE)[MAGIC]


def spoil(machine: Machine) -> None:
    """Take the image's signature away, as a firmware that does not keep the NVM would. The machine must be off."""
    with open(machine.folder / "nvdimm.img", "r+b") as file:
        file.seek(MAGIC.start)
        file.write(PLAIN)


def digest(machine: Machine) -> str:
    """Of every byte of the NVDIMM."""
    with open(machine.folder / "nvdimm.img", "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def moments(what: str) -> random.Random:
    """Random moments for power cuts, from ``$POWER_CUT_SEED`` or the clock; the seed is printed."""
    seed = int(os.environ.get("POWER_CUT_SEED") or time.time())
    print(f"\n{what}: POWER_CUT_SEED={seed}", flush=True)
    return random.Random(seed)


def spoiling_wake_command(lab: Lab, machine: Machine) -> list[str]:
    """A ``wake_command`` that takes the image's signature away before it switches the machine on."""
    return wake_command(lab, machine, ("tests.vm.evidence", "{lab}"))


if __name__ == "__main__":
    _machine = Lab(sys.argv[1]).machine(sys.argv[2])
    _machine.wait_off()
    spoil(_machine)
    _machine.power_on()
