# SPDX-License-Identifier: GPL-3.0-or-later
"""Fragments: what is written comes back, what was changed is refused, and nothing of the values can be read without the key."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest

from fuse_store.columns import halves
from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import Mapped, PosixBackend
from fuse_store.repository.index import Rows
from fuse_store.repository.index.fragment import MAX_PACKS, ROW_SIZE, START, Fragment, Header, parse_header
from fuse_store.repository.index.merge import Merge
from tests.store.conftest import replace_content
from tests.store.repository.index.conftest import (
    AEADS,
    END,
    PACKS,
    ROWS,
    content_of,
    digest,
    listed,
    make_rows,
    many,
    opened,
    write,
)

PLAIN = AEADS["plain"]


def check(fragment: Fragment) -> None:
    for _part in Merge([fragment.checked()]).parts():
        pass


def of(data: bytes, name: str, aead: Aead = PLAIN) -> Fragment:
    return Fragment(name, Mapped(memoryview(data)), aead)


def test_a_fragment_comes_back_as_it_was(backend: PosixBackend, aead: Aead) -> None:
    for rows in (ROWS, many(1, 5000)):
        path = write(backend, rows, aead, 7)
        data = path.read_bytes()
        _magic, length, begin = struct.unpack_from("<8sII", data)
        assert begin % 8 == 0 and 16 + length <= begin < 16 + length + 8 and len(data) == begin + 32 * len(rows)
        again = opened(path, backend, aead)
        assert again.name == path.name and again.number == 7 and again.packs == rows.packs and content_of(again) == listed(rows)
        check(again)


def test_rows_are_found_by_their_whole_digest(backend: PosixBackend, aead: Aead) -> None:
    """Also among several with the same first half, at both ends, and not beyond."""
    fragment = opened(write(backend, ROWS, aead), backend, aead)
    asked = [(2, 9), (1, 5), (2, 1), (2, 3), (2, 2), (2, 10), (0, 0), (1, 4), (3, 0), (END, 0), (END, END)]
    assert fragment.find(*halves(b"".join(digest(*key) for key in asked))).tolist() == [3, 0, 1, 2, -1, -1, -1, -1, -1, -1, 5]
    one = opened(write(backend, make_rows([(1, 1, 0)]), aead), backend, aead)
    assert one.find(*halves(digest(1, 2) + digest(2, 1) + digest(1, 1))).tolist() == [-1, -1, 0]


def test_values_of_any_rows(backend: PosixBackend, aead: Aead) -> None:
    rows = many(2, 3000)
    fragment = opened(write(backend, rows, aead), backend, aead)
    asked = np.random.default_rng(0).integers(0, 3000, 500)
    for column, name in zip(fragment.values(asked), ("pack", "offset", "stored", "length"), strict=True):
        assert (column == getattr(rows, name)[asked]).all()
    assert [fragment.place(row) for row in asked.tolist()] == [rows.place(row) for row in asked.tolist()]
    for begin, end in ((0, 1), (17, 1999), (2999, 3000), (5, 5)):
        assert listed(fragment.part(begin, end)) == listed(rows.part(begin, end))


def test_several_rows_of_a_block(backend: PosixBackend, aead: Aead) -> None:
    rows = make_rows([(1, 1, 0), (2, 2, 0), (2, 2, 1), (2, 2, 0), (3, 3, 0), (3, 3, 1)])
    fragment = opened(write(backend, rows, aead), backend, aead)
    found = fragment.find(*halves(b"".join(digest(at, at) for at in range(5))))
    assert found.tolist() == [-1, 0, 1, 4, -1] and fragment.repeats(found[1:4]).tolist() == [False, True, True]
    assert [fragment.rows_of(digest(at, at)) for at in (1, 2, 3)] == [range(1), range(1, 4), range(4, 6)]
    assert not fragment.rows_of(digest(9, 9))
    assert not fragment.repeats(np.array([5])).any()


def test_the_name_is_the_digest_of_the_header(backend: PosixBackend, aead: Aead) -> None:
    """A fragment under another name is another object: one that was removed cannot be brought back in the place of a new one."""
    first, second = write(backend, ROWS, aead), write(backend, ROWS, aead)
    assert first != second  # a random number is in the header
    with pytest.raises(ValueError, match="name of another"):
        of(first.read_bytes(), second.stem, aead)
    encrypted = START.unpack_from(first.read_bytes())[1]
    assert first.stem == aead.digest(aead.decrypt(b"index", first.read_bytes()[16 : 16 + encrypted])).hex()


def test_machines_that_repeat_random_numbers_write_nothing_over(
    backend: PosixBackend, aead: Aead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clones of a virtual machine: other rows have another name and another key; the same rows are the same file."""
    monkeypatch.setattr("fuse_store.repository.index.fragment.os.urandom", bytes)
    first = write(backend, ROWS, aead)
    before, inode = first.read_bytes(), first.stat().st_ino
    moved = Rows(ROWS.high, ROWS.low, ROWS.offset + np.uint64(1), ROWS.pack, ROWS.stored, ROWS.length, ROWS.packs)
    second = write(backend, moved, aead)
    assert first != second and content_of(opened(second, backend, aead)) == listed(moved)
    assert write(backend, ROWS, aead) == first and first.read_bytes() == before and first.stat().st_ino == inode
    if aead.encrypted:  # else the values of one could be computed from the other's, which differ in little
        values = [np.frombuffer(path.read_bytes()[-16 * len(ROWS) :], np.uint8) for path in (first, second)]
        assert (values[0] != values[1]).mean() > 0.9


