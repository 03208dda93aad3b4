# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a running machine, to which it comes back by itself when the power fails.

One machine with a second disk for the image, in this order: with its ordinary root filesystem, which is writable, where whatever goes
wrong must leave the machine running; then with a root filesystem whose changes live in memory, where an image may be resumed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fuse_store.hibernation.slots.manage import listing
from tests.vm import evidence, ram_root
from tests.vm.conftest import off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.play import REPOSITORY
from tests.vm.snapshots import FUSE_STORE, WITH_PACKAGE, bring

MEMORY = 768
PAGE = 4096
DISK = "/dev/disk/by-id/virtio-lab-disk"
COMMAND = f"{FUSE_STORE} snapshot"
# An application: its state is in its memory alone, and it asks for a snapshot when it is ready.
SHOP = """
import json
from dataclasses import asdict
from fuse_store.snapshot.client import snapshot
orders = 1
print(json.dumps(asdict(snapshot("shop", "ready"))), flush=True)
print(orders, flush=True)
"""
KILLED_AT = (
    "snapshot begin", "snapshot swap out of use", "snapshot frozen", "snapshot filesystems frozen", "snapshot created",
    "snapshot written", "snapshot pages",
)  # fmt: skip
# Another one: it asks at three points, and goes on each time.
POINTS = """
import json
from dataclasses import asdict
from fuse_store.snapshot.client import snapshot
for orders, point in enumerate(("one", "two", "three")):
    print(json.dumps([point, orders, asdict(snapshot("shop", point))]), flush=True)
"""
KILLED_IN_A_SLOT_AT = ("slots reserved", "snapshot created", "snapshot header", "slots complete")
# In the machine: arms a slot, as a boot does, and prints the block of its header.
ARM = """
import sys
from dataclasses import replace
from fuse_store.formats.swsusp import armed
from fuse_store.hibernation.slots.manage import Slots
with Slots(sys.argv[1]) as slots:
    slot = slots.slot(int(sys.argv[2]))
    slots.save(slots.table.with_slot(replace(slot, state="armed", attempts=slot.attempts + 1)))
    slots.device.write_checked(slot.header * 4096, armed(slots.device.read(slot.header * 4096, 4096)))
    print(slot.header)
"""


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("snapshots", memory=MEMORY, nvdimm=0, disk=2 * MEMORY)) as machine:
        bring(machine)
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
        machine.ssh("for i in $(seq 60); do grep -q '^/swap.*7$' /proc/swaps && exit 0; sleep 0.5; done; exit 1")
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


def serve(machine: Machine) -> None:
    """Have the service answer, with the units of the guide."""
    machine.ssh("id -u shop || useradd shop; id -u other || useradd other; mkdir -p /etc/fuse-store /opt/fuse-store/bin")
    guide = (REPOSITORY / "docs/snapshots.md").read_text()
    found = re.findall(r"`(/etc/[^`]+)`(?:, says who may)?:\n\n```(?:toml|ini)\n(.*?)```", guide, re.S)
    units = {path: content for path, content in found if "-put." not in path}  # there is no store
    assert len(units) == 3, list(units)
    for path, content in units.items():
        fitting = content.replace("/dev/pmem1", DISK).replace('groups = ["operators"]', "").replace("interval = 60", "interval = 5")
        machine.ssh(f"cat >{path} && chmod 644 {path}", stdin=fitting)
    machine.ssh(f"printf '#!/bin/sh\\nexec {WITH_PACKAGE} python3 -m fuse_store.cli \"$@\"\\n' >/opt/fuse-store/bin/fuse-store")
    machine.ssh("chmod 755 /opt/fuse-store/bin/fuse-store && systemctl daemon-reload")
    machine.ssh("systemctl enable -q --now fuse-store-snapshot.socket")


def test_an_application_asks_the_service(machine: Machine) -> None:
    """A program of a user without rights asks by the function of its language, goes on, and is told when it was restored; another
    user is refused by name."""
    serve(machine)
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


