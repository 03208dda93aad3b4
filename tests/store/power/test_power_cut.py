# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariant 1 with the power: cut at any moment, no version that was acknowledged is lost, and none is half there.

A workload runs once on a real filesystem whose disk is recorded. Then the disk is made as each cut could have left it: mounted,
opened, read and written to. With ``$POWER_CUTS`` more cuts than a few are tried (``make power-cuts``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fuse_store.formats.swsusp import layout
from fuse_store.hibernation import history
from fuse_store.hibernation.arm import arm
from fuse_store.hibernation.preflight import TargetMachine
from fuse_store.hibernation.stage import stage
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository import atomic
from fuse_store.repository.state_log import usage
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import encode, machine
from tests.store.conftest import content, entries_of, fork, make_small, needs_root, read_whole, run, wait, write_sparse
from tests.store.hibernation.cases import FREE
from tests.store.power.recorder import Disk, recorded_disk
from tests.store.power.replay import LOSSES, Cut, disks_after

pytestmark = pytest.mark.long

CUTS = int(os.environ.get("POWER_CUTS", "24"))  # of each filesystem and durability
# How it is made, the bytes of a disk that is large enough for it, and of what it relies on to be written whole: a superblock of btrfs.
FILESYSTEMS = {
    "ext4": (("mkfs.ext4", "-q", "-F", "-E", "nodiscard"), 64 << 20, 512),
    "xfs": (("mkfs.xfs", "-q", "-f", "-K"), 300 << 20, 512),
    "btrfs": (("mkfs.btrfs", "-q", "-f", "-K"), 128 << 20, 4096),
}
ELSEWHERE = TargetMachine(None)
IMAGE = encode(machine(4096, "x86", 300, seed=1), 4096, "x86", "none", scattered=1).device
NVM = len(IMAGE) + (1 << 20)
RELEASE_SECONDS = 60


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@dataclass
class Recorded:
    """What was done on a disk: where in the log each step ended, and the versions that there were then."""

    disk: Disk
    ends: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    versions: list[dict[str, bytes]] = field(default_factory=list)
    hibernated: str = ""  # the id of the version that is staged and armed

    def possible(self, position: int) -> tuple[set[str], dict[str, bytes], str]:
        """(the ids that have to be there after a cut, the content of all that may be, the step that was cut)."""
        step = sum(end <= position for end in self.ends)
        before = self.versions[step - 1] if step else {}
        after = self.versions[step] if step < len(self.versions) else before
        return before.keys() & after.keys(), {**before, **after}, self.names[step] if step < len(self.names) else "the end"

    def armed(self, position: int) -> bool:
        """Whether the version counted as armed before the step that was cut."""
        return "arm" in self.names[: sum(end <= position for end in self.ends)]


class NotMountable(Exception):
    """The filesystem itself did not withstand the cut."""


@contextlib.contextmanager
def mounted(disk: Path, directory: Path) -> Iterator[Path]:
    """A filesystem on a disk, through a loop device."""
    directory.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", str(disk)).strip()
    try:
        done = subprocess.run(["mount", device, str(directory)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotMountable(done.stderr)
        try:
            yield directory
        finally:
            gc.collect()
            busy = subprocess.run(["umount", str(directory)], check=False, capture_output=True).returncode
            if busy:
                run("umount", "--lazy", str(directory))  # a failed test's traceback has files of it open
    finally:
        run("losetup", "--detach", device)
    if not busy:
        _await_release(disk)


def _await_release(disk: Path) -> None:
    """A mount namespace that another test made meanwhile has a copy of the mount: until it ends, XFS and btrfs refuse another disk
    with the same UUID."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while run("losetup", "--associated", str(disk)).strip():
        assert time.monotonic() < deadline, f"{disk} is still mounted in another mount namespace"
        time.sleep(0.05)


def record(disk: Disk, directory: Path, make: tuple[str, ...], durability: str) -> Recorded:
    """Run the workload on a new filesystem, in a process that is gone when the power is back, as are its locks."""

    def work() -> None:
        recorded = _record(disk, directory, make, durability)
        (directory / "recorded").write_bytes(pickle.dumps(recorded))

    assert wait(fork(work)) == 0
    recorded: Recorded = pickle.loads((directory / "recorded").read_bytes())
    return recorded


def _record(disk: Disk, directory: Path, make: tuple[str, ...], durability: str) -> Recorded:
    device = run("losetup", "--find", "--show", str(disk.file)).strip()
    run(*make, device)
    run("losetup", "--detach", device)
    recorded = Recorded(disk)
    inputs = directory / "inputs"
    inputs.mkdir()
    with mounted(disk.file, directory / "work") as place:
        store = Store.create(place / "store", durability=durability, key_file=directory / "key")
        with open(place / "nvm", "wb") as nvm:
            nvm.truncate(NVM)
        subprocess.run(["sync", "-f", str(place)], check=True)
        recorded.ends, recorded.names, recorded.versions = [disk.position()], ["init"], [{}]
        with store:
            for name, step in steps(store, inputs, place / "nvm", recorded):
                versions = dict(recorded.versions[-1])
                step(versions)
                recorded.names.append(name)
                recorded.versions.append(versions)
                recorded.ends.append(disk.position())
    return recorded


Step = Callable[[dict[str, bytes]], None]


def steps(store: Store, inputs: Path, nvm: Path, recorded: Recorded) -> Iterator[tuple[str, Step]]:
    """Each changes the store, and the dictionary of what is in it."""

    def put(name: str, data: bytes, replace: bool = False, kind: str = "file") -> Step:
        def step(versions: dict[str, bytes]) -> None:
            source = write_sparse(inputs / name, data)
            old = store.versions.of(name, "system")[-1:]
            versions[store.put(str(source), Label(name, kind=kind), replace=replace).id] = data
            for version in old if replace else ():
                del versions[version.id]

        return step

    def remove(name: str, keep: int) -> Step:
        def step(versions: dict[str, bytes]) -> None:
            ids = [version.id for version in store.versions.of(name, "system")][:-keep]
            store.remove(ids)
            for image_id in ids:
                del versions[image_id]

        return step

    def collected(versions: dict[str, bytes]) -> None:
        collect(store, dry_run=False, progress=SILENT, grace=0)

    def repaired(versions: dict[str, bytes]) -> None:
        assert not repair(store, SILENT).lost

    def hibernate(versions: dict[str, bytes]) -> None:
        put("h", bytes(IMAGE), kind="hibernation")(versions)
        recorded.hibernated = store.find("h/system/latest").id

    def staged(versions: dict[str, bytes]) -> None:
        done = stage(store.open_image(recorded.hibernated), nvm)
        store.record([recorded.hibernated], "staged", device=done.device)

    def armed(versions: dict[str, bytes]) -> None:
        arm(store, nvm, ELSEWHERE, reference=recorded.hibernated, force=FREE)

    yield "put", put("a", content(range(1, 90)))
    yield "put", put("a", content([*range(1, 40), *range(100, 150)]))
    yield "put", put("b", content(range(200, 260)))
    yield "replace", put("b", content([*range(200, 230), *range(300, 320)]), replace=True)
    yield "put", hibernate
    yield "stage", staged
    yield "arm", armed
    yield "prune", remove("a", 1)
    yield "gc", collected
    yield "put", put("a", content([*range(1, 20), *range(400, 450)]))
    yield "repair", repaired
    yield "gc", collected


def check(recorded: Recorded, cut: Cut, disk: Path, directory: Path) -> None:
    """What was acknowledged is there, nothing else is, and the store goes on."""
    needed, possible, step = recorded.possible(cut.position)
    with mounted(disk, directory / "left-mounted") as place:
        nvm = (place / "nvm").read_bytes()
        with Store.open(place / "store", key_file=directory / "key") as store:
            there = set(store.ids())
            assert needed <= there, f"cut in {step}: {len(needed - there)} versions are lost"
            assert there <= possible.keys(), f"cut in {step}: versions that were never put, or were removed"
            sound_and_whole(store, possible, step)
            resumable = nvm[4096 - layout.SIGNATURE_SIZE : 4096] == layout.SIGNATURE
            if recorded.hibernated in there and (resumable or recorded.armed(cut.position)):
                used = history.resume_history(usage(entries_of(store, recorded.hibernated)))
                assert used, f"cut in {step}: the device is armed, and the store does not know"
            new = store.put(str(write_sparse(directory / "new", content(range(700, 720)))), Label("new"))
            collect(store, dry_run=False, progress=SILENT, grace=0)
            sound_and_whole(store, {**possible, new.id: content(range(700, 720))}, f"{step}, and after another put and gc")


def sound_and_whole(store: Store, possible: dict[str, bytes], step: str) -> None:
    for verdict in verify(store, store.ids(), 100, SILENT):
        assert verdict.state == "sound", f"cut in {step}: {verdict.problems}"
        assert read_whole(store, verdict.id) == possible[verdict.id], f"cut in {step}: wrong bytes"


def cuts_of(recorded: Recorded, count: int, seed: int) -> list[Cut]:
    """At least one in each step and at the end of each; the others anywhere."""
    chosen = random.Random(seed)
    positions = [position for position, _event in recorded.disk.events() if position > recorded.ends[0]]
    picked = [chosen.choice(positions) for _cut in range(max(0, count - len(recorded.ends)))]
    return [Cut(position, chosen.choice(LOSSES)) for position in (*picked, *recorded.ends[1:])]


@pytest.mark.parametrize("durability", ["full", "batch"])
@pytest.mark.parametrize("filesystem", sorted(FILESYSTEMS))
def test_power_cut(tmp_path: Path, filesystem: str, durability: str) -> None:
    needs_root()
    seed = int(os.environ.get("POWER_CUT_SEED") or time.time())
    print(f"POWER_CUT_SEED={seed}")
    make, size, sector = FILESYSTEMS[filesystem]
    with recorded_disk(tmp_path / "disk", size) as disk:
        recorded = record(disk, tmp_path, make, durability)
    lost = 0
    cuts = cuts_of(recorded, CUTS, seed)
    for cut, left in disks_after(disk, tmp_path, cuts, seed, sector):
        try:
            check(recorded, cut, left, tmp_path)
        except NotMountable as error:
            print(f"{filesystem} cannot be mounted after {cut}: {error}")
            lost += 1
    assert lost <= len(cuts) // 10, "the filesystem is too often lost to say anything of the store"


def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_store.repository.atomic.os.fsync", lambda descriptor: None)


def no_sync_of_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "sync_directory", lambda path: None)


@pytest.mark.parametrize("without", [no_fsync, no_sync_of_directories])
def test_a_sync_that_is_missing_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The test above can fail: with a kind of sync taken out, it does."""
    needs_root()
    make, size, sector = FILESYSTEMS["ext4"]
    with monkeypatch.context() as patched, recorded_disk(tmp_path / "disk", size) as disk:
        without(patched)
        recorded = record(disk, tmp_path, make, "full")
    cuts = [Cut(end, "everything") for end in recorded.ends[1:]]
    with pytest.raises((AssertionError, Exception), match=r"cut in|no such|damaged|unreadable|store"):
        for cut, left in disks_after(disk, tmp_path, cuts, 1, sector):
            check(recorded, cut, left, tmp_path)
