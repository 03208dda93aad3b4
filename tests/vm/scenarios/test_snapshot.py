# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a running machine, to which it comes back by itself when the power fails.

One machine with a second disk for the image, in this order: with its ordinary root filesystem, which is writable, where whatever goes
wrong must leave the machine running; then with a root filesystem whose changes live in memory, where an image may be resumed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import evidence, ram_root
from tests.vm.conftest import off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.play import REPOSITORY

MEMORY = 768
DISK = "/dev/disk/by-id/virtio-lab-disk"
WITH_PACKAGE = "env PYTHONPATH=/opt/snapshot PYTHONDONTWRITEBYTECODE=1"
COMMAND = f"{WITH_PACKAGE} python3 -m fuse_store.cli --json snapshot"
# An application: its state is in its memory alone, and it asks for a snapshot when it is ready.
SHOP = """
import json
from dataclasses import asdict
from fuse_store.snapshot.client import snapshot
orders = 1
print(json.dumps(asdict(snapshot("shop", "ready"))), flush=True)
print(orders, flush=True)
"""
KILLED_AT = ("snapshot begin", "snapshot frozen", "snapshot filesystems frozen", "snapshot created", "snapshot written", "snapshot pages")


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("snapshots", memory=MEMORY, nvdimm=0, disk=MEMORY)) as machine:
        package = subprocess.run(
            ["tar", "-C", str(REPOSITORY), "--exclude=__pycache__", "-c", "fuse_store"], capture_output=True, check=True
        ).stdout  # fmt: skip
        machine.ssh("mkdir /opt/snapshot && tar -C /opt/snapshot -x", stdin=package)
        yield machine


def snapshot(machine: Machine, *options: str) -> tuple[int, dict[str, Any]]:
    """(exit code, what was printed) of one snapshot, or its error."""
    done = machine.ssh(f"{COMMAND} {shlex.join(options)} {DISK} 2>&1; echo $?").splitlines()
    record: dict[str, Any] = json.loads(done[0])
    return int(done[-1]), record


def test_whatever_goes_wrong_the_system_goes_on(machine: Machine) -> None:
    """Killed at every step, given up in the middle, refused: the filesystems take what is written, the boot and the swap are the same."""
    machine.ssh("fallocate -l 64M /swap && chmod 600 /swap && mkswap -q /swap && swapon -p 7 /swap")
    before = evidence.remember(machine)
    image_size = machine.ssh("cat /sys/power/image_size")

    def goes_on() -> None:
        machine.ssh("echo written >/root/file && sync && rm /root/file")
        evidence.same_memory(before, machine, power_was_off=False)

    for step in KILLED_AT:
        machine.ssh(f"FUSE_STORE_FAULT_POINT={shlex.quote(step)} {COMMAND} {DISK} || [ $? = 137 ]")
        goes_on()
        machine.ssh("grep -q ^/swap /proc/swaps || swapon -p 7 /swap")
    code, record = snapshot(machine, "--time-limit", "1")
    assert code == 1 and "given up after 1 seconds" in record["error"]["cause"], record
    goes_on()
    code, record = snapshot(machine, "--arm")
    assert code == 5 and "/" in record["error"]["cause"] and "writable" in record["error"]["cause"], record
    refused = machine.ssh(f"chmod 711 /root; setpriv --reuid nobody --clear-groups {COMMAND} {DISK} 2>&1; echo $?", check=False)
    assert refused.splitlines()[-1] == "5", refused
    code, record = snapshot(machine)
    assert (code, record["result"], record["armed"]) == (0, "created", False), record
    assert machine.ssh("awk '$1 == \"/swap\" { print $5 }' /proc/swaps") == "7\n", "the swap area is not in use as it was"
    goes_on()
    assert machine.ssh("cat /sys/power/image_size") == image_size
    machine.ssh("dmesg | grep -i -e 'EXT4-fs error' -e 'BUG:' && exit 1 || true")


