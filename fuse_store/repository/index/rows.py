# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the index in memory: where blocks are, as columns. Pure functions and values; threads may share them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64
from fuse_store.repository.aead import DIGEST

U32 = NDArray[np.uint32]

Place = tuple[bytes, int, int]  # (pack id, offset, length stored) of a block


@dataclass(frozen=True)
class Rows:
    """Columns of equal length, one element for each place of a block, sorted by digest (high, then low).

    ``high`` and ``low``: the halves of the digest, little-endian; ``pack``: an ordinal into ``packs``, 16 bytes each;
    ``offset`` and ``stored``: the bytes of the block in the pack, header included; ``length``: bytes of its pages.
    """

    high: U64
    low: U64
    offset: U64
    pack: U32
    stored: U32
    length: U32
    packs: bytes

    def __len__(self) -> int:
        return len(self.high)

    def digest(self, row: int) -> bytes:
        return int(self.high[row]).to_bytes(8, "little") + int(self.low[row]).to_bytes(8, "little")

    def pack_id(self, ordinal: int) -> bytes:
        return self.packs[ordinal * DIGEST : (ordinal + 1) * DIGEST]

    def place(self, row: int) -> Place:
        return self.pack_id(int(self.pack[row])), int(self.offset[row]), int(self.stored[row])

    def select(self, rows: NDArray[np.bool_] | I64 | slice) -> Rows:
        """Some of the rows, by a mask, or in the order of row numbers; ``packs`` stays."""
        return Rows(
            self.high[rows], self.low[rows], self.offset[rows], self.pack[rows], self.stored[rows], self.length[rows], self.packs
        )

    def part(self, begin: int, end: int) -> Rows:
        return self.select(slice(begin, end))

    def release(self) -> None:
        """There is nothing to take out of memory: see ``Fragment.release``."""


def find(sorted_high: U64, sorted_low: U64, high: U64, low: U64) -> I64:
    """The first row of each digest in sorted columns, -1 where there is none."""
    row = np.full(len(high), -1, np.int64)
    candidate = np.searchsorted(sorted_high, high)
    pending = np.arange(len(high))
    while len(pending):  # twice only if two digests have the same first half
        pending = pending[candidate[pending] < len(sorted_high)]
        pending = pending[sorted_high[candidate[pending]] == high[pending]]
        hit = sorted_low[candidate[pending]] == low[pending]
        row[pending[hit]] = candidate[pending[hit]]
        pending = pending[~hit]
        candidate[pending] += 1
    return row
