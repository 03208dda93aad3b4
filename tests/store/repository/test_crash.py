# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariant 1: killed anywhere, nothing that was there is lost, nothing half-written is visible, and it can be run again.

Every crash point is tried: a child kills itself at step 1, the next one at step 2, until one comes to its end.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import Locked, NotFound
from fuse_store.image import restore
from fuse_store.maintenance import packs
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository.atomic import FAULT_POINT, PARTIAL_SUFFIX
from fuse_store.store import Label, Store
from tests.store.conftest import (
    clone,
    content,
    fork,
    make_small,
    packs_of,
    packs_with,
    read_store,
    read_whole,
    wait,
    write_sparse,
)

pytestmark = pytest.mark.long

FULL = 64 << 10  # bytes of a pack: two or three blocks
OLD = [content(range(1, 330)), content([*range(1, 10), *range(400, 420)]), content([*range(200, 210), 0, *range(420, 430), 7])]
NEW = content([9, *range(1, 10), *range(500, 760)])


@dataclass(frozen=True)
class Prepared:
    """A store with versions that gc has packs to copy and to drop for, and what is in it."""

    path: Path
    images: dict[str, bytes]
    removed: dict[str, bytes]
    source: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    directory = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        make_small(monkeypatch, FULL)
        with Store.create(directory / "store", durability="none") as store:
            ids = [store.put(str(write_sparse(directory / "source", data)), Label("m")).id for data in OLD]
            store.record(ids[:2], "verified")
            gone = store.put(str(write_sparse(directory / "source", content(range(600, 660)))), Label("other")).id
            store.remove([ids[0], gone])
        write_sparse(directory / "source", NEW)
        images = read_store(directory / "store")
    assert images == {ids[1]: OLD[1], ids[2]: OLD[2]}
    return Prepared(directory / "store", images, {ids[0]: OLD[0]}, directory / "source")


@pytest.fixture(autouse=True)
def as_prepared(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(prepared.path.parent / "config"))
    make_small(monkeypatch, FULL)


def newest(prepared: Prepared) -> str:
    return list(prepared.images)[-1]


def put(store: Store, prepared: Prepared) -> None:
    store.put(str(prepared.source), Label("m"))


def replace(store: Store, prepared: Prepared) -> None:
    store.put(str(prepared.source), Label("m"), replace=True)


def remove(store: Store, prepared: Prepared) -> None:
    store.remove([image_id for image_id in prepared.images if image_id in store.ids()])


def run_gc(store: Store, prepared: Prepared) -> None:
    collect(store, dry_run=False, progress=SILENT, grace=0.0)


def run_merging_gc(store: Store, prepared: Prepared) -> None:
    """All packs are copied together. In a child, which has the module for itself."""
    packs.MERGED_AT_LEAST, packs.SMALL = 1, 1
    collect(store, dry_run=False, progress=SILENT, grace=0.0)


def run_repair(store: Store, prepared: Prepared) -> None:
    repair(store, SILENT)


def record(store: Store, prepared: Prepared) -> None:
    store.record(list(prepared.images), "verified")


@dataclass(frozen=True)
class Verb:
    """``goes``: may it take versions away, and ``comes``: does it add one. ``steps``: at least so many crash points."""

    act: Callable[[Store, Prepared], None]
    steps: int
    goes: bool = False
    comes: bool = False


VERBS = {
    "put": Verb(put, 18, comes=True),
    "replace": Verb(replace, 20, goes=True, comes=True),
    "remove": Verb(remove, 2, goes=True),
    "gc": Verb(run_gc, 12),
    "merging gc": Verb(run_merging_gc, 20),
    "repair": Verb(run_repair, 5),
    "record": Verb(record, 6),
}


def act(path: Path, verb: Verb, prepared: Prepared, step: str | None) -> int:
    def work() -> None:
        if step is not None:
            os.environ[FAULT_POINT] = step
        with Store.open(path) as store:
            verb.act(store, prepared)

    return wait(fork(work))


