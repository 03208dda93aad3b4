# SPDX-License-Identifier: GPL-3.0-or-later
"""Garbage collection: what is kept, copied, dropped and counted, and when nothing is freed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import Damaged, Locked, StoreError
from fuse_store.maintenance import packs, trash
from fuse_store.maintenance.gc import Collected, collect
from fuse_store.progress import SILENT
from fuse_store.repository.index import lookup
from fuse_store.repository.manifest import image_name
from fuse_store.repository.pack import pack_name
from fuse_store.store import Label, Store
from tests.store.conftest import content, index_rows, packs_of, packs_with, read_whole, replace_content, write_sparse


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none", compression="none", encryption=False)


def put(store: Store, start: int, pages: int = 64, bases: list[str] | None = None) -> str:
    source = write_sparse(store.path.parent / "source", content(range(start, start + pages)))
    return store.put(str(source), Label("m"), bases=bases).id


def sizes(store: Store) -> dict[bytes, int]:
    return {pack: (store.path / pack_name(pack)).stat().st_size for pack in packs_of(store.path)}


def run(store: Store, grace: float = trash.GRACE_PERIOD, dry_run: bool = False) -> Collected:
    return collect(store, dry_run=dry_run, progress=SILENT, grace=grace)


def names(store: Store) -> set[str]:
    return {str(path) for path in store.path.rglob("*") if path.is_file() and path.parent.name != "locks"}


def two_in_one_pack(store: Store, first: int, second: int) -> tuple[str, str]:
    """Two versions whose blocks are in one pack: the second version names a part of the first's pages."""
    both = put(store, 1, first + second)
    part = put(store, 1 + first, second)
    return both, part


def no_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "similar", lambda fragments: fragments[:0])


def test_a_pack_that_nothing_needs_goes_to_the_trash_and_is_destroyed_later(store: Store) -> None:
    first, second = put(store, 1), put(store, 1000)
    before = sizes(store)
    assert run(store) == Collected(packs_kept=2, versions_needed=2)
    store.remove([first])
    assert run(store) == Collected(packs_kept=1, packs_removed=1, freed=next(iter(before.values())), versions_needed=1)
    (gone,) = before.keys() - packs_of(store.path)
    in_trash = {path.name for path in (store.path / "trash").iterdir()}
    assert f"{gone.hex()}.pack" in in_trash and f"{first}.img" in in_trash and any(name.endswith(".idx") for name in in_trash)
    assert run(store, grace=3600) == Collected(packs_kept=1, versions_needed=1)
    assert {path.name for path in (store.path / "trash").iterdir()} == in_trash
    run(store, grace=0)
    assert not list((store.path / "trash").iterdir()) and read_whole(store, second) == content(range(1000, 1064))


def test_a_dry_run_changes_nothing_and_says_what_would_be_done(store: Store) -> None:
    _first, _second = put(store, 1), put(store, 1000)
    both, _part = two_in_one_pack(store, 3000, 64)
    store.remove([_first, both])
    before = names(store)
    store.state_log.begin(bytes(16), "0" * 32, usable=True, sync=False)  # a put was killed before there was a manifest
    left = str(store.path / "states" / "00" / f"{'0' * 32}.log")
    wanted = run(store, grace=0, dry_run=True)
    assert wanted.packs_removed == 1 and wanted.packs_copied == 1 and wanted.freed
    assert names(store) - before >= {left} and not before - names(store)
    assert run(store) == wanted
    assert not before <= names(store) and left not in names(store)


def test_how_much_of_a_pack_must_be_needed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    both, part = two_in_one_pack(store, 64, 32)
    store.remove([both])
    ((pack, size),) = sizes(store).items()
    rows = index_rows(store)
    live = sum(int(rows.stored[row]) for row in range(len(rows)) if rows.digest(row) in digests_of(store, part))
    assert 0 < live < size
    monkeypatch.setattr(packs, "MIN_USED_RATIO", live / size)
    assert run(store) == Collected(packs_kept=1, versions_needed=1)
    monkeypatch.setattr(packs, "MIN_USED_RATIO", (live + 1) / size)
    assert run(store) == Collected(packs_copied=1, freed=size - live, versions_needed=1)
    (new,) = packs_of(store.path)
    assert new != pack and read_whole(store, part) == content(range(65, 97))
    assert run(store) == Collected(packs_kept=1, versions_needed=1)


def digests_of(store: Store, image_id: str) -> set[bytes]:
    return {digests[at : at + 16] for digests, _located, _first in store.open_image(image_id).blocks() for at in range(0, len(digests), 16)}