def test_the_machine_comes_back_by_itself(machine: Machine) -> None:
    """At the newest snapshot, again and again, although it went on after each, twice; power cuts in between."""
    ram_root.adopt(machine)
    machine.ssh(rf"sed -i '/^\s*linux\s/s|$| resume={DISK}|' /boot/grub/grub.cfg && sync && fsfreeze -f / && fsfreeze -u /")
    off(machine)
    machine.power_on()
    machine.wait_up()
    first = evidence.remember(machine)
    code, record = snapshot(machine, "--arm")
    assert (code, record.get("armed")) == (0, True), record
    machine.ssh("echo first >/run/marker")
    evidence.remember(machine)
    code, record = snapshot(machine)
    assert code == 5 and "--replace" in record["error"]["remedy"], record

    second = evidence.remember(machine)
    asked = f"{COMMAND} --rearm --replace {DISK}"
    machine.ssh(f"systemd-run -q --unit=asks sh -c {shlex.quote(f'{asked} >>/run/answers; echo $? >>/run/answers')}")
    answers = answered(machine, 1)
    assert answers[0]["result"] == "created" and answers[1] == 0, answers
    assert first.boot_id == second.boot_id
    machine.ssh("echo lost >/run/marker; echo lost >/root/lost")
    for _cut in range(2):
        machine.power_cut()
        machine.power_on()
        machine.wait_up()
        evidence.same_memory(second, machine, power_was_off=True)
        answers = answered(machine, 1)
        assert answers[0]["result"] == "restored" and answers[0]["armed"] and answers[1] == 10, answers
        machine.ssh("echo lost >/run/marker; test ! -e /root/lost")


def answered(machine: Machine, count: int) -> list[Any]:
    """What the command has printed, and its exit codes, when there are so many."""
    deadline = time.monotonic() + 120
    while len(lines := machine.ssh("cat /run/answers", check=False).splitlines()) < 2 * count:
        assert time.monotonic() < deadline, machine.ssh("journalctl -u asks", check=False)
        time.sleep(0.5)
    return [json.loads(line) for line in lines]


def test_an_application_asks_the_service(machine: Machine) -> None:
    """A program of a user without rights asks by the function of its language, goes on, and is told when it was restored; another
    user is refused by name. The units are those of the guide."""
    machine.ssh("useradd shop; useradd other; mkdir -p /etc/fuse-store /opt/fuse-store/bin")
    guide = (REPOSITORY / "docs/snapshots.md").read_text()
    units = dict(re.findall(r"`(/etc/[^`]+)`(?:, says who may)?:\n\n```(?:toml|ini)\n(.*?)```", guide, re.S))
    assert len(units) == 3, list(units)
    for path, content in units.items():
        fitting = content.replace("/dev/pmem1", DISK).replace('groups = ["operators"]', "").replace("interval = 60", "interval = 5")
        machine.ssh(f"cat >{path} && chmod 644 {path}", stdin=fitting)
    machine.ssh(f"printf '#!/bin/sh\\nexec {WITH_PACKAGE} python3 -m fuse_store.cli \"$@\"\\n' >/opt/fuse-store/bin/fuse-store")
    machine.ssh("chmod 755 /opt/fuse-store/bin/fuse-store && systemctl daemon-reload")
    machine.ssh("systemctl enable -q --now fuse-store-snapshot.socket")
    machine.ssh("cat >/run/shop.py", stdin=SHOP)
    refused = machine.ssh(f"setpriv --reuid other --clear-groups {WITH_PACKAGE} python3 /run/shop.py 2>&1", check=False)
    assert "user other may not ask for snapshots of shop" in refused, refused

    before = evidence.remember(machine)
    machine.ssh(f"systemd-run -q --unit=shop -p User=shop -p StandardOutput=append:/run/answers {WITH_PACKAGE} python3 /run/shop.py")
    asked = len(machine.ssh("cat /run/answers").splitlines()) // 2
    created = answered(machine, asked + 1)[-2:]
    assert created[0]["restored"] is False and created[0]["size"] > 0 and created[1] == 1, created
    machine.ssh("echo lost >/run/marker")
    machine.power_cut()
    machine.power_on()
    machine.wait_up()
    evidence.same_memory(before, machine, power_was_off=True)
    restored = answered(machine, asked + 1)[-2:]
    assert restored[0]["restored"] is True and restored[0]["id"] == created[0]["id"] and restored[1] == 1, restored
    assert "restored: shop ready, asked for by shop" in machine.ssh("journalctl -u fuse-store-snapshot")
