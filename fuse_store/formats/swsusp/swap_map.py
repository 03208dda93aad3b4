# SPDX-License-Identifier: GPL-3.0-or-later
"""The swap map: which block of the device holds entry N of the image's stream.

A chain of pages; each lists the blocks of the next 511 pages of the stream (with 4 KiB pages) and the block of the next page
of the map. The kernel uses the blocks in the order in which its swap allocator returns them, so they form runs of consecutive
blocks; only these runs are kept in memory, however many pages there are. Threads may share a SwapMap.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64
from fuse_store.errors import Damaged, Refused
from fuse_store.formats.readable import CompressedChunks, Prefetchable, Readable, read_exactly
from fuse_store.formats.swsusp.header import Header
from fuse_store.formats.swsusp.layout import ENTRY, IMAGE, map_entries

MAX_RUNS = 1 << 24  # runs, in 256 MiB of memory; the image of an idle machine has some hundred
MAP_BATCH_SIZE = 1 << 20  # bytes of map pages that are parsed together
INTERRUPTED = "Power may have failed during the write: the kernel writes the signature before the last page of the map."

Pages = NDArray[np.uint8]


class SwapMap:
    """``count`` entries in runs: run i begins with entry ``first[i]`` in block ``block[i]``. ``pages`` are the blocks of
    the map's own pages. ``empty_last``: the last of them lists nothing; kernels before 7.3 write it if the one before is
    full."""

    def __init__(self, readable: Readable, page_size: int, count: int, first: I64, block: I64, pages: I64, empty: bool) -> None:
        self._readable, self._page_size = readable, page_size
        self._prefetchable = readable if isinstance(readable, Prefetchable) else None
        self._compressed_chunks = readable if isinstance(readable, CompressedChunks) else None
        self.count, self.first, self.block, self.pages, self.empty_last = count, first, block, pages, empty

    def runs(self, entry: int, count: int) -> Iterator[tuple[int, int]]:
        """(first block, number of blocks) of the runs that hold ``count`` entries from ``entry`` on. Raises Damaged past the
        end."""
        if not 0 <= entry <= entry + count <= self.count:
            raise Damaged(IMAGE, f"the swap map lists {self.count} pages, but page {entry + count - 1} is needed.", INTERRUPTED)
        run = int(np.searchsorted(self.first, entry, "right")) - 1
        while count:
            into = entry - int(self.first[run])
            end = int(self.first[run + 1]) if run + 1 < len(self.first) else self.count
            here = min(count, end - entry)
            yield int(self.block[run]) + into, here
            entry, count, run = entry + here, count - here, run + 1

    def read(self, entry: int, count: int) -> Pages:
        """The ``count`` pages from ``entry`` on, one row each. Raises Damaged."""
        size, runs, row = self._page_size, list(self.runs(entry, count)), 0
        if len(runs) == 1:
            return self._read_blocks(*runs[0])
        out = np.empty((count, size), np.uint8)
        for block, here in runs:
            out[row : row + here] = self._read_blocks(block, here)
            row += here
        return out

    def prefetch(self, entry: int, count: int) -> None:
        """Have ``count`` pages read in the background, if the source can do that."""
        if self._prefetchable is not None and count > 0:
            for block, here in self.runs(entry, count):
                self._prefetchable.prefetch(block * self._page_size, here * self._page_size)

    def chunk(self, entry: int) -> tuple[int, Callable[[], Pages]] | None:
        """``CompressedChunks.chunk_at`` of the chunk that begins with an entry, if the source has that. Raises Damaged."""
        if self._compressed_chunks is None:
            return None
        return self._compressed_chunks.chunk_at(self._block_of(entry) * self._page_size)

    def read_start(self, entry: int, length: int) -> bytes:
        """The first ``length`` bytes of one page. Raises Damaged."""
        return read_exactly(self._readable, self._block_of(entry) * self._page_size, length, IMAGE)

    def _block_of(self, entry: int) -> int:
        ((block, _count),) = self.runs(entry, 1)
        return block

    def _read_blocks(self, block: int, count: int) -> Pages:
        size = self._page_size
        return np.frombuffer(read_exactly(self._readable, block * size, count * size, IMAGE), np.uint8).reshape(count, size)


def read_map(readable: Readable, header: Header) -> SwapMap:
    """The SwapMap that the header leads to. Raises Damaged for anything that cannot be a map; Refused for too many runs."""
    blocks = readable.size // header.page_size
    collector = _RunCollector(blocks, header.resume_offset, map_entries(header.page_size))
    pages: array[int] = array("q")
    batch: list[bytes] = []
    for page, content in _follow(readable, header, blocks):
        pages.append(page)
        batch.append(content)
        if len(batch) * header.page_size >= MAP_BATCH_SIZE:
            collector.add(batch)
            batch.clear()
    collector.add(batch)
    return collector.finish(readable, header.page_size, np.frombuffer(pages, np.int64))


def _follow(readable: Readable, header: Header, blocks: int) -> Iterator[tuple[int, bytes]]:
    """(block, content) of each page of the map. Raises Damaged if the chain leaves the device or forms a loop."""
    page, index = header.image, 0
    checkpoint, steps, limit = page, 0, 1
    while page:
        if not 0 < page < blocks or page == header.resume_offset:
            raise Damaged(IMAGE, f"page {index} of the swap map cannot be in block {page} of {blocks}.", INTERRUPTED)
        content = read_exactly(readable, page * header.page_size, header.page_size, IMAGE)
        yield page, content
        page = int.from_bytes(content[-ENTRY:], "little")
        # Brent's loop detection: compare with one page, which is replaced whenever the steps since then have doubled.
        if page == checkpoint:
            raise Damaged(IMAGE, f"the swap map is a loop: page {index} leads back to block {page}.", INTERRUPTED)
        index, steps = index + 1, steps + 1
        if steps == limit:
            checkpoint, steps, limit = page, 0, limit * 2


class _RunCollector:
    """Collects the runs from pages of the map, in order; keeps nothing but the runs."""

    def __init__(self, blocks: int, header: int, entries: int) -> None:
        """``blocks`` of the device, of which ``header`` is that of the header; ``entries`` of a page of the map."""
        self._blocks, self._header, self._entries = blocks, header, entries
        self._first: list[I64] = []
        self._block: list[I64] = []
        self._count = self._runs = 0
        self._next_block = -1  # the block that would continue the last run
        self._map_pages = 0
        self._entries_in_last = 0  # entries of the last map page

    def add(self, batch: list[bytes]) -> None:
        """Raises Damaged, Refused."""
        if not batch:
            return
        listed = self._listed_blocks(batch)
        if not len(listed):
            return
        block = listed.astype(np.int64)
        starts = np.flatnonzero(np.diff(block, prepend=self._next_block - 1) != 1)
        self._first.append(starts + self._count)
        self._block.append(block[starts])
        self._count += len(block)
        self._runs += len(starts)
        self._next_block = int(block[-1]) + 1
        if self._count > self._blocks:
            raise Damaged(IMAGE, f"the swap map lists more pages than the {self._blocks} of the device.", INTERRUPTED)
        if self._runs > MAX_RUNS:
            raise Refused(IMAGE, f"the pages are in more than {MAX_RUNS} separate places.", "To store it as it is, use --kind file.")

    def _listed_blocks(self, batch: list[bytes]) -> NDArray[np.uint64]:
        """The blocks that pages of the map list, checked. Raises Damaged."""
        table = np.frombuffer(b"".join(batch), "<u8").reshape(len(batch), self._entries + 1)[:, : self._entries]
        used = np.count_nonzero(table, axis=1)
        if (self._map_pages and self._entries_in_last < self._entries) or (used[:-1] < self._entries).any():
            raise Damaged(IMAGE, "the swap map continues after its end.", INTERRUPTED)
        listed = table.reshape(-1)[: int(used.sum())]
        self._map_pages += len(batch)
        self._entries_in_last = int(used[-1])
        if not listed.all():
            raise Damaged(IMAGE, f"page {self._map_pages - 1} of the swap map has a gap.", INTERRUPTED)
        invalid = (listed >= self._blocks) | (listed == self._header)
        if invalid.any():
            at = int(np.argmax(invalid))
            page, block = self._count + at, int(listed[at])
            raise Damaged(IMAGE, f"page {page} of the image cannot be in block {block} of {self._blocks}.", INTERRUPTED)
        return listed

    def finish(self, readable: Readable, page_size: int, pages: I64) -> SwapMap:
        if not self._count:
            raise Damaged(IMAGE, "the swap map is empty.", INTERRUPTED)
        first, block = np.concatenate(self._first), np.concatenate(self._block)
        begin = np.concatenate((block, pages))
        length = np.concatenate((np.diff(first, append=self._count), np.ones(len(pages), np.int64)))
        order = np.argsort(begin, kind="stable")
        begin, length = begin[order], length[order]
        twice = begin[1:] < begin[:-1] + length[:-1]
        if twice.any():
            raise Damaged(IMAGE, f"block {int(begin[1:][np.argmax(twice)])} is listed twice in the swap map.", INTERRUPTED)
        return SwapMap(readable, page_size, self._count, first, block, pages, empty=not self._entries_in_last)