def test_the_pages_of_copied_blocks_are_still_known(store: Store) -> None:
    """The table of the new pack has their digests: a later version that has the same pages stores nothing."""
    both, part = two_in_one_pack(store, 640, 64)
    store.remove([both])
    assert run(store).packs_copied == 1
    again = store.put(str(write_sparse(store.path.parent / "again", content([5, *range(641, 705)]))), Label("m"), bases=[part])
    assert again.new == 4096


def test_blocks_of_one_pack_may_be_in_several_fragments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    no_merging(monkeypatch)
    both, part = two_in_one_pack(store, 640, 96)
    other = put(store, 5000)
    old = dict(store.index.fragments())
    rows = index_rows(store)
    for at in (0, 1):
        store.index.add([rows.select(np.arange(at, len(rows), 2))], sync=False)
    store.index.drop(list(old), False, lambda: None)
    store.remove([both])
    done = run(store)
    assert (done.packs_kept, done.packs_copied, done.packs_removed) == (1, 1, 0)
    assert read_whole(store, part) == content(range(641, 737)) and read_whole(store, other) == content(range(5000, 5064))
    every = index_rows(store)
    assert {every.place(row)[0] for row in range(len(every))} == packs_of(store.path)


def test_without_a_manifest_or_the_index_nothing_is_freed(store: Store) -> None:
    first, second, third = put(store, 1), put(store, 1000), put(store, 2000)
    store.remove([first])
    path = store.path / image_name(second)
    manifest = path.read_bytes()
    replace_content(path, manifest[:-1])
    before = names(store)
    with pytest.raises(StoreError, match=rf"cannot tell which blocks image {second} needs.*Nothing was freed"):
        run(store, grace=0)
    assert packs_of(store.path) == {bytes.fromhex(Path(name).stem) for name in before if name.endswith(".pack")}
    replace_content(path, manifest)
    saved = {name: name.read_bytes() for name in (store.path / "index").glob("*.idx")}
    for name in saved:
        name.unlink()
    store.index.refresh()
    with pytest.raises(StoreError, match=r"blocks: not in the index\.  ?Nothing was freed"):
        run(store)
    for name, data in saved.items():
        name.write_bytes(data)
    store.index.refresh()
    assert run(store).packs_removed == 1 and read_whole(store, third) == content(range(2000, 2064))


def test_a_lost_pack_is_reported_only_if_it_is_needed(store: Store) -> None:
    first, second = put(store, 1), put(store, 1000)
    (lost,) = packs_with(store, first)
    (store.path / pack_name(lost)).unlink()
    with pytest.raises(StoreError, match=rf"pack {lost.hex()}: missing"):
        run(store)
    store.remove([first])
    assert run(store) == Collected(packs_kept=1, versions_needed=1)
    assert read_whole(store, second) == content(range(1000, 1064))


def test_a_damaged_block_is_not_copied(store: Store) -> None:
    both, part = two_in_one_pack(store, 640, 64)
    store.remove([both])
    ((pack, _size),) = sizes(store).items()
    rows = index_rows(store)
    needed = next(row for row in range(len(rows)) if rows.digest(row) in digests_of(store, part))
    _pack, offset, stored = rows.place(needed)
    path = store.path / pack_name(pack)
    data = bytearray(path.read_bytes())
    data[offset + stored - 1] ^= 1
    replace_content(path, bytes(data))
    store.backend.close()
    with pytest.raises(Damaged):
        run(store)
    assert packs_of(store.path) == {pack} and not list((store.path / "packs").glob("*.partial"))


def test_an_index_that_contradicts_the_pack_is_not_collected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    both, part = two_in_one_pack(store, 640, 64)
    store.remove([both])
    table = store.reader.table

    def short(pack: bytes, check: bool = False) -> object:
        whole = table(pack, check)
        return type(whole)(pack, whole.digests[:16], whole.offset[:1], whole.stored[:1], whole.length[:1], whole.pages)

    monkeypatch.setattr(store.reader, "table", short)
    before = packs_of(store.path)
    with pytest.raises(Damaged, match="pack table does not match the index"):
        run(store)
    assert packs_of(store.path) == before and read_whole(store, part)