def test_values_are_not_in_the_clear(backend: PosixBackend) -> None:
    """Nor equal for equal values: the lengths of the blocks of known content would tell that it is stored."""
    rows = many(3, 4096)
    same = Rows(rows.high, rows.low, np.full(4096, 77, "u8"), rows.pack * 0, np.full(4096, 0x01020304, "u4"), rows.length * 0, PACKS[0])
    data = write(backend, same, AEADS["encrypted"]).read_bytes()
    assert struct.pack("<I", 0x01020304) not in data and PACKS[0] not in data
    assert len(np.unique(np.frombuffer(data[-16 * 4096 :], "V16"))) == 4096
    assert struct.pack("<I", 0x01020304) in write(backend, same, PLAIN).read_bytes()


def header(**changed: object) -> bytes:
    digests = PLAIN.digest(ROWS.high.tobytes()) + PLAIN.digest(ROWS.low.tobytes()) + bytes(16)
    value = {"rows": 6, "packs": b"".join(PACKS[:2]), "number": 1, "nonce": bytes(16), "digests": digests}
    return bytes(msgpack.packb({key: each for key, each in {**value, **changed}.items() if each is not None}))


def file_of(packed: bytes, begin: int | None = None, columns: bytes = bytes(6 * ROW_SIZE)) -> tuple[bytes, str]:
    """A fragment with this header, and its name."""
    encrypted = PLAIN.encrypt(b"index", packed)
    begin = -(-(16 + len(encrypted)) // 8) * 8 if begin is None else begin
    padding = bytes(max(0, begin - 16 - len(encrypted)))
    return struct.pack("<8sII", b"FSINDEX1", len(encrypted), begin) + encrypted + padding + columns, PLAIN.digest(packed).hex()


def test_fragments_that_are_refused(backend: PosixBackend) -> None:
    assert len(of(*file_of(header()))) == 6
    sound, name = file_of(header())
    for data, problem in (
        (b"", "truncated"), (sound[:15], "truncated"), (b"X" + sound[1:], "not an index"), (bytes(len(sound)), "not an index"),
        (sound[:-1], "wrong length"), (sound + b"x", "wrong length"), (sound[: len(sound) // 2], "not an index|wrong length"),
        (file_of(header(), begin=12)[0], "not an index"), (file_of(header(), begin=16)[0], "not an index"),
        (sound[:30] + bytes([sound[30] ^ 1]) + sound[31:], "checksum"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            of(data, name)
    wrong: tuple[object, ...] = ("x", b"x", -1, True, 1 << 63, [], 1.5)
    changed: list[dict[str, object]] = [
        *({key: value} for key in ("rows", "number") for value in wrong), {"packs": bytes(17)}, {"packs": "x" * 16}, {"packs": 3},
        {"nonce": bytes(15)}, {"nonce": 1}, {"digests": bytes(16)}, {"digests": "x" * 48}, {"rows": None}, {"more": 1}, {"rows": 1 << 60},
    ]  # fmt: skip
    for changes in changed:
        with pytest.raises(ValueError, match=r"header|wrong length"):
            of(*file_of(header(**changes)))
    others: tuple[object, ...] = ({}, [], 7, None, b"x")
    for value in others:
        with pytest.raises(ValueError, match="header"):
            of(*file_of(bytes(msgpack.packb(value))))


def test_a_fragment_may_name_many_packs() -> None:
    """A store of a pebibyte has so many."""
    packs = bytes(16 * MAX_PACKS)
    assert parse_header(Header(1, packs, 1, bytes(16), bytes(48)).packed()).packs == packs
    with pytest.raises(ValueError, match="max_bin_len"):
        parse_header(Header(1, packs + bytes(16), 1, bytes(16), bytes(48)).packed())


def test_every_column_is_compared_with_its_digest_if_that_is_asked_for(backend: PosixBackend, aead: Aead) -> None:
    path = write(backend, ROWS, aead)
    data = path.read_bytes()
    begin = START.unpack_from(data)[2]
    for at in range(begin, len(data)):
        replace_content(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match=r"checksum mismatch|not listed"):
            check(opened(path, backend, aead))


def test_rows_of_packs_that_are_not_listed(backend: PosixBackend) -> None:
    short = Rows(ROWS.high, ROWS.low, ROWS.offset, ROWS.pack, ROWS.stored, ROWS.length, PACKS[0])
    with pytest.raises(ValueError, match="not listed"):
        write(backend, short, PLAIN)


def test_offsets_have_32_bits(backend: PosixBackend) -> None:
    far = Rows(ROWS.high, ROWS.low, ROWS.offset + np.uint64(1 << 32), ROWS.pack, ROWS.stored, ROWS.length, ROWS.packs)
    with pytest.raises(ValueError, match="4 GiB"):
        write(backend, far, PLAIN)
    near = Rows(ROWS.high, ROWS.low, ROWS.offset * 0 + np.uint64((1 << 32) - 1), ROWS.pack, ROWS.stored, ROWS.length, ROWS.packs)
    assert content_of(opened(write(backend, near, PLAIN), backend, PLAIN)) == listed(near)


def test_no_fragment_is_written_that_names_more_packs_than_a_reader_takes(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_store.repository.index.fragment.MAX_PACKS", 1)
    with pytest.raises(ValueError, match="too many packs"):
        write(backend, ROWS, PLAIN)
    assert not list((backend.local_dir / "index").iterdir())


def test_a_mapping_keeps_no_descriptor_and_goes_with_its_last_view(backend: PosixBackend) -> None:
    path = write(backend, many(4, 2000), PLAIN)
    before = len(os.listdir("/proc/self/fd"))
    fragments = [opened(path, backend, PLAIN) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before

    def mappings() -> int:
        return sum(path.stem in line for line in Path("/proc/self/maps").read_text().splitlines())

    assert mappings() == 20
    high = fragments[0].high
    wanted = high.tolist()
    fragments[0].release()
    del fragments
    assert mappings() == 1 and high.tolist() == wanted
    with pytest.raises(ValueError, match="read-only"):
        high[0] = 1
    del high
    assert mappings() == 0
