# SPDX-License-Identifier: GPL-3.0-or-later
"""What the views of one image have in common: the open image, its kernel and its ranges of memory. Threads may share a Source."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, starts
from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.kernel import Kernel, find_kernel
from fuse_store.formats.swsusp.page_index import PageIndex

MAX_RANGES = 1024  # ranges of memory in a dump: crash and Volatility 3 search them one by one

T = TypeVar("T")


class Once(Generic[T]):
    """The result of ``make``, which is called at the first use, by one thread while the others wait."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]


class Source:
    """The image behind all its views, opened at the first use.

    ``image``, ``kernel`` (which searches the image, unless the place of the note is known) and ``ranges`` raise the errors of
    opening an image.
    """

    def __init__(self, readable: Readable, resume_offset: int, note: int | None) -> None:
        self.image = Once(lambda: HibernationImage(readable, resume_offset))
        self.kernel: Once[Kernel | None] = Once(lambda: find_kernel(self.image(), note))
        self.ranges = Once(lambda: find_ranges(self.image().pages))

    def dense(self, first: int, last: int) -> NDArray[np.uint8]:
        """The pages of all ranges one after the other, from ``first`` to ``last`` (exclusive), a row each. Raises Damaged."""
        if first >= last:
            return np.empty((0, self.image().page_size), np.uint8)
        ranges = self.ranges()
        within = np.searchsorted(ranges.before, (first, last - 1), "right") - 1
        ends = (ranges.first[within] + (first, last - 1) - ranges.before[within]).tolist()
        pfn, position = self.image().pages.within(ends[0], ends[1] + 1)
        stored = position >= 0
        pfn, position = pfn[stored], position[stored]
        if not len(pfn):
            return np.zeros((last - first, self.image().page_size), np.uint8)
        content = self.image().stored(int(position[0]), len(position))
        if len(content) == last - first:
            return content
        out = np.zeros((last - first, self.image().page_size), np.uint8)
        within = np.searchsorted(ranges.first, pfn, "right") - 1
        out[ranges.before[within] + pfn - ranges.first[within] - first] = content
        return out


@dataclass(frozen=True)
class MemoryRanges:
    """The ranges of memory in a dump: the first page of each, its number of pages, and how many pages are in those before."""

    first: I64
    count: I64
    before: I64
    pages: int


def find_ranges(pages: PageIndex) -> MemoryRanges:
    """The ranges of an image in order; at least two, if there are two pages. The smallest gaps are closed until at most
    MAX_RANGES are left. Raises Damaged."""
    first, end = np.empty(0, np.int64), np.empty(0, np.int64)
    for pfn in pages.batches():
        breaks = np.flatnonzero(np.diff(pfn) != 1)
        first = np.concatenate((first, pfn[:1], pfn[breaks + 1]))
        end = np.concatenate((end, pfn[breaks] + 1, pfn[-1:] + 1))
        first, end = _joined(first, end, MAX_RANGES * 64)
    first, end = _joined(first, end, MAX_RANGES)
    count = end - first
    if len(first) == 1 and count[0] > 1:  # crash takes a core with one segment for another format
        first, count = np.array([first[0], first[0] + 1]), np.array([1, count[0] - 1])
    return MemoryRanges(first, count, starts(count), int(count.sum()))


def _joined(first: I64, end: I64, most: int) -> tuple[I64, I64]:
    """At most ``most`` ranges: those with the smallest gaps between them are joined."""
    gap = first[1:] - end[:-1]
    keep = gap > 0
    if np.count_nonzero(keep) >= most:
        keep = gap > np.partition(gap, len(gap) - most)[len(gap) - most]
    return np.concatenate((first[:1], first[1:][keep])), np.concatenate((end[:-1][keep], end[-1:]))