def test_who_loses_the_lock_drops_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before the new index is there, nor between two packs."""
    ids = [put(store, 1000 * number + 1) for number in range(3)]
    store.remove(ids)
    lock = store.path / "locks" / "writer"
    fragments = {path.name for path in (store.path / "index").glob("*.idx")}
    move = trash.move_to_trash

    def then_lose(store: Store, name: str) -> None:
        move(store, name)
        lock.write_text("{}")

    class Loses:
        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            lock.write_text("{}")

        def at(self, done: int) -> None: ...

        def finish(self) -> None: ...

    with pytest.raises(Locked):
        collect(store, dry_run=False, progress=Loses())
    assert len(packs_of(store.path)) == 3 and {path.name for path in (store.path / "index").glob("*.idx")} == fragments
    lock.unlink()
    monkeypatch.setattr(trash, "move_to_trash", then_lose)
    with pytest.raises(Locked):
        run(store)
    assert len(packs_of(store.path)) == 2
    lock.unlink()


def test_the_trash_is_emptied_by_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time() + 1000
    paths = [store.path / "trash" / f"{number}.pack" for number in range(3)]
    for path in paths:
        path.write_bytes(b"x")
    entries = store.backend.entries("trash")
    changed = max(entry.changed for entry in entries)
    monkeypatch.setattr(store.backend, "now", lambda: now)
    trash.empty(store, now - changed + 0.5)
    assert all(path.exists() for path in paths)
    trash.empty(store, 999)
    assert not any(path.exists() for path in paths)


def test_the_trash_is_emptied_also_on_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the lock is taken, which may need space."""
    path = store.path / "trash" / "x.pack"
    path.write_bytes(b"x")
    monkeypatch.setattr(store, "writing", lambda: (_ for _ in ()).throw(StoreError("disk", "No space left on device.")))
    run(store, grace=0, dry_run=True)  # takes no lock
    assert path.exists()
    with pytest.raises(StoreError):
        run(store, grace=0)
    assert not path.exists()


def test_what_is_moved_to_the_trash_is_synced_if_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for durability, wanted in (("full", ["trash", "packs/ab"]), ("none", [])):
        with Store.create(tmp_path / durability, durability=durability) as store:
            (store.path / "packs" / "ab").mkdir()
            (store.path / "packs" / "ab" / "x.pack").write_bytes(b"x")
            synced: list[str] = []
            monkeypatch.setattr(store.backend, "sync", synced.append)
            trash.move_to_trash(store, "packs/ab/x.pack")
            assert synced == wanted and os.listdir(store.path / "trash") == ["x.pack"]


@pytest.mark.parametrize("lost", [True, False], ids=["one pack is lost", "both are there"])
def test_of_a_block_in_two_packs_one_is_needed(store: Store, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    """Beside blocks that are in one pack only, before and behind them."""
    no_merging(monkeypatch)
    for attempt in range(2):
        start = 1000 * attempt + 1
        twice = put(store, start + 32, 64, bases=[])
        (first_pack,) = packs_with(store, twice)
        path = store.path / pack_name(first_pack)
        hidden = path.with_suffix(".hidden")
        path.rename(hidden)
        store.backend.close()
        whole = put(store, start, 128, bases=[])  # stores the same blocks again
        if not lost:
            hidden.rename(path)
        done = run(store, grace=0)
        assert done.packs_removed + done.packs_copied == (0 if lost else 1)
        tables = [store.reader.table(pack) for pack in packs_of(store.path)]
        assert sum(len(table.offset) for table in tables) == 4 * (attempt + 1)  # no block is in two packs any more
        assert read_whole(store, whole) == content(range(start, start + 128))
        assert read_whole(store, twice) == content(range(start + 32, start + 96))
        store.backend.close()
        if lost:
            hidden.unlink()


def test_without_grace_the_disk_space_is_free_at_once(store: Store) -> None:
    put(store, 1)
    store.remove(store.ids())
    assert run(store, grace=0).packs_removed == 1
    assert not packs_of(store.path) and not list((store.path / "trash").iterdir())


def test_removed_packs_are_closed(store: Store) -> None:
    """As long as a process has one open, its disk space is not free."""
    both, part = two_in_one_pack(store, 640, 64)
    assert read_whole(store, both)
    store.remove([both])
    assert run(store, grace=0).packs_copied == 1
    opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert not [name for name in opened if str(store.path) in name and ".pack" in name and "deleted" in name]
    assert read_whole(store, part) == content(range(641, 705))


def test_progress_counts_the_versions_that_were_asked(store: Store) -> None:
    seen: list[object] = []

    class Seen:
        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            seen.append((label, total, unit))

        def at(self, done: int) -> None:
            seen.append(done)

        def finish(self) -> None:
            seen.append("finished")

    for number in range(3):
        put(store, 1000 * number + 1)
    collect(store, dry_run=True, progress=Seen())
    assert seen == [("gc", None, "versions"), 1, 2, 3, "finished"]


def test_nothing_is_freed_when_the_directory_of_manifests_is_missing(store: Store) -> None:
    """A mount that failed, or a copy that is not finished: without manifests no block would be needed."""
    image_id = put(store, 1)
    before = sizes(store)
    (store.path / "images").rename(store.path.parent / "away")
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="images"):
            run(store, grace=0.0, dry_run=dry_run)
    assert sizes(store) == before and not (store.path / "images").exists()
    (store.path.parent / "away").rename(store.path / "images")
    assert read_whole(store, image_id) == content(range(1, 65))
