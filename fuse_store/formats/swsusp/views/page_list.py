# SPDX-License-Identifier: GPL-3.0-or-later
"""``pages.tsv``: one line for each page of memory in an image. Threads may share a PageList."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64
from fuse_store.formats.swsusp.views.source import Source


class PageList:
    """Lines of equal length: PFN, ``stored`` or ``zeroes``, position among the stored pages.

    PFNs are hexadecimal, positions decimal; pages of zeros are not stored and have no position.
    """

    name = "pages.tsv"
    HEADER = b"pfn\tcontent\tnumber\n"
    PFN_DIGITS, POSITION_DIGITS = 10, 12
    STORED, ZEROES = b"stored", b"zeroes"
    LINE_SIZE = 2 + PFN_DIGITS + 1 + len(STORED) + 1 + POSITION_DIGITS + 1  # bytes

    def __init__(self, source: Source) -> None:
        self._source = source

    def size(self) -> int:
        """Raises the errors of opening an image."""
        return len(self.HEADER) + self._source.image().pages.count * self.LINE_SIZE

    def read(self, offset: int, length: int) -> bytes:
        """Raises Damaged."""
        end = min(offset + length, self.size())
        if offset >= end:
            return b""
        begin = max(0, offset - len(self.HEADER))
        first, last = begin // self.LINE_SIZE, -(-(end - len(self.HEADER)) // self.LINE_SIZE)
        lines = self._lines(first, last - first) if last > first else b""
        start = len(self.HEADER) + first * self.LINE_SIZE
        return self.HEADER[offset:end] + lines[max(0, offset - start) : max(0, end - start)]

    def _lines(self, first: int, count: int) -> bytes:
        pfn, position = self._source.image().pages.listed(first, count)
        table = np.full((len(pfn), self.LINE_SIZE), ord("\t"), np.uint8)
        table[:, :2] = list(b"0x")
        table[:, 2 : 2 + self.PFN_DIGITS] = _digits(pfn, self.PFN_DIGITS, 16)
        stored = position >= 0
        at = 3 + self.PFN_DIGITS
        table[:, at : at + 6] = np.where(stored[:, None], list(self.STORED), list(self.ZEROES))
        digits = _digits(position, self.POSITION_DIGITS, 10)
        digits[~stored] = ord("-")
        table[:, at + 7 : -1] = digits
        table[:, -1] = ord("\n")
        return table.tobytes()


def _digits(values: I64, count: int, base: int) -> NDArray[np.uint8]:
    powers = np.array([base**power for power in range(count - 1, -1, -1)], np.int64)
    digits: NDArray[np.uint8] = np.frombuffer(b"0123456789abcdef", np.uint8)[values[:, None] // powers % base]
    return digits
