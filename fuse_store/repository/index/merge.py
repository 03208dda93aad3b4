# SPDX-License-Identifier: GPL-3.0-or-later
"""Several sources of rows in the order of one, in bounded memory: a range of digests after the other, from all at once.

Every place of a block stays; only equal rows are dropped. Of a block with several places, that of the newest source comes first: it
was stored again because the older ones are not good. For one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np

from fuse_store.columns import I64, U64, distinct, halves, starts
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.index.rows import Rows

PART_ROWS = 1 << 18  # rows in memory at once, of all sources together


class Source(Protocol):
    """``Rows``, or a ``Fragment``."""

    @property
    def high(self) -> U64: ...

    @property
    def packs(self) -> bytes: ...

    def __len__(self) -> int: ...

    def part(self, begin: int, end: int) -> Rows: ...

    def release(self) -> None: ...


class Merge:
    """The rows of ``sources``, newest first, but for those in ``dropped`` packs. ``packs``: the packs of the parts, also of each
    without rows."""

    def __init__(self, sources: Sequence[Source], dropped: Collection[bytes] = ()) -> None:
        self._sources = sources
        every = b"".join(source.packs for source in sources)
        first, back = distinct(*halves(every))
        ids = [every[at * DIGEST : (at + 1) * DIGEST] for at in first.tolist()]
        kept = np.array([pack not in dropped for pack in ids], bool)
        self.packs = b"".join(pack for pack, keep in zip(ids, kept.tolist(), strict=True) if keep)
        ordinals = np.where(kept, np.cumsum(kept) - 1, -1)[back]
        counts = np.array([len(source.packs) // DIGEST for source in sources], np.int64)
        self._ordinals = [ordinals[begin : begin + count] for begin, count in zip(starts(counts), counts, strict=True)]

    def parts(self) -> Iterator[Rows]:
        """Rows in the order of their digests, never a digest in two parts. Raises ValueError for a damaged source."""
        at = [0] * len(self._sources)
        while any(begin < len(source) for begin, source in zip(at, self._sources, strict=True)):
            end = self._ends(at)
            chosen = [number for number in range(len(at)) if at[number] < end[number]]
            columns = [self._part(number, at[number], end[number]) for number in chosen]
            rows = columns[0] if len(columns) == 1 else _joined(columns, self.packs)
            if len(rows):
                yield _without_repeats(rows)
            at = end
            for number in chosen:
                self._sources[number].release()

    def _ends(self, at: Sequence[int]) -> list[int]:
        """Where the next part ends in each source: with the same digest in all."""
        sources = list(zip(at, self._sources, strict=True))
        share = max(1, PART_ROWS // sum(begin < len(source) for begin, source in sources))
        bound = min((source.high[begin + share - 1] for begin, source in sources if begin + share < len(source)), default=None)
        if bound is None:
            return [len(source) for source in self._sources]
        ends = [begin + int(np.searchsorted(source.high[begin:], bound, "right")) for begin, source in sources]
        if ends == list(at):
            raise ValueError("columns are not sorted")
        return ends

    def _part(self, number: int, begin: int, end: int) -> Rows:
        rows = self._sources[number].part(begin, end)
        ordinals = self._ordinals[number]
        if len(rows) and int(rows.pack.max()) >= len(ordinals):
            raise ValueError("names packs that are not listed")
        pack = ordinals[rows.pack]
        here = Rows(rows.high, rows.low, rows.offset, pack.astype(np.uint32), rows.stored, rows.length, self.packs)
        return here if (pack >= 0).all() else here.select(pack >= 0)


def _joined(parts: Sequence[Rows], packs: bytes) -> Rows:
    """Sorted; equal digests stay in the order of the parts."""
    high, low, offset, pack, stored, length = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("high", "low", "offset", "pack", "stored", "length")
    )
    order: I64 = np.argsort(high, kind="stable")  # of sorted runs: quick
    ordered = high[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((low, high))
    return Rows(high, low, offset, pack, stored, length, packs).select(order)


def _without_repeats(rows: Rows) -> Rows:
    """Of equal rows, the first."""
    same = (rows.high[1:] == rows.high[:-1]) & (rows.low[1:] == rows.low[:-1])
    if not same.any():
        return rows
    shared = np.zeros(len(rows), bool)
    shared[1:] = same
    shared[:-1] |= same
    several = np.flatnonzero(shared)
    columns = [column[several] for column in (rows.length, rows.stored, rows.offset, rows.pack, rows.low, rows.high)]
    order = np.lexsort(columns)  # stable
    equal = np.ones(len(order) - 1, bool)
    for column in columns:
        equal &= column[order][1:] == column[order][:-1]
    keep = np.ones(len(rows), bool)
    keep[several[order[1:][equal]]] = False
    return rows if keep.all() else rows.select(keep)
