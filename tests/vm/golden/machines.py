# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with a golden image on its second disk, and machines that are made from it: each with disks and an identity of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from fuse_store.formats.swsusp import armed
from fuse_store.hibernation.slots.manage import Slots, create
from fuse_store.snapshot.golden import region
from fuse_store.snapshot.golden.identity import parse
from tests.vm import evidence, ram_root, snapshots
from tests.vm.conftest import off
from tests.vm.lab import Lab, Machine
from tests.vm.store import Store

MEMORY = 768
DISK = "/dev/disk/by-id/virtio-lab-disk"
FIRST = 256  # block of the header of the first slot on a device
SECONDS = 900  # for one of several machines that boot at once on a busy host


@dataclass(frozen=True)
class Seen:
    """What tells machines from each other."""

    host_name: str
    machine_id: str
    key: str
    mac: str
    random: str


def seen(machine: Machine) -> Seen:
    """As the machine says, but for the key: that is what its SSH server shows to others."""
    scan = ["ssh-keyscan", "-t", "ed25519", "-T", "60", "-p", str(machine.settings.port), "127.0.0.1"]
    scanned = subprocess.run(scan, capture_output=True, text=True, check=True)
    links = "ip -br link show | awk '$1 != \"lo\" { print $3 }'"
    told = machine.ssh(f"hostname; cat /etc/machine-id; {links}; head -c 16 /dev/urandom | od -An -tx1")
    name, machine_id, mac, random = told.splitlines()
    return Seen(name, machine_id, scanned.stdout.split()[-1], mac, random)


def with_ram_root(lab: Lab, name: str) -> Machine:
    """A machine that is on, with a disk with slots, whose root filesystem has its changes in memory, and whose kernel looks for an
    image in the first slot at each boot."""
    machine = lab.create(name, memory=MEMORY, nvdimm=0, disk=MEMORY)
    create(machine.folder / "disk2.img")
    machine.power_on()
    machine.wait_up()
    snapshots.bring(machine)
    ram_root.adopt(machine)
    numbers = machine.ssh(f"cat /sys/class/block/$(basename $(readlink -f {DISK}))/dev").strip()
    words = f"resume={numbers} resume_offset={FIRST}"
    machine.ssh(rf"sed -i '/^\s*linux\s/s|$| {words}|' /boot/grub/grub.cfg && sync && fsfreeze -f / && fsfreeze -u /")
    off(machine)
    machine.power_on()
    machine.wait_up()
    return machine


def made_golden(machine: Machine, *options: str) -> tuple[evidence.Memory, dict[str, Any]]:
    """Have a golden image made of a machine, whose network is down meanwhile, or another one with other ``options``; what was in its
    memory, and what the command said."""
    machine.ssh("rm -f /run/answers")
    memory = evidence.remember(machine)
    asked = f"{snapshots.FUSE_STORE} snapshot {shlex.join(options or ('--golden',))} --application shop --event ready {DISK}"
    machine.ssh(f"systemd-run -q --unit=golden sh -c {shlex.quote(f'{asked} >>/run/answers 2>&1; echo $? >>/run/answers')}")
    return memory, answer(machine)


def answer(machine: Machine) -> dict[str, Any]:
    """What the command has printed, once it has ended."""
    deadline = time.monotonic() + SECONDS
    machine.wait_up()
    while len(lines := machine.ssh("cat /run/answers", check=False).splitlines()) < 2:
        assert time.monotonic() < deadline, machine.ssh("journalctl -u golden", check=False)
        time.sleep(1)
        machine.wait_up()
    record: dict[str, Any] = json.loads(lines[-2])  # after warnings
    assert lines[-1] == {"created": "0", "restored": "10"}.get(record.get("result", "")), lines
    return record


def put(machine: Machine, store: Store) -> str:
    """Put the golden image of a machine, which must be off, into a store; the id of the version."""
    (one,) = store.done("put", machine.folder / "disk2.img", "--slots")["slots"]
    return str(one["id"])


def brought(machine: Machine, store: Store, version: str) -> None:
    """Have a machine's disk hold nothing but the golden image, out of the store. The machine must be off."""
    disk = machine.folder / "disk2.img"
    with open(disk, "wb") as file:
        file.truncate(MEMORY << 20)
    store.done("slots", "init", disk)
    store.done("stage", version, disk, "--slot")


def armed_slot(machine: Machine) -> None:
    """Have the next boot resume the golden image. The machine must be off."""
    with Slots(machine.folder / "disk2.img") as slots:
        (slot,) = (slot for slot in slots.table.slots if slot.kept == "golden")
        assert (slot.state, slot.header) == ("complete", FIRST), slot
        at = slot.header * slots.table.page_size
        slots.device.write_checked(at, armed(slots.device.read(at, slots.table.page_size)))


def named(machine: Machine, text: str) -> None:
    """Write an identity to a machine's device. The machine must be off."""
    region.write(machine.folder / "disk2.img", parse(text.encode()))
