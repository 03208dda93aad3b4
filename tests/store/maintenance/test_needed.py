# SPDX-License-Identifier: GPL-3.0-or-later
"""What gc remembers of the versions: it is used if it is right, and whatever else is in its place, nothing that is needed goes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fuse_store.columns import joined
from fuse_store.maintenance import needed
from fuse_store.maintenance.gc import Collected, collect
from fuse_store.maintenance.needed import Group, parse
from fuse_store.progress import SILENT
from fuse_store.repository import manifest
from fuse_store.store import Label, Store
from tests.store.conftest import content, packs_of, read_whole, write_sparse


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    return Store.create(tmp_path / "store", durability="none", compression="none", encryption=request.param, unencrypted=True)


def put(store: Store, pages: Sequence[int], machine: str = "m", bases: list[str] | None = None) -> str:
    return store.put(str(write_sparse(store.path.parent / "source", content(pages))), Label(machine), bases=bases).id


def run(store: Store, dry_run: bool = False) -> Collected:
    return collect(store, dry_run=dry_run, progress=SILENT, grace=0.0)


def files(store: Store) -> list[Path]:
    return sorted((store.path / "summaries").glob("*.blocks"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions whose manifests were read for their blocks."""
    seen: list[str] = []
    original = manifest.read_head

    def noted(backend: object, image_id: str, aead: object) -> object:
        seen.append(image_id)
        return original(cast(Any, backend), image_id, cast(Any, aead))

    monkeypatch.setattr(needed, "read_head", noted)
    return seen


def test_a_manifest_is_read_once(store: Store, read: list[str]) -> None:
    ids = [put(store, range(1 + 64 * number, 65 + 64 * number)) for number in range(4)]
    other = put(store, range(1, 65), "other")
    assert run(store).versions_needed == 5 and sorted(read) == sorted([*ids, other])
    read.clear()
    assert run(store).versions_needed == 5 and not read
    late = put(store, range(1000, 1064))
    assert run(store).versions_needed == 6 and read == [late]
    read.clear()
    store.remove([ids[1]])
    assert run(store).packs_removed == 1 and not read
    for image_id, first in ((ids[0], 1), (ids[2], 129), (ids[3], 193), (late, 1000), (other, 1)):
        assert read_whole(store, image_id) == content(range(first, first + 64))
    store.remove(store.ids())
    assert run(store).packs_kept == 0 and not packs_of(store.path) and not files(store)


def test_a_dry_run_reads_and_writes_nothing(store: Store, read: list[str]) -> None:
    put(store, range(1, 65))
    assert run(store, dry_run=True).versions_needed == 1 and not files(store)
    run(store)
    read.clear()
    written = [file.read_bytes() for file in files(store)]
    put(store, range(100, 164))
    assert run(store, dry_run=True).versions_needed == 2 and len(read) == 1
    assert written == [file.read_bytes() for file in files(store)]


def test_versions_with_too_many_blocks_are_read_each_time_and_groups_are_divided(
    store: Store, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needed, "MAX_RUNS", 3)
    large = put(store, range(1, 1 + 32 * 5))  # five blocks
    small = [put(store, range(1000 + 64 * number, 1064 + 64 * number)) for number in range(3)]  # two each
    run(store)
    assert sorted(read) == sorted([large, *small]) and len(files(store)) == 3
    read.clear()
    assert run(store) == Collected(packs_kept=4, versions_needed=4) and read == [large]
    store.remove([small[1]])
    assert run(store).packs_removed == 1
    assert read_whole(store, large) == content(range(1, 161)) and read_whole(store, small[2]) == content(range(1128, 1192))
    store.remove([large])
    assert run(store).packs_removed == 1 and read_whole(store, small[0]) == content(range(1000, 1064))


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("change", [flipped, lambda data: data[:-1], lambda data: b"", lambda data: data * 2, lambda data: b"x" * 999],
                         ids=["a bit", "cut off", "empty", "twice", "else"])  # fmt: skip
def test_what_was_not_written_by_gc_is_not_believed(store: Store, read: list[str], change: Callable[[bytes], bytes]) -> None:
    ids = [put(store, range(1 + 64 * number, 65 + 64 * number)) for number in range(3)]
    run(store)
    (file,) = files(store)
    file.write_bytes(change(file.read_bytes()))
    store.remove([ids[0]])
    read.clear()
    done = run(store)
    assert (done.packs_kept, done.packs_removed, done.versions_needed) == (2, 1, 2)
    assert sorted(read) == sorted(ids[1:])
    assert read_whole(store, ids[2]) == content(range(129, 193))


