# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with slots on a second disk that selects one of them at each boot, and whose root filesystem is in memory."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fuse_store.formats.readable import File
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.layout import Slot, Table
from fuse_store.hibernation.slots.manage import Slots
from tests.vm import evidence, ram_root
from tests.vm.conftest import off
from tests.vm.lab import Machine
from tests.vm.play import REPOSITORY
from tests.vm.restoring import another_memory

DEVICE = "/dev/disk/by-id/virtio-lab-disk"
RESTORED = "Restarting tasks"  # what the kernel says in an image that was resumed; " ... done" may be on a line of its own
LAST = 2000  # characters of the console that a failure shows
PLACE = "/opt/selection"
WRAPPER = f"""#!/bin/sh
exec env PYTHONPATH={PLACE} PYTHONDONTWRITEBYTECODE=1 python3 -m fuse_store.cli "$@"
"""
POLICY = """
device = "{device}"
[applications.shop]
[boot]
power_loss = ["any"]
panic = ["shop/first"]
watchdog = ["shop/second"]
"""



def prepare(machine: Machine, root: Callable[[Machine], None] = ram_root.adopt) -> None:
    """Set the machine, which is on, up; afterwards it has booted by way of the selection, and ``root`` has put its root filesystem into
    memory."""
    install(machine, "--update")
    start_selecting(machine, root)


def install(machine: Machine, *options: str, device: str = DEVICE) -> None:
    """Without ``--update`` something else must build the initramfs. Another ``device`` has no slots yet."""
    package = subprocess.run(
        ["tar", "-C", str(REPOSITORY), "--exclude=__pycache__", "-c", "fuse_store"], capture_output=True, check=True
    ).stdout  # fmt: skip
    machine.ssh(f"mkdir -p {PLACE} /etc/fuse-store && tar -C {PLACE} -x", stdin=package)
    machine.ssh("cat >/usr/local/bin/fuse-store && chmod 755 /usr/local/bin/fuse-store", stdin=WRAPPER)
    machine.ssh("cat >/etc/fuse-store/snapshots.toml && chmod 644 /etc/fuse-store/snapshots.toml", stdin=POLICY.format(device=device))
    if device == DEVICE:
        machine.ssh(f"fuse-store slots init {DEVICE}")
    machine.ssh(f"fuse-store boot install {' '.join(options)}", timeout=900)


def start_selecting(machine: Machine, root: Callable[[Machine], None] = ram_root.adopt) -> None:
    """Boot by way of the selection, which has no image."""
    root(machine)
    off(machine)
    wake(machine)
    assert report(machine)["event"] == "shutdown"


def wake(machine: Machine) -> None:
    machine.power_on()
    machine.wait_up()


def cut(machine: Machine) -> None:
    """Pull the plug, and switch the machine on again."""
    power = machine.pid()
    machine.power_cut()
    wake(machine)
    assert machine.pid() != power, "the power was not off"


def panics(machine: Machine) -> None:
    """Have the kernel panic, which then resets the machine, and wait until an image was resumed."""
    restarts(machine, "echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger")


def restarts(machine: Machine, command: str, seconds: float = 600) -> None:
    """Run a command that has the machine reset, without power off, and wait until an image was resumed."""
    before, power = machine.console().count(RESTORED), machine.pid()
    machine.ssh(f"echo lost >/root/lost; systemd-run -q --on-active=1s sh -c {shlex.quote(command)}")
    deadline = time.monotonic() + seconds
    while machine.console().count(RESTORED) == before:
        assert time.monotonic() < deadline and machine.is_on(), f"no image was resumed: …{machine.console()[-LAST:]}"
        time.sleep(1)
    (machine.folder / "ssh.sock").unlink(missing_ok=True)  # of a connection to the system that is gone
    machine.wait_up()
    assert machine.pid() == power, "the power was off"


def report(machine: Machine) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(machine.ssh("fuse-store --json boot report"))
    return record


def taken(machine: Machine, event: str) -> tuple[evidence.Memory, int]:
    """Other memory, and a snapshot of it, which the machine takes for itself: what was in it, and the slot. What is written afterwards to
    /run and to /root is not in the snapshot."""
    memory = another_memory(machine)
    machine.ssh("sync; echo 3 >/proc/sys/vm/drop_caches")  # a smaller image is checked sooner
    command = f"fuse-store --json snapshot --application shop --event {shlex.quote(event)} {DEVICE} >/run/{event} 2>&1"
    machine.ssh(f"systemd-run -q --unit={event} --wait sh -c {shlex.quote(f'{command}; echo $? >>/run/{event}')}", timeout=600)
    *_lines, answer, code = machine.ssh(f"cat /run/{event}").splitlines()
    assert code == "0", (answer, code)
    machine.ssh("echo lost >/run/marker; echo lost >/root/lost")
    return memory, int(json.loads(answer)["slot"])


def is_resumed(machine: Machine, memory: evidence.Memory, slot: int, event: str, happened: str) -> dict[str, Any]:
    """The machine must have the memory of a snapshot, which another QEMU may have had since, and know it; the boot report."""
    evidence.same_memory(replace(memory, qemu=machine.pid()), machine, power_was_off=False)
    machine.ssh(f"test ! -e /root/lost; until [ \"$(tail -n 1 /run/{event})\" = 10 ]; do sleep 0.2; done", timeout=120)
    found = report(machine)
    assert (found["selected"], found["event"]) == (slot, happened), found
    return found


def change(machine: Machine, changed: Callable[[Table], Table]) -> None:
    """Have the table of slots be another one. The machine must be off."""
    with Slots(machine.folder / "disk2.img") as slots:
        slots.save(changed(slots.table))


def slots_of(machine: Machine) -> dict[int, Slot]:
    """What the table on the disk says, also while the machine is on."""
    with File(machine.folder / "disk2.img") as file:
        return {slot.number: slot for slot in tables.load(file, "disk").table.slots}


def damage(machine: Machine, slot: int) -> None:
    """Flip a bit of an image. The machine must be off."""
    one = slots_of(machine)[slot]
    with open(machine.folder / "disk2.img", "r+b") as file:
        at = (one.header + one.blocks // 2) * 4096
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def exhausted(table: Table, number: int) -> Table:
    """A slot tried as often as may be."""
    return replace(table, slots=tuple(replace(slot, attempts=2) if slot.number == number else slot for slot in table.slots))
