# SPDX-License-Identifier: GPL-3.0-or-later
"""A golden image: the machine that it was made of goes on with its network, and a machine that is restored from it is another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import evidence
from tests.vm.golden import machines
from tests.vm.lab import Lab, Machine
from tests.vm.store import Store

WEB07 = """
hostname = "web07"
machine_id = "0123456789abcdef0123456789abcdef"
[[interfaces]]
match = "virtio_net"
mac = "52:54:00:00:00:07"
addresses = ["10.0.2.15/24"]
"""
HOOK = '#!/bin/sh\necho "$FUSE_STORE_RESULT $(hostname) $(ip -br address show scope global | wc -l)" >>/run/hooks\n'


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    machine = machines.with_ram_root(lab, "golden")
    yield machine
    machine.destroy()


def test_a_machine_takes_its_identity(machine: Machine, tmp_path: Path) -> None:
    """Restored from an image that came to it out of a store."""
    machine.ssh("mkdir -p /etc/fuse-store/pre-snapshot.d /etc/fuse-store/post-restore.d")
    for directory in ("pre-snapshot.d", "post-restore.d"):
        machine.ssh(f"cat >/etc/fuse-store/{directory}/10-log && chmod 755 /etc/fuse-store/{directory}/10-log", stdin=HOOK)
    golden = machines.seen(machine)
    memory, made = machines.made_golden(machine)
    assert made["result"] == "created", made
    evidence.same_memory(memory, machine, power_was_off=False)
    assert machines.seen(machine).key == golden.key, "the golden machine goes on as it was"
    assert machine.ssh("cat /run/hooks").splitlines() == [" golden 1", "created golden 1"]

    machine.power_cut()
    store = Store(tmp_path)
    machines.brought(machine, store, machines.put(machine, store))
    machines.named(machine, WEB07)
    machines.armed_slot(machine)
    machine.power_on()
    machine.wait_up(machines.SECONDS)
    evidence.same_memory(memory, machine, power_was_off=True)
    web07 = machines.seen(machine)
    assert (web07.host_name, web07.machine_id, web07.mac) == ("web07", "0123456789abcdef" * 2, "52:54:00:00:00:07")
    assert web07.key != golden.key and web07.mac != golden.mac
    answer = machines.answer(machine)
    assert (answer["result"], answer["id"]) == ("restored", made["id"]), answer
    report = machine.ssh("cat /run/fuse-store/restored")
    assert all(line.endswith(" s") for line in report.splitlines()[3:] if not line.startswith("VM generation id")), report
    assert "restored web07 1" in machine.ssh("cat /run/hooks").splitlines()
    # The system that goes on has its network, although its hardware address is not that of the hardware, which was reset for the image.
    later, made = machines.made_golden(machine, "--replace")
    assert made["result"] == "created", made
    evidence.same_memory(later, machine, power_was_off=False)
    assert machine.ssh("ls -t /run/log/journal /var/log/journal 2>/dev/null").count("0123456789abcdef") >= 1


def test_without_an_identity_it_is_one_that_no_other_is(machine: Machine) -> None:
    """Also where the text is damaged: by DHCP, with the hardware's own address."""
    golden_mac = "52:54:00:12:34:56"  # QEMU's
    machine.power_cut()
    machines.named(machine, WEB07)
    with open(machine.folder / "disk2.img", "r+b") as file:
        file.seek((832 << 10) + 600)
        file.write(b"torn")
    machines.armed_slot(machine)
    machine.power_on()
    machine.wait_up(machines.SECONDS)
    found = machines.seen(machine)
    assert found.host_name == f"golden-{found.machine_id[:8]}" and found.machine_id != "0123456789abcdef" * 2
    assert found.mac == golden_mac
    machines.answer(machine)
    report = machine.ssh("cat /run/fuse-store/restored")
    assert "its identity is damaged" in report and "dynamic" in machine.ssh("ip address show scope global")
