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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from fuse_store.columns import I64, U64, halves
from fuse_store.errors import Damaged
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.atomic import fault_point, start_writing
from fuse_store.repository.backends import Backend, NewFile
from fuse_store.repository.block import HEADER, MAGIC, MAX_BLOCK_SIZE, OVERHEAD, Block, parse_header, unpack_block
from fuse_store.repository.index import Rows

PACK_HEADER = struct.Struct("<8s16s")  # magic, pack id
PACK_MAGIC = b"FSPACK01"
TRAILER = struct.Struct("<Q8s")  # length of the encrypted table before it, magic
TRAILER_MAGIC = b"FSPKEND1"
_NAME = re.compile(r"packs/([0-9a-f]{2})/([0-9a-f]{32})\.pack")
_ROW = np.dtype([("digest", "V16"), ("offset", "<u8"), ("stored", "<u4"), ("length", "<u4")])
PACK_SIZE = 256 << 20  # bytes of a full pack; an interrupted put continues after the last full one
MAX_BLOCKS_PER_PACK = 1 << 14  # blocks of repetitive pages are tiny: a pack of them would have millions
MAX_TABLE_SIZE = 1 << 30  # bytes
WRITEBACK_SIZE = 16 << 20  # bytes of a pack whose write-back is started at once
_TAIL_SIZE = 64 << 10  # bytes at the end of a pack that hold most tables: one request to a server


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
    return struct.pack("<I", len(blocks)) + np.array(blocks, _ROW).tobytes() + page_digests


def parse_table(content: bytes, pack: bytes) -> Table:
    """Raises ValueError."""
    count = struct.unpack_from("<I", content)[0] if len(content) >= 4 else 0
    end = 4 + count * _ROW.itemsize
    if not content or count > MAX_BLOCKS_PER_PACK or len(content) < end or (len(content) - end) % DIGEST:
        raise ValueError("pack table truncated")
    rows = np.frombuffer(content, _ROW, count, 4)
    if count and (int(rows["length"].max()) > MAX_BLOCK_SIZE or int(rows["stored"].max()) > MAX_BLOCK_SIZE + OVERHEAD):
        raise ValueError("invalid values in the pack table")
    return Table(
        pack, rows["digest"].tobytes(), rows["offset"].astype(np.uint64), rows["stored"].astype(np.uint64),
        rows["length"].astype(np.uint64), np.frombuffer(content, "<u8", offset=end).reshape(-1, 2),
    )  # fmt: skip


class PackWriter:
    """Writes packs of about PACK_SIZE bytes, one after the other. For one thread, which holds the writer lock."""

    def __init__(self, backend: Backend, aead: Aead, sync: bool) -> None:
        self._backend, self._aead, self._sync = backend, aead, sync
        self._new: NewFile | None = None
        self._blocks: list[tuple[bytes, int, int, int]] = []
        self._pages: list[bytes] = []
        self._size = self._writeback = 0  # bytes of the pack; those whose write-back was started
        self._pack = b""
        self.written = 0

    def add(self, block: Block, page_digests: bytes) -> Rows | None:
        """Append a block; ``page_digests``: 16 bytes for each of its pages. If the pack is full: finish it and return its Rows;
        it is durable then. Raises OSError, StoreError."""
        new = self._new or self._begin()
        self._blocks.append((block.digest, self._size, len(block.stored), block.length))
        self._pages.append(page_digests)
        new.file.write(block.stored)
        self._size += len(block.stored)
        self.written += len(block.stored)
        if self._sync and self._size - self._writeback >= WRITEBACK_SIZE:
            start_writing(new.file, self._writeback, self._size - self._writeback)
            self._writeback = self._size
        return self.finish() if self._size >= PACK_SIZE or len(self._blocks) >= MAX_BLOCKS_PER_PACK else None

    def finish(self) -> Rows | None:
        """Finish the current pack: its Rows, durable; None if there is none. Raises OSError, StoreError."""
        if self._new is None:
            return None
        content = pack_table(self._blocks, b"".join(self._pages))
        encrypted = self._aead.encrypt(b"table" + self._pack, content)
        self._new.file.write(encrypted + TRAILER.pack(len(encrypted), TRAILER_MAGIC))
        self._new.create(pack_name(self._pack))
        self._new, self._blocks, self._pages = None, [], []
        return parse_table(content, self._pack).rows()

    def abandon(self) -> None:
        """Drop the current pack, if there is one."""
        if self._new is not None:
            self._new.abandon()
            self._new = None

    def _begin(self) -> NewFile:
        self._pack = os.urandom(DIGEST)
        fault_point("begin pack")
        self._new = self._backend.new("packs", self._sync)
        self._new.file.write(PACK_HEADER.pack(PACK_MAGIC, self._pack))
        self._size, self._writeback = PACK_HEADER.size, 0
        return self._new


