# SPDX-License-Identifier: GPL-3.0-or-later
"""The index by itself: rows, fragments, look-ups, and when fragments are merged."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest

from fuse_store.columns import halves
from fuse_store.repository import index
from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.index import Index, Rows, fragment_bytes, merged, parse_fragment

AEAD = Aead(bytes(16), bytes(32), encrypted=False)
PACKS = [bytes([number]) * 16 for number in (7, 8, 9)]


def digest(high: int, low: int) -> bytes:
    return struct.pack("<QQ", high, low)


def make_rows(blocks: list[tuple[int, int, int]], packs: list[bytes] = PACKS[:2]) -> Rows:
    """Rows of (high, low, ordinal of the pack); offset, bytes stored and length follow from the row."""
    high, low, pack = (np.array(column, kind) for column, kind in zip(zip(*sorted(blocks), strict=True), ("u8", "u8", "u4"), strict=True))
    row = np.arange(len(blocks))
    return Rows(
        high, low, (100 + row).astype("u8"), pack, (200 + row).astype("u4"), (300 + row).astype("u4"), b"".join(packs)
    )


ROWS = make_rows([(1, 5, 0), (2, 1, 1), (2, 3, 0), (2, 9, 1), (4, 0, 0), ((1 << 64) - 1, (1 << 64) - 1, 1)])


def always(digest: bytes, pack: bytes, offset: int, stored: int) -> bool:
    return True


@pytest.fixture
def own(tmp_path: Path) -> Index:
    backend = PosixBackend(tmp_path / "store")
    backend.prepare()
    return Index(backend, AEAD)


def test_a_row_gives_its_digest_and_its_place() -> None:
    assert len(ROWS) == 6
    assert ROWS.digest(2) == digest(2, 3) and ROWS.digest(5) == b"\xff" * 16
    assert ROWS.pack_id(0) == PACKS[0] and ROWS.pack_id(1) == PACKS[1]
    assert ROWS.place(2) == (PACKS[0], 102, 202) and ROWS.place(3) == (PACKS[1], 103, 203)


def test_rows_are_found_by_their_whole_digest() -> None:
    """Also among several with the same first half, at both ends, and not beyond."""
    asked = [(2, 9), (1, 5), (2, 1), (2, 3), (2, 2), (2, 10), (0, 0), (1, 4), (3, 0), ((1 << 64) - 1, 0), ((1 << 64) - 1, (1 << 64) - 1)]
    high, low = halves(b"".join(digest(*key) for key in asked))
    assert ROWS.find(high, low).tolist() == [3, 0, 1, 2, -1, -1, -1, -1, -1, -1, 5]
    assert make_rows([(1, 1, 0)]).find(*halves(digest(1, 2) + digest(2, 1) + digest(1, 1))).tolist() == [-1, -1, 0]


def test_selected_rows_name_only_their_packs() -> None:
    part = ROWS.select(np.array([1, 3, 5]))
    assert part.packs == PACKS[1] and part.pack.tolist() == [0, 0, 0] and part.pack.dtype == np.uint32
    assert [part.place(row) for row in range(3)] == [ROWS.place(row) for row in (1, 3, 5)]
    assert part.length.tolist() == [301, 303, 305] and [part.digest(row) for row in range(3)] == [ROWS.digest(row) for row in (1, 3, 5)]
    assert len(ROWS.select(np.zeros(6, bool))) == 0 and ROWS.select(np.zeros(6, bool)).packs == b""


def test_merged_rows_are_sorted_and_of_equal_ones_the_first_stays() -> None:
    one = make_rows([(5, 5, 0), (2, 3, 1), (2, 2, 0)], [PACKS[2], PACKS[0]])
    both = merged([one, ROWS])
    digests = [both.digest(row) for row in range(len(both))]
    end = (1 << 64) - 1
    assert digests == [digest(*key) for key in ((1, 5), (2, 1), (2, 2), (2, 3), (2, 9), (4, 0), (5, 5), (end, end))]
    place_of = {both.digest(row): both.place(row) for row in range(len(both))}
    assert place_of[digest(2, 3)] == one.place(1) == (PACKS[0], 101, 201)
    assert place_of[digest(2, 2)] == one.place(0) and place_of[digest(2, 9)] == ROWS.place(3)
    assert merged([ROWS, one]).place(3) == ROWS.place(2)
    assert {both.pack_id(ordinal) for ordinal in range(len(both.packs) // 16)} == set(PACKS)


def test_of_several_places_of_a_block_a_readable_one_is_taken() -> None:
    """Only blocks with different places are asked for, and only until one is readable; if none is, the first stays."""
    first = make_rows([(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 0)], [PACKS[0]])
    second = make_rows([(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 0)], [PACKS[1]])
    third = make_rows([(0, 9, 0), (2, 2, 0), (4, 4, 0), (9, 9, 0)], [PACKS[2]])
    asked: list[tuple[bytes, bytes]] = []

    def has(block: bytes, pack: bytes, offset: int, stored: int) -> bool:
        asked.append((block, pack))
        wanted = {digest(1, 1): PACKS[1], digest(2, 2): PACKS[2], digest(4, 4): PACKS[0]}
        return wanted.get(block) == pack and stored == offset + 100

    rows = merged([first, second, third], has)
    assert [rows.digest(row) for row in range(len(rows))] == [digest(*key) for key in ((0, 9), (1, 1), (2, 2), (3, 3), (4, 4), (9, 9))]
    assert [rows.place(row)[0] for row in range(len(rows))] == [PACKS[2], PACKS[1], PACKS[2], PACKS[0], PACKS[0], PACKS[2]]
    assert rows.place(2) == third.place(1) and rows.place(3) == first.place(2)
    assert asked == [
        (digest(1, 1), PACKS[0]), (digest(1, 1), PACKS[1]), (digest(2, 2), PACKS[0]), (digest(2, 2), PACKS[1]), (digest(2, 2), PACKS[2]),
        (digest(3, 3), PACKS[0]), (digest(3, 3), PACKS[1]), (digest(4, 4), PACKS[0]),
    ]  # fmt: skip
    asked.clear()
    assert len(merged([first, first, first], has)) == 4 and asked == []
    moved = Rows(first.high, first.low, first.offset + np.uint64(1), first.pack, first.stored, first.length, first.packs)
    assert merged([moved, first], has).place(3) == first.place(3) and len(asked) == 8  # the same pack, another offset


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_fragment_comes_back_as_it_was(encrypted: bool) -> None:
    aead = Aead(bytes(16), bytes(32), encrypted)
    for rows in (ROWS, ROWS.select(np.zeros(6, bool))):
        content = fragment_bytes(rows, aead)
        _magic, encrypted, begin = struct.unpack_from("<8sII", content)
        assert begin % 8 == 0 and 16 + encrypted <= begin < 16 + encrypted + 8 and len(content) == begin + 36 * len(rows)
        for check in (True, False):
            again = parse_fragment(content, aead, check)
            assert again.packs == rows.packs and all((getattr(again, name) == getattr(rows, name)).all() for name, _kind in index.COLUMNS)


def fragment(columns: bytes, packs: bytes = b"".join(PACKS[:2]), begin: int | None = None, rows: object = 6, digest: bytes = b"") -> bytes:
    """A fragment with a valid header that says anything."""
    header = AEAD.encrypt(b"index", msgpack.packb({"rows": rows, "packs": packs, "digest": digest or AEAD.digest(columns)}))
    begin = -(-(16 + len(header)) // 8) * 8 if begin is None else begin
    return struct.pack("<8sII", b"FSINDEX1", len(header), begin) + header + bytes(max(0, begin - 16 - len(header))) + columns


def header_of(value: object) -> bytes:
    """A fragment whose header is anything."""
    header = AEAD.encrypt(b"index", msgpack.packb(value))
    return struct.pack("<8sII", b"FSINDEX1", len(header), -(-(16 + len(header)) // 8) * 8) + header + bytes(-len(header) % 8)


def test_fragments_that_are_refused() -> None:
    content = fragment_bytes(ROWS, AEAD)
    begin = struct.unpack_from("<8sII", content)[2]
    columns = content[begin:]
    assert parse_fragment(fragment(columns), AEAD, check=True).place(3) == ROWS.place(3)
    for changed, problem in (
        (content[:15], "truncated"), (b"", "truncated"), (content[:16], "not an index"), (b"FSINDEX2" + content[8:], "not an index"),
        (fragment(columns, begin=begin + 4), "not an index"), (content[: begin - 1], "not an index"), (content[:-1], "wrong length"),
        (content + b"\0", "wrong length"), (fragment(columns, rows=5), "wrong length"), (fragment(columns, rows="6"), "invalid values"),
        (fragment(b"", rows=-1), "invalid values"), (fragment(columns, packs=bytes(33)), "invalid values"),
        (fragment(columns, begin=16), "not an index"), (header_of({}), "cannot read the header"), (header_of([]), "cannot read the header"),
        (content[:30] + bytes([content[30] ^ 1]) + content[31:], "checksum"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            parse_fragment(changed, AEAD)


def test_columns_are_compared_with_their_digest_if_that_is_asked_for() -> None:
    content = fragment_bytes(ROWS, AEAD)
    begin = struct.unpack_from("<8sII", content)[2]
    columns = content[begin:]
    for at in (begin, len(content) - 1):
        bent = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        assert len(parse_fragment(bent, AEAD)) == 6
        with pytest.raises(ValueError, match="checksum mismatch"):
            parse_fragment(bent, AEAD, check=True)
    one_pack = fragment(columns, packs=PACKS[0])  # rows name the second, too
    assert len(parse_fragment(one_pack, AEAD)) == 6
    with pytest.raises(ValueError, match="not listed"):
        parse_fragment(one_pack, AEAD, check=True)


def test_blocks_are_located_over_all_fragments(own: Index) -> None:
    own.add(ROWS.select(np.array([0, 3])), sync=False)
    own.add(ROWS.select(np.array([1, 4, 5])), sync=False)
    own.add(make_rows([(7, 7, 0)], [PACKS[2]]), sync=False)
    own.add(ROWS.select(np.zeros(6, bool)), sync=False)  # of nothing there is no fragment
    assert len(own.fragments()) == 3
    asked = [(4, 0), (1, 5), (2, 3), (7, 7), (2, 9), (2, 1)]
    located = own.locate(b"".join(digest(*key) for key in asked))
    assert located.pack[2] == -1
    found = [None if pack < 0 else located.packs[pack] for pack in located.pack.tolist()]
    assert found == [PACKS[0], PACKS[0], None, PACKS[2], PACKS[1], PACKS[1]]
    assert located.offset.tolist() == [104, 100, 0, 100, 103, 101]
    assert located.stored.tolist() == [204, 200, 0, 200, 203, 201] and located.length.tolist() == [304, 300, 0, 300, 303, 301]
    assert own.places(digest(2, 9)) == [(PACKS[1], 103, 203)] and own.places(digest(2, 3)) == []


def test_a_block_of_the_trash_is_found_only_if_it_is_nowhere_else(own: Index, tmp_path: Path) -> None:
    own.add(ROWS, sync=False)
    (name,) = own.fragments()
    kept = make_rows([(2, 3, 0)], [PACKS[2]])
    own.replace([name], [kept], sync=True, before=lambda: None, to_trash=True)
    (tmp_path / "store" / "trash" / ("0" * 32 + ".idx")).write_bytes(b"damaged")
    assert own.places(digest(2, 3)) == [(PACKS[2], 100, 200)]
    assert own.places(digest(2, 9)) == [ROWS.place(3)] and own.places(digest(2, 8)) == []
    assert own.locate(digest(2, 9)).pack.tolist() == [-1]


def test_old_fragments_stay_until_the_new_ones_are_there_and_the_lock_was_checked(own: Index, tmp_path: Path) -> None:
    own.add(ROWS, sync=False)
    (old,) = own.fragments()

    def before() -> None:
        assert len(list((tmp_path / "store" / "index").glob("*.idx"))) == 3 and not list((tmp_path / "store" / "trash").iterdir())
        raise OSError

    with pytest.raises(OSError):
        own.replace([old], [make_rows([(8, 8, 0)]), make_rows([(9, 9, 0)])], sync=False, before=before)
    assert old in own.fragments() and len(own.fragments()) == 3
    own.replace([old], [], sync=False, before=lambda: None)
    assert old not in own.fragments() and not list((tmp_path / "store" / "trash").iterdir())


def sizes(own: Index) -> list[int]:
    return sorted(len(rows) for rows in own.fragments().values())


@pytest.mark.parametrize(
    ("before", "limit", "after"),
    [
        ([3], 99, [3]), ([3, 3], 99, [6]), ([3, 6], 99, [9]), ([3, 7], 99, [3, 7]), ([1, 2, 6, 19], 99, [9, 19]), ([1, 2, 6, 18], 99, [27]),
        ([3, 3], 6, [6]), ([3, 3], 5, [3, 3]), ([2, 2, 2], 5, [2, 4]), ([9, 9], 0, [9, 9]), ([], 99, []),
    ],
)  # fmt: skip
def test_fragments_of_similar_size_are_merged(
    own: Index, monkeypatch: pytest.MonkeyPatch, before: list[int], limit: int, after: list[int]
) -> None:
    monkeypatch.setattr(index, "MAX_MERGED_ROWS", limit)
    for number, count in enumerate(before):
        own.add(make_rows([(number, row, 0) for row in range(count)]), sync=False)
    checked: list[int] = []
    own.compact(False, lambda: checked.append(1), always)
    assert sizes(own) == after and len(checked) == (len(after) != len(before))
    for number, count in enumerate(before):
        assert (own.locate(b"".join(digest(number, row) for row in range(count))).pack >= 0).all()


def test_a_damaged_fragment_is_reported_and_not_merged(own: Index, tmp_path: Path) -> None:
    for number in range(2):
        own.add(make_rows([(number, row, 0) for row in range(3)]), sync=False)
    first, second = sorted(own.fragments())
    path = tmp_path / "store" / "index" / first
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    own.close()
    own.compact(False, lambda: None, always)
    assert sizes(own) == [3, 3]
    assert [(name, isinstance(rows, Rows)) for name, rows in own.checked()] == [(first, False), (second, True)]
    path.write_bytes(content[:-1])
    own.close()
    assert list(own.fragments()) == [second]


def test_fragments_are_listed_again_when_the_directory_changed(own: Index, tmp_path: Path) -> None:
    own.add(ROWS, sync=False)
    directory = tmp_path / "store" / "index"
    old = os.stat(directory).st_mtime_ns - 10**10
    os.utime(directory, ns=(old, old))
    (name,) = own.fragments()
    assert own.fragments()[name] is own.fragments()[name]  # parsed once
    Index(PosixBackend(tmp_path / "store"), AEAD).add(make_rows([(7, 7, 0)]), sync=False)
    os.utime(directory, ns=(old, old))
    assert len(own.fragments()) == 1  # a trusted time that did not change
    own.refresh()
    assert len(own.fragments()) == 2
    Index(PosixBackend(tmp_path / "store"), AEAD).add(make_rows([(8, 8, 0)]), sync=False)
    assert len(own.fragments()) == 3
    Index(PosixBackend(tmp_path / "store"), AEAD).add(make_rows([(9, 9, 0)]), sync=False)
    assert len(own.fragments()) == 4  # within the time in which the directory's time may stay the same
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert own.fragments() == {} and list(own.checked()) == []


def test_a_fragment_that_goes_between_the_list_and_the_look_does_not_hide_the_others(
    own: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer has merged it: the list is made again."""
    own.add(ROWS, sync=False)
    backend = PosixBackend(tmp_path / "store")
    reader = Index(backend, AEAD)
    read, missing = backend.read_mmap, [1, 2]

    def gone(name: str, *, check: bool) -> object:
        if missing:
            missing.pop()
            raise FileNotFoundError
        return read(name, check=check)

    monkeypatch.setattr(backend, "read_mmap", gone)
    assert len(reader.fragments()) == 1
    assert [len(rows) for _name, rows in reader.checked()] == [6]
    missing.append(1)
    assert list(reader.checked()) == []


def test_what_goes_from_the_index_is_durable_if_the_store_is(own: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    backend = own._backend
    for sync, wanted in ((True, ["checked", "sync index"]), (False, ["checked"])):
        own.add(ROWS, sync=False)
        steps.clear()
        monkeypatch.setattr(backend, "sync", lambda directory: steps.append(f"sync {directory}"))
        own.replace(list(own.fragments()), [], sync, lambda: steps.append("checked"))
        assert steps == wanted and own.fragments() == {}


def test_a_fragment_may_name_many_packs() -> None:
    """A store of 8 TiB has so many; the limit of a header is far above."""
    packs = b"".join(struct.pack("<QQ", 0, number) for number in range(1 << 15))
    one = make_rows([(1, 1, 0)], [b""])
    rows = Rows(one.high, one.low, one.offset, np.array([(1 << 15) - 1], "u4"), one.stored, one.length, packs)
    assert parse_fragment(fragment_bytes(rows, AEAD), AEAD, check=True).place(0)[0] == struct.pack("<QQ", 0, (1 << 15) - 1)
