# SPDX-License-Identifier: GPL-3.0-or-later
"""A full disk and a read-only one: one clear error, nothing lost, and it goes on when there is room again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import StoreError
from fuse_store.image import restore
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.conftest import content, read_store, read_whole, run, small_filesystem

SIZE = 24 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_filesystem(tmp_path / "disk", SIZE) as directory:
        yield directory


@pytest.fixture
def store(disk: Path) -> Iterator[Store]:
    with Store.create(disk / "store") as made:
        yield made


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More than the disk has room for, and nothing compresses."""
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(1).bytes(SIZE + (8 << 20)))
    return path


def put(store: Store, directory: Path, data: bytes) -> str:
    (directory / "source").write_bytes(data)
    return store.put(str(directory / "source"), Label("m")).id


def fill(disk: Path) -> Path:
    """Use up every block of a disk."""
    path = disk / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def partials(store: Store) -> list[Path]:
    return [path for path in store.path.rglob("*") if ".partial" in path.name]


def test_a_put_to_a_full_disk(store: Store, disk: Path, tmp_path: Path, large: Path) -> None:
    old = put(store, tmp_path, content(range(1, 200)))
    free = os.statvfs(disk).f_bavail
    with pytest.raises(StoreError, match=r"store .*: No space left on device.*No version was created, none was lost") as caught:
        store.put(str(large), Label("m"))
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert partials(store) == [] and os.statvfs(disk).f_bavail > free - 100
    assert read_store(store.path) == {old: content(range(1, 200))}
    assert verify(store, [old], 100, SILENT)[0].problems == []
    new = put(store, tmp_path, content(range(100, 300)))
    assert read_whole(store, new) == content(range(100, 300))


def test_full_packs_are_kept_for_the_next_put_and_freed_by_gc(
    store: Store, disk: Path, tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse_store.repository.pack.PACK_SIZE", 2 << 20)
    old = put(store, tmp_path, content(range(1, 200)))
    with pytest.raises(StoreError, match="No space left"):
        store.put(str(large), Label("m"))
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize < 6 << 20 and partials(store) == []
    assert read_store(store.path) == {old: content(range(1, 200))}
    done = collect(store, dry_run=False, progress=SILENT, grace=0.0)
    assert done.packs_removed >= 5
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 12 << 20
    new = put(store, tmp_path, content(range(100, 300)))
    assert read_store(store.path) == {old: content(range(1, 200)), new: content(range(100, 300))}


def test_a_collection_frees_a_disk_with_no_block_left(store: Store, disk: Path, tmp_path: Path) -> None:
    data = content(range(300, 500))
    old = put(store, tmp_path, content(range(1, 200)))
    kept = put(store, tmp_path, data)
    fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    store.remove([old])
    collect(store, dry_run=False, progress=SILENT, grace=0)
    assert os.statvfs(disk).f_bavail > 0
    assert store.ids() == [kept] and read_whole(store, kept) == data


def test_a_disk_with_no_block_left(store: Store, disk: Path, tmp_path: Path) -> None:
    """Nothing can be written: said in one line, and reading goes on."""
    data = content(range(1, 200))
    old = put(store, tmp_path, data)
    filler = fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    (tmp_path / "source").write_bytes(content(range(300, 500)))
    for act in (lambda: store.put(str(tmp_path / "source"), Label("m")), lambda: repair(store, SILENT)):
        with pytest.raises(StoreError, match="No space left on device") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert [summary.id for summary in store.summaries()] == [old] and read_whole(store, old) == data
    assert verify(store, [old], 100, SILENT)[0].problems == []
    assert partials(store) == []
    filler.unlink()
    new = put(store, tmp_path, content(range(300, 500)))
    assert read_whole(store, new) == content(range(300, 500)) and read_whole(store, old) == data
    assert repair(store, SILENT).lost == {}


def test_a_get_to_a_full_disk_leaves_the_old_file(store: Store, disk: Path, tmp_path: Path, large: Path) -> None:
    with Store.create(tmp_path / "roomy", durability="none") as roomy:
        made = roomy.put(str(large), Label("m"))
        target = disk / "target"
        target.write_bytes(b"old")
        with pytest.raises(StoreError, match=r"target .*No space left on device"):
            restore.get(roomy.open_image(made.id), str(target), SILENT)
    assert target.read_bytes() == b"old" and [path.name for path in disk.iterdir() if ".partial" in path.name] == []


def test_a_read_only_disk(store: Store, disk: Path, tmp_path: Path) -> None:
    data = content(range(1, 200))
    old = put(store, tmp_path, data)
    path = store.path
    store.close()
    run("mount", "-o", "remount,ro", str(disk))
    with Store.open(path) as store:
        assert [summary.id for summary in store.summaries()] == [old] and store.find("m/system/latest").id == old
        assert read_whole(store, old) == data
        assert verify(store, [old], 100, SILENT)[0].problems == []
        restore.get(store.open_image(old), str(tmp_path / "got"), SILENT)
        assert (tmp_path / "got").read_bytes() == data
        for act in (
            lambda: put(store, tmp_path, b"new"), lambda: store.remove([old]), lambda: store.record([old], "verified"),
            lambda: collect(store, dry_run=False, progress=SILENT), lambda: repair(store, SILENT),
        ):  # fmt: skip
            with pytest.raises(StoreError, match=r"Read-only file system.*Nothing was changed"):
                act()
    with pytest.raises(StoreError, match="Read-only file system"):
        Store.create(disk / "another")
    run("mount", "-o", "remount,rw", str(disk))
    assert read_store(path) == {old: data}
