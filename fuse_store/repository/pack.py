# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs: append-only files of blocks. Used by ``capture`` (writes them), ``image`` (reads blocks), ``upkeep`` (both).

At the end of a pack stands its table: what blocks are in it, and the digests of their pages. The index is made from the
tables, and a capture learns from them which pages its bases have. Reading is safe in threads.
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

from fuse_store.errors import Damaged
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.atomic import fault_point, start_writing
from fuse_store.repository.backends import Backend
from fuse_store.repository.block import HEADER, LARGEST, MAGIC, OVERHEAD, Block, parse_header, unpack_block
from fuse_store.repository.index import I64, U64, Rows, halves

PACK_HEADER = struct.Struct("<8s16s")  # magic, pack id
PACK_MAGIC = b"FSPACK01"
TRAILER = struct.Struct("<Q8s")  # length of the encrypted table before it, magic
TRAILER_MAGIC = b"FSPKEND1"
_NAME = re.compile(r"packs/([0-9a-f]{2})/([0-9a-f]{32})\.pack")
_ROW = np.dtype([("digest", "V16"), ("offset", "<u8"), ("stored", "<u4"), ("length", "<u4")])
FULL = 256 << 20  # bytes in a pack; an interrupted put begins again after the last full one
MOST_BLOCKS = 1 << 14  # in a pack: of blocks that compress to nothing there would be millions in so many bytes
LARGEST_TABLE = 1 << 30
_USUAL = 64 << 10  # bytes at the end of a pack that hold the table of most: one request of a server
BEGUN = 16 << 20  # bytes of a pack that are on their way to the disk while the next are compressed


