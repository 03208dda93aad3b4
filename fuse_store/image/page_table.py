# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pages are known to a put, and where. For the one thread of a put that reads and compares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fuse_store.columns import I64, U64
from fuse_store.errors import Damaged
from fuse_store.image.reader import Image
from fuse_store.repository.pack import PackReader, Table

MAX_PAGES = 4 << 20  # 24 bytes each and as much again while it grows; those of 16 GiB in pages of 4 KiB
_SLOT_BITS = 8  # of a place; a block has at most 64 pages

_Run = tuple[U64, U64, I64]  # (high, low, place), sorted by high


class Bases:
    """The blocks that the versions use with which a put compares. Other blocks of their packs may be of other machines: pages of
    those are not known."""

    def __init__(self, reader: PackReader) -> None:
        self._reader = reader
        self._offsets: dict[bytes, I64] = {}  # by pack, ascending

    def add(self, image: Image) -> None:
        """Take in the blocks of a version. Raises Damaged."""
        for _digests, located, _first_pages in image.blocks():
            for number, pack in enumerate(located.packs):
                offsets = located.offset[located.pack == number]
                self._offsets[pack] = np.union1d(self._offsets.get(pack, offsets), offsets)
            if sum(map(len, self._offsets.values())) >= MAX_PAGES:
                return

    def tables(self) -> Iterator[tuple[Table, I64]]:
        """(the table of a pack, the rows of the blocks in it), those with most blocks first. A pack that cannot be read is left out:
        its pages are stored again."""
        for pack in sorted(self._offsets, key=lambda pack: -len(self._offsets[pack])):
            try:
                table = self._reader.table(pack)
            except (Damaged, FileNotFoundError):
                continue
            yield table, np.flatnonzero(np.isin(table.offset, self._offsets[pack].astype(np.uint64)))


class PageTable:
    """Page digest → (block, slot). Sorted runs, merged when they grow alike, so that adding n pages one batch at a time costs n log n.
    A full table takes no more, and later pages are compared only as parts of whole blocks. ``space`` is for how many pages there
    is space left."""

    def __init__(self) -> None:
        self._added: list[_Run] = []  # in no run yet: what many packs bring is sorted once
        self._runs: list[_Run] = []
        self.space = MAX_PAGES

    def add(self, high: U64, low: U64, block: I64, slot: I64) -> None:
        if len(high) and len(high) <= self.space:
            self.space -= len(high)
            self._added.append((high, low, block << _SLOT_BITS | slot))

    def find(self, high: U64, low: U64) -> tuple[I64, I64]:
        """(block, slot) of each page; block is -1 for a page that is not known."""
        self._merge()
        order = np.argsort(high)  # looking up in order stays in the processor's caches
        high, low = high[order], low[order]
        place = np.full(len(high), -1, np.int64)
        for known_high, known_low, places in self._runs:
            missing = np.flatnonzero(place < 0)
            if not len(missing):
                break
            at = np.searchsorted(known_high, high[missing])
            at[at == len(known_high)] = 0
            same = (known_high[at] == high[missing]) & (known_low[at] == low[missing])
            place[missing[same]] = places[at[same]]
        in_given_order = np.empty_like(place)
        in_given_order[order] = place
        return in_given_order >> _SLOT_BITS, in_given_order & ((1 << _SLOT_BITS) - 1)

    def _merge(self) -> None:
        if not self._added:
            return
        self._runs.append(_sorted(self._added))
        self._added = []
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._runs[-2:] = [_sorted(self._runs[-2:])]


def _sorted(parts: list[_Run]) -> _Run:
    high, low, place = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(high)
    return high[order], low[order], place[order]
