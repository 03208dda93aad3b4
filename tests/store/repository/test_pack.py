# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs by themselves: what a writer makes of blocks, what a reader accepts, and what a scan finds."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import Damaged
from fuse_store.repository import pack
from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.block import HEADER_SIZE, MAX_BLOCK_SIZE, MAX_STORED, UNIT, Block, encrypt_units, pack_block
from fuse_store.repository.pack import (
    PACK_HEADER,
    TRAILER,
    TRAILER_SIZE,
    PackReader,
    PackWriter,
    all_packs,
    pack_name,
    pack_table,
    padded_size,
    parse_table,
)

AEAD = Aead(bytes(16), bytes(32), encrypted=True)
PAGE = 4096


def block(number: int, pages: int = 2, cut: int = 0) -> Block:
    """A block that does not compress."""
    content = np.random.default_rng(number).bytes(pages * PAGE - cut)
    return pack_block(content, AEAD.digest(content), AEAD, "none", 1)


def content(number: int, pages: int = 2, cut: int = 0) -> bytes:
    return np.random.default_rng(number).bytes(pages * PAGE - cut)


@pytest.fixture
def backend(tmp_path: Path) -> PosixBackend:
    backend = PosixBackend(tmp_path / "store")
    backend.prepare()
    return backend


def write(backend: PosixBackend, blocks: list[Block], sync: bool = False) -> bytes:
    """The id of a pack with these blocks."""
    writer = PackWriter(backend, AEAD, sync)
    for number, one in enumerate(blocks):
        assert writer.add(one, bytes([number]) * 16 * -(-one.length // PAGE)) is None
    rows = writer.finish()
    assert rows is not None and len(rows.packs) == 16
    return rows.packs


def test_a_pack_comes_back_as_it_was_written(backend: PosixBackend) -> None:
    blocks = [block(1), block(2, 3, cut=100), block(3, 1)]
    pack_id = write(backend, blocks)
    assert list(all_packs(backend)) == [(pack_id, (backend.local_dir / pack_name(pack_id)).stat().st_size)]
    reader = PackReader(backend, AEAD)
    table = reader.table(pack_id, check=True)
    assert table.digests == b"".join(one.digest for one in blocks) and table.length.tolist() == [8192, 12188, 4096]
    assert table.offset.tolist() == [64, 64 + len(blocks[0].stored), 64 + len(blocks[0].stored) + len(blocks[1].stored)]
    assert not (table.offset % UNIT).any() and not (table.stored % UNIT).any()
    assert table.counts(PAGE).tolist() == [2, 3, 1] and table.pages.shape == (6, 2)
    assert table.pages.tobytes() == bytes([0]) * 32 + bytes([1]) * 48 + bytes([2]) * 16
    rows = table.rows()
    assert [rows.digest(row) for row in range(3)] == sorted(
        (one.digest for one in blocks), key=lambda digest: struct.unpack("<QQ", digest)
    )
    for row in range(3):
        pack_of, offset, stored = rows.place(row)
        number = [one.digest for one in blocks].index(rows.digest(row))
        assert pack_of == pack_id and reader.stored(pack_of, offset, stored) == blocks[number].stored
        assert reader.read(rows.digest(row), pack_of, offset, stored) == content(number + 1, *((2,), (3, 100), (1,))[number])
        assert rows.length[row] == blocks[number].length


def test_a_pack_is_full_at_its_size_or_at_its_number_of_blocks(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    one = block(1)
    size = PACK_HEADER.size + 2 * len(one.stored) + 2 * (32 + 32) + 4 * UNIT
    monkeypatch.setattr(pack, "PACK_SIZE", size)
    writer = PackWriter(backend, AEAD, sync=False)
    assert writer.finish() is None
    assert writer.add(one, bytes(32)) is None and writer.add(block(2), bytes(32)) is None
    full = writer.add(block(3), bytes(32))
    assert full is not None and len(full) == 2
    assert writer.finish() is not None and writer.finish() is None
    assert writer.written == 3 * len(one.stored)
    monkeypatch.setattr(pack, "PACK_SIZE", size - 1)
    assert [writer.add(block(number), bytes(32)) is None for number in range(3)] == [True, False, False]
    assert writer.finish() is not None
    monkeypatch.setattr(pack, "MAX_BLOCKS_PER_PACK", 3)
    monkeypatch.setattr(pack, "PACK_SIZE", 1 << 30)
    assert [writer.add(block(number), bytes(32)) is None for number in range(8)] == [True, True, True, False, True, True, False, True]
    last = writer.finish()
    assert last is not None and len(last) == 2 and len(list(all_packs(backend))) == 8
    assert writer.written == 14 * len(one.stored)


def test_a_full_pack_is_as_large_as_another(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """PACK_SIZE is a size that files are padded to."""
    assert padded_size(pack.PACK_SIZE) == pack.PACK_SIZE
    monkeypatch.setattr(pack, "PACK_SIZE", 1 << 20)
    writer = PackWriter(backend, AEAD, sync=False)
    for number in range(300):
        writer.add(block(number, 1 + number % 2), bytes(16 + 16 * (number % 2)))
    assert {size for _pack, size in all_packs(backend)} == {1 << 20}
    writer.finish()
    assert {padded_size(size) - size for _pack, size in all_packs(backend)} == {0}


@pytest.mark.parametrize(
    ("size", "padded"),
    [(1, 1), (64, 64), (65, 72), (1000, 1024), (4097, 4352), (100_000, 100_352), (1 << 20, 1 << 20), (200 << 20, 200 << 20)],
)
def test_sizes_that_files_have(size: int, padded: int) -> None:
    assert padded_size(size) == padded >= size and padded_size(padded) == padded
    assert padded - size < max(64, size / 8)


def test_an_abandoned_pack_leaves_nothing(backend: PosixBackend) -> None:
    writer = PackWriter(backend, AEAD, sync=False)
    writer.abandon()
    writer.add(block(1), bytes(32))
    writer.abandon()
    writer.abandon()
    assert not [path for path in (backend.local_dir / "packs").rglob("*") if path.is_file()]
    assert writer.finish() is None


def test_the_writing_of_a_pack_to_the_disk_begins_early(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(block(1).stored)
    parts: list[tuple[int, int]] = []
    monkeypatch.setattr(pack, "WRITEBACK_SIZE", 64 + 2 * size)
    monkeypatch.setattr(pack, "start_writing", lambda _file, offset, length: parts.append((offset, length)))
    write(backend, [block(number) for number in range(6)], sync=True)
    assert parts == [(0, 64 + 2 * size), (64 + 2 * size, 3 * size)]
    write(backend, [block(number) for number in range(6)])
    assert len(parts) == 2  # what is not synced needs no early start


def test_packs_are_known_by_their_names(backend: PosixBackend) -> None:
    pack_id = write(backend, [block(1)])
    for name in ("00/" + "1" * 32, "11/" + "1" * 31, "11/" + "G" * 32):
        path = backend.local_dir / "packs" / f"{name}.pack"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert [found for found, _size in all_packs(backend)] == [pack_id]


def test_tables_that_are_refused() -> None:
    rows = [(bytes(16), 24, MAX_STORED, MAX_BLOCK_SIZE), (bytes(16), 9, 1, 1)]
    assert len(parse_table(pack_table(rows, bytes(48)), bytes(16)).offset) == 2
    assert len(parse_table(pack_table([], b""), bytes(16)).rows()) == 0 and parse_table(pack_table([], b""), bytes(16)).rows().packs == b""
    for table, problem in (
        (b"", "truncated"), (b"\0\0\0", "truncated"), (pack_table(rows, bytes(48))[:-1], "truncated"),
        (pack_table(rows, b"")[:-1], "truncated"), (pack_table(rows, b"") + bytes(UNIT), "truncated"),
        (pack_table([(bytes(16), 24, 1, MAX_BLOCK_SIZE + 1)], b""), "invalid values"),
        (pack_table([(bytes(16), 24, MAX_STORED + 1, 1)], b""), "invalid values"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            parse_table(table, bytes(16))
    with pytest.raises(ValueError, match="truncated"):
        parse_table(pack_table([(bytes(16), 0, 1, 1)] * (pack.MAX_BLOCKS_PER_PACK + 1), b""), bytes(16))
    parse_table(pack_table([(bytes(16), 0, 1, 1)] * pack.MAX_BLOCKS_PER_PACK, b""), bytes(16))


def test_whether_a_block_is_where_the_index_says(backend: PosixBackend) -> None:
    blocks = [block(1), block(2)]
    pack_id = write(backend, blocks)
    reader = PackReader(backend, AEAD)
    first, size = blocks[0], len(blocks[0].stored)
    assert reader.has(first.digest, pack_id, 64, size) and reader.has(blocks[1].digest, pack_id, 64 + size, size)
    for digest, name, offset, stored in (
        (blocks[1].digest, pack_id, 64, size), (first.digest, bytes(16), 64, size), (first.digest, pack_id, 65, size),
        (first.digest, pack_id, 64, size - 1), (first.digest, pack_id, 64, size + 1), (first.digest, pack_id, 1 << 63, size),
        (first.digest, pack_id, 64, 0), (first.digest, pack_id, 64, UNIT),
    ):  # fmt: skip
        assert not reader.has(digest, name, offset, stored)
    path = backend.local_dir / pack_name(pack_id)
    whole = path.read_bytes()
    for cut, there in ((64 + size, True), (64 + size - 1, False), (64 + HEADER_SIZE, False), (30, False)):
        path.write_bytes(whole[:cut])
        assert reader.has(first.digest, pack_id, 64, size) == there
    for at in (64 + HEADER_SIZE, 64 + size // 2, 64 + size - 1):  # it is opened
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not reader.has(first.digest, pack_id, 64, size)
    path.write_bytes(whole)
    backend.to_trash(pack_name(pack_id))
    assert not reader.has(first.digest, pack_id, 64, size)
    assert reader.read(first.digest, pack_id, 64, size) == content(1)  # who knows it may finish


def test_bytes_of_a_pack_that_are_refused(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block(1)]
    pack_id = write(backend, blocks)
    reader = PackReader(backend, AEAD)
    end = (backend.local_dir / pack_name(pack_id)).stat().st_size
    assert reader.stored(pack_id, end - 5, 5) and reader.stored(pack_id, end, 0) == b""
    for offset, length, problem in (
        (0, -1, "invalid length"), (0, MAX_STORED + 1, "invalid length"), (0, MAX_STORED, "truncated"),
        (end - 5, 6, "truncated"), (1 << 64, 1, "pack"),
    ):  # fmt: skip
        with pytest.raises(Damaged, match=problem) as caught:
            reader.stored(pack_id, offset, length)
        assert caught.value.pack == pack_id.hex()
    with pytest.raises(FileNotFoundError):
        reader.stored(bytes(16), 0, 1)
    with pytest.raises(Damaged, match=rf"block {bytes(16).hex()}: decryption failed"):
        reader.read(bytes(16), pack_id, 64, len(blocks[0].stored))

    def fail(name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(backend, "read_range", fail)
    with pytest.raises(Damaged, match="Input/output error"):
        reader.stored(pack_id, 0, 1)


@pytest.mark.parametrize("tail", [1 << 16, 64, 65, 300])
def test_tables_of_any_length_are_read(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    """Also those that the first read from the end does not have whole."""
    monkeypatch.setattr(pack, "_TAIL_SIZE", tail)
    pack_id = write(backend, [block(number, 1) for number in range(5)])
    assert len(PackReader(backend, AEAD).table(pack_id).offset) == 5


def test_ends_and_headers_of_packs_that_are_refused(backend: PosixBackend) -> None:
    pack_id = write(backend, [block(1)])
    path = backend.local_dir / pack_name(pack_id)
    whole = path.read_bytes()
    length = TRAILER.unpack_from(AEAD.decrypt(b"trailer", whole[-TRAILER_SIZE:]))[1]

    def ending(owner: bytes, length: int) -> bytes:
        return whole[:-TRAILER_SIZE] + b"".join(encrypt_units(b"trailer", AEAD, TRAILER.pack(owner, length)))

    assert ending(pack_id, length) == whole
    for data, problem in (
        (whole[:-1], "trailer"), (whole[-TRAILER_SIZE + 1 :], "trailer"), (b"", "trailer"), (whole[:-1] + b"?", "trailer"),
        (ending(bytes(16), length), "trailer of another pack"), (ending(pack_id, len(whole)), "trailer"),
        (ending(pack_id, len(whole) - TRAILER_SIZE), "decryption"), (ending(pack_id, length - 1), "decryption"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(Damaged, match=problem):
            PackReader(backend, AEAD).table(pack_id)
    for at in (0, 8, 23, 24, 63):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert len(PackReader(backend, AEAD).table(pack_id).offset) == 1
        with pytest.raises(Damaged, match="wrong pack header"):
            PackReader(backend, AEAD).table(pack_id, check=True)
    with pytest.raises(FileNotFoundError):
        PackReader(backend, AEAD).table(bytes(16))


def test_a_scan_finds_every_whole_block(backend: PosixBackend) -> None:
    """At any multiple of 64 bytes, behind noise, behind a damaged header and behind a damaged body."""
    blocks = [block(number, 1) for number in range(5)]
    pack_id = write(backend, blocks)
    body, header = bytearray(blocks[1].stored), bytearray(blocks[3].stored)
    body[-1] ^= 1
    header[5] ^= 1
    noise = np.random.default_rng(1).bytes(3 * UNIT)
    data = noise[:UNIT] + blocks[0].stored + noise + bytes(body) + blocks[2].stored + bytes(header) + noise + blocks[4].stored + noise[:9]
    path = backend.local_dir / pack_name(pack_id)
    path.unlink()
    path.write_bytes(data)
    found = list(PackReader(backend, AEAD).scan(pack_id))
    assert [(one.digest, one.length, one.stored) for one, _pages in found] == [
        (one.digest, 4096, one.stored) for one in (blocks[0], blocks[2], blocks[4])
    ]
    assert [pages for _one, pages in found] == [content(number, 1) for number in (0, 2, 4)]


def test_a_removed_pack_is_closed(backend: PosixBackend) -> None:
    blocks = [block(1)]
    pack_id = write(backend, blocks)
    reader = PackReader(backend, AEAD)
    assert reader.stored(pack_id, 0, 8) == b"FSPACK01"
    (backend.local_dir / pack_name(pack_id)).unlink()
    assert reader.stored(pack_id, 0, 8) == b"FSPACK01"
    reader.forget(pack_id)
    with pytest.raises(FileNotFoundError):
        reader.stored(pack_id, 0, 8)


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_block_is_authentic_only_as_it_was_written(tmp_path: Path, encrypted: bool) -> None:
    """Whichever byte of it is another one, header included; the blocks beside it are not concerned. Nor is it at another place, or
    with another length of its pages."""
    aead, backend = Aead(bytes(16), bytes(32), encrypted), PosixBackend(tmp_path)
    backend.prepare()
    writer = PackWriter(backend, aead, sync=False)
    for number in range(3):
        pages = bytes([number]) * 4096 + bytes(range(256)) * 16
        writer.add(pack_block(pages, aead.digest(pages), aead, "zstd", 1), bytes(32))
    writer.finish()
    ((pack_id, _size),) = all_packs(backend)
    table = PackReader(backend, aead).table(pack_id)
    path, rows = tmp_path / pack_name(pack_id), np.arange(3)
    sound = path.read_bytes()
    begin, end = int(table.offset[1]), int(table.offset[1] + table.stored[1])
    changes = {at: sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :] for at in range(begin, end)}
    for at, changed in changes.items():
        path.write_bytes(changed)
        assert PackReader(backend, aead).authentic(table, rows) == [True, False, True], at
    backend.close()
    path.write_bytes(sound[: end - 1])
    assert PackReader(backend, aead).authentic(table, rows) == [True, False, False]
    path.write_bytes(sound)
    assert PackReader(backend, aead).authentic(table, rows[1:]) == [True, True]
    for other in (
        replace(table, offset=table.offset[[0, 0, 2]]), replace(table, length=table.length + np.array([0, 1, 0], np.uint64)),
        replace(table, stored=table.stored - np.array([0, UNIT, 0], np.uint64)),
        replace(table, offset=table.offset + np.array([0, 1 << 62, 0], np.uint64)),
    ):  # fmt: skip
        assert not PackReader(backend, aead).authentic(other, rows)[1]
    path.unlink()
    backend.close()
    assert PackReader(backend, aead).authentic(table, rows) == [False] * 3


def test_a_group_of_blocks_is_in_the_packs_as_blocks_one_by_one_are(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in the group a pack is full."""
    monkeypatch.setattr(pack, "MAX_BLOCKS_PER_PACK", 5)
    blocks = [block(number, pages=1 + number % 3) for number in range(17)]
    listed = [(one.digest, len(one.stored), one.length, bytes([number]) * 16 * (one.length // PAGE)) for number, one in enumerate(blocks)]
    writer = PackWriter(backend, AEAD, sync=False)
    rows = []
    for part in (slice(0, 3), slice(3, 3), slice(3, 15), slice(15, 17)):
        rows += writer.add_all(memoryview(b"".join(one.stored for one in blocks[part])), listed[part])
    last = writer.finish()
    assert last is not None and [len(each) for each in (*rows, last)] == [5, 5, 5, 2]
    assert writer.written == sum(len(one.stored) for one in blocks)
    reader, found = PackReader(backend, AEAD), {}
    for pack_id, _size in all_packs(backend):
        table = reader.table(pack_id, check=True)
        first = 0
        columns = (table.offset.tolist(), table.stored.tolist(), table.length.tolist())
        for row, (offset, stored, length) in enumerate(zip(*columns, strict=True)):
            digest, end = table.digests[16 * row : 16 * row + 16], first + length // PAGE
            found[digest] = bytes(reader.read(digest, pack_id, offset, stored)), table.pages[first:end].tobytes()
            first = end
    assert found == {one.digest: (content(number, pages=1 + number % 3), listed[number][3]) for number, one in enumerate(blocks)}
