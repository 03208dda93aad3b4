# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pages are known to a put, and where. For one thread; others may look into a table that nothing is added to any
more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, group_starts, halves, sums_by
from fuse_store.errors import Damaged
from fuse_store.image.reader import Image
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.pack import NEAR, PackReader, Table

ALL_OPENED = 512  # blocks of the bases that are all opened when they are shared
PARTS = 31  # of more, a put opens one part; another one each hour: a prime, so that nightly and weekly puts come to all of them
LITTLE = 2  # a block of which the bases use less than one of so many pages is little used
AGAIN = 12  # at most one page of so many that the bases have is stored again by a put because its block is little used
MAX_PAGES = 4 << 20  # 24 bytes each and as much again while it grows; those of 16 GiB in pages of 4 KiB
NOTHING, READ, OPEN = range(3)  # what is done with a block of a base before it is shared
_SLOT_BITS = 8  # of a place; a block has at most 64 pages

_Run = tuple[U64, U64, I64]  # (high, low, place), sorted by high


class Bases:
    """The blocks that the versions use with which a put compares. Other blocks of their packs may be of other machines: pages of
    those are not known. A context manager: it has threads for opening blocks."""

    def __init__(self, reader: PackReader, page_size: int, threads: int, *, read_all: bool) -> None:
        """``read_all``: read every block that is shared, also those whose turn to be opened it is not."""
        self._reader, self._page_size, self._read_all = reader, page_size, read_all
        self._used: dict[bytes, tuple[I64, I64]] = {}  # by pack: offsets of blocks, ascending, and how many pages are used of each
        self._tables: list[tuple[Table, Table]] = []  # without digests of pages; with them, but only of what is opened
        self._first = np.zeros(1, np.int64)  # the ordinal of the first block of each table, and how many there are
        self._due = np.zeros(0, np.uint8)  # by ordinal: what is still to be done when a block is shared
        self._uses = self._sizes = np.zeros(0, np.int64)  # by ordinal: pages of a block that the bases use, and all that it has
        self._pool = ThreadPoolExecutor(threads, "bases")

    def __enter__(self) -> Bases:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, image: Image) -> None:
        """Take in the blocks of a version. Raises Damaged."""
        for located, pages in image.used():
            for number, pack in enumerate(located.packs):
                blocks = np.flatnonzero(located.pack == number)
                offsets, uses = self._used.get(pack, (blocks[:0], blocks[:0]))
                self._used[pack] = sums_by(np.append(offsets, located.offset[blocks]), np.append(uses, pages[blocks]))
            if self._blocks >= MAX_PAGES:
                return

    @property
    def _blocks(self) -> int:
        return sum(len(offsets) for offsets, _uses in self._used.values())

    def tables(self) -> Iterator[Table]:
        """The table of each pack with only the blocks of the bases, those with most of them first. A pack that is gone, whatever a local
        cache knows of it, or that cannot be read is left out: its pages are stored again."""
        every = self._blocks <= ALL_OPENED
        turn = int(time.time()) // 3600 % PARTS
        packs = sorted(self._used, key=lambda pack: -len(self._used[pack][0]))
        each = map if self._reader.survives_fork else self._pool.map  # no thread before a fork; a server is asked several things at a time
        for pack, there in zip(packs, each(self._reader.exists, packs), strict=True):
            try:
                table = self._reader.table(pack) if there else None
            except (Damaged, FileNotFoundError):
                continue
            if table is None or table.counts(self._page_size).sum() != len(table.pages):
                continue
            offsets, uses = self._used[pack]
            rows = table.at(offsets)
            table = table.select(rows[rows >= 0], self._page_size)
            self._uses = np.append(self._uses, uses[rows >= 0])
            self._sizes = np.append(self._sizes, table.counts(self._page_size))
            opened = every | (halves(table.digests)[0] % PARTS == turn)
            self._due = np.append(self._due, np.where(opened, OPEN, READ if self._read_all else NOTHING).astype(np.uint8))
            self._first = np.append(self._first, len(self._due))
            self._tables.append((replace(table, pages=table.pages[:0].copy()), table.select(np.flatnonzero(opened), self._page_size)))
            yield table

    def little_used(self) -> tuple[NDArray[np.bool_], int]:
        """(for each block, by its ordinal, whether the pages that the bases still use of it should be stored again; how many pages may be).
        So that an image is not scattered over ever more blocks of which it needs a page each. After ``tables``."""
        few = np.flatnonzero(self._uses * LITTLE < self._sizes)
        few = few[np.argsort(self._uses[few], kind="stable")]
        most = int(self._uses.sum()) // AGAIN
        chosen = np.zeros(len(self._uses), bool)
        chosen[few[np.cumsum(self._uses[few]) <= most]] = True
        return chosen, most

    def unreadable(self, blocks: I64) -> I64:
        """Which of the blocks cannot be read, or have other pages than the table says. Blocks are named by their ordinals in the order of
        ``tables``; others are passed over. Each is looked at once: opened, if it is its turn, or read and authenticated, if all are."""
        blocks = blocks[(blocks >= 0) & (blocks < len(self._due))]
        wanted = np.zeros(len(self._due), bool)
        wanted[blocks] = True
        opened, read = (np.flatnonzero(wanted & (self._due == due)) for due in (OPEN, READ))
        self._due[blocks] = NOTHING
        bad = [*self._pool.map(self._not_opened, opened.tolist()), *self._pool.map(self._not_authentic, self._near(read))]
        return np.concatenate(bad) if bad else np.zeros(0, np.int64)

    def _near(self, blocks: I64) -> list[I64]:
        """The same in parts that stand near each other in a pack."""
        number = np.searchsorted(self._first, blocks, "right") - 1
        parts = []
        for one in np.flatnonzero(np.bincount(number, minlength=len(self._tables))).tolist():
            part = blocks[number == one]
            offset = self._tables[one][0].offset[part - self._first[one]].astype(np.int64)
            parts += np.split(part, group_starts(offset // NEAR)[1:])
        return parts

    def _not_opened(self, block: int) -> I64:
        """The block, if it cannot be opened, or a pack says something else of it."""
        number = int(np.searchsorted(self._first, block, "right")) - 1
        table, opened = self._tables[number]
        (row,) = opened.at(table.offset[[block - self._first[number]]]).tolist()
        return np.zeros(0, np.int64) if row >= 0 and self._is_readable((opened, row)) else np.array([block])

    def _not_authentic(self, blocks: I64) -> I64:
        """Those of blocks near each other that are not as they were written."""
        number = int(np.searchsorted(self._first, blocks[0], "right")) - 1
        authentic = self._reader.authentic(self._tables[number][0], blocks - self._first[number])
        return np.array([block for block, good in zip(blocks.tolist(), authentic, strict=True) if not good], np.int64)

    def _is_readable(self, block: tuple[Table, int]) -> bool:
        table, row = block
        digest, offset, stored = table.digests[row * DIGEST : (row + 1) * DIGEST], int(table.offset[row]), int(table.stored[row])
        try:
            pages = self._reader.read(digest, table.pack, offset, stored)
            self._reader.check(table, offset, digest, pages, self._page_size)
            return True
        except (Damaged, FileNotFoundError):
            return False


class PageTable:
    """Page digest → place: where a page stands in a block. Sorted runs, merged when they grow alike, so that adding n pages one batch at a
    time costs n log n. A full table takes no more, and later pages are compared only as parts of whole blocks. ``space`` is for how many
    pages there is space left."""

    def __init__(self, space: int | None = None) -> None:
        self._added: list[_Run] = []  # in no run yet: what many packs bring is sorted once
        self._runs: list[_Run] = []
        self.space = MAX_PAGES if space is None else space

    def add(self, high: U64, low: U64, block: I64, slot: I64) -> None:
        if len(high) and len(high) <= self.space:
            self.space -= len(high)
            self._added.append((high, low, block << _SLOT_BITS | slot))

    def find(self, high: U64, low: U64) -> I64:
        """The place of each page, for ``split_places``; -1 for a page that is not known."""
        self.sort()
        order = np.argsort(high)  # looking up in order stays in the processor's caches
        high, low = high[order], low[order]
        place = np.full(len(high), -1, np.int64)
        for known_high, known_low, places in self._runs:
            missing = np.flatnonzero(place < 0)
            if not len(missing) or not len(known_high):
                continue
            at = np.searchsorted(known_high, high[missing])
            at[at == len(known_high)] = 0
            same = (known_high[at] == high[missing]) & (known_low[at] == low[missing])
            place[missing[same]] = places[at[same]]
        in_given_order = np.empty_like(place)
        in_given_order[order] = place
        return in_given_order

    def sort(self) -> None:
        """Have what was added where it is found; ``find`` does it when it is needed."""
        if not self._added:
            return
        self._runs.append(_sorted(self._added))
        self._added = []
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._runs[-2:] = [_sorted(self._runs[-2:])]


def split_places(place: I64) -> tuple[I64, I64]:
    """(block, slot) of places; block is -1 where there is none."""
    return place >> _SLOT_BITS, place & ((1 << _SLOT_BITS) - 1)


def _sorted(parts: list[_Run]) -> _Run:
    high, low, place = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(high)
    return high[order], low[order], place[order]
