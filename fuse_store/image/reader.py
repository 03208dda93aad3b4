# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a version. Threads may share one Image.

All that is read was verified, or Damaged is raised, which names the image, the extent and the pack. Scattered pages make
many small extents of few blocks; so the pages of a range are copied block by block, and the blocks used last are kept. A
computed block (``image.kind.Transform``) is computed from other pages and compared with its digest; all that works on blocks
works on it.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, distinct_values, group_starts, joint_runs, run_starts
from fuse_store.errors import Damaged
from fuse_store.image.block_cache import BlockCache, Each, neighbours
from fuse_store.image.kind import open_transform
from fuse_store.image.segments import OpenSegment, PageDigests, Place, SegmentReader
from fuse_store.processes.crew import Crew
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.block import Pages, split
from fuse_store.repository.extents import by_offset
from fuse_store.repository.index import Located
from fuse_store.repository.manifest import Head, ImageFile, read_head, summary

WORTH_PROCESSES = 64 << 20  # bytes to be read
GROUP = 8  # computed blocks that a thread computes and copies from in one go
Handler = Callable[[memoryview, Sequence[slice], Sequence[slice]], None]  # the pages of a block, targets, sources
MOST = 0.75  # of a block: what is left of it will hardly be needed soon, so it is not kept


@functools.lru_cache(maxsize=4)
def zeros(length: int) -> memoryview:
    """So many zero bytes, not to be written to: readers ask for the same lengths again and again. They take no memory: the kernel shows its
    one page of zeros, which stays in the processor's cache."""
    return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ) if length else b"")


