# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a file of an image has data and where holes: what SEEK_DATA and SEEK_HOLE ask. Used by ``content``.

Each such question is a journey through the kernel, and a memory image has a hole every few pages. So a file is divided
into cells, and only cells without any data are holes, which POSIX allows; a copying tool finds the zeros in the others when
it reads them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

CELL = 256 << 10  # bytes
WINDOW = 4096  # cells that are looked at once


class Ranges:
    """Data and holes of the ``size`` bytes from ``base`` in an image. Threads may share one."""

    def __init__(self, image: Image, base: int, size: int) -> None:
        self._image, self._base, self._size = image, base, size
        self._window: tuple[int, NDArray[np.bool_]] = (-1, np.zeros(0, bool))
        self._lock = threading.Lock()

    def data(self, offset: int) -> int | None:
        """The first byte of data at or after ``offset``; None if there is none. Raises Damaged."""
        return self._next(offset, True)

    def hole(self, offset: int) -> int:
        """The first byte of a hole at or after ``offset``; the end of the file counts as one. Raises Damaged."""
        found = self._next(offset, False)
        return self._size if found is None else found

    def _next(self, offset: int, data: bool) -> int | None:
        """The first byte at or after ``offset`` in a cell with or without data."""
        with self._lock:
            at = offset
            while at < self._size:
                number, cell = divmod(at // CELL, WINDOW)
                found = np.flatnonzero(self._cells(number)[cell:] == data)
                if len(found):
                    return max(at, (at // CELL + int(found[0])) * CELL)
                at = (number + 1) * WINDOW * CELL
            return None

    def _cells(self, number: int) -> NDArray[np.bool_]:
        """For each cell of window ``number``, as far as the file goes, whether there is data in it."""
        if self._window[0] != number:
            start = number * WINDOW * CELL
            end = min(start + WINDOW * CELL, self._size)
            found = list(self._image.data_ranges(self._base + start, self._base + end))
            begin, length = np.array(found, np.int64).reshape(-1, 2).T
            begin = begin - (self._base + start)
            change = np.zeros(-(-(end - start) // CELL) + 1, np.int64)
            np.add.at(change, begin // CELL, 1)
            np.add.at(change, (begin + length - 1) // CELL + 1, -1)
            self._window = number, np.cumsum(change[:-1]) > 0
        return self._window[1]
