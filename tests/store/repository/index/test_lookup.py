# SPDX-License-Identifier: GPL-3.0-or-later
"""The index of a store: look-ups over all fragments, when fragments are merged, and what a damaged one does."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import Mapped, PosixBackend, mapping
from fuse_store.repository.index import Index, Rows
from tests.store.conftest import replace_content
from tests.store.repository.index.conftest import PACKS, ROWS, content_of, digest, listed, make_rows, many, write


def nothing() -> None:
    pass


def add(own: Index, rows: Rows) -> None:
    """As a put of its own."""
    own.separate()
    own.add([rows], sync=False)


def sizes(own: Index) -> list[int]:
    """Rows of each fragment, newest first."""
    return [len(fragment) for fragment in own.fragments().values()]


def part(rows: Rows, *chosen: int) -> Rows:
    return rows.select(np.array(chosen, np.int64))


def bend(path: Path, at: int) -> bytes:
    """Flip a bit; the content before."""
    data = path.read_bytes()
    at %= len(data)
    replace_content(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    return data


def test_blocks_are_located_over_all_fragments(own: Index) -> None:
    add(own, part(ROWS, 0, 3))
    add(own, part(ROWS, 1, 4, 5))
    add(own, make_rows([(7, 7, 0)], [PACKS[2]]))
    add(own, part(ROWS))  # of nothing there is no fragment
    assert sizes(own) == [1, 3, 2]
    asked = [(4, 0), (1, 5), (2, 3), (7, 7), (2, 9), (2, 1)]
    located = own.locate(b"".join(digest(*key) for key in asked))
    assert located.pack[2] == -1
    found = [None if pack < 0 else located.packs[pack] for pack in located.pack.tolist()]
    assert found == [PACKS[0], PACKS[0], None, PACKS[2], PACKS[1], PACKS[1]]
    assert located.offset.tolist() == [104, 100, 0, 100, 103, 101]
    assert located.stored.tolist() == [204, 200, 0, 200, 203, 201] and located.length.tolist() == [304, 300, 0, 300, 303, 301]
    assert own.places(digest(2, 9)) == [(PACKS[1], 103, 203)] and own.places(digest(2, 3)) == []


def test_the_newest_place_of_a_block_is_found_first(own: Index) -> None:
    """It was stored again because the older ones are not good. Merged or not, and whatever the names of fragments are."""
    for number in range(8):
        add(own, make_rows([(1, 1, 0), (2 + number, 0, 0)], [PACKS[number % 3]], first=10 * number))
        located = own.locate(digest(1, 1))
        assert (located.packs[0], located.offset[0]) == (PACKS[number % 3], 100 + 10 * number)
        assert [offset for _pack, offset, _stored in own.places(digest(1, 1))] == [100 + 10 * each for each in range(number, -1, -1)]
        if number % 3 == 2:
            own.compact(False, nothing)
    assert len(sizes(own)) == 3


def test_a_wrong_row_gives_a_place_and_no_error(own: Index, tmp_path: Path) -> None:
    """An ordinal of a pack that is not listed, for instance: the block is then looked for elsewhere."""
    add(own, ROWS)
    (name,) = own.fragments()
    for at in range(1, 16 * len(ROWS)):
        data = bend(tmp_path / "store" / "index" / name, -at)
        own.close()
        located = own.locate(b"".join(map(ROWS.digest, range(len(ROWS)))))
        assert np.count_nonzero(located.pack >= 0) >= 5 and set(located.packs) <= set(PACKS)
        assert sum(len(own.places(ROWS.digest(row))) for row in range(len(ROWS))) >= 5
        replace_content(tmp_path / "store" / "index" / name, data)


def test_a_block_of_the_trash_is_found_only_if_it_is_nowhere_else(own: Index, tmp_path: Path) -> None:
    add(own, ROWS)
    (fragment,) = own.fragments().values()
    own.without({PACKS[1]}, True, nothing)
    assert os.listdir(tmp_path / "store" / "trash") == [fragment.name]
    (tmp_path / "store" / "trash" / ("0" * 32 + ".idx")).write_bytes(b"damaged")
    assert own.places(digest(2, 3)) == [ROWS.place(2)]
    assert own.places(digest(2, 9)) == [ROWS.place(3)] and own.places(digest(2, 8)) == []
    assert own.locate(digest(2, 9)).pack.tolist() == [-1]
    (kept,) = own.fragments().values()
    assert kept.packs == PACKS[0] and content_of(kept) == listed(part(ROWS, 0, 2, 4)) and kept.number == fragment.number


def test_old_fragments_stay_until_the_new_ones_are_there_and_the_lock_was_checked(own: Index, tmp_path: Path) -> None:
    add(own, ROWS)
    (old,) = own.fragments().values()

    def lost() -> None:
        assert len(list((tmp_path / "store" / "index").glob("*.idx"))) == 2 and not list((tmp_path / "store" / "trash").iterdir())
        raise OSError

    with pytest.raises(OSError):
        own.without({PACKS[0]}, False, lost)
    assert old.name in own.fragments() and len(own.fragments()) == 2
    own.drop([old.name], False, nothing)
    assert old.name not in own.fragments() and not list((tmp_path / "store" / "trash").iterdir())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []), ([3], [3]), ([3, 3], [6]), ([6, 3], [9]), ([7, 3], [3, 7]), ([3, 7], [10]), ([19, 6, 2, 1], [9, 19]),
        ([18, 6, 2, 1], [27]), ([100, 3, 7, 1, 1], [12, 100]), ([100, 30, 9], [9, 30, 100]), ([5, 100, 30, 9], [144]),
    ],
)  # fmt: skip
def test_fragments_of_similar_size_are_merged(own: Index, before: list[int], after: list[int]) -> None:
    for number, count in enumerate(before):
        add(own, make_rows([(number, row, 0) for row in range(count)]))
    checked: list[int] = []
    own.compact(False, lambda: checked.append(1))
    assert sizes(own) == after and len(checked) == (len(after) != len(before))
    for number, count in enumerate(before):
        assert (own.locate(b"".join(digest(number, row) for row in range(count))).pack >= 0).all()


def test_merging_has_no_cap_and_the_number_stays_logarithmic(own: Index) -> None:
    for number in range(200):
        add(own, many(number, 10))
        own.compact(False, nothing)
        counts = sizes(own)
        assert sum(counts) == 10 * (number + 1) and all(old > 2 * new for new, old in pairwise(counts)) and len(counts) <= 6


def test_a_put_leaves_one_fragment_and_each_pack_of_it_is_listed_at_once(own: Index) -> None:
    """A put that is killed goes on after its last full pack; a put of many packs must not leave a fragment for each."""
    add(own, many(0, 1000))
    own.separate()
    for number in range(1, 100):
        rows = many(number, 20)
        own.add([rows], sync=False)
        assert (own.locate(b"".join(map(rows.digest, range(20)))).pack >= 0).all()
        assert len(sizes(own)) <= 6 and sizes(own)[-1] == 1000  # nothing that versions need goes before the commit
    own.compact(False, nothing)
    assert len(sizes(own)) == 1 and sizes(own)[0] == 1000 + 99 * 20


def test_fragments_of_others_are_not_merged_before_a_commit(own: Index, backend: PosixBackend, aead: Aead) -> None:
    own.add([many(1, 10)], sync=False)
    other = Index(backend, aead)
    other.add([many(2, 10)], sync=False)
    assert sizes(other) == [10, 10]
    own.add([many(3, 10)], sync=False)  # behind it in age is one that is not its own
    assert sizes(own) == [10, 10, 10]


def test_several_rows_at_once_are_one_fragment(own: Index) -> None:
    own.add([many(1, 10), many(2, 300), many(1, 10)], sync=False)
    assert sizes(own) == [310]
    own.add([], sync=False)
    assert sizes(own) == [310]


@pytest.mark.parametrize("at", [-1, 60])
def test_a_damaged_fragment_is_reported_and_not_merged(own: Index, tmp_path: Path, at: int) -> None:
    """With its columns or its header: what is wrong must not get into a fragment whose digest is right."""
    for number in range(2):
        add(own, make_rows([(number, row, 0) for row in range(3)]))
    second, first = own.fragments()
    path = tmp_path / "store" / "index" / first
    data = bend(path, at)
    own.close()
    own.compact(False, nothing)
    assert path.exists() and (tmp_path / "store" / "index" / second).exists()
    sound, damaged = own.check()
    assert [fragment.name for fragment in sound] == [second] and list(damaged) == [first]
    assert list(own.damaged()) == ([] if at == -1 else [first])
    replace_content(path, data)
    own.refresh()
    assert own.damaged() == {} and own.check()[1] == {}


@pytest.mark.parametrize("how", ["empty", "half", "zeros"])
def test_a_torn_fragment_hides_nothing_else(own: Index, tmp_path: Path, how: str) -> None:
    """As the power leaves it, when files are not synced one by one."""
    add(own, many(1, 100))
    kept = many(2, 40)
    add(own, kept)
    newest, oldest = own.fragments()
    path = tmp_path / "store" / "index" / oldest
    size = path.stat().st_size
    replace_content(path, {"empty": b"", "half": path.read_bytes()[: size // 2], "zeros": bytes(size)}[how])
    again = Index(PosixBackend(tmp_path / "store"), own._aead)
    assert list(again.fragments()) == [newest] and list(again.damaged()) == [oldest]
    assert (again.locate(b"".join(map(kept.digest, range(40)))).pack >= 0).all()
    add(again, many(3, 30))
    again.compact(False, nothing)
    assert sizes(again) == [70] and path.exists()


def test_fragments_are_listed_again_when_the_directory_changed(own: Index, backend: PosixBackend, aead: Aead, tmp_path: Path) -> None:
    add(own, ROWS)
    directory = tmp_path / "store" / "index"
    old = os.stat(directory).st_mtime_ns - 10**10
    os.utime(directory, ns=(old, old))
    (name,) = own.fragments()
    assert own.fragments()[name] is own.fragments()[name]  # parsed once
    Index(backend, aead).add([make_rows([(7, 7, 0)])], sync=False)
    os.utime(directory, ns=(old, old))
    assert len(own.fragments()) == 1  # a trusted time that did not change
    own.refresh()
    assert len(own.fragments()) == 2
    Index(backend, aead).add([make_rows([(8, 8, 0)])], sync=False)
    assert len(own.fragments()) == 3
    Index(backend, aead).add([make_rows([(9, 9, 0)])], sync=False)
    assert len(own.fragments()) == 4  # within the time in which the directory's time may stay the same
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert own.fragments() == {} and own.check() == ([], {})


def test_a_fragment_that_goes_between_the_list_and_the_look_does_not_hide_the_others(
    own: Index, aead: Aead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer has merged it: the list is made again."""
    add(own, ROWS)
    backend = PosixBackend(tmp_path / "store")
    reader = Index(backend, aead)
    read, missing = backend.read_mmap, [1, 2]

    def gone(name: str, *, check: bool) -> Mapped:
        if missing:
            missing.pop()
            raise FileNotFoundError
        return read(name, check=check)

    monkeypatch.setattr(backend, "read_mmap", gone)
    assert len(reader.fragments()) == 1
    reader.close()
    missing.append(1)
    assert [len(fragment) for fragment in reader.check()[0]] == [6]


