# SPDX-License-Identifier: GPL-3.0-or-later
"""Which page of memory is where in an image: its lists of PFNs. Used by ``image`` and ``views``.

A list page has the PFNs of 512 pages (in 4 KiB pages), ascending over all lists; the highest bit of one says that the
page is all zeros and not stored. Stored pages follow in the same order: so of any range of memory, what is stored stands
together. The lists are gone through once; of each is kept its first PFN and how much is before it, 24 bytes for each
2 MiB of memory, and looked up again when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import Damaged
from fuse_store.formats.swsusp.header import THING
from fuse_store.formats.swsusp.info import Info
from fuse_store.formats.swsusp.layout import END_OF_PFNS, ENTRY, LARGEST_PFN, ZERO_FLAG
from fuse_store.formats.swsusp.stream import Stream

BATCH = 1 << 20  # bytes of lists that are looked at together

I64 = NDArray[np.int64]


class PageIndex:
    """``count`` pages of memory are in the image, ``zeros`` of them not stored. Threads may share it."""

    def __init__(self, stream: Stream, info: Info, page_size: int) -> None:
        """Goes through all lists. Raises Damaged."""
        self._stream, self._info = stream, info
        self._per_list = page_size // ENTRY
        self._step = max(1, BATCH // page_size)
        firsts, befores = np.empty(info.lists, np.int64), np.empty(info.lists + 1, np.int64)
        befores[0] = self.count = stored = 0
        last = -1
        for number in range(0, info.lists, self._step):
            lists = min(self._step, info.lists - number)
            pfn, zero = self._lists(number, lists)
            whole = min(len(pfn) // self._per_list + (len(pfn) % self._per_list > 0), lists)
            if whole < lists or not len(pfn):
                raise Damaged(THING, f"list {number + whole} of its pages is empty.")
            if int(pfn[0]) <= last or (pfn[1:] <= pfn[:-1]).any() or int(pfn[-1]) >= LARGEST_PFN:
                raise Damaged(THING, f"the lists of its pages, from {number} on, are not in order.")
            last = int(pfn[-1])
            firsts[number : number + lists] = pfn[:: self._per_list]
            kept = np.add.reduceat((~zero).astype(np.int64), np.arange(0, len(pfn), self._per_list))
            befores[number + 1 : number + lists + 1] = stored + np.cumsum(kept)
            stored = int(befores[number + lists])
            self.count += len(pfn)
        if stored != info.stored or self.count > info.memory:
            raise Damaged(
                THING, f"{stored} of {self.count} pages are listed as stored; it should be {info.stored} of at most {info.memory}."
            )
        self.zeros = self.count - stored
        self.last = last
        self._firsts, self._befores = firsts, befores
        self._recent: tuple[tuple[int, int], tuple[I64, I64]] | None = None

    def within(self, first: int, last: int) -> tuple[I64, I64]:
        """(pfn, place) of the pages with first <= PFN < last: the number among the stored pages, -1 for zeros."""
        low = max(0, int(np.searchsorted(self._firsts, first, "right")) - 1)
        high = int(np.searchsorted(self._firsts, last, "left"))
        if low >= high:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        pfn, place = self._places(low, high - low)
        begin, end = np.searchsorted(pfn, (first, last))
        return pfn[begin:end], place[begin:end]

    def numbered(self, first: int, count: int) -> tuple[I64, I64]:
        """(pfn, place) of ``count`` pages by their number in the lists, from ``first`` on; see ``within``."""
        low = first // self._per_list
        pfn, place = self._places(low, -(-(first + count) // self._per_list) - low)
        begin = first - low * self._per_list
        return pfn[begin : begin + count], place[begin : begin + count]

    def pfn_of(self, place: int) -> int:
        """The PFN of a stored page by its number among them."""
        number = int(np.searchsorted(self._befores, place, "right")) - 1
        pfn, places = self._places(number, 1)
        return int(pfn[np.argmax(places == place)])

    def batches(self) -> Iterator[I64]:
        """All PFNs, some 10⁵ at a time."""
        for number in range(0, self._info.lists, self._step):
            yield self._lists(number, min(self._step, self._info.lists - number))[0]

    def _places(self, number: int, lists: int) -> tuple[I64, I64]:
        recent = self._recent  # sequential readers ask for the same again and again
        if recent is not None and recent[0] == (number, lists):
            return recent[1]
        pfn, zero = self._lists(number, lists)
        place = np.cumsum(~zero) - 1 + int(self._befores[number])
        place[zero] = -1
        self._recent = (number, lists), (pfn, place)
        return pfn, place

    def _lists(self, number: int, lists: int) -> tuple[I64, NDArray[np.bool_]]:
        """(pfn, zero) of what ``lists`` list pages hold, from ``number`` on; the end of the last list is cut off."""
        words = self._stream.read(number, lists).reshape(-1).view("<u8")
        if number + lists == self._info.lists:
            tail = words[-self._per_list :]
            ends = np.flatnonzero(tail == END_OF_PFNS)
            if len(ends):
                words = words[: len(words) - self._per_list + int(ends[0])]
        zero = words & np.uint64(ZERO_FLAG) != 0
        return (words & np.uint64(ZERO_FLAG - 1)).astype(np.int64), zero
