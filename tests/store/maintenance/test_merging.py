# SPDX-License-Identifier: GPL-3.0-or-later
"""Small packs are copied together, and not again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_store.maintenance import packs
from fuse_store.maintenance.gc import Collected, collect
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.conftest import content, packs_of, read_whole, write_sparse


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none", encryption=False, unencrypted=True)


def put(store: Store, number: int, pages: int = 1) -> str:
    source = write_sparse(store.path.parent / "source", content(range(1000 * number, 1000 * number + pages)))
    return store.put(str(source), Label(f"m{number}"), bases=[]).id


def run(store: Store, dry_run: bool = False) -> Collected:
    return collect(store, dry_run=dry_run, progress=SILENT, grace=0.0)


def test_many_small_packs_become_one(store: Store) -> None:
    ids = {number: put(store, number) for number in range(1, packs.MERGED_AT_LEAST)}
    assert run(store).packs_copied == 0 and len(packs_of(store.path)) == packs.MERGED_AT_LEAST - 1
    ids[99] = put(store, 99)
    assert run(store, dry_run=True).packs_copied == packs.MERGED_AT_LEAST
    assert run(store).packs_copied == packs.MERGED_AT_LEAST and len(packs_of(store.path)) == 1
    assert run(store) == Collected(packs_kept=1, versions_needed=packs.MERGED_AT_LEAST)
    for number, image_id in ids.items():
        assert read_whole(store, image_id) == content(range(1000 * number, 1000 * number + 1))


def test_half_of_many_small_packs_is_needed(store: Store) -> None:
    """Each of them has too much that is needed to be copied by itself."""
    ids = []
    for number in range(1, 2 * packs.MERGED_AT_LEAST):
        whole = put(store, number, 64)
        source = write_sparse(store.path.parent / "source", content(range(1000 * number, 1000 * number + 32)))
        ids.append((number, store.put(str(source), Label(f"part{number}"), bases=[whole]).id))
        store.remove([whole])
    before = sum(path.stat().st_size for path in (store.path / "packs").rglob("*.pack"))
    assert run(store).packs_copied == len(ids)
    after = sum(path.stat().st_size for path in (store.path / "packs").rglob("*.pack"))
    assert len(packs_of(store.path)) == 1 and after < 0.6 * before
    for number, image_id in ids:
        assert read_whole(store, image_id) == content(range(1000 * number, 1000 * number + 32))


def test_the_work_of_one_collection_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 25):
        put(store, number)
    monkeypatch.setattr(packs, "MAX_MERGED", 10)
    assert run(store).packs_copied == 10 and len(packs_of(store.path)) == 15
    for number in range(30, 40):
        put(store, number)
    monkeypatch.setattr(packs, "MAX_MERGED", 100)
    monkeypatch.setattr(packs, "MAX_MERGED_SIZE", 0)
    assert run(store).packs_copied == 0
    monkeypatch.setattr(packs, "MAX_ROWS", 4)  # looked up in several parts
    monkeypatch.setattr(packs, "MAX_MERGED_SIZE", 1 << 30)
    assert run(store).packs_copied == 24 and len(packs_of(store.path)) == 2


def test_a_block_is_copied_a_few_times_at_most(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MERGED_AT_LEAST", 4)
    copied, most = 0, 0
    for number in range(1, 61):
        put(store, number)
        copied += run(store).packs_copied
        most = max(most, len(packs_of(store.path)))
    assert copied < 60 * 2 and most < 12


def test_large_packs_are_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "SMALL", 1 << 20)  # small: less than 256 bytes
    ids = [put(store, number, 64) for number in range(1, 18)]
    assert run(store).packs_copied == 0 and len(packs_of(store.path)) >= len(ids)
