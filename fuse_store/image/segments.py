# SPDX-License-Identifier: GPL-3.0-or-later
"""Extent segments of an open version: where pages are, read when needed, the last ones kept. Threads may share one reader.

Places and page digests need no block: a place is a block's row and a page in it, and the digests of pages are in the tables
of the packs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, expand, starts
from fuse_store.errors import Damaged
from fuse_store.image.kind import Transform
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.block import MAX_BLOCK_SIZE
from fuse_store.repository.extents import Extents, damaged_segment, read_segment
from fuse_store.repository.index import Index, Located
from fuse_store.repository.manifest import Head
from fuse_store.repository.pack import PackReader, Table

MAX_OPEN_SEGMENTS = 4  # kept in memory, about 4 MB each


@dataclass(frozen=True)
class OpenSegment:
    """``located`` has a row for each block that is in a pack; ``order`` has for each block, computed ones last, a number:
    blocks are read quickest in that order."""

    extents: Extents
    located: Located
    order: I64

    def is_computed(self, block: int) -> bool:
        return block >= self.extents.stored

    def row(self, block: int) -> NDArray[np.uint8]:
        """The parameters of a computed block."""
        row: NDArray[np.uint8] = self.extents.rows[block - self.extents.stored]
        return row


@dataclass(frozen=True)
class Place:
    """Some pages of an image, and where their content is: columns of equal length, ascending by ``page``; ``block`` is an
    ordinal in ``segment``, ``slot`` the page in the block."""

    page: I64
    block: I64
    slot: I64
    segment: OpenSegment

    def select(self, rows: NDArray[np.bool_] | I64) -> Place:
        return Place(self.page[rows], self.block[rows], self.slot[rows], self.segment)


class SegmentReader:
    """The segments of one version."""

    def __init__(
        self, backend: Backend, image_id: str, head: Head, start: int, aead: Aead, index: Index, transform: Transform | None
    ) -> None:
        self._backend, self._id, self._head, self._start, self._aead = backend, image_id, head, start, aead
        self._index, self._transform = index, transform
        self._firsts = np.array([segment.first for segment in head.segments], np.int64)
        self._open: OrderedDict[int, OpenSegment] = OrderedDict()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[OpenSegment]:
        """All of them, in order. Raises Damaged."""
        for number in range(len(self._firsts)):
            yield self._segment(number)

    def at(self, page: int) -> OpenSegment | None:
        """The segment in which a page is, if it is in any. Raises Damaged."""
        number = int(self._firsts.searchsorted(page, "right")) - 1
        return None if number < 0 else self._segment(number)

    def places(self, first: int, last: int) -> Iterator[Place]:
        """The pages in first..last (exclusive) that are not zeros, in order, a segment at a time. Raises Damaged."""
        number = max(0, int(np.searchsorted(self._firsts, first, "right")) - 1)
        while number < len(self._firsts) and self._firsts[number] < last:
            segment = self._segment(number)
            page, block, slot = segment.extents.between(first, last)
            if len(page):
                yield Place(page, block, slot, segment)
            number += 1

    def _segment(self, number: int) -> OpenSegment:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        extents = read_segment(self._backend, self._id, self._head, number, self._start, self._aead)
        segment = self._located(extents, number)
        with self._lock:
            self._open[number] = segment
            while len(self._open) > MAX_OPEN_SEGMENTS:
                self._open.popitem(last=False)
        return segment

    def _located(self, extents: Extents, number: int) -> OpenSegment:
        located = self._index.locate(extents.digests[: extents.stored * DIGEST])
        order = np.empty(extents.stored, np.int64)
        order[np.lexsort((located.offset, located.pack))] = np.arange(extents.stored)
        if not len(extents.rows):
            return OpenSegment(extents, located, order)
        assert self._transform is not None  # else ``parse_extents`` had found no room for rows
        computed = extents.block >= extents.stored
        slots = np.zeros(len(extents.rows), np.int64)
        np.maximum.at(slots, extents.block[computed] - extents.stored, (extents.slot + extents.count)[computed])
        try:
            self._transform.check(extents.rows, slots)
        except ValueError as error:
            raise damaged_segment(self._id, self._head, self._head.segments[number], error) from None
        return OpenSegment(extents, located, np.append(order, extents.stored + self._transform.order(extents.rows)))


class PageDigests:
    """Digests of an image's pages, as the tables of the packs say: no block is opened, but computed blocks are computed."""

    def __init__(self, reader: PackReader, index: Index, page_size: int, computed: Callable[[Place], U64]) -> None:
        """``computed`` gives the digests of pages that are in computed blocks."""
        self._reader, self._index, self._page_size, self._computed = reader, index, page_size, computed
        self._last: tuple[OpenSegment, I64, U64] | None = None

    def of(self, place: Place) -> U64:
        """The digest of each page, two halves each; zeros for a page whose block is not found. Raises Damaged, StoreError."""
        last = self._last
        if last is None or last[0] is not place.segment:
            last = self._last = (place.segment, *self._of_segment(place.segment))
        _segment, first, pages = last
        computed = place.block >= len(first)
        if not computed.any():
            stored: U64 = pages[first[place.block] + place.slot]
            return stored
        digests = np.empty((len(computed), 2), np.uint64)
        digests[~computed] = pages[first[place.block[~computed]] + place.slot[~computed]]
        digests[computed] = self._computed(place.select(computed))
        return digests

    def _of_segment(self, segment: OpenSegment) -> tuple[I64, U64]:
        """(where the pages of each block begin, the digests of all pages). Blocks are looked up in their packs by digest: the
        index is not believed. Raises Damaged."""
        extents, located = segment.extents, segment.located
        wanted = np.frombuffer(extents.digests, "<u8").reshape(-1, 2)[: extents.stored]
        unknown = np.zeros((MAX_BLOCK_SIZE // self._page_size, 2), np.uint64)  # of blocks that are nowhere: no page is like that
        first = np.zeros(extents.stored, np.int64)
        parts, length = [unknown], len(unknown)
        found = np.zeros(extents.stored, bool)
        missing: Damaged | None = None
        for number, pack in enumerate(located.packs):
            blocks = np.flatnonzero(located.pack == number)
            try:
                part = self._of_pack(pack, located.offset[blocks], wanted[blocks])
            except Damaged as error:
                missing = error
                continue
            blocks = blocks[part.right]
            first[blocks], found[blocks] = length + part.first, True
            parts.append(part.pages)
            length += len(part.pages)
        for block in np.flatnonzero(~found).tolist():  # the pack is gone, or the row is wrong: there may be others
            for pack, offset, _stored in self._index.places(extents.digest(block)):
                try:
                    part = self._of_pack(pack, np.array([offset]), wanted[block : block + 1])
                except Damaged:
                    continue
                if part.right.all():
                    first[block], found[block] = length, True
                    parts.append(part.pages)
                    length += len(part.pages)
                    break
        if missing is not None and not found[located.pack >= 0].all():
            raise missing
        return first, np.concatenate([*parts, unknown])

    def _of_pack(self, pack: bytes, offsets: I64, digests: U64) -> _Found:
        """The pages of the blocks at these offsets of a pack, if they have these digests. Raises Damaged."""
        try:
            table = self._reader.table(pack)
        except FileNotFoundError:
            raise Damaged(f"pack {pack.hex()}", "missing.", "Run the command again.", pack=pack.hex()) from None
        rows, right = _rows_of(table, offsets, digests)
        counts = table.counts(self._page_size)
        used = expand(starts(counts)[rows[right]], counts[rows[right]])
        if len(used) and int(used.max()) >= len(table.pages):
            raise Damaged(f"pack {pack.hex()}", "its table contradicts itself.", "Run 'fuse-store repair'.", pack=pack.hex())
        return _Found(right, starts(counts[rows[right]]), table.pages[used])


@dataclass(frozen=True)
class _Found:
    """Which of some blocks are in a pack, and for those the digests of their pages, one block after the other from ``first`` on."""

    right: NDArray[np.bool_]
    first: I64
    pages: U64


def _rows_of(table: Table, offsets: I64, digests: U64) -> tuple[I64, NDArray[np.bool_]]:
    """(the row of the block at each offset of a pack, whether it has the digest that is wanted)."""
    rows = np.searchsorted(table.offset, offsets.astype(np.uint64))
    rows[rows == len(table.offset)] = 0
    have = np.frombuffer(table.digests, "<u8").reshape(-1, 2)
    right = (have[rows] == digests).all(axis=1) if len(have) else np.zeros(len(rows), bool)
    return rows, right
