# SPDX-License-Identifier: GPL-3.0-or-later
"""Data and holes of a file, as SEEK_DATA and SEEK_HOLE report them (lseek(2)).

Each call goes through the kernel, and a memory image has a hole every few pages. So a file is divided into cells of
RANGE_CELL_SIZE bytes, and only cells without any data are reported as holes, which POSIX allows; a copying tool finds the
zeros in the other cells when it reads them. Threads may share a DataRanges.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

RANGE_CELL_SIZE = 256 << 10  # bytes
CELLS_PER_SPAN = 4096  # cells that are computed at once


class DataRanges:
    """Data and holes of the ``size`` bytes from byte ``base`` of an image on."""

    def __init__(self, image: Image, base: int, size: int) -> None:
        self._image, self._base, self._size = image, base, size
        self._span: tuple[int, NDArray[np.bool_]] = (-1, np.zeros(0, bool))  # (number, its cells), the one used last
        self._lock = threading.Lock()

    def data(self, offset: int) -> int | None:
        """The first byte of data at or after ``offset``; None if there is none. Raises Damaged."""
        return self._next(offset, True)

    def hole(self, offset: int) -> int:
        """The first byte of a hole at or after ``offset``; the end of the file counts as one. Raises Damaged."""
        hole = self._next(offset, False)
        return self._size if hole is None else hole

    def _next(self, offset: int, has_data: bool) -> int | None:
        """The first byte at or after ``offset`` in a cell with data, or without."""
        with self._lock:
            at = offset
            while at < self._size:
                span, cell = divmod(at // RANGE_CELL_SIZE, CELLS_PER_SPAN)
                matches = np.flatnonzero(self._cells(span)[cell:] == has_data)
                if len(matches):
                    return max(at, (at // RANGE_CELL_SIZE + int(matches[0])) * RANGE_CELL_SIZE)
                at = (span + 1) * CELLS_PER_SPAN * RANGE_CELL_SIZE
            return None

    def _cells(self, span: int) -> NDArray[np.bool_]:
        """For each cell of a span, up to the end of the file, whether there is data in it."""
        if self._span[0] != span:
            start = span * CELLS_PER_SPAN * RANGE_CELL_SIZE
            end = min(start + CELLS_PER_SPAN * RANGE_CELL_SIZE, self._size)
            ranges = list(self._image.data_ranges(self._base + start, self._base + end))
            begin, length = np.array(ranges, np.int64).reshape(-1, 2).T
            begin = begin - (self._base + start)
            change = np.zeros(-(-(end - start) // RANGE_CELL_SIZE) + 1, np.int64)
            np.add.at(change, begin // RANGE_CELL_SIZE, 1)
            np.add.at(change, (begin + length - 1) // RANGE_CELL_SIZE + 1, -1)
            self._span = span, np.cumsum(change[:-1]) > 0
        return self._span[1]
