# SPDX-License-Identifier: GPL-3.0-or-later
"""From a source to a version: pages are compared with those of the bases, and only new ones are stored. Used by ``store``.

One thread reads, finds equal pages and writes; others compress and seal. Pages are looked for wherever in the bases
they stand. What is new goes into blocks: an aligned unit of 128 KiB that is mostly new is a block of its own, so that
equal units of other machines' images are stored once; the scattered rest is gathered. Memory is bounded by a batch of
pages, the queue of blocks, and the table of known pages, which has at most KNOWN. Of a compressed hibernation image the
pages in its chunks come first, and stand behind the file in the address space.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from fuse_store.errors import Damaged
from fuse_store.image.inputs import SourceFile
from fuse_store.progress import Progress
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.block import SIZE, Block, pack_block
from fuse_store.repository.extents import I64, MOST, NO_CHUNKS, Extents, encrypt_segment, runs
from fuse_store.repository.index import U64, Index, Located, halves
from fuse_store.repository.manifest import Chunks, Segment
from fuse_store.repository.pack import PackReader, PackWriter, Table

if TYPE_CHECKING:
    from fuse_store.hibernation.lzo_chunks.encode import ChunkSource

GROUP = 8  # blocks that a thread compresses and seals in one go
QUEUE = 8  # groups that wait or are being compressed
KNOWN = 4 << 20  # pages in the table, 24 bytes each and as much again while it grows; those of 16 GiB of 4 KiB pages
_CHUNK = 1 << 40  # blocks with this ordinal or a higher one are chunks, which are in no pack
_SLOT_BITS = 8  # of a place, a block has at most 64 pages
_Job = tuple[int, bytes, bytes]  # ordinal of a block, its pages, their digests


class PageTable:
    """Where pages are: page digest to (block, slot). Sorted runs, merged when they grow alike, so that adding n pages one
    batch at a time costs n log n. A digest is 128 bits of seeded XXH3: enough that two different pages have never one.
    When it is full it takes no more, and later pages are compared only as parts of whole blocks."""

    def __init__(self) -> None:
        self._added: list[tuple[U64, U64, I64]] = []  # in no run yet: what many packs bring is sorted once
        self._runs: list[tuple[U64, U64, I64]] = []
        self.room = KNOWN

    def add(self, high: U64, low: U64, block: I64, slot: I64) -> None:
        if len(high) and len(high) <= self.room:
            self.room -= len(high)
            self._added.append((high, low, block << _SLOT_BITS | slot))

    def find(self, high: U64, low: U64) -> tuple[I64, I64]:
        """(block, slot) of each page; block is -1 where there is none."""
        self._settle()
        order = np.argsort(high)  # who looks in order stays in the processor's caches
        high, low = high[order], low[order]
        place = np.full(len(high), -1, np.int64)
        for known_high, known_low, places in self._runs:
            open_ = np.flatnonzero(place < 0)
            if not len(open_):
                break
            at = np.searchsorted(known_high, high[open_])
            at[at == len(known_high)] = 0
            same = (known_high[at] == high[open_]) & (known_low[at] == low[open_])
            place[open_[same]] = places[at[same]]
        found = np.empty_like(place)
        found[order] = place
        return found >> _SLOT_BITS, found & ((1 << _SLOT_BITS) - 1)

    def _settle(self) -> None:
        if not self._added:
            return
        self._runs.append(_sorted(self._added))
        self._added = []
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._runs[-2:] = [_sorted(self._runs[-2:])]


def _sorted(parts: list[tuple[U64, U64, I64]]) -> tuple[U64, U64, I64]:
    high, low, place = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(high)
    return high[order], low[order], place[order]


@dataclass
class Captured:
    """What came of it. ``segments`` say where in ``encrypted`` the extents are. Sizes in bytes."""

    files: list[tuple[SourceFile, int]] = field(default_factory=list)  # and the offset of each
    segments: list[Segment] = field(default_factory=list)
    encrypted: list[bytes] = field(default_factory=list)
    allocated: int = 0
    new: int = 0
    chunks: Chunks | None = None


class Capture:
    """One capture. ``bases`` are the packs in which pages are looked for, the most promising first."""

    def __init__(
        self, index: Index, reader: PackReader, writer: PackWriter, aead: Aead, *, page_size: int, codec: str, level: int,
        sync: bool, bases: Iterable[bytes],
    ) -> None:  # fmt: skip
        self._index, self._reader, self._writer, self._aead = index, reader, writer, aead
        self._page_size, self._codec, self._level, self._sync = page_size, codec, level, sync
        self._slots = SIZE // page_size
        self._zero = halves(xxhash.xxh3_128_digest(bytes(page_size), aead.page_seed))
        self._table = PageTable()
        self._digests = bytearray()  # of every block that is known, by ordinal
        self._group: list[_Job] = []  # blocks that the next thread will take
        self._jobs: deque[Future[list[tuple[Block, bytes]]]] = deque()
        self._gathered = np.empty((self._slots, page_size), np.uint8)  # the block that is being filled, and its page digests
        self._gathered_digests = np.empty((self._slots, 2), np.uint64)
        self._filled, self._gathering = 0, -1
        self._columns: list[tuple[I64, I64, I64, I64]] = []
        self._extents = self._length = 0
        self._chunks: ChunkSource | None = None
        self._made: tuple[I64, I64, I64, I64] | None = None  # extents of what chunks make, those not yet in a segment
        self._made_rows, self._made_digests = NO_CHUNKS, b""
        self._result = Captured()
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "seal")
        for pack in bases:
            try:
                self._load(self._reader.table(pack))
            except (Damaged, FileNotFoundError):
                continue  # its pages are stored again
            if not self._table.room:
                break

    def run(self, files: Sequence[SourceFile], progress: Progress, chunks: ChunkSource | None = None) -> Captured:
        """Store what is new in the files. ``chunks`` are those of the only file. Raises StoreError, OSError."""
        at = 0
        sizes = [file.size for file in files]
        before = 0 if chunks is None else chunks.size
        progress.start("put", None if None in sizes else before + sum(size or 0 for size in sizes))
        try:
            if chunks is not None:
                self._pages_of(chunks, files[0], progress)
            behind, self._result.segments = self._result.segments, []
            for file in files:
                for batch in file.batches(self._page_size):
                    self._batch(at // self._page_size + batch.page, batch.data)
                    progress.at(before + at + batch.end)
                progress.at(before + at + (file.size or 0))
                self._result.files.append((file, at))
                at += -(-(file.size or 0) // self._page_size) * self._page_size
            self._segments(final=True)
            self._result.segments += behind
            rows = self._writer.finish()
            if rows is not None:
                self._index.add(rows, self._sync)
        finally:
            self._pool.shutdown(cancel_futures=True)
            progress.finish()
        return self._result

    def _pages_of(self, chunks: ChunkSource, file: SourceFile, progress: Progress) -> None:
        """Store the pages in chunks; the file need then not be read where those stand."""
        self._chunks = chunks
        with closing(chunks.batches()) as batches:
            for batch in batches:
                self._batch(batch.page, batch.data)
                progress.at(batch.end)
        self._segments(final=True)
        self._result.chunks, self._made = chunks.head, chunks.extents()
        self._made_rows, self._made_digests = chunks.rows(), chunks.digests
        file.skip = self._made[:2]
        self._result.allocated = int(self._made[1].sum()) * self._page_size

    # pages ---------------------------------------------------------------------------------------------------------

    def _batch(self, page: I64, data: memoryview) -> None:
        """Pages with these numbers, whose content stands one after the other in ``data``."""
        size, seed, digest = self._page_size, self._aead.page_seed, xxhash.xxh3_128_digest
        high, low = halves(b"".join([digest(data[at : at + size], seed) for at in range(0, len(data), size)]))
        rows = np.flatnonzero((high != self._zero[0]) | (low != self._zero[1]))
        if not len(rows):
            return
        page, high, low = page[rows], high[rows], low[rows]
        block, slot = self._table.find(high, low)
        absent = np.flatnonzero(block < 0)
        if len(absent):
            first, back = _distinct(high[absent], low[absent])  # a page that is new twice in a batch is stored once
            new = absent[first]
            content = np.frombuffer(data, np.uint8).reshape(-1, size)
            blocks, slots = self._store(page[new], content, rows[new], high[new], low[new])
            self._table.add(high[new], low[new], blocks, slots)
            block[absent], slot[absent] = blocks[back], slots[back]
            self._result.new += len(new) * size
        self._result.allocated += len(page) * size
        self._columns.append(runs(page, block, slot))
        self._extents += len(self._columns[-1][0])
        self._segments()

    def _store(self, page: I64, content: NDArray[np.uint8], rows: I64, high: U64, low: U64) -> tuple[I64, I64]:
        """Put pages (ascending), which are ``rows`` of ``content``, into blocks; where each went."""
        block, slot = np.empty(len(page), np.int64), np.empty(len(page), np.int64)
        digests = np.stack((high, low), axis=1)
        unit = page // self._slots
        starts = np.flatnonzero(np.diff(unit, prepend=-1))
        counts = np.diff(np.append(starts, len(page)))
        own = 2 * counts >= self._slots
        for start, count in zip(starts[own].tolist(), counts[own].tolist(), strict=True):
            unit_pages = slice(start, start + count)
            block[unit_pages], slot[unit_pages] = self._ordinal(), np.arange(count)
            first, last = int(rows[start]), int(rows[start + count - 1]) + 1
            pages = content[first:last] if last - first == count else content[rows[unit_pages]]
            self._submit(int(block[start]), pages.tobytes(), digests[unit_pages])
        scattered = np.flatnonzero(np.repeat(~own, counts))
        while len(scattered):
            if self._gathering < 0:
                self._gathering = self._ordinal()
            part, scattered = scattered[: self._slots - self._filled], scattered[self._slots - self._filled :]
            end = self._filled + len(part)
            block[part], slot[part] = self._gathering, np.arange(self._filled, end)
            self._gathered[self._filled : end] = content[rows[part]]
            self._gathered_digests[self._filled : end] = digests[part]
            self._filled = end
            if end == self._slots:
                self._close_gathered()
        return block, slot

    # blocks --------------------------------------------------------------------------------------------------------

    def _ordinal(self) -> int:
        self._digests += bytes(DIGEST)
        return len(self._digests) // DIGEST - 1

    def _close_gathered(self) -> None:
        if self._filled:
            pages, digests = self._gathered[: self._filled].tobytes(), self._gathered_digests[: self._filled]
            self._submit(self._gathering, pages, digests)
            self._filled, self._gathering = 0, -1

    def _submit(self, ordinal: int, pages: bytes, page_digests: U64) -> None:
        self._group.append((ordinal, pages, page_digests.astype("<u8").tobytes()))
        if len(self._group) == GROUP:
            self._submit_group()

    def _submit_group(self) -> None:
        while len(self._jobs) >= QUEUE:
            self._write_group()
        self._jobs.append(self._pool.submit(self._seal, self._group))
        self._group = []

    def _seal(self, group: list[_Job]) -> list[tuple[Block, bytes]]:
        """In a thread: the blocks that the store has not yet, and the digests of their pages."""
        digests = [self._aead.digest(pages) for _ordinal, pages, _page_digests in group]
        found = self._index.locate(b"".join(digests))
        encrypted = []
        for number, ((ordinal, pages, page_digests), digest) in enumerate(zip(group, digests, strict=True)):
            self._digests[ordinal * DIGEST : (ordinal + 1) * DIGEST] = digest
            if found.pack[number] < 0 or not self._has(digest, found, number):
                encrypted.append((pack_block(pages, digest, self._aead, self._codec, self._level), page_digests))
        return encrypted

    def _has(self, digest: bytes, found: Located, number: int) -> bool:
        pack = found.packs[int(found.pack[number])]
        return self._reader.has(digest, pack, int(found.offset[number]), int(found.stored[number]))

    def _write_group(self) -> None:
        for block, page_digests in self._jobs.popleft().result():
            rows = self._writer.add(block, page_digests)
            if rows is not None:
                self._index.add(rows, self._sync)

    def _load(self, table: Table) -> None:
        """Make the pages of a pack known."""
        count = table.counts(self._page_size)
        if count.sum() != len(table.pages):
            return  # of a store with another page size
        first = len(self._digests) // DIGEST
        self._digests += table.digests
        block = np.repeat(np.arange(first, first + len(count)), count)
        slot = np.arange(len(table.pages)) - np.repeat(np.cumsum(count) - count, count)
        self._table.add(np.ascontiguousarray(table.pages[:, 0]), np.ascontiguousarray(table.pages[:, 1]), block, slot)

    # segments ------------------------------------------------------------------------------------------------------

    def _segments(self, final: bool = False) -> None:
        """Close the segments that are full; the last one, too, if ``final``."""
        if self._extents < MOST and not final:
            return
        self._close_gathered()
        if self._group:
            self._submit_group()
        while self._jobs:  # a segment names its blocks by their digests
            self._write_group()
        made = self._take_made(final)
        if made is not None:
            self._columns.append(made)
        if not self._columns:
            return
        page, count, block, slot = (np.concatenate(parts) for parts in zip(*self._columns, strict=True))
        if made is not None:
            order = np.argsort(page)
            page, count, block, slot = page[order], count[order], block[order], slot[order]
        self._columns, self._extents = [], 0
        chunked = self._chunks is not None and self._chunks.head is not None
        digests, chunk_digests = (np.frombuffer(known, f"V{DIGEST}") for known in (self._digests, self._made_digests))
        for start in range(0, len(page), MOST):
            part = slice(start, start + MOST)
            used, local = np.unique(block[part], return_inverse=True)
            stored, chunks = used[used < _CHUNK], used[used >= _CHUNK] - _CHUNK
            names = digests[stored].tobytes() + chunk_digests[chunks].tobytes()
            extents = Extents(page[part], count[part], local.astype(np.int64), slot[part], names, self._made_rows.select(chunks))
            segment, encrypted = encrypt_segment(extents, self._length, self._aead, chunked)
            self._length += len(encrypted)
            self._result.segments.append(segment)
            self._result.encrypted.append(encrypted)

    def _take_made(self, final: bool) -> tuple[I64, I64, I64, I64] | None:
        """The extents that chunks make before the end of what has been read, and in no segment yet; all if ``final``."""
        if self._made is None:
            return None
        end = len(self._made[0])
        if not final:
            end = int(np.searchsorted(self._made[0], self._columns[-1][0][-1]))
        page, count, row, slot = (column[:end] for column in self._made)
        self._made = tuple(column[end:] for column in self._made)  # type: ignore[assignment]
        return (page, count, row + _CHUNK, slot) if end else None


def _distinct(high: U64, low: U64) -> tuple[I64, I64]:
    """(first, back): where each digest stands for the first time, ascending, and for each one which of those it is."""
    order = np.argsort(high, kind="stable")
    sorted_high, sorted_low = high[order], low[order]
    new = np.ones(len(order), bool)
    new[1:] = (sorted_high[1:] != sorted_high[:-1]) | (sorted_low[1:] != sorted_low[:-1])
    first = order[new]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    back = np.empty(len(order), np.int64)
    back[order] = rank[np.cumsum(new) - 1]
    return np.sort(first), back
