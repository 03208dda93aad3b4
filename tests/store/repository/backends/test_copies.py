# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of a store: made while others write and collect, without empty directories, and on a read-only disk."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_store.errors import Locked, StoreError
from fuse_store.maintenance import gc, packs
from fuse_store.maintenance.verify import verify
from fuse_store.mount.tree import Tree
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.conftest import content, fork, needs_root, read_store, read_whole, run, wait

GUIDE = Path(__file__).parents[4] / "docs" / "fuse-store.md"


def version(number: int) -> bytes:
    """It shares a half of its pages with the one before."""
    numbers = list(range(1 + 40 * number, 81 + 40 * number))
    random.Random(number).shuffle(numbers)
    return content([number + 100_000, *numbers])


def recipe(store: Path, copy: Path) -> list[str]:
    """The commands of the guide, for these directories."""
    text = GUIDE.read_text().partition("## Copies of a store")[2].partition("\n## ")[0]
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return [command.replace("/srv/images", str(store)).replace("/mnt/copy", str(copy)) for command in commands]


def collect(store: Store, *, dry_run: bool = False) -> gc.Collected:
    return gc.collect(store, dry_run=dry_run, progress=SILENT, grace=0.0)


def test_a_copy_made_by_the_recipe_while_a_collection_runs_is_whole(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the time: versions come, the oldest goes, and a collection copies every pack and destroys it at once."""
    monkeypatch.setattr(packs, "MIN_USED_RATIO", 1.0)
    source, stop = tmp_path / "source", tmp_path / "stop"

    def put(store: Store, number: int) -> None:
        source.write_bytes(version(number))
        store.put(str(source), Label("m", event=str(number)))

    def again(_locked: Locked, waited: float) -> bool:
        time.sleep(0.01)
        return waited < 60

    def work() -> None:
        number = 6
        with Store.open(tmp_path / "store") as store:
            store.wait = again
            while not stop.exists():
                put(store, number)
                store.remove([store.summaries()[0].id])
                assert collect(store).packs_copied
                number += 1
        stop.write_text(str(number))

    with Store.create(tmp_path / "store", durability="none") as store:
        for number in range(6):
            put(store, number)
    child = fork(work)
    try:
        for attempt in range(6):
            copy = tmp_path / f"copy{attempt}"
            first, second = recipe(tmp_path / "store", copy)
            assert subprocess.run(first, shell=True, capture_output=True, check=False).returncode in (0, 23, 24)
            run("sh", "-c", second)
            versions = read_store(copy)
            with Store.open(copy) as copied:
                events = {summary.id: int(summary.event) for summary in copied.summaries()}
                assert len(events) in (6, 7) and versions == {image_id: version(event) for image_id, event in events.items()}
                assert {verdict.state for verdict in verify(copied, list(events), 100, SILENT)} == {"sound"}
                collect(copied)
                assert {image_id: read_whole(copied, image_id) for image_id in events} == versions
    finally:
        stop.touch()
        assert wait(child) == 0
    assert int(stop.read_text()) > 10, "it was at work in the meantime"


def use(store: Store) -> None:
    """Everything that reads."""
    (summary,) = store.summaries()
    assert read_whole(store, summary.id) == version(0)
    assert verify(store, [summary.id], 100, SILENT)[0].state == "sound"
    assert collect(store, dry_run=True).versions_needed == 1
    tree = Tree(store)
    assert next(iter(tree.node(("ids",)).names()))[0] == summary.id  # type: ignore[union-attr]
    tree.close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a store with a version, by a program that does not copy empty directories."""
    (tmp_path / "source").write_bytes(version(0))
    with Store.create(tmp_path / "store") as store:
        store.put(str(tmp_path / "source"), Label("m"))
    run("rsync", "-a", "--prune-empty-dirs", "--exclude=/locks", f"{tmp_path}/store/", f"{tmp_path}/copy/")
    assert not {"trash", "locks", "partial"} & {path.name for path in (tmp_path / "copy").iterdir()}
    return tmp_path / "copy"


def test_a_copy_without_empty_directories_is_used(copy: Path, tmp_path: Path) -> None:
    with Store.open(copy) as store:
        use(store)
        store.put(str(tmp_path / "source"), Label("m"), replace=True)
        collect(store)
        use(store)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    needs_root()
    run("mount", "--bind", str(directory), str(directory))
    try:
        run("mount", "-o", "remount,bind,ro", str(directory))
        yield
    finally:
        run("umount", "-l", str(directory))


def test_a_copy_on_a_read_only_disk_is_read(copy: Path, tmp_path: Path) -> None:
    with read_only(copy), Store.open(copy) as store:
        use(store)
        for change in (
            lambda: store.put(str(tmp_path / "source"), Label("m")), lambda: store.remove(store.ids()), lambda: collect(store),
            lambda: store.record(store.ids(), "verified"),
        ):  # fmt: skip
            with pytest.raises(StoreError, match="Read-only file system"):
                change()
    assert os.access(copy, os.W_OK)
