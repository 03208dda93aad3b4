# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a version. Used by ``targets``, ``upkeep`` and whoever shows an image; threads may share one Image.

Whatever is read was verified, or Damaged is raised, which names the image, the extent and the pack. Scattered pages make
many small extents of few blocks; so the pages of a range are gathered block by block, and the blocks used last are kept.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuse_store.blocks import LARGEST
from fuse_store.crypto import DIGEST, Sealer
from fuse_store.errors import Damaged
from fuse_store.extents import I64, Extents
from fuse_store.index import U64, Index, Located
from fuse_store.manifest import Head, ImageFile, read_head, summary
from fuse_store.packs import PackReader
from fuse_store.segments import read_segment

CACHE = 64 << 20  # bytes of opened blocks
SEGMENTS = 4  # kept in memory, about 4 MB each


@functools.lru_cache(maxsize=4)
def _zeros(length: int) -> memoryview:
    """So many zero bytes: readers ask for the same lengths again and again."""
    return memoryview(bytes(length))


class BlockCache:
    """Opened blocks, the ones used last, and those that are being opened. One for all images of a store."""

    def __init__(self, index: Index, reader: PackReader) -> None:
        self.index, self._reader = index, reader
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._opening: dict[bytes, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "open")

    def at_hand(self, digest: bytes) -> bytes | None:
        """The pages of a block, if it is open."""
        with self._lock:
            block = self._blocks.get(digest)
            if block is not None:
                self._blocks.move_to_end(digest)
            return block

    def begin(self, digest: bytes, located: Located, number: int) -> Future[bytes]:
        """Have a block opened in a thread; ``located`` says in row ``number`` where it is. The result may raise Damaged."""
        with self._lock:
            job = self._opening.get(digest)
            if job is None:
                job = self._opening[digest] = self._pool.submit(self._open, digest, located, number)
            return job

    def page_digests(self, digests: bytes, located: Located, page_size: int) -> tuple[I64, U64]:
        """(where the pages of each block begin, the digests of all pages as two halves). ``digests`` are those of the blocks,
        16 bytes each: the index is not believed. Raises Damaged."""
        wanted = np.frombuffer(digests, "<u8").reshape(-1, 2)
        first = np.zeros(len(located.pack), np.int64)
        parts = [np.zeros((LARGEST // page_size, 2), np.uint64)]  # of blocks that are nowhere: nothing is like that
        length = len(parts[0])
        for number, pack in enumerate(located.packs):
            try:
                table = self._reader.table(pack)
            except FileNotFoundError:
                raise Damaged(f"pack {pack.hex()}", "it is gone.", "Run it again.", pack=pack.hex()) from None
            rows = np.flatnonzero(located.pack == number)
            at = np.searchsorted(table.offset, located.offset[rows].astype(np.uint64))
            at[at == len(table.offset)] = 0
            have = np.frombuffer(table.digests, "<u8").reshape(-1, 2)
            right = (have[at] == wanted[rows]).all(axis=1) if len(have) else np.zeros(len(rows), bool)
            rows, at = rows[right], at[right]
            count = -(-table.length.astype(np.int64) // page_size)
            begin = np.cumsum(count) - count
            used = np.repeat(begin[at] - np.cumsum(count[at]) + count[at], count[at]) + np.arange(int(count[at].sum()))
            first[rows] = length + np.cumsum(count[at]) - count[at]
            if len(used) and int(used.max()) >= len(table.pages):
                raise Damaged(f"pack {pack.hex()}", "its table contradicts itself.", "Run fuse-store repair.", pack=pack.hex())
            parts.append(table.pages[used])
            length += len(used)
        return first, np.concatenate(parts + [np.zeros((LARGEST // page_size, 2), np.uint64)])

    def open(self, digest: bytes, located: Located, number: int) -> bytes:
        """The pages of a block, opened in this thread unless another one is at it: for one block that is quicker by the
        time it takes to wake a thread. Raises Damaged."""
        with self._lock:
            job = self._opening.get(digest)
            if job is None:
                own: Future[bytes] = Future()
                self._opening[digest] = own
        if job is not None:
            return job.result()
        try:
            block = self._open(digest, located, number)
        except BaseException as error:
            own.set_exception(error)
            raise
        own.set_result(block)
        return block

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _open(self, digest: bytes, located: Located, number: int) -> bytes:
        try:
            block = self._read(digest, located, number)
        finally:
            with self._lock:
                self._opening.pop(digest, None)
        with self._lock:
            if digest not in self._blocks:
                self._blocks[digest] = block
                self._size += len(block)
            while self._size > CACHE:
                self._size -= len(self._blocks.popitem(last=False)[1])
        return block

    def _read(self, digest: bytes, located: Located, number: int) -> bytes:
        error = Damaged(f"block {digest.hex()}", "it is in no pack that the index knows.", "Run fuse-store repair.")
        if located.pack[number] >= 0:
            pack = located.packs[int(located.pack[number])]
            try:
                return self._reader.read(digest, pack, int(located.offset[number]), int(located.stored[number]))
            except FileNotFoundError:
                error = Damaged(f"block {digest.hex()}", "its pack is gone.", "Run fuse-store repair.", pack=pack.hex())
            except Damaged as damaged:
                error = damaged
        self.index.refresh()
        for place in self.index.places(digest):  # it was moved since, or is whole in another pack
            try:
                return self._reader.read(digest, *place)
            except (FileNotFoundError, Damaged):
                continue
        raise error


@dataclass(frozen=True)
class _Segment:
    extents: Extents
    located: Located


@dataclass(frozen=True)
class Place:
    """Some pages of an image, and where their content is: columns of equal length, ascending by ``page``; ``number`` is the
    block's row in ``segment``, ``slot`` the page in the block."""

    page: I64
    number: I64
    slot: I64
    segment: _Segment

    def select(self, rows: NDArray[np.bool_] | I64) -> Place:
        return Place(self.page[rows], self.number[rows], self.slot[rows], self.segment)


class Image:
    """An open version. Offsets are those of its address space, in which its files follow each other at page boundaries."""

    def __init__(self, root: Path, image_id: str, sealer: Sealer, blocks: BlockCache) -> None:
        self._root, self._sealer, self._blocks = root, sealer, blocks
        self.id = image_id
        self.head: Head
        self.head, self._start = read_head(root, image_id, sealer)
        self.summary = summary(image_id, self.head)
        self.page_seed = sealer.page_seed
        self.files: tuple[ImageFile, ...] = self.head.files
        self.size = max((file.offset + file.size for file in self.files), default=0)
        self._firsts = np.array([segment.first for segment in self.head.segments], np.int64)
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._page_digests: tuple[_Segment, I64, U64] | None = None
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, fewer at the end of the image. Raises Damaged."""
        return bytes(self.view(offset, length))

    def view(self, offset: int, length: int) -> memoryview:
        """The same without a last copy; not to be written to. Raises Damaged."""
        length = max(0, min(length, self.size - offset))
        page_size = self.head.page_size
        first, last = offset // page_size, -(-(offset + length) // page_size)
        places = list(self.places(first, last)) if length else []
        if not places:
            return _zeros(length)
        out = np.zeros((last - first, page_size), np.uint8)
        for place in places:
            place = place.select(np.argsort(place.number, kind="stable"))
            page, slot = place.page, place.slot
            starts = np.flatnonzero(np.diff(place.number, prepend=-1))
            ends = np.append(starts[1:], len(page)).tolist()
            numbers = place.number[starts].tolist()
            # Those that are not at hand are opened at once, while the others are copied.
            missing = []
            for start, end, number in zip(starts.tolist(), ends, numbers, strict=True):
                pages = self._blocks.at_hand(place.segment.extents.digest(number))
                if pages is None:
                    missing.append((start, end, number))
                else:
                    self._place(out, first, pages, page[start:end], slot[start:end])
            jobs = [self.open_block(place.segment, number) for _start, _end, number in missing[1:]]
            for rank, (start, end, number) in enumerate(missing):
                try:
                    if rank:
                        pages = jobs[rank - 1].result()
                    else:
                        pages = self._blocks.open(place.segment.extents.digest(number), place.segment.located, number)
                except Damaged as error:
                    raise self.damaged(error, int(page[start])) from None
                self._place(out, first, pages, page[start:end], slot[start:end])
        start_in = offset - first * page_size
        return out.reshape(-1).data[start_in : start_in + length]

    def prefetch(self, offset: int, length: int) -> None:
        """Have the blocks of a range opened in the background. Raises Damaged."""
        page_size = self.head.page_size
        for place in self.places(offset // page_size, -(-(offset + length) // page_size)):
            for number in np.unique(place.number).tolist():
                if self._blocks.at_hand(place.segment.extents.digest(number)) is None:
                    self.open_block(place.segment, number)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is stored between two offsets, in order; the rest is zeros. Raises Damaged."""
        page_size = self.head.page_size
        for place in self.places(start // page_size, -(-end // page_size)):
            page = place.page
            breaks = np.flatnonzero(np.diff(page, prepend=-2) != 1)
            begins = np.maximum(page[breaks] * page_size, start)
            stops = np.minimum((page[np.append(breaks[1:], len(page)) - 1] + 1) * page_size, min(end, self.size))
            for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
                if begin < stop:
                    yield begin, stop - begin

    def blocks(self) -> Iterator[tuple[Extents, Located, I64]]:
        """For each segment: its extents, where its blocks are, and the first page that each block is needed for."""
        for number in range(len(self.head.segments)):
            segment = self._segment(number)
            first = np.zeros(len(segment.extents.digests) // DIGEST, np.int64)
            first[segment.extents.block[::-1]] = segment.extents.page[::-1]
            yield segment.extents, segment.located, first

    def packs(self) -> list[bytes]:
        """The packs that the image's blocks are in, those with most of them first. Raises Damaged."""
        found: dict[bytes, int] = {}
        for _extents, located, _first in self.blocks():
            count = np.bincount(located.pack[located.pack >= 0], minlength=len(located.packs)).tolist()
            for pack, blocks in zip(located.packs, count, strict=True):
                found[pack] = found.get(pack, 0) + blocks
        return sorted(found, key=lambda pack: -found[pack])

    def _place(self, out: NDArray[np.uint8], first: int, block: bytes, page: I64, slot: I64) -> None:
        """Copy the pages ``slot`` of a block to where ``page`` is in ``out``, which begins with page ``first``."""
        page_size = self.head.page_size
        whole = len(block) // page_size
        if int(slot.max()) >= whole:
            error = Damaged(f"image {self.id}", "an extent goes past the end of its block.")
            raise self.damaged(error, int(page[0]))
        pages = np.frombuffer(block, np.uint8)[: whole * page_size].reshape(whole, page_size)
        low, start, count = int(page[0]) - first, int(slot[0]), len(slot)
        if (page[-1] - page[0] == count - 1) and (slot == np.arange(start, start + count)).all():
            out[low : low + count] = pages[start : start + count]
        else:
            out[page - first] = pages[slot]

    def damaged(self, error: Damaged, page: int) -> Damaged:
        """The error with what only the image knows. A new one: threads may wait for the same block."""
        extent = f"{page * self.head.page_size:#x}"
        return Damaged(error.thing, error.cause, error.remedy, image=self.id, extent=extent, pack=error.pack)

    def places(self, first: int, last: int) -> Iterator[Place]:
        """The pages in first..last (exclusive) that are not zeros, in order, a segment at a time. Raises Damaged."""
        number = max(0, int(np.searchsorted(self._firsts, first, "right")) - 1)
        while number < len(self._firsts) and self._firsts[number] < last:
            segment = self._segment(number)
            page, block, slot = segment.extents.between(first, last)
            if len(page):
                yield Place(page, block, slot, segment)
            number += 1

    def open_block(self, segment: _Segment, number: int) -> Future[bytes]:
        """Have a block opened in a thread. The result may raise Damaged."""
        return self._blocks.begin(segment.extents.digest(number), segment.located, number)

    def page_digests(self, place: Place) -> U64:
        """The digest of each page, two halves each, as the tables of the packs say; no block is opened. Raises Damaged."""
        known = self._page_digests
        if known is None or known[0] is not place.segment:
            digests, located = place.segment.extents.digests, place.segment.located
            known = self._page_digests = (place.segment, *self._blocks.page_digests(digests, located, self.head.page_size))
        _segment, first, pages = known
        wanted: U64 = pages[first[place.number] + place.slot]
        return wanted

    def _segment(self, number: int) -> _Segment:
        with self._lock:
            if number in self._segments:
                self._segments.move_to_end(number)
                return self._segments[number]
        extents = read_segment(self._root, self.id, self.head, number, self._start, self._sealer)
        if extents.page.size and (extents.slot + extents.count).max() > LARGEST // self.head.page_size:
            raise Damaged(f"image {self.id}", "an extent goes past the end of its block.", image=self.id)
        segment = _Segment(extents, self._blocks.index.locate(extents.digests))
        with self._lock:
            self._segments[number] = segment
            while len(self._segments) > SEGMENTS:
                self._segments.popitem(last=False)
        return segment