def pack_name(pack: bytes) -> str:
    name = pack.hex()
    return f"packs/{name[:2]}/{name}.pack"


def all_packs(backend: Backend) -> Iterator[tuple[bytes, int]]:
    """(id, bytes) of every pack, in no order."""
    for entry in backend.entries("packs"):
        match = _NAME.fullmatch(entry.name)
        if match and match[1] == match[2][:2]:
            yield bytes.fromhex(match[2]), entry.size


def _next_block(file: BinaryIO, at: int) -> int | None:
    """The offset of the next block magic at or after ``at``."""
    overlap = len(MAGIC) - 1
    while True:
        file.seek(at)
        content = file.read(1 << 20)
        index = content.find(MAGIC)
        if index >= 0:
            return at + index
        if len(content) <= overlap:
            return None
        at += len(content) - overlap


class PackReader:
    """Reads blocks and tables. Threads may share it."""

    def __init__(self, backend: Backend, aead: Aead) -> None:
        self._backend, self._aead = backend, aead

    def read(self, digest: bytes, pack: bytes, offset: int, stored: int) -> bytes:
        """The pages of a block, verified. Raises FileNotFoundError if the pack does not exist, Damaged."""
        try:
            return unpack_block(self.stored(pack, offset, stored), digest, self._aead)
        except ValueError as error:
            raise self._damaged(f"block {digest.hex()}", error, pack) from None

    def has(self, digest: bytes, pack: bytes, offset: int, stored: int) -> bool:
        """Whether the header of that block is there, and the block ends within the pack."""
        try:
            size = self._backend.size(pack_name(pack))  # fails for a pack in the trash
            header = self._backend.read_range(pack_name(pack), offset, HEADER.size, trashed=True)
            _codec, encrypted, _length, actual = parse_header(header)
            return actual == digest and HEADER.size + encrypted == stored and offset + stored <= size
        except (OSError, ValueError, OverflowError):
            return False

    def stored(self, pack: bytes, offset: int, length: int) -> bytes:
        """Bytes of a pack, as stored. Raises FileNotFoundError, Damaged."""
        if not 0 <= length <= MAX_BLOCK_SIZE + OVERHEAD:
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

    def table(self, pack: bytes, check: bool = False) -> Table:
        """The table of a pack. ``check``: read it from the store, and check the pack's header too. Raises FileNotFoundError,
        Damaged."""
        try:
            if check:
                header = self._backend.read_range(pack_name(pack), 0, PACK_HEADER.size, trashed=False)
                if header != PACK_HEADER.pack(PACK_MAGIC, pack):
                    raise ValueError("wrong pack header")
                encrypted = self._encrypted_table(pack)
            else:
                encrypted = self._backend.cached(f"{pack.hex()}.table", lambda: self._encrypted_table(pack))
            return parse_table(self._aead.decrypt(b"table" + pack, encrypted), pack)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            raise self._damaged("pack", error, pack) from None

    def _encrypted_table(self, pack: bytes) -> bytes:
        name = pack_name(pack)
        size = self._backend.size(name)
        begin = max(0, size - _TAIL_SIZE)
        end = self._backend.read_range(name, begin, size - begin, trashed=False)
        length, magic = TRAILER.unpack(end[-TRAILER.size :]) if len(end) >= TRAILER.size else (0, b"")
        if magic != TRAILER_MAGIC or length > min(size - TRAILER.size, MAX_TABLE_SIZE):
            raise ValueError("pack trailer missing")
        if length + TRAILER.size <= len(end):
            return end[len(end) - TRAILER.size - length : -TRAILER.size]
        return self._backend.read_range(name, size - TRAILER.size - length, length, trashed=False)

    def scan(self, pack: bytes) -> Iterator[tuple[Block, bytes]]:
        """Every readable block and its pages, found by the block headers alone: for a pack whose table is lost, that is
        damaged, or that has the name of another. Raises FileNotFoundError, OSError."""
        with self._backend.stream(pack_name(pack)) as file:
            after = PACK_HEADER.size
            while (at := _next_block(file, after)) is not None:
                file.seek(at)
                header = file.read(HEADER.size)
                try:
                    _codec, encrypted, length, digest = parse_header(header)
                    stored = header + file.read(encrypted)
                    yield Block(digest, length, stored), unpack_block(stored, digest, self._aead)
                    after = at + len(stored)
                except ValueError:  # the length in the header may be wrong as well
                    after = at + 1

    def forget(self, pack: bytes) -> None:
        """Close a removed pack."""
        self._backend.forget(pack_name(pack))

    def _damaged(self, thing: str, error: Exception, pack: bytes) -> Damaged:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT) else str(error)
        remedy = "Run 'fuse-store verify' to list the damaged versions; the others can still be read."
        return Damaged(thing, f"{cause}.", remedy, pack=pack.hex())
