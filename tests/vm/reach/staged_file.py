# SPDX-License-Identifier: GPL-3.0-or-later
"""An image of the store, staged on the machine itself in a swap file of a data filesystem, and resumed from there by the machine's kernel.

``make vm-test-swap-file``. The older of two images: nothing but what is in the file brings it back.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.vm import evidence, ram_root
from tests.vm.conftest import off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.restored.slots import NO_SWAPPING
from tests.vm.restoring import Case, WithWords, another_memory, capture, hibernate, initramfs_of, wake
from tests.vm.store import Store, tree_of, wheelhouse

DISK = 1280  # MiB
DATA = "/dev/disk/by-id/virtio-lab-disk"
FILE = "/srv/swapfile"
SIZE = 640  # MiB
PLACE = "/opt/fuse-store"
WRAPPER = f"""#!/bin/sh
exec env PYTHONPATH={PLACE} PYTHONDONTWRITEBYTECODE=1 FUSE_STORE=/srv/store FUSE_STORE_KEY_FILE=/srv/key python3 -m fuse_store.cli "$@"
"""
PYTHON = "3.11"  # of Debian 12


@dataclass
class Staged:
    """``parameters``: those that resume it, as ``arm`` prints them."""

    case: Case
    memory: evidence.Memory
    parameters: str


@pytest.fixture(scope="module")
def case(lab: Lab, configured: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A machine with its root filesystem in memory, off, which hibernates into its NVDIMM; a disk has a swap file on a filesystem that is
    not mounted."""
    folder = tmp_path_factory.mktemp("staged")
    machine = lab.copy(configured, "staged-file")
    machine.add_disk(DISK)
    with switched_on(machine):
        tree = tree_of(machine, folder / "tree")
        install(machine)
        machine.ssh(f"mkfs.ext4 -q {DATA} && mount {DATA} /srv && dd if=/dev/zero of={FILE} bs=1M count={SIZE} status=none")
        machine.ssh(f"chmod 600 {FILE} && mkswap {FILE} && umount /srv", timeout=600)
        (folder / "initramfs").write_bytes(initramfs_of(machine))
        ram_root.adopt(machine)
        off(machine)
        yield Case(machine, Store(folder), folder, machine.folder / "nvdimm.img", tree)


def install(machine: Machine) -> None:
    """``fuse-store`` with the wheels it needs, without ``pip``."""
    wheels = wheelhouse(PYTHON)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar, tempfile.TemporaryDirectory() as unpacked:
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        tar.add(unpacked, ".", filter=lambda entry: None if "/tests/" in entry.name else entry)
    machine.ssh(f"mkdir -p {PLACE} && tar -C {PLACE} -x --no-same-owner", stdin=packed.getvalue(), timeout=900)
    machine.ssh("cat >/usr/local/bin/fuse-store && chmod 755 /usr/local/bin/fuse-store", stdin=WRAPPER)
    machine.ssh("fuse-store --version", timeout=600)


def carried_over(machine: Machine, store: Store) -> None:
    """The store, to the data filesystem of the machine, which is mounted."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(store.folder, "store")
        tar.add(store.key, "key")
    machine.ssh("tar -C /srv -x --no-same-owner", stdin=packed.getvalue(), timeout=900)


def image_of(case: Case, event: str) -> tuple[evidence.Memory, str]:
    """Of the machine, which is off and is so afterwards: what was in its memory, and the version. Nothing of it is swapped out."""
    wake(case.machine)
    memory = another_memory(case.machine)
    case.machine.ssh(f"echo {event} >/root/event")
    case.machine.ssh(NO_SWAPPING)
    hibernate(case.machine)
    return memory, capture(case, event)["id"]


@pytest.fixture(scope="module")
def staged(case: Case) -> Staged:
    """The first of two images; the machine is off."""
    (memory, image), (later, _) = image_of(case, "first"), image_of(case, "second")
    assert later.boot_id == memory.boot_id, "the first image was lost"
    case.store.done("disarm", case.nvdimm)
    machine = case.machine
    wake(machine)
    assert evidence.boot_id(machine) != memory.boot_id
    machine.ssh(f"mount {DATA} /srv")
    carried_over(machine, case.store)
    machine.ssh(f"fuse-store stage {image} {FILE} --swap-file", timeout=900)
    armed = json.loads(machine.ssh(f"fuse-store --json arm {FILE} --swap-file", timeout=900))
    assert armed["id"] == image and armed["changed"], armed
    machine.ssh("umount /srv")
    off(machine)
    return Staged(case, memory, armed["parameters"])


def test_it_is_resumed_from_the_swap_file(staged: Staged) -> None:
    machine, case = staged.case.machine, staged.case
    assert "resume_offset=" in staged.parameters
    words = [word for word in (case.tree / "proc/cmdline").read_text().split() if not word.startswith("resume")]
    wake(WithWords(machine, case.folder / "initramfs", " ".join([*words, ram_root.WORDS, staged.parameters])))
    evidence.same_memory(staged.memory, machine, power_was_off=True)
    assert machine.ssh("cat /root/event") == "first\n"


def test_only_once_and_the_filesystem_is_whole(staged: Staged) -> None:
    machine = staged.case.machine
    machine.ssh(f"e2fsck -fn {DATA} && mount -o ro {DATA} /srv")
    assert machine.ssh(f"dd if={FILE} bs=1 skip=4086 count=10 status=none") == "SWAPSPACE2"
    machine.ssh("umount /srv")