def test_the_file_of_another_directory_or_of_another_time_loses_nothing(store: Store) -> None:
    first = put(store, range(1, 65))
    run(store)
    (file,) = files(store)
    early = file.read_bytes()
    second = put(store, range(100, 164))
    run(store)
    store.remove([first])
    run(store)
    file.write_bytes(early)  # knows a version that is gone, and not the one that is there
    third = put(store, range(200, 264), "other")
    run(store)
    (other,) = set(files(store)) - {file}
    other.write_bytes(file.read_bytes())
    file.write_bytes(early)
    assert run(store).packs_removed == 0
    assert read_whole(store, second) == content(range(100, 164)) and read_whole(store, third) == content(range(200, 264))


def group_of(store: Store) -> tuple[Path, Group]:
    (file,) = files(store)
    return file, parse(store.versions.cache.packed(file.name, needed.MAX_SIZE))


def test_runs_that_are_not_those_of_their_versions_are_not_believed(store: Store, read: list[str]) -> None:
    """A bit that flipped in memory, or a wrong program, before the file was encrypted."""
    ids = [put(store, range(1, 129)), put(store, [*range(1, 65), *range(300, 330)])]
    run(store)
    file, group = group_of(store)
    packed = group.packed()
    runs = packed[-24 * len(group) :]
    for at in range(0, len(runs), 3):
        changed = packed[: len(packed) - len(runs)] + runs[:at] + bytes([runs[at] ^ 1]) + runs[at + 1 :]
        with pytest.raises(ValueError):
            parse(changed)
    store.versions.cache.keep_packed(file.name, changed)
    read.clear()
    assert run(store).packs_removed == 0 and sorted(read) == sorted(ids)
    assert read_whole(store, ids[0]) == content(range(1, 129))


def test_blocks_that_are_not_in_the_index_are_looked_up_in_the_manifests(store: Store, read: list[str]) -> None:
    image_id = put(store, range(1, 65))
    run(store)
    file, group = group_of(store)
    wrong = Group()
    version = group.versions[0]
    wrong.add(version.id, version.content, np.array([5], np.uint64), np.array([6], np.uint64))
    store.versions.cache.keep_packed(file.name, wrong.packed())
    read.clear()
    assert run(store).packs_removed == 0 and read == [image_id] and not files(store)
    assert read_whole(store, image_id) == content(range(1, 65))
    read.clear()
    run(store)
    assert read == [image_id] and files(store)


def test_a_put_between_two_collections_that_needs_what_was_to_go(store: Store) -> None:
    first = put(store, range(1, 65))
    run(store)
    store.remove([first])
    with Store.open(store.path, unencrypted=True) as other:
        again = put(other, range(1, 65), "other", bases=[])
        assert run(store).packs_removed == 0 and run(other).packs_removed == 0
        assert read_whole(other, again) == content(range(1, 65))
        other.remove([again])
        assert run(store).packs_removed == 1


def test_a_log_of_a_version_that_is_there_stays_whatever_was_remembered(store: Store) -> None:
    put(store, range(1, 65))
    run(store)
    file, group = group_of(store)
    wrong = Group()
    runs = group.runs()
    wrong.add(group.versions[0].id, bytes(16), runs.high, runs.low)
    store.versions.cache.keep_packed(file.name, wrong.packed())
    run(store)
    assert len(list(store.state_log.contents())) == 1


def test_groups_are_as_sets_are() -> None:
    """Versions come and go; what is needed is the union of those that are there."""
    chance = random.Random(7)
    for _round in range(30):
        group, sets = Group(), dict[str, set[tuple[int, int]]]()
        blocks: set[tuple[int, int]] = set()
        for _step in range(40):
            if chance.random() < 0.7:
                blocks = {block for block in blocks if chance.random() < 0.9} | {
                    (chance.randrange(6), chance.randrange(1 << 64)) for _new in range(chance.randrange(4))
                }
                image_id = f"{chance.randrange(1 << 128):032x}"
                high, low = (np.array([block[half] for block in sorted(blocks)], np.uint64) for half in (0, 1))
                group.add(image_id, bytes(16), high, low)
                sets[image_id] = set(blocks)
            elif sets and chance.random() < 0.3:
                gone = {image_id for image_id in sets if chance.random() < 0.3}
                group = group.without(gone)
                sets = {image_id: known for image_id, known in sets.items() if image_id not in gone}
            else:
                group = parse(group.packed())
            there = {image_id for image_id in sets if chance.random() < 0.5}
            high, low = group.needed(there)
            found = joined(high, low)
            assert len(group) == len(group.runs())
            assert {found[at : at + 16] for at in range(0, len(found), 16)} == {
                b"".join(half.to_bytes(8, "little") for half in block) for image_id in there for block in sets[image_id]
            }
