# SPDX-License-Identifier: GPL-3.0-or-later
"""The role fast_boot from a plain machine to one that comes back from its snapshots by itself, and back to a plain one.

One machine for each initramfs tool, with a read-only root filesystem, a disk for the slots, and data on an NVDIMM. The tests of a machine
build on each other.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.store.repository import s3_server
from tests.vm import evidence
from tests.vm.conftest import off
from tests.vm.lab import Lab, Machine
from tests.vm.play import Played, play
from tests.vm.store import Store, wheelhouse

MEMORY, DISK, NVDIMM = 768, 1536, 128  # MiB
DEVICE, DATA = "/dev/disk/by-id/virtio-lab-disk", "/srv/data"
KINDS = {"debian12-fast-boot": "3.11", "debian13-fast-boot": "3.13"}  # recipe: its Python
VARIABLES: dict[str, Any] = {
    "fast_boot_device": DEVICE,
    "fast_boot_root": "overlay",
    "fast_boot_reboot": True,
    "fast_boot_reboot_timeout": 900,
    "fast_boot_data_mounts": [DATA],
    "fast_boot_applications": {"shop": {"interval": 0, "keep": 3}},
    "fast_boot_policy": {"power_loss": ["shop", "any"], "shutdown": ["cold"]},
    "fast_boot_hooks": [{"name": "20-note", "when": "post-restore", "content": '#!/bin/sh\necho "$FUSE_STORE_RESULT" >>/run/notes\n'}],
    "fast_boot_store": f"s3://{s3_server.BUCKET}/shop",
    "fast_boot_store_key_file": "/etc/fuse-store/store.key",
    "nvm_application": "shop",
    "nvm_slots_device": DEVICE,
}
PLAY = """\
- hosts: all
  gather_facts: false
  become: true
  roles:
    - role: nvm.fastboot.fast_boot
"""
# A filesystem for data, as an administrator makes it.
MAKE_DATA = f"""
set -e
mkfs.ext4 -q -L data /dev/pmem0
mkdir -p {DATA}
echo 'LABEL=data {DATA} ext4 defaults 0 2' >>/etc/fstab
mount {DATA}
echo first >{DATA}/file
"""


BUCKET_PORT = 8333  # on the machine, which reaches the host by its SSH connection alone


class Prepared(NamedTuple):
    """``endpoint``: of the bucket, on the host."""

    lab: Lab
    machine: Machine
    variables: dict[str, Any]
    folder: Path
    store: Store
    endpoint: str

    def role(self, *options: str, **more: Any) -> Played:
        """Run the role."""
        path = self.folder / "site.yml"
        path.write_text(PLAY)
        return play(self.lab, [self.machine], str(path), {**self.variables, **more}, *options).ok()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """The machine reaches the bucket."""
        forward = f"{BUCKET_PORT}:{self.endpoint.removeprefix('http://')}"
        command = ["ssh", *self.machine.ssh_options(), "-o", "ExitOnForwardFailure=yes", "-N", "-R", forward, "root@127.0.0.1"]
        with subprocess.Popen(command, cwd=self.machine.folder, stdin=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.terminate()

    def until_stored(self, image: str, state: str) -> dict[str, Any]:
        """Wait until the state log of the store has this of a snapshot; the version."""
        deadline = time.monotonic() + 900
        while True:
            answer = self.store("show", image)
            if answer.code == 0 and state in [entry["state"] for entry in answer.record["history"]]:
                return answer.record
            assert time.monotonic() < deadline, (answer, self.machine.ssh("journalctl -n 30 --no-pager -u fuse-store-snapshot-put"))
            time.sleep(2)

    def playbook(self, name: str, **more: Any) -> Played:
        return play(self.lab, [self.machine], f"nvm.fastboot.{name}", {**self.variables, **more})


@pytest.fixture(scope="module", params=list(KINDS))
def prepared(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    recipe: str = request.param
    folder = tmp_path_factory.mktemp("role")
    wheels = wheelhouse(KINDS[recipe])
    bucket = folder / "bucket"
    bucket.mkdir()
    with s3_server.server(bucket) as endpoint:
        store = Store(folder, VARIABLES["fast_boot_store"], s3_server.environment(endpoint))
        machine = lab.create(recipe, recipe, memory=MEMORY, nvdimm=NVDIMM, disk=DISK)
        machine.power_on()
        machine.wait_up()
        machine.ssh(MAKE_DATA)
        variables = s3_server.environment(f"http://127.0.0.1:{BUCKET_PORT}")
        for name, content in (("environment", "".join(f"{each}={value}\n" for each, value in variables.items())),
                              ("store.key", store.key.read_text())):  # fmt: skip
            machine.ssh(f"mkdir -p /etc/fuse-store && umask 077 && cat >/etc/fuse-store/{name}", stdin=content)
        machine.ssh("cp -a /etc /var/lib/etc-before && cp /boot/grub/grub.cfg /var/lib/grub-before")
        yield Prepared(lab, machine, {**VARIABLES, "image_store_wheelhouse": str(wheels)}, folder, store, endpoint)
        if machine.is_on():
            machine.power_cut()
        machine.destroy()


def root_type(machine: Machine) -> str:
    return machine.ssh("findmnt -n -o FSTYPE /").strip()


def written(machine: Machine) -> int:
    """Sectors that were written to the machine's root disk since it booted."""
    return int(machine.ssh("cut -d' ' -f1- /sys/block/vda/stat").split()[6])