@dataclass(frozen=True)
class Table:
    """What is in one pack, in the order of the blocks in it: digests (16 bytes each), offsets, lengths stored (header
    included) and of the pages, and the digests of the pages of all blocks (rows of two halves)."""

    pack: bytes
    digests: bytes
    offset: U64
    stored: U64
    length: U64
    pages: U64

    def counts(self, page_size: int) -> I64:
        """How many pages each block has; the last one may not be full."""
        return -(-self.length.astype(np.int64) // page_size)

    def rows(self) -> Rows:
        """The blocks, for the index."""
        high, low = halves(self.digests)
        order = np.lexsort((low, high))
        count = len(order)
        u32 = np.uint32
        return Rows(
            high[order], low[order], self.offset[order], np.zeros(count, u32), self.stored[order].astype(u32),
            self.length[order].astype(u32), self.pack if count else b"",
        )  # fmt: skip


def pack_table(blocks: list[tuple[bytes, int, int, int]], page_digests: bytes) -> bytes:
    """The table of a pack, before it is encrypted. ``blocks`` are (digest, offset, length stored, length of the pages)."""
    return struct.pack("<I", len(blocks)) + np.array(blocks, _ROW).tobytes() + page_digests


def parse_table(content: bytes, pack: bytes) -> Table:
    """Raises ValueError."""
    count = struct.unpack_from("<I", content)[0] if len(content) >= 4 else 0
    end = 4 + count * _ROW.itemsize
    if not content or count > MOST_BLOCKS or len(content) < end or (len(content) - end) % DIGEST:
        raise ValueError("its table is cut off")
    rows = np.frombuffer(content, _ROW, count, 4)
    if count and (int(rows["length"].max()) > LARGEST or int(rows["stored"].max()) > LARGEST + OVERHEAD):
        raise ValueError("its table has impossible values")
    return Table(
        pack, rows["digest"].tobytes(), rows["offset"].astype(np.uint64), rows["stored"].astype(np.uint64),
        rows["length"].astype(np.uint64), np.frombuffer(content, "<u8", offset=end).reshape(-1, 2),
    )  # fmt: skip


class PackWriter:
    """Writes packs of about FULL bytes, one after the other. For the one thread that holds the writer's lock."""

    def __init__(self, backend: Backend, aead: Aead, sync: bool) -> None:
        self._backend, self._aead, self._sync = backend, aead, sync
        self._file: BinaryIO | None = None
        self._blocks: list[tuple[bytes, int, int, int]] = []
        self._pages: list[bytes] = []
        self._size = self._begun = 0
        self._pack = b""
        self.written = 0

    def add(self, block: Block, page_digests: bytes) -> Rows | None:
        """Append a block; ``page_digests`` are 16 bytes for each of its pages. If that made a pack full: its Rows; it is
        durable then."""
        if self._file is None:
            self._begin()
        assert self._file is not None
        self._blocks.append((block.digest, self._size, len(block.stored), block.length))
        self._pages.append(page_digests)
        self._file.write(block.stored)
        self._size += len(block.stored)
        self.written += len(block.stored)
        if self._sync and self._size - self._begun >= BEGUN:
            start_writing(self._file, self._begun, self._size - self._begun)
            self._begun = self._size
        return self.finish() if self._size >= FULL or len(self._blocks) >= MOST_BLOCKS else None

    def finish(self) -> Rows | None:
        """Make what was added durable; the Rows of the pack, or None if there is none."""
        if self._file is None:
            return None
        content = pack_table(self._blocks, b"".join(self._pages))
        encrypted = self._aead.encrypt(b"table" + self._pack, content)
        self._file.write(encrypted + TRAILER.pack(len(encrypted), TRAILER_MAGIC))
        self._context.__exit__(None, None, None)
        self._file, self._blocks, self._pages = None, [], []
        return parse_table(content, self._pack).rows()

    def abandon(self) -> None:
        """Drop the pack that is being written, if one is."""
        if self._file is not None:
            self._file = None
            error = OSError("abandoned")
            try:
                self._context.__exit__(OSError, error, None)
            except OSError:
                pass

    def _begin(self) -> None:
        self._pack = os.urandom(DIGEST)
        fault_point("begin pack")
        self._context = self._backend.new(pack_name(self._pack), self._sync)
        self._file = self._context.__enter__()
        self._file.write(PACK_HEADER.pack(PACK_MAGIC, self._pack))
        self._size, self._begun = PACK_HEADER.size, 0


def pack_name(pack: bytes) -> str:
    name = pack.hex()
    return f"packs/{name[:2]}/{name}.pack"


def all_packs(backend: Backend) -> Iterator[tuple[bytes, int]]:
    """(id, bytes) of all packs there are, in no order."""
    for entry in backend.entries("packs"):
        found = _NAME.fullmatch(entry.name)
        if found and found[1] == found[2][:2]:
            yield bytes.fromhex(found[2]), entry.size


def _next_block(file: BinaryIO, at: int) -> int | None:
    """Where the next block begins, or seems to, at or after ``at``."""
    overlap = len(MAGIC) - 1
    while True:
        file.seek(at)
        content = file.read(1 << 20)
        found = content.find(MAGIC)
        if found >= 0:
            return at + found
        if len(content) <= overlap:
            return None
        at += len(content) - overlap


class PackReader:
    """Reads blocks and tables. Threads may share it."""

    def __init__(self, backend: Backend, aead: Aead) -> None:
        self._backend, self._aead = backend, aead

    def read(self, digest: bytes, pack: bytes, offset: int, stored: int) -> bytes:
        """The pages of a block, verified. Raises FileNotFoundError if the pack is gone, Damaged."""
        try:
            return unpack_block(self.stored(pack, offset, stored), digest, self._aead)
        except ValueError as error:
            raise self._damaged(f"block {digest.hex()}", error, pack) from None

    def has(self, digest: bytes, pack: bytes, offset: int, stored: int) -> bool:
        """Whether a block really begins there, and ends within the pack."""
        try:
            size = self._backend.size(pack_name(pack))  # there is none in the trash, where nothing lasts
            header = self._backend.read_range(pack_name(pack), offset, HEADER.size, trashed=True)
            _codec, encrypted, _length, found = parse_header(header)
            return found == digest and HEADER.size + encrypted == stored and offset + stored <= size
        except (OSError, ValueError, OverflowError):
            return False

    def stored(self, pack: bytes, offset: int, length: int) -> bytes:
        """Bytes of a pack as they are. Raises FileNotFoundError, Damaged."""
        if not 0 <= length <= LARGEST + OVERHEAD:
            raise self._damaged("index", ValueError("it gives a block an impossible length"), pack)
        try:
            content = self._backend.read_range(pack_name(pack), offset, length, trashed=True)
        except FileNotFoundError:
            raise
        except (OSError, OverflowError) as error:
            raise self._damaged("pack", error, pack) from None
        if len(content) != length:
            raise self._damaged("pack", ValueError("it is cut off"), pack)
        return content

    def table(self, pack: bytes, check: bool = False) -> Table:
        """What is in a pack. ``check`` looks at its header, too, which nothing else needs. Raises FileNotFoundError, Damaged."""
        try:
            if check:
                if self._backend.read_range(pack_name(pack), 0, PACK_HEADER.size, trashed=False) != PACK_HEADER.pack(PACK_MAGIC, pack):
                    raise ValueError("its header is not its own")
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
        begin = max(0, size - _USUAL)
        end = self._backend.read_range(name, begin, size - begin, trashed=False)
        length, magic = TRAILER.unpack(end[-TRAILER.size :]) if len(end) >= TRAILER.size else (0, b"")
        if magic != TRAILER_MAGIC or length > min(size - TRAILER.size, LARGEST_TABLE):
            raise ValueError("its end is missing")
        if length + TRAILER.size <= len(end):
            return end[len(end) - TRAILER.size - length : -TRAILER.size]
        return self._backend.read_range(name, size - TRAILER.size - length, length, trashed=False)

    def scan(self, pack: bytes) -> Iterator[tuple[Block, bytes]]:
        """Every block that can be read, and its pages, by the headers of the blocks alone: what is left of a pack whose table
        is lost, that is damaged somewhere, or that has another's name. Raises FileNotFoundError, OSError."""
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
                except ValueError:  # its length may be wrong as well
                    after = at + 1

    def forget(self, pack: bytes) -> None:
        """Let go of a pack that was removed."""
        self._backend.forget(pack_name(pack))

    def _damaged(self, thing: str, error: Exception, pack: bytes) -> Damaged:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT) else str(error)
        remedy = "Other versions can still be read; fuse-store verify names what is damaged."
        return Damaged(thing, f"{cause}.", remedy, pack=pack.hex())
