# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a file of an image has data and where holes: what SEEK_DATA and SEEK_HOLE ask. Used by ``content``.

Each such question is a journey through the kernel, and a memory image has a hole every few pages. So holes shorter than
HOLE count as data, which POSIX allows; a copying tool finds their zeros when it reads them.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuse_store.image import Image

HOLE = 1 << 20  # bytes; shorter ones are not told
WINDOW = 64 << 20  # bytes that are looked at once
LARGEST_WINDOW = 1 << 40  # where there is nothing
MOST = 4096  # ranges that are kept


class Ranges:
    """Data and holes of the ``size`` bytes from ``base`` in an image. Threads may share one."""

    def __init__(self, image: Image, base: int, size: int) -> None:
        self._image, self._base, self._size = image, base, size
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._known = (0, 0)
        self._lock = threading.Lock()

    def data(self, offset: int) -> int | None:
        """The first byte of data at or after ``offset``; None if there is none. Raises Damaged."""
        with self._lock:
            window = WINDOW
            while offset < self._size:
                self._look(offset, window)
                at = bisect_right(self._ends, offset)
                if at < len(self._ends):
                    return max(offset, self._begins[at])
                offset = self._known[1]
                window = min(2 * window, LARGEST_WINDOW)
            return None

    def hole(self, offset: int) -> int:
        """The first byte of a hole at or after ``offset``; the end of the file counts as one. Raises Damaged."""
        with self._lock:
            while offset < self._size:
                self._look(offset, WINDOW)
                at = bisect_right(self._ends, offset)
                if at == len(self._ends) or self._begins[at] > offset:
                    return offset
                offset = self._ends[at]
                if offset < self._known[1] or offset == self._size:
                    return offset
            return self._size

    def _look(self, offset: int, window: int) -> None:
        """Have known what is at ``offset``."""
        if self._known[0] <= offset < self._known[1]:
            return
        end = min(offset + window, self._size)
        begins: list[int] = []
        ends: list[int] = []
        for start, length in self._image.data_ranges(self._base + offset, self._base + end):
            begin = start - self._base
            if ends and begin - ends[-1] < HOLE:
                ends[-1] = begin + length
            elif len(ends) < MOST:
                begins.append(begin)
                ends.append(begin + length)
            else:
                end = begin
                break
        if ends and end < self._size and end - ends[-1] < HOLE:
            ends[-1] = end  # whether a hole goes on after the window is not known, so what is short here is none
        self._begins, self._ends, self._known = begins, ends, (offset, end)