def test_prepare(prepared: Prepared) -> None:
    machine = prepared.machine
    assert prepared.role("--check", "--diff").changed > 0
    assert machine.ssh("ls /opt /etc/fuse-store", check=False).split() == ["/etc/fuse-store:", "environment", "store.key", "/opt:"]
    assert prepared.role().changed > 0
    assert root_type(machine) == "overlay"
    writable = machine.ssh("findmnt -n -t ext4,vfat,xfs,btrfs -O rw -o TARGET").split()
    assert writable == [DATA], writable
    assert machine.ssh("systemctl is-active fuse-store-snapshot.socket").strip() == "active"
    failed = set(machine.ssh("systemctl list-units --failed --plain --no-legend | cut -d' ' -f1").split())
    assert failed <= {"ndctl-monitor.service"}, failed


def test_again_changes_nothing(prepared: Prepared) -> None:
    before = evidence.boot_id(prepared.machine)
    again = prepared.role()
    assert again.changed == 0, [task["task"] for task in again.tasks if task["result"].get("changed")]
    assert evidence.boot_id(prepared.machine) == before


def test_the_disk_stays_as_it_is(prepared: Prepared) -> None:
    """What is written is lost, and no boot writes to the disk below."""
    machine = prepared.machine
    machine.ssh("echo lost >/root/lost; sync")
    assert written(machine) == 0
    off(machine)
    machine.power_on()
    machine.wait_up()
    assert machine.ssh("ls /root/lost", check=False).strip() == ""
    assert machine.ssh(f"cat {DATA}/file") == "first\n"
    assert written(machine) == 0


def test_snapshot_and_power_cut(prepared: Prepared) -> None:
    """The machine comes back by itself as it was; the data that was written since is there. The snapshot is in the bucket, which is
    told of the restore, although the bucket could not be reached at first."""
    machine = prepared.machine
    memory = evidence.remember(machine)
    taken = prepared.playbook("snapshot").ok().result("boot_snapshot")
    with prepared.connected():
        version = prepared.until_stored(taken["id"], "verified")
    assert (version["application"], version["machine"]) == ("shop", machine.name), version
    assert taken["result"] == "created" and taken["slot"] and taken["pause"] > 0, taken
    assert machine.ssh("cat /run/notes") == "created\n"
    machine.ssh(f"echo lost >/run/marker; echo later >{DATA}/file; sync {DATA}/file")
    machine.power_cut()
    machine.power_on()
    machine.wait_up()
    evidence.same_memory(memory, machine, power_was_off=True)
    deadline = time.monotonic() + 120
    while "restored" not in machine.ssh("cat /run/notes", check=False):
        assert time.monotonic() < deadline, machine.ssh("journalctl -b -n 50 --no-pager")
        time.sleep(1)
    assert machine.ssh(f"cat {DATA}/file") == "later\n"
    with prepared.connected():
        prepared.until_stored(taken["id"], "resumed")


def test_boot_from(prepared: Prepared) -> None:
    """An earlier state by choice, which an orderly reboot would not have selected; a normal boot by choice, which a list would have."""
    machine = prepared.machine
    memory = evidence.remember(machine)
    prepared.playbook("snapshot", nvm_event="chosen").ok()
    machine.ssh("echo lost >/run/marker")
    came = prepared.playbook("boot_from", nvm_event="chosen").ok()
    evidence.same_memory(memory, machine, power_was_off=False)
    assert "seconds" in came.output and "in slot" in came.output
    before = evidence.boot_id(machine)
    prepared.playbook("boot_from", nvm_cold=True).ok()
    assert evidence.boot_id(machine) != before
    refused = prepared.playbook("boot_from", nvm_application="none")
    assert refused.code != 0 and "No image" in refused.output, refused.output


def test_a_damaged_image_is_told(prepared: Prepared) -> None:
    machine = prepared.machine
    slot = prepared.playbook("snapshot", nvm_event="damaged").ok().result("boot_snapshot")["slot"]
    slots = json.loads(machine.ssh(f"fuse-store slots list {DEVICE} --json"))["slots"]
    (first, count), *_more = next(each["extents"] for each in slots if each["slot"] == slot)
    machine.ssh(f"head -c 4096 /dev/urandom | dd of={DEVICE} bs=4096 seek={first + count // 2} oflag=direct status=none")
    came = prepared.playbook("boot_from", nvm_event="damaged")
    assert came.code != 0 and f"Slot {slot} was chosen" in came.output, came.output


def test_changes_are_made_after_a_writable_boot(prepared: Prepared) -> None:
    machine = prepared.machine
    changed = prepared.role(fast_boot_time_limit=90)
    assert changed.changed > 0 and root_type(machine) == "overlay"
    assert "time_limit = 90\n" in machine.ssh("cat /etc/fuse-store/snapshots.toml")
    assert prepared.role(fast_boot_time_limit=90).changed == 0


def test_absent(prepared: Prepared) -> None:
    machine = prepared.machine
    options = {"fast_boot_state": "absent", "fast_boot_wipe": True, "fast_boot_force": True}
    assert prepared.role(**options).changed > 0
    assert root_type(machine) == "ext4"
    left = machine.ssh("diff -r --no-dereference /var/lib/etc-before /etc", check=False)
    allowed = ("resolv.conf", "ld.so.cache", "mtab", "machine-id", "adjtime")
    assert [line for line in left.splitlines() if not any(name in line for name in allowed)] == [], left
    assert machine.ssh("diff /var/lib/grub-before /boot/grub/grub.cfg", check=False) == ""
    assert machine.ssh("ls /opt; ls -d /var/lib/nvm-fastboot", check=False).strip() == ""
    assert machine.ssh(f"head -c 4M {DEVICE} | tr -d '\\0' | wc -c").strip() == "0"
    assert prepared.role(**options).changed == 0
