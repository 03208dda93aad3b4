# SPDX-License-Identifier: GPL-3.0-or-later
"""A power cut at a random moment during a put (invariant 1: a version exists completely, or not at all).

Run by ``verify.yml`` after test_store.py. Controls the machine through the lab. QEMU is killed, and the guest loses all data
that was not synced to its disk. The seed of the moment is printed, see ``tests.vm.evidence.moments``.
"""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.vm import evidence
from tests.vm.lab import Lab, Machine

STORE, MOUNT = "/var/lib/fuse-store", "/srv/images"
AS_USER = "runuser -u fuse-store --"
COMMAND = f"{AS_USER} env FUSE_STORE={STORE} FUSE_STORE_KEY_FILE=/etc/fuse-store/key fuse-store"
FIRST, NEXT, LAST = "/var/tmp/first", "/var/tmp/next", "/var/tmp/last"
FIRST_SIZE, NEXT_SIZE, LAST_SIZE = 32, 256, 8  # MiB
MAKE = "head -c {size}M /dev/urandom >{path}; chmod 644 {path}; sync {path}"
LOOP = f"""
while :; do
  echo begun
  id=$({COMMAND} --quiet put {NEXT} --machine cut) || exit
  echo stored $id
  head -c 16M /dev/urandom | dd of={NEXT} conv=notrunc status=none
done
"""


@pytest.fixture(scope="module")
def machine() -> Machine:
    (machine,) = (each for each in Lab().machines() if each.name.startswith("molecule-store-"))
    return machine


def versions(machine: Machine) -> set[str]:
    return {version["id"] for version in json.loads(machine.ssh(f"{COMMAND} list --json"))["versions"]}


def store_until_cut(machine: Machine, delay: float) -> tuple[int, set[str]]:
    """Store versions one after another, and cut the power ``delay`` seconds after the first put begins.

    Returns the number of puts that began, and the ids of the versions that were reported as stored.
    """
    command = ["ssh", *machine.ssh_options(), "root@127.0.0.1", LOOP]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdout is not None
        assert loop.stdout.readline() == "begun\n"
        time.sleep(delay)
        assert loop.poll() is None, "storing has ended by itself"
        machine.power_cut()
        loop.kill()
        lines = loop.stdout.read().splitlines()
    return 1 + lines.count("begun"), {line.removeprefix("stored ") for line in lines if line.startswith("stored ")}


def test_power_cut_while_storing(machine: Machine) -> None:
    moments = evidence.moments("storing")
    for path, size in ((FIRST, FIRST_SIZE), (NEXT, NEXT_SIZE)):
        machine.ssh(MAKE.format(path=path, size=size))
    started = time.monotonic()
    first = machine.ssh(f"{COMMAND} put {FIRST} --machine cut").strip()
    stored_first = time.monotonic()
    before = versions(machine)
    assert first in before
    startup = time.monotonic() - stored_first
    storing = startup + max(stored_first - started - startup, 1) * NEXT_SIZE / FIRST_SIZE
    delay = moments.uniform(startup / 2, 1.1 * storing)

    begun, stored = store_until_cut(machine, delay)
    machine.power_on()
    up = machine.wait_up()
    machine.ssh("systemctl is-system-running --wait", check=False)
    assert machine.ssh("systemctl is-active fuse-store-mount.service").strip() == "active"

    after = versions(machine)
    left = machine.ssh(f"find {STORE}/locks {STORE} -name writer -o -name '*.partial' | sort -u").split()
    print(f"power cut {delay:.1f} s after the first of {begun} began, {len(stored)} stored, {len(after - before)} there; "
          f"left behind: {left}; up in {up:.0f} s", flush=True)  # fmt: skip
    assert before <= after, "a version that was there is lost"
    assert stored <= after, "a version is lost that the command said was stored"
    assert len(after - before) <= begun
    machine.ssh(f"{COMMAND} verify")
    machine.ssh(f"{AS_USER} cmp {FIRST} {MOUNT}/ids/{first}/image")
    shown = machine.ssh(f"{AS_USER} ls {MOUNT}/ids").split()
    assert set(shown) == after

    machine.ssh(MAKE.format(path=LAST, size=LAST_SIZE))
    last = machine.ssh(f"{COMMAND} put {LAST} --machine cut").strip()
    machine.ssh(f"{COMMAND} gc")
    assert versions(machine) == after | {last}
    machine.ssh(f"{AS_USER} cmp {LAST} {MOUNT}/machines/cut/system/latest/image")
    machine.ssh(f"{COMMAND} verify {first} {last}")
