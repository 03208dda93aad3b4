# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs: append-only files of blocks. Reading is safe in threads; a PackWriter belongs to the holder of the writer lock.

The pack table at the end of a pack lists its blocks and the digests of their pages. The index is made from the tables,
and a put learns from them which pages its bases have.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np

from fuse_store.columns import I64, U64, expand, halves, starts
from fuse_store.errors import Damaged
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.atomic import fault_point, start_writing
from fuse_store.repository.backends import Backend, NewFile
from fuse_store.repository.block import (
    HEADER_SIZE,
    MAX_BLOCK_SIZE,
    MAX_STORED,
    UNIT,
    Block,
    Pages,
    authenticate,
    encrypt_units,
    open_block,
    parse_header,
    split,
    unpack_block,
)
from fuse_store.repository.index import Rows

PACK_HEADER = struct.Struct("<8s16s40x")  # magic, nonce
PACK_MAGIC = b"FSPACK01"
TRAILER = struct.Struct("<16sQ")  # pack id, length of the encrypted table before it
TRAILER_SIZE = UNIT  # bytes of an encrypted trailer, the last of a pack
_NAME = re.compile(r"packs/([0-9a-f]{2})/([0-9a-f]{32})\.pack")
_ROW = np.dtype([("digest", "V16"), ("offset", "<u8"), ("stored", "<u4"), ("length", "<u4")])
PACK_SIZE = 256 << 20  # bytes of a full pack; an interrupted put continues after the last full one
MAX_BLOCKS_PER_PACK = 1 << 14  # blocks of repetitive pages are tiny: a pack of them would have millions
MAX_TABLE_SIZE = 1 << 30  # bytes
_REMEDY = "Run 'fuse-store verify' to list the damaged versions; the others can still be read."
WRITEBACK_SIZE = 16 << 20  # bytes of a pack whose write-back is started at once
NEAR = 1 << 20  # bytes within which blocks begin that are read at once
_TABLE = struct.Struct("<II")  # blocks, pages
_TAIL_SIZE = 64 << 10  # bytes at the end of a pack that hold most tables: one request to a server

NewBlock = tuple[bytes, int, int, bytes]  # digest, bytes stored, bytes of pages, the digests of the pages