def check(path: Path, verb: Verb, prepared: Prepared, done: bool) -> None:
    """What must be true of a store after ``verb`` was killed, or is ``done``."""
    found = read_store(path)
    new = {image_id: data for image_id, data in found.items() if image_id not in prepared.images}
    kept = {image_id: data for image_id, data in found.items() if image_id in prepared.images}
    assert all(data == prepared.images[image_id] for image_id, data in kept.items())
    assert list(new.values()) == [NEW] * len(new) and len(new) <= verb.comes
    if not verb.goes or (verb.comes and not new):
        assert kept == prepared.images
    if verb.goes and verb.comes:
        assert len(kept) >= len(prepared.images) - 1
    if done:
        assert len(new) == verb.comes
        assert len(kept) == (len(prepared.images) if not verb.goes else len(prepared.images) - 1 if verb.comes else 0)
    with Store.open(path) as store:
        assert sorted(summary.id for summary in store.summaries()) == sorted(found)


def check_no_leak(path: Path) -> None:
    """After a collection: every pack is needed, and nothing of a writer that was killed is left."""
    with Store.open(path) as store:
        collect(store, dry_run=False, progress=SILENT, grace=0.0)
        needed = {pack for image_id in store.ids() for pack in packs_with(store, image_id)}
        assert packs_of(path) == needed
        again = collect(store, dry_run=True, progress=SILENT)
        assert again.packs_removed == 0
        assert all(verdict.state == "sound" for verdict in verify(store, store.ids(), 100, SILENT))
        assert set(store.state_log.contents()) == {version.content for version in store.summaries()}
    partial = [found for found in path.rglob("*") if PARTIAL_SUFFIX in found.name]
    assert not partial and list((path / "trash").iterdir()) == []
    assert sorted(found.name for found in (path / "locks").iterdir()) == ["free", "lock"]


@pytest.mark.parametrize("name", VERBS)
def test_killed_at_every_step(name: str, prepared: Prepared, tmp_path: Path) -> None:
    verb = VERBS[name]
    for step in range(1, 400):
        path = clone(prepared.path, tmp_path / "store")
        code = act(path, verb, prepared, str(step))
        assert code in (0, -signal.SIGKILL)
        check(path, verb, prepared, done=code == 0)
        if code == 0:
            break
        added = len(set(read_store(path)) - set(prepared.images)) if verb.comes else 0
        if added:  # it was killed after its commit: what was asked for is there
            check(path, verb, prepared, done=not verb.goes)
        else:
            assert act(path, verb, prepared, None) == 0
            check(path, verb, prepared, done=True)
        check_no_leak(path)
    assert step > verb.steps and code == 0