def test_what_goes_from_the_index_is_durable_if_the_store_is(own: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    backend = own._backend
    for sync, wanted in ((True, ["checked", "sync index"]), (False, ["checked"])):
        add(own, ROWS)
        steps.clear()
        monkeypatch.setattr(backend, "sync", lambda directory: steps.append(f"sync {directory}"))
        own.drop(list(own.fragments()), sync, lambda: steps.append("checked"))
        assert steps == wanted and own.fragments() == {}


def test_look_ups_do_not_keep_the_index_in_memory(own: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads pages from all over a fragment."""
    monkeypatch.setattr(mapping, "LARGE_SIZE", 1 << 20)
    monkeypatch.setattr(mapping, "MAX_RESIDENT", 0)
    rows = many(1, 200_000)
    add(own, rows)
    (fragment,) = own.fragments().values()

    def resident() -> int:
        """Bytes of the fragment that this process has in memory."""
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(number for number, line in enumerate(lines) if fragment.name in line)
        return next(int(line.split()[1]) << 10 for line in lines[start:] if line.startswith("Rss:"))

    for begin in range(0, 200_000, 500):
        own.locate(np.stack((rows.high[begin : begin + 500], rows.low[begin : begin + 500]), 1).tobytes())
    list(fragment.part(0, len(fragment)).high)
    assert resident() > 0
    own.locate(bytes(16 * mapping.MAX_TOUCHED))
    assert resident() == 0
    assert own.places(rows.digest(77)) == [rows.place(77)]


def test_fragments_written_elsewhere_are_newer_than_what_was_there(backend: PosixBackend, aead: Aead, own: Index) -> None:
    write(backend, ROWS, aead, number=40)
    add(own, many(1, 3))
    assert [fragment.number for fragment in own.fragments().values()] == [41, 40]