@dataclass(frozen=True)
class Table:
    """The table of one pack, in the order of its blocks: digests (16 bytes each), offsets, bytes stored (header included),
    bytes of pages, and the digests of the pages of all blocks (shape (pages, 2): the halves)."""

    pack: bytes
    digests: bytes
    offset: U64
    stored: U64
    length: U64
    pages: U64

    def counts(self, page_size: int) -> I64:
        """The number of pages of each block; the last page may be shorter."""
        return -(-self.length.astype(np.int64) // page_size)

    def begins(self, page_size: int) -> I64:
        """Where the pages of each block begin."""
        if page_size not in self._begins:
            self._begins[page_size] = starts(self.counts(page_size))
        return self._begins[page_size]

    @cached_property
    def _begins(self) -> dict[int, I64]:
        return {}

    def at(self, offsets: I64 | U64) -> I64:
        """The row of the block that begins at each of these offsets; -1 where none does."""
        if not len(self.offset):
            return np.full(len(offsets), -1)
        wanted = offsets.astype(np.uint64)
        rows = np.minimum(np.searchsorted(self.offset, wanted), len(self.offset) - 1)
        return np.where(self.offset[rows] == wanted, rows, -1)

    def select(self, rows: I64, page_size: int) -> Table:
        """The table with these rows alone. It must have as many pages as its blocks."""
        counts = self.counts(page_size)
        used = expand(starts(counts)[rows], counts[rows])
        digests = np.frombuffer(self.digests, f"V{DIGEST}")[rows].tobytes()
        return Table(self.pack, digests, self.offset[rows], self.stored[rows], self.length[rows], self.pages[used])

    def rows(self) -> Rows:
        """The blocks as rows of the index."""
        high, low = halves(self.digests)
        order = np.lexsort((low, high))
        count = len(order)
        u32 = np.uint32
        return Rows(
            high[order], low[order], self.offset[order], np.zeros(count, u32), self.stored[order].astype(u32),
            self.length[order].astype(u32), self.pack if count else b"",
        )  # fmt: skip


def pack_table(blocks: list[tuple[bytes, int, int, int]], page_digests: bytes) -> bytes:
    """The table of a pack, before encryption. ``blocks``: (digest, offset, bytes stored, bytes of pages) of each."""
    return _TABLE.pack(len(blocks), len(page_digests) // DIGEST) + np.array(blocks, _ROW).tobytes() + page_digests


def parse_table(content: bytes, pack: bytes) -> Table:
    """Raises ValueError."""
    count, pages = _TABLE.unpack_from(content) if len(content) >= _TABLE.size else (0, 0)
    begin = _TABLE.size + count * _ROW.itemsize
    if not content or count > MAX_BLOCKS_PER_PACK or not 0 <= len(content) - begin - pages * DIGEST < UNIT:
        raise ValueError("pack table truncated")
    rows = np.frombuffer(content, _ROW, count, _TABLE.size)
    if count and (int(rows["length"].max()) > MAX_BLOCK_SIZE or int(rows["stored"].max()) > MAX_STORED):
        raise ValueError("invalid values in the pack table")
    return Table(
        pack, rows["digest"].tobytes(), rows["offset"].astype(np.uint64), rows["stored"].astype(np.uint64),
        rows["length"].astype(np.uint64), np.frombuffer(content, "<u8", 2 * pages, begin).reshape(-1, 2),
    )  # fmt: skip


def padded_size(size: int) -> int:
    """The next size that a file may have: of a size with n bits about as many as log2(n) say something (PADMÉ, PURBs, 2019)."""
    exponent = size.bit_length() - 1
    rounded = (1 << max(0, exponent - exponent.bit_length())) - 1
    return (size + rounded) & ~rounded


class PackWriter:
    """Writes packs of about PACK_SIZE bytes, one after the other. For one thread, which holds the writer lock."""

    def __init__(self, backend: Backend, aead: Aead, sync: bool) -> None:
        self._backend, self._aead, self._sync = backend, aead, sync
        self._new: NewFile | None = None
        self._nonce = b""
        self._blocks: list[tuple[bytes, int, int, int]] = []
        self._pages: list[bytes] = []
        self._size = self._writeback = 0  # bytes of the pack; those whose write-back was started
        self._table = 0  # bytes of its table
        self.written = 0

    def add(self, block: Block, page_digests: bytes) -> Rows | None:
        """Append a block; ``page_digests``: 16 bytes for each of its pages. If it does not fit into the pack: finish that first, and
        return its Rows; it is durable then. Raises OSError, StoreError."""
        finished = self.add_all(block.stored, [(block.digest, len(block.stored), block.length, page_digests)])
        return finished[0] if finished else None

    def add_all(self, content: bytes | memoryview, blocks: Sequence[NewBlock]) -> list[Rows]:
        """``add`` for blocks that stand one after the other in ``content``, with one write if they fit: the Rows of the packs that
        were finished, in their order."""
        content, begin, end = memoryview(content), 0, 0
        finished: list[Rows] = []
        for digest, stored, length, page_digests in blocks:
            table = _ROW.itemsize + len(page_digests)
            size = self._size + stored + self._table + table + 4 * UNIT  # padding, trailer, what fills units
            if self._new is not None and (size > PACK_SIZE or len(self._blocks) >= MAX_BLOCKS_PER_PACK):
                self._write(content[begin:end])
                begin = end
                finished += filter(None, [self.finish()])
            if self._new is None:
                self._begin()
            self._blocks.append((digest, self._size, stored, length))
            self._pages.append(page_digests)
            self._size, self._table, end = self._size + stored, self._table + table, end + stored
        self._write(content[begin:end])
        return finished

    def _write(self, content: memoryview) -> None:
        """Write blocks, which are listed already."""
        if not content or self._new is None:
            return
        self._new.file.write(content)
        self.written += len(content)
        if self._sync and self._size - self._writeback >= WRITEBACK_SIZE:
            start_writing(self._new.file, self._writeback, self._size - self._writeback)
            self._writeback = self._size

    def finish(self) -> Rows | None:
        """Finish the current pack: its Rows, durable; None if there is none. Raises OSError, StoreError."""
        if self._new is None:
            return None
        content = pack_table(self._blocks, b"".join(self._pages))
        pack = _pack_id(self._nonce, content, self._aead)
        table = b"".join(encrypt_units(b"table" + pack, self._aead, content))
        trailer = b"".join(encrypt_units(b"trailer", self._aead, TRAILER.pack(pack, len(table))))
        self._new.file.write(self._padding(len(table) + len(trailer)) + table + trailer)
        self._new.create(pack_name(pack))
        self._new = None
        return parse_table(content, pack).rows()

    def _padding(self, rest: int) -> bytes:
        """What is between the blocks and the table: how long both are is not to be seen in the size of the file."""
        if not self._aead.encrypted:
            return b""
        length = padded_size(self._size + UNIT + rest) - self._size - rest
        return self._aead.encrypt(b"padding", self._nonce + bytes(length - self._aead.overhead - len(self._nonce)))

    def abandon(self) -> None:
        """Drop the current pack, if there is one."""
        if self._new is not None:
            self._new.abandon()
            self._new = None

    def _begin(self) -> None:
        # A clone of a virtual machine repeats the random bytes, but not the time.
        self._nonce = self._aead.digest(os.urandom(DIGEST) + time.time_ns().to_bytes(8, "little"))
        fault_point("begin pack")
        self._new = self._backend.new("packs", self._sync)
        self._new.file.write(PACK_HEADER.pack(PACK_MAGIC, self._nonce))
        self._blocks, self._pages, self._size, self._writeback, self._table = [], [], PACK_HEADER.size, 0, 0


def _pack_id(nonce: bytes, table: bytes, aead: Aead) -> bytes:
    """The id of a pack: so it says what is in it, and no pack has the id of another."""
    return aead.digest(b"pack" + nonce + table)


def pack_name(pack: bytes) -> str:
    name = pack.hex()
    return f"packs/{name[:2]}/{name}.pack"


def all_packs(backend: Backend) -> Iterator[tuple[bytes, int]]:
    """(id, bytes) of every pack, in no order."""
    for entry in backend.entries("packs"):
        match = _NAME.fullmatch(entry.name)
        if match and match[1] == match[2][:2]:
            yield bytes.fromhex(match[2]), entry.size


class PackReader:
    """Reads blocks and tables. Threads may share it."""

    def __init__(self, backend: Backend, aead: Aead) -> None:
        self._backend, self._aead = backend, aead
        self.survives_fork = backend.survives_fork
        self._have_tables: set[bytes] = set()  # packs whose table was read once
        self._local = threading.local()

    def read(self, digest: bytes, pack: bytes, offset: int, stored: int) -> Pages:
        """The pages of a block, verified. Raises FileNotFoundError if the pack does not exist, Damaged."""
        try:
            return unpack_block(self.stored(pack, offset + HEADER_SIZE, stored - HEADER_SIZE), digest, self._aead)
        except ValueError as error:
            raise self._damaged(f"block {digest.hex()}", error, pack) from None

    def read_neighbours(self, pack: bytes, blocks: Sequence[tuple[bytes, int, int]]) -> Iterator[tuple[memoryview, Pages] | None]:
        """(encrypted header, pages) of blocks which stand near each other in a pack, each (digest, offset, bytes stored), in the order
        of their offsets; with one read of at most NEAR bytes. None for one that cannot be had like this: ``read`` tells why. Pages and
        headers are valid until this thread asks for the next one; pages that are ``bytes`` can be kept."""
        begin = blocks[0][1]
        space = self._space()[: sum(blocks[-1][1:]) - begin]
        try:
            content = space[: self._backend.read_into(pack_name(pack), begin, space)]
        except (OSError, OverflowError):
            content = space[:0]
        for digest, offset, stored in blocks:
            at = offset - begin
            header = content[at : at + HEADER_SIZE]
            try:
                yield header, open_block(content[at + HEADER_SIZE : at + stored], digest, self._aead)
            except ValueError:
                yield None

    def _space(self) -> memoryview:
        """Memory of this thread for what is read at once: new memory costs more than what is copied into it."""
        if not hasattr(self._local, "space"):
            self._local.space = memoryview(bytearray(NEAR))
        space: memoryview = self._local.space
        return space

    def exists(self, pack: bytes) -> bool:
        """Whether there is such a pack, and not only in the trash or in a local cache. Raises StoreError."""
        try:
            return self._backend.size(pack_name(pack)) > 0
        except OSError:
            return False

    def has(self, digest: bytes, pack: bytes, offset: int, stored: int) -> bool:
        """Whether the block can be read there, from a pack that is not in the trash and has a table."""
        try:
            if pack not in self._have_tables:
                self.table(pack)
                self._have_tables.add(pack)
            return self.exists(pack) and bool(self.read(digest, pack, offset, stored))
        except (OSError, Damaged):
            return False

    def authentic(self, table: Table, rows: I64) -> list[bool]:
        """Whether each of these blocks, which stand near each other in a pack, is as it was written: see ``block.authenticate``. They are
        read at once, and not opened."""
        begins, ends = table.offset[rows], table.offset[rows] + table.stored[rows]
        begin, end = int(begins.min()), int(ends.max())
        if not 0 <= end - begin <= NEAR + MAX_STORED:
            return [False] * len(rows)
        try:
            content = memoryview(self._backend.read_range(pack_name(table.pack), begin, end - begin, trashed=False))
        except (OSError, OverflowError):
            content = memoryview(b"")
        return [
            self._is_authentic(content[first - begin : last - begin], table, row)
            for first, last, row in zip(begins.tolist(), ends.tolist(), rows.tolist(), strict=True)
        ]

    def _is_authentic(self, stored: memoryview, table: Table, row: int) -> bool:
        try:
            authenticate(stored, table.digests[row * DIGEST : (row + 1) * DIGEST], int(table.length[row]), self._aead)
            return True
        except ValueError:
            return False

    def stored(self, pack: bytes, offset: int, length: int) -> bytes:
        """Bytes of a pack, as stored. Raises FileNotFoundError, Damaged."""
        if not 0 <= length <= MAX_STORED:
            raise self._damaged("index", ValueError("invalid length of a block"), pack)
        try:
            content = self._backend.read_range(pack_name(pack), offset, length, trashed=True)
        except FileNotFoundError:
            raise
        except (OSError, OverflowError) as error:
            raise self._damaged("pack", error, pack) from None
        if len(content) != length:
            raise self._damaged("pack", ValueError("truncated"), pack)
        return content

    def check(
        self, table: Table, offset: int, digest: bytes, pages: Pages, page_size: int, header: bytes | memoryview | None = None
    ) -> None:
        """Compare all that a pack says of a block which was read from it: the header of the block, and in the table its digest and
        those of its pages, from which a put learns what need not be stored. ``header``: if it need not be read. Raises
        FileNotFoundError, Damaged."""
        row = int(table.offset.searchsorted(np.uint64(offset)))
        wanted = self._aead.page_digests(split(pages, page_size))
        try:
            named, length = parse_header(header or self.stored(table.pack, offset, HEADER_SIZE), self._aead)
            entry = table.digests[row * DIGEST : (row + 1) * DIGEST], table.stored[row : row + 1].tolist()
            if named != digest or entry != (digest, [HEADER_SIZE + length]):
                raise ValueError("its header and the pack table contradict each other")
            first = int(table.begins(page_size)[row])
            if table.pages[first : first + len(wanted) // DIGEST].tobytes() != wanted:
                raise ValueError("its pages have other digests than the pack table says")
        except ValueError as error:
            raise self._damaged(f"block {digest.hex()}", error, table.pack, "Run 'fuse-store repair'.") from None

    def table(self, pack: bytes, check: bool = False) -> Table:
        """The table of a pack. ``check``: read it from the store, and compare the id of the pack with it too. Raises
        FileNotFoundError, Damaged."""
        try:
            if check:
                encrypted = self._encrypted_table(pack)
            else:
                encrypted = self._backend.cached(f"{pack.hex()}.table", lambda: self._encrypted_table(pack))
            content = self._aead.decrypt(b"table" + pack, encrypted)
            table = parse_table(content, pack)
            if check:
                header = self._backend.read_range(pack_name(pack), 0, PACK_HEADER.size, trashed=False)
                nonce = header[len(PACK_MAGIC) : len(PACK_MAGIC) + DIGEST]
                end = _TABLE.size + len(table.offset) * _ROW.itemsize + table.pages.nbytes  # zeros follow
                if header != PACK_HEADER.pack(PACK_MAGIC, nonce) or _pack_id(nonce, content[:end], self._aead) != pack:
                    raise ValueError("wrong pack header")
            return table
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            raise self._damaged("pack", error, pack) from None

    def _encrypted_table(self, pack: bytes) -> bytes:
        name = pack_name(pack)
        size = self._backend.size(name)
        begin = max(0, size - _TAIL_SIZE)
        end = self._backend.read_range(name, begin, size - begin, trashed=False)
        try:
            owner, length = TRAILER.unpack_from(self._aead.decrypt(b"trailer", end[-TRAILER_SIZE:]))
        except (ValueError, struct.error):
            raise ValueError("pack trailer missing") from None
        if owner != pack or length > min(size - TRAILER_SIZE, MAX_TABLE_SIZE):
            raise ValueError("trailer of another pack")
        if length + TRAILER_SIZE <= len(end):
            return end[len(end) - TRAILER_SIZE - length : -TRAILER_SIZE]
        return self._backend.read_range(name, size - TRAILER_SIZE - length, length, trashed=False)

    def scan(self, pack: bytes) -> Iterator[tuple[Block, Pages]]:
        """Every readable block and its pages, found by the headers of blocks alone: for a pack whose table is lost, that is
        damaged, or that has the name of another. Raises FileNotFoundError, OSError."""
        at = PACK_HEADER.size
        with self._backend.stream(pack_name(pack)) as file:
            while len(header := _read_at(file, at, HEADER_SIZE)) == HEADER_SIZE:
                at += UNIT
                try:
                    digest, length = parse_header(header, self._aead)
                    body = _read_at(file, at, length)
                    pages = unpack_block(body, digest, self._aead)
                except ValueError:
                    continue  # no block begins there, or one that is damaged
                at += length
                yield Block(digest, len(pages), header + body), pages

    def forget(self, pack: bytes) -> None:
        """Close a removed pack."""
        self._backend.forget(pack_name(pack))

    def _damaged(self, thing: str, error: Exception, pack: bytes, remedy: str = _REMEDY) -> Damaged:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT) else str(error)
        return Damaged(thing, f"{cause}.", remedy, pack=pack.hex())


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
