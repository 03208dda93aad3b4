# SPDX-License-Identifier: GPL-3.0-or-later
"""From a source to a version: pages are compared with those of the bases, and only new ones are stored. Used by ``store``.

One thread reads, finds equal pages and writes; others compress and seal. Pages are looked for wherever in the bases
they stand. What is new goes into blocks: an aligned unit of 64 pages (256 KiB) that is mostly new is a block of its own, so
that equal units of other machines' images are stored once; the scattered rest is gathered. Memory is bounded by the
chunk, the queue of blocks, and 40 bytes for each page of the bases and of the image.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from fuse_store.blocks import LARGEST, Block, pack_block
from fuse_store.crypto import DIGEST, Sealer
from fuse_store.extents import MOST, Extents, runs
from fuse_store.packs import PackReader, PackWriter
from fuse_store.progress import Progress
from fuse_store.sources import SourceFile

QUEUE = 64  # blocks that are being compressed at once
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


class PageTable:
    """Where pages are: page digest to (block, slot). Sorted runs, merged when they grow alike, so that adding n pages one
    chunk at a time costs n log n. A digest is 128 bits of seeded XXH3: enough that two different pages have never one."""

    def __init__(self) -> None:
        self._runs: list[tuple[U64, U64, I64, I64]] = []

    def add(self, high: U64, low: U64, block: I64, slot: I64) -> None:
        self._runs.append(_sorted(high, low, block, slot))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            one, other = self._runs.pop(), self._runs.pop()
            self._runs.append(_sorted(*(np.concatenate(pair) for pair in zip(one, other, strict=True))))

    def find(self, high: U64, low: U64) -> tuple[I64, I64]:
        """(block, slot) of each page; block is -1 where there is none."""
        block, slot = np.full(len(high), -1, np.int64), np.zeros(len(high), np.int64)
        for known_high, known_low, blocks, slots in self._runs:
            open_ = np.flatnonzero(block < 0)
            if not len(open_) or not len(known_high):
                continue
            at = np.searchsorted(known_high, high[open_])
            at[at == len(known_high)] = 0
            same = (known_high[at] == high[open_]) & (known_low[at] == low[open_])
            block[open_[same]], slot[open_[same]] = blocks[at[same]], slots[at[same]]
        return block, slot


def _sorted(high: U64, low: U64, block: I64, slot: I64) -> tuple[U64, U64, I64, I64]:
    order = np.argsort(high, kind="stable")
    return high[order], low[order], block[order], slot[order]


@dataclass
class Captured:
    """What came of it. ``segments`` are Extents, in order."""

    files: list[tuple[SourceFile, int]] = field(default_factory=list)  # and the offset of each
    segments: list[Extents] = field(default_factory=list)
    allocated: int = 0
    new: int = 0


class Capture:
    """One capture. ``bases`` are the packs in which pages are looked for."""

    def __init__(
        self, reader: PackReader, writer: PackWriter, sealer: Sealer, *, page_size: int, codec: str, level: int,
        bases: Sequence[bytes],
    ) -> None:  # fmt: skip
        self._reader, self._writer, self._sealer = reader, writer, sealer
        self._page_size, self._codec, self._level = page_size, codec, level
        self._slots = LARGEST // page_size
        self._zero = xxhash.xxh3_128_digest(bytes(page_size), sealer.page_seed)
        self._table = PageTable()
        self._digests = bytearray()  # of every block that is known, by ordinal
        self._hints: list[bytes | None] = []  # its pack; None while it is not written
        self._jobs: deque[tuple[int, bytes, Future[Block | None]]] = deque()
        self._gathered: list[bytes] = []  # pages for the block that is being filled, and their digests
        self._gathered_digests: list[bytes] = []
        self._gathering = -1
        self._columns: list[tuple[I64, I64, I64, I64]] = []
        self._extents = 0
        self._result = Captured()
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "seal")
        for pack in bases:
            self._load(pack)

    def run(self, files: Sequence[SourceFile], progress: Progress) -> Captured:
        """Store what is new in the files. Raises StoreError, OSError."""
        at = 0
        sizes = [file.size for file in files]
        progress.start("put", None if None in sizes else sum(size or 0 for size in sizes))
        try:
            for file in files:
                for offset, data in file.chunks():
                    self._chunk((at + offset) // self._page_size, data)
                    progress.at(at + offset + len(data))
                self._result.files.append((file, at))
                at += -(-(file.size or 0) // self._page_size) * self._page_size
            self._close_gathered()
            while self._jobs:
                self._write_one()
            self._segments(final=True)
        finally:
            self._pool.shutdown(cancel_futures=True)
            progress.finish()
        return self._result

    # pages ---------------------------------------------------------------------------------------------------------

    def _chunk(self, first: int, data: memoryview) -> None:
        """Pages ``first`` and following are ``data``; a part of a page at the end is filled with zeros."""
        size, seed = self._page_size, self._sealer.page_seed
        if len(data) % size:
            data = memoryview(bytes(data) + bytes(-len(data) % size))
        digest = xxhash.xxh3_128_digest
        digests = [digest(data[at : at + size], seed) for at in range(0, len(data), size)]
        page = np.flatnonzero(np.array([one != self._zero for one in digests], bool))
        if not len(page):
            return
        halves = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)[page]
        high, low = np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])
        block, slot = self._table.find(high, low)
        absent = np.flatnonzero(block < 0)
        if len(absent):
            # A page that is new twice in this chunk is stored once.
            keys = halves[absent].copy().view("V16").ravel()
            _unique, where, back = np.unique(keys, return_index=True, return_inverse=True)
            where_sorted = np.sort(where)
            chosen = absent[where_sorted]
            blocks, slots = self._store(first, page[chosen], data, digests)
            self._table.add(high[chosen], low[chosen], blocks, slots)
            rank = np.searchsorted(where_sorted, where)[back]
            block[absent], slot[absent] = blocks[rank], slots[rank]
            self._result.new += len(chosen) * size
        self._result.allocated += len(page) * size
        self._columns.append(runs(first + page, block, slot))
        self._extents += len(self._columns[-1][0])
        self._segments()

    def _store(self, first: int, page: I64, data: memoryview, digests: list[bytes]) -> tuple[I64, I64]:
        """Put the pages (ascending, relative to ``data``) into blocks; where each went."""
        size = self._page_size
        blocks, slots = np.empty(len(page), np.int64), np.empty(len(page), np.int64)
        unit = (first + page) // self._slots
        starts = np.flatnonzero(np.diff(unit, prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], len(page)), strict=True):
            pages = page[start:end]
            if 2 * len(pages) >= self._slots:
                parts = [data[at * size : (at + 1) * size] for at in pages]
                blocks[start:end] = self._new_block(b"".join(parts), b"".join(digests[at] for at in pages))
                slots[start:end] = np.arange(len(pages))
                continue
            for row, at in enumerate(pages, int(start)):
                if self._gathering < 0:
                    self._gathering = self._ordinal()
                blocks[row], slots[row] = self._gathering, len(self._gathered)
                self._gathered.append(bytes(data[at * size : (at + 1) * size]))
                self._gathered_digests.append(digests[at])
                if len(self._gathered) == self._slots:
                    self._close_gathered()
        return blocks, slots

    # blocks --------------------------------------------------------------------------------------------------------

    def _ordinal(self, digest: bytes = bytes(DIGEST), hint: bytes | None = None) -> int:
        self._digests += digest
        self._hints.append(hint)
        return len(self._hints) - 1

    def _close_gathered(self) -> None:
        if self._gathered:
            self._submit(self._gathering, b"".join(self._gathered), b"".join(self._gathered_digests))
            self._gathered, self._gathered_digests, self._gathering = [], [], -1

    def _new_block(self, pages: bytes, page_digests: bytes) -> int:
        ordinal = self._ordinal()
        self._submit(ordinal, pages, page_digests)
        return ordinal

    def _submit(self, ordinal: int, pages: bytes, page_digests: bytes) -> None:
        while len(self._jobs) >= QUEUE:
            self._write_one()
        self._jobs.append((ordinal, page_digests, self._pool.submit(self._seal, ordinal, pages)))

    def _seal(self, ordinal: int, pages: bytes) -> Block | None:
        """In a thread: the block, or None if the store has it already."""
        digest = self._sealer.digest(pages)
        self._digests[ordinal * DIGEST : (ordinal + 1) * DIGEST] = digest
        found = self._reader.locate(digest)
        if found is not None:
            self._hints[ordinal] = found[0].pack
            return None
        return pack_block(pages, digest, self._sealer, self._codec, self._level)

    def _write_one(self) -> None:
        ordinal, page_digests, job = self._jobs.popleft()
        block = job.result()
        if block is not None:
            self._hints[ordinal] = self._writer.add(block, page_digests)

    def _load(self, pack: bytes) -> None:
        """Make the pages of a pack known."""
        fragment, pages = self._reader.page_digests(pack)
        count = -(-fragment.length.astype(np.int64) // self._page_size)
        if count.sum() != len(pages):
            return  # of a store with another page size
        first = len(self._hints)
        self._digests += fragment.digests()
        self._hints += [pack] * len(count)
        block = np.repeat(np.arange(first, first + len(count)), count)
        slot = np.arange(len(pages)) - np.repeat(np.cumsum(count) - count, count)
        self._table.add(np.ascontiguousarray(pages[:, 0]), np.ascontiguousarray(pages[:, 1]), block, slot)

    # segments ------------------------------------------------------------------------------------------------------

    def _segments(self, final: bool = False) -> None:
        """Close the segments that are full; the last one, too, if ``final``."""
        if self._extents < MOST and not final:
            return
        if not final:
            self._close_gathered()
        while self._jobs:  # a segment tells the packs, which are known when its blocks are written
            self._write_one()
        if not self._columns:
            return
        page, count, block, slot = (np.concatenate(parts) for parts in zip(*self._columns, strict=True))
        self._columns, self._extents = [], 0
        for start in range(0, len(page), MOST):
            part = slice(start, start + MOST)
            used, local = np.unique(block[part], return_inverse=True)
            digests = b"".join(bytes(self._digests[one * DIGEST : (one + 1) * DIGEST]) for one in used)
            names: dict[bytes, int] = {}
            hint = np.array([names.setdefault(self._hints[one] or bytes(DIGEST), len(names)) for one in used], np.int64)
            self._result.segments.append(
                Extents(page[part], count[part], local.astype(np.int64), slot[part], digests, hint, b"".join(names))
            )
