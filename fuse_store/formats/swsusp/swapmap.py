# SPDX-License-Identifier: GPL-3.0-or-later
"""The swap map: which block of the device holds entry N of the image's stream. Used by ``image``, read by ``stream``.

A chain of pages; each lists the blocks of the next 511 pages of the stream (in 4 KiB pages) and the block of the page of
the map that follows. The kernel takes the blocks in the order in which its swap allocator gives them, so they stand in
runs; the map is kept as these runs, however many pages there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import Damaged, Refused
from fuse_store.formats.readable import Readable, read_exactly
from fuse_store.formats.swsusp.header import THING, Header
from fuse_store.formats.swsusp.layout import ENTRY, map_entries

MOST_RUNS = 1 << 24  # 256 MiB of memory; the image of an idle machine has some hundred
BATCH = 1 << 20  # bytes of map pages that are looked at together
CUT_OFF = "The power may have gone while it was written: the kernel writes the signature before the last page of the map."

I64 = NDArray[np.int64]
Pages = NDArray[np.uint8]


class SwapMap:
    """``count`` entries in runs: run i begins with entry ``first[i]`` in block ``block[i]``. ``pages`` are the blocks of
    the map's own pages; ``empty_last`` tells that the last of them lists nothing, as kernels before 7.3 write it when the
    one before is full."""

    def __init__(self, readable: Readable, page_size: int, count: int, first: I64, block: I64, pages: I64, empty: bool) -> None:
        self._readable, self._page_size = readable, page_size
        self.count, self.first, self.block, self.pages, self.empty_last = count, first, block, pages, empty

    def runs(self, entry: int, count: int) -> Iterator[tuple[int, int]]:
        """(block, how many) of the runs that ``count`` entries from ``entry`` on stand in. Raises Damaged past the end."""
        if not 0 <= entry <= entry + count <= self.count:
            raise Damaged(THING, f"it has {self.count} pages, and page {entry + count - 1} is needed.", CUT_OFF)
        run = int(np.searchsorted(self.first, entry, "right")) - 1
        while count:
            into = entry - int(self.first[run])
            end = int(self.first[run + 1]) if run + 1 < len(self.first) else self.count
            here = min(count, end - entry)
            yield int(self.block[run]) + into, here
            entry, count, run = entry + here, count - here, run + 1

    def read(self, entry: int, count: int) -> NDArray[np.uint8]:
        """The ``count`` pages from ``entry`` on, one row each. Raises Damaged."""
        size, runs, row = self._page_size, list(self.runs(entry, count)), 0
        if len(runs) == 1:
            return self._read(*runs[0])
        out = np.empty((count, size), np.uint8)
        for block, here in runs:
            out[row : row + here] = self._read(block, here)
            row += here
        return out

    def prefetch(self, entry: int, count: int) -> None:
        """Tell the source that ``count`` pages will be read soon, if it can make use of that, as a stored version can."""
        ahead = getattr(self._readable, "prefetch", None)
        if ahead is not None and count > 0:
            for block, here in self.runs(entry, count):
                ahead(block * self._page_size, here * self._page_size)

    def chunk(self, entry: int) -> tuple[int, Callable[[], Pages]] | None:
        """(compressed length, what gives its pages) of the chunk that begins with an entry, if the source has it as pages, as a
        stored version can: then nothing need be compressed and decompressed. Raises Damaged."""
        ask = getattr(self._readable, "chunk_at", None)
        if ask is None:
            return None
        ((block, _one),) = self.runs(entry, 1)
        found: tuple[int, Callable[[], Pages]] | None = ask(block * self._page_size)
        return found

    def _read(self, block: int, count: int) -> NDArray[np.uint8]:
        size = self._page_size
        return np.frombuffer(read_exactly(self._readable, block * size, count * size, THING), np.uint8).reshape(count, size)

    def read_start(self, entry: int, length: int) -> bytes:
        """The first ``length`` bytes of one page. Raises Damaged."""
        ((block, _one),) = self.runs(entry, 1)
        return read_exactly(self._readable, block * self._page_size, length, THING)


def read_map(readable: Readable, header: Header) -> SwapMap:
    """The SwapMap that the header leads to. Raises Damaged for whatever cannot be a map; Refused for too many runs."""
    entries, blocks = map_entries(header.page_size), readable.size // header.page_size
    builder = _Runs(blocks, header.resume_offset)
    pages: array[int] = array("q")
    batch: list[bytes] = []
    page, milestone, steps, limit = header.image, header.image, 0, 1
    while page:
        if not 0 < page < blocks or page == header.resume_offset:
            raise Damaged(THING, f"page {len(pages)} of its swap map would be block {page} of {blocks}.", CUT_OFF)
        pages.append(page)
        content = read_exactly(readable, page * header.page_size, header.page_size, THING)
        batch.append(content)
        if len(batch) * header.page_size >= BATCH:
            builder.add(batch, entries)
            batch.clear()
        page = int.from_bytes(content[-ENTRY:], "little")
        # Brent's way of finding a loop: compare with one page, which moves on when the steps have doubled.
        if page == milestone:
            raise Damaged(THING, f"its swap map goes in a circle: page {len(pages) - 1} leads back to block {page}.")
        steps += 1
        if steps == limit:
            milestone, steps, limit = page, 0, limit * 2
    builder.add(batch, entries)
    return builder.finish(readable, header.page_size, np.frombuffer(pages, np.int64))


class _Runs:
    """Collects runs from pages of the map, with the memory of the runs alone."""

    def __init__(self, blocks: int, header: int) -> None:
        self._blocks, self._header = blocks, header
        self._first: list[I64] = []
        self._block: list[I64] = []
        self._count = self._runs = 0
        self._expected = -1  # the block that would continue the last run
        self._pages = self._last = 0  # map pages seen; entries in the last of them
        self._entries = 0

    def add(self, batch: list[bytes], entries: int) -> None:
        if not batch:
            return
        table = np.frombuffer(b"".join(batch), "<u8").reshape(len(batch), entries + 1)[:, :entries]
        used = np.count_nonzero(table, axis=1)
        if (self._pages and self._last < entries) or (used[:-1] < entries).any():
            raise Damaged(THING, "its swap map goes on after its end.", CUT_OFF)
        flat = table.reshape(-1)
        flat = flat[: int(used.sum())]
        self._pages += len(batch)
        self._last, self._entries = int(used[-1]), entries
        if not len(flat):
            return
        if not flat.all():
            raise Damaged(THING, f"there is a gap in page {self._pages - 1} of its swap map.", CUT_OFF)
        wrong = (flat >= self._blocks) | (flat == self._header)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise Damaged(THING, f"page {self._count + at} would be block {int(flat[at])} of {self._blocks}.", CUT_OFF)
        block = flat.astype(np.int64)
        starts = np.flatnonzero(np.diff(block, prepend=self._expected - 1) != 1)
        self._first.append(starts + self._count)
        self._block.append(block[starts])
        self._count += len(block)
        self._runs += len(starts)
        self._expected = int(block[-1]) + 1
        if self._count > self._blocks:
            raise Damaged(THING, f"its swap map lists more pages than the {self._blocks} that there are.", CUT_OFF)
        if self._runs > MOST_RUNS:
            raise Refused(THING, f"it is scattered over more than {MOST_RUNS} places.")

    def finish(self, readable: Readable, page_size: int, pages: I64) -> SwapMap:
        if not self._count:
            raise Damaged(THING, "its swap map lists nothing.", CUT_OFF)
        first, block = np.concatenate(self._first), np.concatenate(self._block)
        begin = np.concatenate((block, pages))
        length = np.concatenate((np.diff(first, append=self._count), np.ones(len(pages), np.int64)))
        order = np.argsort(begin, kind="stable")
        begin, length = begin[order], length[order]
        twice = begin[1:] < begin[:-1] + length[:-1]
        if twice.any():
            raise Damaged(THING, f"block {int(begin[1:][np.argmax(twice)])} is listed twice in its swap map.", CUT_OFF)
        return SwapMap(readable, page_size, self._count, first, block, pages, empty=not self._last)