def look(machine: Machine) -> tuple[str, list[tuple[int, str, str, int, str, bool]]]:
    """How the table says that the session ended, and the slots: number, event, state, attempts, image, and whether the checksum is
    right. Read from the host, where it takes a tenth of the time."""
    disk = machine.folder / "disk2.img"
    table, slots = listing(disk).table, []
    with open(disk, "rb") as file:
        for slot in table.slots:
            digest = hashlib.sha256()
            for first, count in slot.extents:
                file.seek(first * PAGE)
                digest.update(file.read(count * PAGE))
            right = digest.hexdigest() == slot.sha256
            slots.append((slot.number, slot.event, slot.state, slot.attempts, slot.image, right))
    return table.session, slots


def points(machine: Machine, restored: bool = False) -> list[Any]:
    """What the application has printed, when it has done so at each point, and has been restored if it should be."""
    deadline = time.monotonic() + 300
    while True:
        told = [json.loads(line) for line in machine.ssh("cat /run/points", check=False).splitlines()]
        if len(told) == 3 and any(answer["restored"] for _point, _orders, answer in told) == restored:
            return told
        assert time.monotonic() < deadline, machine.ssh("journalctl -u points -u fuse-store-snapshot", check=False)
        time.sleep(1)


def test_images_in_slots(machine: Machine) -> None:
    """An application asks at three points and goes on each time; killed at any step, a snapshot leaves the others whole; the machine
    goes back to the second point, and the application asks again from there on."""
    serve(machine)
    machine.ssh(f"{WITH_PACKAGE} python3 -m fuse_store.cli slots init --force {DISK}")
    policy = f'device = "{DISK}"\n[applications.shop]\nusers = ["shop"]\nkeep = 3\n'
    machine.ssh("cat >/etc/fuse-store/snapshots.toml && rm -f /run/points", stdin=policy)
    machine.ssh("cat >/run/points.py", stdin=POINTS)
    before = evidence.remember(machine)
    machine.ssh(f"systemd-run -q --unit=points -p User=shop -p StandardOutput=append:/run/points {WITH_PACKAGE} python3 /run/points.py")
    made = points(machine)
    told = [(point, orders, answer["restored"]) for point, orders, answer in made]
    assert told == [("one", 0, False), ("two", 1, False), ("three", 2, False)]
    wanted = [(answer["slot"], point, "complete", 0, answer["id"], True) for point, _orders, answer in made]
    assert look(machine) == ("unknown", wanted)
    machine.ssh("echo lost >/run/marker")

    for step in KILLED_IN_A_SLOT_AT:
        machine.ssh(f"FUSE_STORE_FAULT_POINT={shlex.quote(step)} {COMMAND} --event killed {DISK} || [ $? = 137 ]")
        _session, found = look(machine)
        assert [slot for slot in found if slot[1] != "killed"] == wanted, step
        assert [slot[2] for slot in found if slot[1] == "killed"] == ["complete" if step == "slots complete" else "writing"], step
    code, record = snapshot(machine, "--arm")
    assert code == 5 and "has slots" in record["error"]["cause"], record

    offset = machine.ssh(f"{WITH_PACKAGE} python3 - {DISK} {made[1][2]['slot']}", stdin=ARM).strip()
    resume = f"sleep 1; echo {offset} >/sys/power/resume_offset; cat /sys/class/block/$(basename $(readlink {DISK}))/dev >/sys/power/resume"
    machine.ssh(f"systemd-run -q sh -c {shlex.quote(resume)}")
    again = points(machine, restored=True)
    evidence.same_memory(before, machine, power_was_off=False)
    assert again[1][:2] == ["two", 1] and again[1][2]["restored"] and again[1][2]["id"] == made[1][2]["id"]
    assert again[2][:2] == ["three", 2] and not again[2][2]["restored"] and again[2][2]["id"] != made[2][2]["id"]
    session, found = look(machine)
    assert session == "running" and all(slot[2:4] == ("complete", 0) and slot[5] for slot in found), found
    assert sorted(slot[1] for slot in found) == ["killed", "three", "three", "two"], "the newest three of the application stay"

    code, record = snapshot(machine, "--application", "shop", "--event", "four", "--keep", "2")
    assert (code, record["result"]) == (0, "created"), record
    _session, found = look(machine)
    assert sorted(slot[1] for slot in found) == ["four", "killed", "three"] and all(slot[5] for slot in found)
    assert (record["slot"], "four", record["id"]) in [(slot[0], slot[1], slot[4]) for slot in found]
