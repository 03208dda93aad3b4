# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pages of memory are in an image, and where: its lists of PFNs.

A list page has the PFNs of 512 pages (with 4 KiB pages), ascending over all lists; the highest bit of an entry says that the
page is all zeros and not stored. Stored pages follow in the same order, so the stored pages of any range of memory are
consecutive. The lists are read once; of each, only its first PFN and the number of stored pages before it are kept, 16 bytes
for each 2 MiB of memory, and the list is read again when it is needed. Threads may share a PageIndex.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64
from fuse_store.errors import Damaged
from fuse_store.formats.swsusp.info import OVERWRITTEN, Info
from fuse_store.formats.swsusp.layout import END_OF_PFNS, ENTRY, IMAGE, MAX_PFN, ZERO_FLAG
from fuse_store.formats.swsusp.stream import Stream

LISTS_BATCH_SIZE = 1 << 20  # bytes of lists that are read together



class PageIndex:
    """``count`` pages of memory are in the image, ``zeros`` of them not stored; ``last`` is the highest PFN."""

    def __init__(self, stream: Stream, info: Info, page_size: int) -> None:
        """Reads all lists. Raises Damaged."""
        self._stream, self._info = stream, info
        self._per_list = page_size // ENTRY
        self._step = max(1, LISTS_BATCH_SIZE // page_size)
        self._firsts = np.empty(info.lists, np.int64)  # first PFN of each list
        self._befores = np.zeros(info.lists + 1, np.int64)  # stored pages before each list
        self.count, self.last = 0, -1
        for first_list in range(0, info.lists, self._step):
            self._add(first_list, min(self._step, info.lists - first_list))
        stored = int(self._befores[-1])
        if stored != info.stored or self.count > info.memory:
            raise Damaged(
                IMAGE, f"{stored} of {self.count} pages are listed as stored, instead of {info.stored} of at most {info.memory}.",
                OVERWRITTEN,
            )
        self.zeros = self.count - stored
        self._recent: tuple[tuple[int, int], tuple[I64, I64]] | None = None

    def _add(self, first_list: int, lists: int) -> None:
        """Add the pages of ``lists`` lists, from ``first_list`` on. Raises Damaged."""
        pfn, zero = self._lists(first_list, lists)
        used = min(len(pfn) // self._per_list + (len(pfn) % self._per_list > 0), lists)
        if used < lists or not len(pfn):
            raise Damaged(IMAGE, f"list {first_list + used} of PFNs is empty.", OVERWRITTEN)
        if int(pfn[0]) <= self.last or (pfn[1:] <= pfn[:-1]).any() or int(pfn[-1]) >= MAX_PFN:
            raise Damaged(IMAGE, f"the lists of PFNs, from list {first_list} on, are not in order.", OVERWRITTEN)
        self.last = int(pfn[-1])
        self._firsts[first_list : first_list + lists] = pfn[:: self._per_list]
        stored = np.add.reduceat((~zero).astype(np.int64), np.arange(0, len(pfn), self._per_list))
        self._befores[first_list + 1 : first_list + lists + 1] = self._befores[first_list] + np.cumsum(stored)
        self.count += len(pfn)

    def within(self, first: int, last: int) -> tuple[I64, I64]:
        """(PFN, position among the stored pages, -1 for zeros) of the pages with ``first`` <= PFN < ``last``."""
        low = max(0, int(np.searchsorted(self._firsts, first, "right")) - 1)
        high = int(np.searchsorted(self._firsts, last, "left"))
        if low >= high:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        pfn, position = self._positions(low, high - low)
        begin, end = np.searchsorted(pfn, (first, last))
        return pfn[begin:end], position[begin:end]

    def listed(self, first: int, count: int) -> tuple[I64, I64]:
        """(PFN, position) as ``within``, of ``count`` pages by their position in the lists, from ``first`` on."""
        low = first // self._per_list
        pfn, position = self._positions(low, -(-(first + count) // self._per_list) - low)
        begin = first - low * self._per_list
        return pfn[begin : begin + count], position[begin : begin + count]

    def pfn_of(self, position: int) -> int:
        """The PFN of a stored page by its position among the stored pages."""
        holding = int(np.searchsorted(self._befores, position, "right")) - 1
        pfn, positions = self._positions(holding, 1)
        return int(pfn[np.argmax(positions == position)])

    def batches(self) -> Iterator[I64]:
        """All PFNs, some 10⁵ at a time."""
        for first_list in range(0, self._info.lists, self._step):
            yield self._lists(first_list, min(self._step, self._info.lists - first_list))[0]

    def _positions(self, first_list: int, lists: int) -> tuple[I64, I64]:
        recent = self._recent  # sequential readers need the same lists several times in a row
        if recent is not None and recent[0] == (first_list, lists):
            return recent[1]
        pfn, zero = self._lists(first_list, lists)
        position = np.cumsum(~zero) - 1 + int(self._befores[first_list])
        position[zero] = -1
        self._recent = (first_list, lists), (pfn, position)
        return pfn, position

    def _lists(self, first_list: int, lists: int) -> tuple[I64, NDArray[np.bool_]]:
        """(PFN, whether the page is zeros) of the entries of ``lists`` lists; the unused end of the last list is left out."""
        words = self._stream.read(first_list, lists).reshape(-1).view("<u8")
        if first_list + lists == self._info.lists:
            tail = words[-self._per_list :]
            ends = np.flatnonzero(tail == END_OF_PFNS)
            if len(ends):
                words = words[: len(words) - self._per_list + int(ends[0])]
        zero = words & np.uint64(ZERO_FLAG) != 0
        return (words & np.uint64(ZERO_FLAG - 1)).astype(np.int64), zero