def test_every_kind_of_step_was_tried(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The points that the verbs above pass: one of each object that is written, and of each that goes."""
    seen: set[str] = set()
    maintenance = ("maintenance.gc", "maintenance.repair", "maintenance.trash")
    for module in ("repository.atomic", "repository.pack", "repository.index.lookup", *maintenance, "store"):
        monkeypatch.setattr(f"fuse_store.{module}.fault_point", seen.add)
    path = clone(prepared.path, tmp_path / "store")
    with Store.open(path) as store:
        for name in ("record", "replace", "gc", "repair", "remove"):
            VERBS[name].act(store, prepared)
    assert {f"{step} {kind}" for step in ("write", "rename", "renamed") for kind in (".pack", ".idx", ".img", ".log")} <= seen
    assert {"begin pack", "commit", "remove", "drop index", "gc drop pack", "gc destroy", "repair index"} <= seen


def test_an_interrupted_put_does_not_begin_from_zero(prepared: Prepared, tmp_path: Path) -> None:
    path = clone(prepared.path, tmp_path / "store")
    before = packs_of(path)
    assert act(path, VERBS["put"], prepared, "commit") == -signal.SIGKILL
    written = packs_of(path) - before
    assert len(written) >= 2
    with Store.open(path) as store:
        made = store.put(str(prepared.source), Label("m"))
        assert made.stored == 0
        assert read_whole(store, made.id) == NEW
    assert packs_of(path) == before | written


@contextlib.contextmanager
def logged(log: Path, verb: str) -> Iterator[None]:
    """Note in ``log`` that a verb begins, and that it is finished."""
    with open(log, "a") as file:
        file.write(f"{verb}\n")
        file.flush()
        yield
        file.write(f"{verb} finished\n")


def test_killed_at_any_moment(prepared: Prepared, tmp_path: Path) -> None:
    """A child puts, replaces, removes, collects and repairs, over and over, and is killed at a random time, until each of them
    was finished, and five of them were interrupted."""
    path = clone(prepared.path, tmp_path / "store")
    log = tmp_path / "log"
    chance = random.Random(1)
    finished: Counter[str] = Counter()
    interrupted: Counter[str] = Counter()
    until, give_up = time.monotonic() + 4, time.monotonic() + 120
    while time.monotonic() < until or len(finished) < 4 or interrupted.total() < 5:
        assert time.monotonic() < give_up, (finished, interrupted)
        log.write_text("")

        def work() -> None:
            number = chance.randrange(1 << 30)
            with Store.open(path) as store:
                while True:
                    number += 1
                    numbers = [number, *np.random.default_rng(number).integers(1, 500, 100).tolist()]
                    data = content(numbers)
                    source = str(write_sparse(tmp_path / "source", data))
                    event, replaces = f"{hash(data) & 0xFFFF}", bool(number & 1)
                    with logged(log, "put"):
                        store.put(source, Label("m", event=event), replace=replaces)
                    if number % 3 == 0:
                        added = [version.id for version in store.summaries() if version.id not in prepared.images]
                        with logged(log, "remove"):
                            store.remove(added[:2])
                    with logged(log, "gc"):
                        collect(store, dry_run=False, progress=SILENT, grace=0.0)
                    if number % 3 == 1:
                        with logged(log, "repair"):
                            repair(store, SILENT)

        child = fork(work)
        chance.random()
        time.sleep(0.02 + 0.25 * chance.random())
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        steps = log.read_text().splitlines()
        finished.update(step.removesuffix(" finished") for step in steps if step.endswith(" finished"))
        interrupted.update(step for step in steps[-1:] if not step.endswith(" finished"))
        with Store.open(path) as store:
            for summary in store.summaries():
                data = read_whole(store, summary.id)
                if summary.id in prepared.images:
                    assert data == prepared.images[summary.id]
                else:
                    assert summary.event == f"{hash(data) & 0xFFFF}"
            assert len(store.summaries()) == len(store.ids())
    check_no_leak_but_locks(path)


def check_no_leak_but_locks(path: Path) -> None:
    with Store.open(path) as store:
        collect(store, dry_run=False, progress=SILENT, grace=0.0)
        collect(store, dry_run=False, progress=SILENT, grace=0.0)
        needed = {pack for image_id in store.ids() for pack in packs_with(store, image_id)}
        assert packs_of(path) == needed
        assert all(verdict.state == "sound" for verdict in verify(store, store.ids(), 100, SILENT))


def test_what_a_writer_that_was_killed_left_is_swept_by_the_next(prepared: Prepared, tmp_path: Path) -> None:
    path = clone(prepared.path, tmp_path / "store")
    for step in ("rename .pack", "rename .idx", "rename .img"):
        assert act(path, VERBS["put"], prepared, step) == -signal.SIGKILL
        assert [found for found in path.rglob("*") if found.name.endswith(PARTIAL_SUFFIX)], step
        with Store.open(path) as store, store.writing():
            assert not [found for found in path.rglob("*") if found.name.endswith(PARTIAL_SUFFIX)], step


def test_a_get_that_is_killed_leaves_the_old_file(prepared: Prepared, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def work() -> None:
        write = os.pwrite
        wrote = 0

        def write_some(descriptor: int, data: memoryview, at: int) -> int:
            nonlocal wrote
            wrote += write(descriptor, data, at)
            if wrote > 60_000:
                os.kill(os.getpid(), signal.SIGKILL)
            return len(data)

        os.pwrite = write_some  # type: ignore[assignment]
        with Store.open(prepared.path) as store:
            restore.get(store.open_image(newest(prepared)), str(target), SILENT)

    assert wait(fork(work)) == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    with Store.open(prepared.path) as store:
        whole = len(prepared.images[newest(prepared)])
        assert restore.get(store.open_image(newest(prepared)), str(target), SILENT) < whole - 50_000
    assert target.read_bytes() == prepared.images[newest(prepared)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_lock_of_a_writer_that_was_killed_is_no_obstacle(prepared: Prepared, tmp_path: Path) -> None:
    path = clone(prepared.path, tmp_path / "store")
    assert act(path, VERBS["put"], prepared, "commit") == -signal.SIGKILL
    assert (path / "locks" / "writer").exists()
    with Store.open(path) as store, store.writing() as lock:
        lock.check()
        with pytest.raises(Locked):
            Store.open(path).remove([])
        with pytest.raises(NotFound):
            store.open_image("0" * 32)