class _Segments:
    """The part of a manifest behind its head, in memory, for ``extents.read_segment``."""

    def __init__(self, segments: Sequence[bytes]) -> None:
        self._at = by_offset(segments)

    def read_range(self, _name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        return self._at[offset][:length]


class Image:
    """An open version. Offsets are in its address space, in which its files follow each other at page boundaries."""

    def __init__(
        self, backend: Backend, image_id: str, aead: Aead, blocks: BlockCache, head: tuple[Head, int] | None = None
    ) -> None:
        """``head``, and where the segments begin, if they need not be read. Raises NotFound, Damaged."""
        self.aead, self._blocks = aead, blocks
        self.id = image_id
        self.head, start = head or read_head(backend, image_id, aead)
        try:
            self._transform = open_transform(self.head)
        except ValueError as error:
            raise Damaged(f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.", image=image_id) from None
        self.summary = summary(image_id, self.head)
        self.files: tuple[ImageFile, ...] = self.head.files
        self.size = max((file.offset + file.size for file in self.files), default=0)
        self._segments = SegmentReader(backend, image_id, self.head, start, aead, blocks.index, self._transform)
        self._page_digests = PageDigests(blocks.reader, blocks.index, self.head.page_size, self._digests_of_computed)

    @classmethod
    def of_written(cls, head: Head, segments: Sequence[bytes], aead: Aead, blocks: BlockCache) -> Image:
        """What a put has written, before there is a manifest: its blocks are in the store, ``segments`` are as in the manifest."""
        return cls(cast(Backend, _Segments(segments)), "of this put", aead, blocks, (head, 0))

    # bytes and pages -------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, fewer at the end of the image. Raises Damaged."""
        return bytes(self.read_view(offset, length))

    def read_view(self, offset: int, length: int) -> memoryview:
        """``read`` without a last copy; not to be written to. Raises Damaged."""
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        length = max(0, min(length, self.size - offset))
        page_size = self.head.page_size
        first, last = offset // page_size, -(-(offset + length) // page_size)
        begin = offset - first * page_size
        if last - first == 1:
            page = self._page(first)
            return zeros(length) if page is None else page[begin : begin + length]
        rows = self._rows(first, last) if length else None
        return zeros(length) if rows is None else rows.reshape(-1).data[begin : begin + length]

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> bool:
        """Have the bytes from ``offset`` in ``out``, both of whole pages, and zeros after the end of the image. False if all are
        zeros: ``out`` is as it was then. Raises Damaged."""
        first, rows = offset // self.head.page_size, out.reshape(-1, self.head.page_size)
        places = list(self.places(first, first + len(rows)))
        if not places:
            return False
        hole = np.ones(len(rows), bool)
        for place in places:
            hole[place.page - first] = False
        rows[hole] = 0
        for place in places:
            self._copy(place, rows, place.page - first)
        return True

    def read_pages(self, first: int, count: int) -> NDArray[np.uint8]:
        """Pages of the address space, a row each. Raises Damaged."""
        rows = self._rows(first, first + count)
        return np.zeros((count, self.head.page_size), np.uint8) if rows is None else rows

    def crew(self, size: int) -> Crew:
        """Processes to read ``size`` bytes of the image with, if they are worth it; see ``Crew``."""
        return Crew.start(self.is_worth_processes(size))

    def is_worth_processes(self, size: int) -> bool:
        """Whether processes should be forked to read so many bytes of the image."""
        return size >= WORTH_PROCESSES and self._blocks.reader.survives_fork

    def each_with(self, crew: Crew | None = None) -> Each:
        """For ``visit``; see ``BlockCache.each_with``."""
        return self._blocks.each_with(crew)

    def visit(
        self, place: Place, rows: I64, handle: Handler, each: Each | None = None, meanwhile: Callable[[], None] | None = None
    ) -> Generator[int, None, None]:  # fmt: skip
        """Have ``handle`` called for each block of ``place``, once, in the order of the packs, with its pages and pieces of them:
        page n belongs to row ``rows[n]``, rows of a page each follow each other, and ``targets`` are bytes of them. How many bytes
        were handled since the last time. ``each``: for several blocks at a time, to read much; the readers of a mount are many
        already. ``meanwhile``: done by one of them. Raises Damaged, and what ``handle`` does."""
        segment = place.segment
        order = np.argsort(place.block, kind="stable")
        row, count, block, slot = joint_runs(rows[order], place.block[order], place.slot[order])
        size = self.head.page_size
        targets, sources = (
            list(map(slice, (first * size).tolist(), ((first + count) * size).tolist())) for first in (row, slot)
        )
        begins = group_starts(block)
        in_packs = np.argsort(segment.order[block[begins]])
        used = block[begins][in_packs]
        blocks = used.tolist()
        begin, end, highest = (
            column[in_packs].tolist()
            for column in (begins, np.append(begins[1:], len(block)), np.maximum.reduceat(slot + count - 1, begins))
        )
        stored = int((used < segment.extents.stored).sum())  # computed blocks are the last
        bytes_needed = np.add.reduceat(count, begins)[in_packs] * size
        needed = bytes_needed.tolist()
        keep = (bytes_needed[:stored] < segment.located.length[used[:stored]] * MOST).tolist()

        def handle_block(at: int, pages: Pages | Damaged) -> None:
            try:
                content = self._content(pages, highest[at])
            except Damaged as error:
                raise self.damaged(error, int(place.page[place.block == blocks[at]][0])) from None
            pieces = slice(begin[at], end[at])
            handle(content, targets[pieces], sources[pieces])

        def handle_neighbours(first: int, part: Sequence[int]) -> int:
            digests = [segment.extents.digest(block) for block in part]
            for at, opened in enumerate(self._blocks.neighbours(digests, segment.located, part), first):
                handle_block(at, opened if isinstance(opened, Damaged) else opened.pages)
            return sum(needed[first : first + len(part)])

        def handle_group(first: int, part: Sequence[int]) -> int:
            for at, pages in enumerate(self._pages(segment, part, keep[first : first + len(part)]), first):
                handle_block(at, pages)
            return sum(needed[first : first + len(part)])

        if each is None:
            yield handle_group(0, blocks)
            return

        def handle_item(item: tuple[int, Sequence[int]] | None) -> int:
            if item is not None:
                return handle_neighbours(*item)
            if meanwhile is not None:
                meanwhile()
            return 0

        near = [(part.start, blocks[part]) for part in neighbours(segment.located, used[:stored])]
        yield from each(handle_item, [None, *near] if meanwhile is not None else near)
        computed = [(at, blocks[at : at + GROUP]) for at in range(stored, len(blocks), GROUP)]
        yield from each(lambda item: handle_group(*item), computed)

    def prefetch(self, offset: int, length: int) -> None:
        """Have the blocks of a range opened in the background. Raises Damaged."""
        page_size = self.head.page_size
        for place in self.places(offset // page_size, -(-(offset + length) // page_size)):
            segment = place.segment
            for block in distinct_values(place.block).tolist():
                digest, computed = segment.extents.digest(block), segment.is_computed(block)
                if self._blocks.has(digest, computed):
                    continue
                if computed:
                    self._blocks.begin_computed(digest, functools.partial(self._compute, segment, block))
                else:
                    self._blocks.begin(digest, segment.located, block)

    # where what is ---------------------------------------------------------------------------------------------------

    def places(self, first: int, last: int) -> Iterator[Place]:
        """The pages in first..last (exclusive) that are not zeros, in order, a segment at a time. Raises Damaged."""
        return self._segments.places(first, last)

    def page_digests(self, place: Place) -> U64:
        """The digest of each page, two halves each, from the tables of the packs; zeros where a block is in no pack. No block is
        opened, but computed blocks are computed. Raises Damaged, StoreError."""
        return self._page_digests.of(place)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is stored between two offsets, in order; the rest is zeros. Raises Damaged."""
        page_size = self.head.page_size
        for place in self.places(start // page_size, -(-end // page_size)):
            page = place.page
            breaks = run_starts(page)
            begins = np.maximum(page[breaks] * page_size, start)
            stops = np.minimum((page[np.append(breaks[1:], len(page)) - 1] + 1) * page_size, min(end, self.size))
            for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
                if begin < stop:
                    yield begin, stop - begin

    def blocks(self) -> Iterator[tuple[bytes, Located, I64]]:
        """For each segment: the digests of its blocks in packs, where these are, and the first page that each is needed for."""
        for segment in self._segments:
            extents = segment.extents
            yield extents.digests[: extents.stored * DIGEST], segment.located, extents.first_pages()[: extents.stored]

    def used(self) -> Iterator[tuple[Located, I64]]:
        """For each segment: where its blocks in packs are, and for how many pages of the image each is needed."""
        for segment in self._segments:
            extents = segment.extents
            pages = np.bincount(extents.block, extents.count, len(extents.digests) // DIGEST)
            yield segment.located, pages[: extents.stored].astype(np.int64)

    def computed_blocks(self) -> Iterator[Callable[[], Future[Pages]]]:
        """For each computed block a function that has it computed in a thread, and compared with its digest. The results may
        raise Damaged, StoreError."""
        for segment in self._segments:
            first = segment.extents.first_pages().tolist()
            for block in range(segment.extents.stored, len(first)):
                compute = functools.partial(self._compute_for, segment, block, first[block])
                yield functools.partial(self._blocks.begin_computed, segment.extents.digest(block), compute)

    def chunk_at(self, offset: int) -> tuple[int, Callable[[], NDArray[np.uint8]]] | None:
        """``formats.readable.CompressedChunks``: the chunk of a compressed image that begins at ``offset``, if the version stores
        it as the pages it holds. Raises Damaged."""
        if self._transform is None or offset % self.head.page_size:
            return None
        page = offset // self.head.page_size
        segment = self._segments.at(page)
        where = segment.extents.at(page) if segment is not None else None
        if segment is None or where is None or where[1] or not segment.is_computed(where[0]):
            return None
        return self._transform.chunk(segment.row(where[0]), self.read_pages)

    def damaged(self, error: Damaged, page: int) -> Damaged:
        """The error with what only the image knows. A new one: threads may wait for the same block."""
        extent = f"{page * self.head.page_size:#x}"
        return Damaged(error.thing, error.cause, error.remedy, image=self.id, extent=extent, pack=error.pack)

    # blocks ----------------------------------------------------------------------------------------------------------

    def _rows(self, first: int, last: int) -> NDArray[np.uint8] | None:
        """The pages first..last (exclusive) of the address space, a row each; None if all are zeros. Raises Damaged."""
        out = np.empty((last - first, self.head.page_size), np.uint8)
        return out if self.read_into(first * self.head.page_size, out) else None

    def _copy(self, place: Place, out: NDArray[np.uint8], rows: I64) -> None:
        """Have the pages of ``place`` in ``rows`` of ``out``. Raises Damaged."""
        flat = out.data.cast("B")  # numpy takes twice as long to begin, and each piece is a few pages only

        def copy(content: memoryview, targets: Sequence[slice], sources: Sequence[slice]) -> None:
            for target, source in zip(targets, sources, strict=True):
                flat[target] = content[source]

        for _bytes in self.visit(place, rows, copy):
            pass

    def _page(self, page: int) -> memoryview | None:
        """The same for one page, which is what random reads ask for: columns of one element cost more than opening its block."""
        segment = self._segments.at(page)
        where = segment.extents.at(page) if segment is not None else None
        if segment is None or where is None:
            return None
        block, slot = where
        size = self.head.page_size
        return self._content_for(segment, block, slot, page)[slot * size : (slot + 1) * size]

    def _content_for(self, segment: OpenSegment, block: int, highest: int, page: int) -> memoryview:
        """The pages of a block that is first needed for ``page``. Raises Damaged."""
        try:
            if segment.is_computed(block):
                return self._content(self._computed(segment, block), highest)
            return self._content(self._blocks.open_one(segment.extents.digest(block), segment.located, block), highest)
        except Damaged as error:
            raise self.damaged(error, page) from None

    def _content(self, pages: Pages | Damaged, highest: int) -> memoryview:
        """The pages of a block; ``highest``: the last that is needed. Raises Damaged."""
        if isinstance(pages, Damaged):
            raise pages
        if len(pages) < (highest + 1) * self.head.page_size:
            raise Damaged(f"image {self.id}", "an extent goes past the end of its block.")
        return memoryview(pages)

    def _pages(self, segment: OpenSegment, blocks: Sequence[int], keep: Sequence[bool]) -> Iterator[Pages | Damaged]:
        """The pages of blocks, one after the other, or what is wrong with one; computed blocks are the last. ``keep``: whether to keep
        it, of each that is in a pack."""
        yield from self._blocks.open(list(zip(map(segment.extents.digest, blocks), blocks, keep, strict=False)), segment.located)
        for block in blocks[len(keep) :]:
            yield self._computed(segment, block)

    def _computed(self, segment: OpenSegment, block: int) -> Pages | Damaged:
        try:
            return self._blocks.computed(segment.extents.digest(block), functools.partial(self._compute, segment, block))
        except Damaged as error:
            return error.with_traceback(None)

    def _compute(self, segment: OpenSegment, block: int) -> bytes:
        """A computed block, compared with its digest. Raises Damaged, StoreError."""
        assert self._transform is not None
        row = segment.row(block)
        content = self._transform.compute(row, self.read_pages)
        if self.aead.digest(content) != segment.extents.digest(block):
            raise Damaged(*self._transform.explain(row, content), image=self.id)
        return content

    def _compute_for(self, segment: OpenSegment, block: int, page: int) -> bytes:
        """``_compute`` for a block that is first needed for ``page``."""
        try:
            return self._compute(segment, block)
        except Damaged as error:
            raise self.damaged(error, page) from None

    def _digests_of_computed(self, place: Place) -> U64:
        """The digest of each page of computed blocks. Each block is computed once, wherever in the image its pages are."""
        digests = np.empty((len(place.page), 2), np.uint64)
        by_block = np.argsort(place.block, kind="stable")

        def digest(rows: I64) -> None:
            slot = place.slot[rows]
            content = self._content_for(place.segment, int(place.block[rows[0]]), int(slot.max()), int(place.page[rows[0]]))
            pages = split(content, self.head.page_size)
            each = self.aead.page_digests([pages[page] for page in slot.tolist()])
            digests[rows] = np.frombuffer(each, "<u8").reshape(-1, 2)

        for _done in self._blocks.each(digest, np.split(by_block, group_starts(place.block[by_block])[1:])):
            pass
        return digests
