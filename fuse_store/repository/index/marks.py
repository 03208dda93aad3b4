# SPDX-License-Identifier: GPL-3.0-or-later
"""A bit for each row of the index, for those who go through all blocks of a store: 50 million blocks (6 TiB) take 6 MiB.

The rows are numbered through all fragments that there were when the marks were made; later writers do not change these. For one
thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64
from fuse_store.repository.index.fragment import Fragment
from fuse_store.repository.index.merge import PART_ROWS
from fuse_store.repository.index.rows import Place, Rows


class Marks:
    """``fragments``: newest first, as ``Index.fragments`` has them."""

    def __init__(self, fragments: Iterable[Fragment]) -> None:
        self.fragments = tuple(fragments)
        self._first = np.cumsum([0, *map(len, self.fragments)])  # the number of the first row of each, and of all
        self._bits = np.zeros(-(-int(self._first[-1]) // 8), np.uint8)

    def find(self, high: U64, low: U64) -> tuple[I64, NDArray[np.bool_]]:
        """(the number of the row of each digest, the newest of several, -1 if there is none; whether there are several)."""
        order = np.argsort(high)
        number = np.full(len(high), -1, np.int64)
        several = np.zeros(len(high), bool)
        for fragment, first in zip(self.fragments, self._first.tolist(), strict=False):
            row = fragment.find(high[order], low[order])
            found = np.flatnonzero(row >= 0)
            at, row = order[found], row[found]
            several[at] |= (number[at] >= 0) | fragment.repeats(row)
            new = number[at] < 0
            number[at[new]] = row[new] + first
        return number, several

    def places(self, digest: bytes) -> list[tuple[int, Place]]:
        """The number and the place of each row of a block, newest first."""
        return [
            (first + row, fragment.place(row))
            for fragment, first in zip(self.fragments, self._first.tolist(), strict=False)
            for row in fragment.rows_of(digest)
        ]

    def set(self, numbers: I64) -> None:
        np.bitwise_or.at(self._bits, numbers >> 3, np.uint8(1) << (numbers & 7).astype(np.uint8))

    def are_set(self, numbers: I64) -> NDArray[np.bool_]:
        bits: NDArray[np.bool_] = (self._bits[numbers >> 3] >> (numbers & 7).astype(np.uint8) & 1).astype(bool)
        return bits

    def marked(self) -> Iterator[tuple[Fragment, Rows]]:
        """The rows with a mark, a part of a fragment at a time."""
        for fragment, first in zip(self.fragments, self._first.tolist(), strict=False):
            for begin in range(0, len(fragment), PART_ROWS):
                end = min(begin + PART_ROWS, len(fragment))
                chosen = self.are_set(np.arange(first + begin, first + end))
                if chosen.any():
                    yield fragment, fragment.part(begin, end).select(chosen)
                fragment.release()
