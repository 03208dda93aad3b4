# SPDX-License-Identifier: GPL-3.0-or-later
"""One put: which pages of an input are new, where each page is, and what a manifest says of it.

Pages are looked for wherever in the bases they stand. Memory is bounded by the batches of pages, the groups of blocks, and the tables of
known pages. If a file is stored in another way (``image.kind.StoredAs``), the pages that its blocks are computed from come first, and
stand behind the files in the address space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, distinct, halves, starts
from fuse_store.image import kind as kinds
from fuse_store.image.inputs import Batch, Input, InputFile
from fuse_store.image.kind import FIRST_BYTES, Settings, StoredAs
from fuse_store.image.put.block_writer import BlockWriter
from fuse_store.image.put.content_digest import ContentDigest
from fuse_store.image.put.page_digests import DigestedPages, PageDigests
from fuse_store.image.put.page_table import Bases, PageTable, split_places
from fuse_store.image.put.segment_writer import SegmentWriter
from fuse_store.processes.workers import Result, Workers
from fuse_store.progress import Progress
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.index import Index
from fuse_store.repository.manifest import Computed, Segment
from fuse_store.repository.pack import PackReader, PackWriter, Table

WORTH_A_FORK = 16 << 20  # bytes of an input


@dataclass
class WrittenImage:
    """What was written, for the manifest. ``segments`` say where in ``encrypted`` the extents are. Sizes in bytes."""

    files: list[tuple[InputFile, int]] = field(default_factory=list)  # and the offset of each
    segments: list[Segment] = field(default_factory=list)
    encrypted: list[bytes] = field(default_factory=list)
    allocated: int = 0
    new: int = 0
    computed: Computed | None = None
    content: bytes = bytes(DIGEST)


class ImageWriter:
    """One put. ``bases``: in which blocks pages are looked for, the first that it knows."""

    def __init__(
        self, index: Index, reader: PackReader, packs: PackWriter, aead: Aead, settings: Settings, sync: bool, bases: Bases
    ) -> None:
        self._page_size, self._aead, self._bases = settings.page_size, aead, bases
        self._zero = halves(aead.page_digests([bytes(settings.page_size)]))
        self._workers, self._may_fork = Workers(), reader.survives_fork
        self._blocks = BlockWriter(index, reader, packs, aead, settings, sync, self._workers)
        self._segments = SegmentWriter(aead, self._blocks)
        self._content = ContentDigest(aead)
        self._written = WrittenImage()
        known = PageTable()  # pages that the bases have
        for table in bases.tables():
            self._know(table, known)
            if not known.space:
                break
        known.sort()
        self._digests = PageDigests(aead, self._page_size, known, self._workers)
        self._little_used, self._left = bases.little_used()  # blocks, by ordinal; pages that may be stored again because of them
        self._unreadable = np.zeros(len(self._little_used), bool)  # the same; those that were found to be
        self._new = PageTable(known.space)  # pages that this put has stored, and where
        self._again = PageTable()  # the same of those that the bases have in blocks that are little used

    def run(self, source: Input, progress: Progress, stored_as: StoredAs | None = None) -> WrittenImage:
        """Store what is new in an input. ``stored_as`` is how its only file is stored. Raises StoreError, OSError."""
        end = source.end(self._page_size)
        before = 0 if stored_as is None else stored_as.size
        progress.start("put", None if end is None else before + end)
        with self._workers.running(forked=self._may_fork and (end is None or before + end >= WORTH_A_FORK)):
            try:
                if stored_as is not None:
                    self._run_computed(stored_as, source.files[0], progress)
                behind, self._written.segments = self._written.segments, []
                with closing(source.batches(self._page_size, self._digests.buffers)) as batches:
                    for batch in self._begun(batches):
                        pages = self._add(batch)
                        self._content.add(*(self._neutral(*pages, batch) if len(source.files) == 1 else pages))
                        progress.at(before + batch.end)
                progress.at(before + (source.end(self._page_size) or 0))
                self._written.files = source.placed(self._page_size)
                self._written.segments += self._segments.close(final=True) + behind
                self._blocks.finish()
            finally:
                progress.finish()
        self._written.encrypted, self._written.content = self._segments.encrypted, self._content.digest()
        return self._written

    def _run_computed(self, stored_as: StoredAs, file: InputFile, progress: Progress) -> None:
        """Store the pages that blocks are computed from; the file need then not be read where those blocks stand."""
        with closing(stored_as.batches()) as batches:
            for batch in batches:
                self._add(batch)
                progress.at(batch.end)
        self._written.segments += self._segments.close(final=True)
        self._written.computed = stored_as.computed
        if stored_as.computed is None:
            return
        extents = stored_as.extents()
        self._segments.add_computed(extents, stored_as.rows, stored_as.digests)
        file.skip = extents[:2]
        self._content.know(*stored_as.page_digests())
        self._written.allocated = int(extents[1].sum()) * self._page_size

    def _neutral(self, page: I64, high: U64, low: U64, batch: Batch) -> tuple[I64, U64, U64]:
        """Pages of a batch with the digests that count for the content: of the first pages of a file as a kind of image says that they
        count (``image.kind.neutral``)."""
        size = self._page_size
        count = int(np.searchsorted(batch.page, FIRST_BYTES // size))
        if not count or not len(page):
            return page, high, low
        first = np.zeros((FIRST_BYTES // size, size), np.uint8)
        first[batch.page[:count]] = np.frombuffer(batch.data, np.uint8, count * size).reshape(-1, size)
        neutral = np.frombuffer(kinds.neutral(first.tobytes()), np.uint8).reshape(first.shape)
        for number in np.flatnonzero((first != neutral).any(axis=1)).tolist():
            changed = page == number
            high[changed], low[changed] = halves(self._aead.page_digests([neutral[number].data]))
        return page, high, low

    def _begun(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same, each when its pages are digested; those of the next one are begun by then."""
        begun: deque[tuple[Batch, list[Result[bool]]]] = deque()
        for following in batches:
            begun.append((following, self._digests.begin(following)))
            if len(begun) > 1:
                yield self._awaited(*begun.popleft())
        for last in begun:
            yield self._awaited(*last)

    @staticmethod
    def _awaited(batch: Batch, parts: list[Result[bool]]) -> Batch:
        for part in parts:
            part.result()
        return batch

    def _add(self, batch: Batch) -> tuple[I64, U64, U64]:
        """Take in a batch: its pages that are not zeros, with their digests."""
        size = self._page_size
        pages = self._digests.of(batch)
        rows = np.flatnonzero((pages.high != self._zero[0]) | (pages.low != self._zero[1]))
        page, pages = batch.page[rows], pages.select(rows)
        high, low = pages.high, pages.low
        if not len(rows):
            return page, high, low
        block, slot, again = self._find(pages)
        absent = np.flatnonzero(block < 0)
        if len(absent):
            first, back = distinct(high[absent], low[absent])  # a page that is new twice in a batch is stored once
            new = absent[first]
            digests = np.stack((high[new], low[new], pages.sums[new]), axis=1)
            content = np.frombuffer(batch.data, np.uint8).reshape(-1, size)
            blocks, slots = self._blocks.add(page[new], content, rows[new], digests)
            for table, part in ((self._new, ~again[new]), (self._again, again[new])):
                table.add(high[new][part], low[new][part], blocks[part], slots[part])
            block[absent], slot[absent] = blocks[back], slots[back]
            stored_again = int(again[new].sum())
            self._left -= stored_again
            self._written.new += (len(new) - stored_again) * size
        self._written.allocated += len(page) * size
        self._written.segments += self._segments.add(page, block, slot)
        return page, high, low

    def _find(self, pages: DigestedPages) -> tuple[I64, I64, NDArray[np.bool_]]:
        """(block, slot) of pages that are known, and which of them are to be stored again; block is -1 for these, for pages that are not
        known, and for those of blocks that are found to be damaged."""
        block, slot = split_places(pages.place)
        again = self._is(self._little_used, block) & (self._left > 0)
        bad = self._bases.unreadable(block[~again])
        self._unreadable[bad] = True
        absent = again | (block < 0) | self._is(self._unreadable, block)
        for table, part in ((self._new, absent & ~again), (self._again, again)):
            block[part], slot[part] = split_places(table.find(pages.high[part], pages.low[part]))
        return block, slot, again

    @staticmethod
    def _is(blocks: NDArray[np.bool_], block: I64) -> NDArray[np.bool_]:
        """Whether each block is one of the bases' ``blocks``."""
        found = block >= 0
        found[found] = blocks[block[found]]
        return found

    def _know(self, table: Table, known: PageTable) -> None:
        """Make the pages of blocks known."""
        first = self._blocks.know(table.digests)
        counts = table.counts(self._page_size)
        block = np.repeat(np.arange(first, first + len(counts)), counts)
        slot = np.arange(len(table.pages)) - np.repeat(starts(counts), counts)
        known.add(np.ascontiguousarray(table.pages[:, 0]), np.ascontiguousarray(table.pages[:, 1]), block, slot)
