# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packs a collection removes and which it copies, as columns: a store may have a million packs. For one thread.

A pack that no version needs goes. One that is mostly unneeded is copied without the rest. Small packs, of small puts, are copied together
into larger ones, once there are many of about one size; so each block is copied a few times at most, and the number of packs
grows with the logarithm of the number of puts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, halves, joined
from fuse_store.errors import Damaged
from fuse_store.repository import pack as packs
from fuse_store.repository.backends import Backend
from fuse_store.repository.index.fragment import Fragment
from fuse_store.repository.index.marks import Marks
from fuse_store.repository.index.rows import Rows, find

Mask = NDArray[np.bool_]

MIN_USED_RATIO = 0.5  # a pack of which less than this is needed is copied; above, the space is not worth the work
SMALL = 16  # a pack is small if so many make a full one
MERGED_AT_LEAST = 16  # small packs of about one size are copied together
MAX_MERGED = 4096  # small packs that one collection copies together: seconds in a directory, minutes in a bucket
MAX_MERGED_SIZE = 1 << 30  # bytes of them that are needed
MAX_ROWS = 1 << 20  # blocks to copy that are looked up at once, in 40 MiB


@dataclass(frozen=True)
class Packs:
    """The packs of a store, in the order of their ids: columns. ``size``: bytes of the file; ``count``: how many of its blocks are
    needed; ``live``: bytes of these; ``drop``: whether the pack goes, when what is needed of it was copied."""

    high: U64
    low: U64
    size: I64
    count: I64
    live: I64
    drop: Mask

    def __len__(self) -> int:
        return len(self.high)

    def ids(self, rows: I64) -> list[bytes]:
        every = joined(self.high[rows], self.low[rows])
        return [every[at : at + 16] for at in range(0, len(every), 16)]

    def rows_of(self, ids: bytes) -> I64:
        """The row of each pack, -1 if there is no such file."""
        return find(self.high, self.low, *halves(ids))


def choose(backend: Backend, needed: Marks, known: Iterable[Fragment] | None) -> Packs:
    """Which packs go. With ``known``, those that are not in these fragments stay: the index does not account for them. Raises
    Damaged."""
    found = _listed(backend)
    for fragment, rows, row in _marked(needed, found):
        if (row < 0).any():
            pack = fragment.pack_id(int(rows.pack[row < 0][0])).hex()
            raise Damaged(f"pack {pack}", "missing, and versions need it.", "Nothing was freed. Run 'fuse-store repair'.")
        np.add.at(found.count, row, 1)
        np.add.at(found.live, row, rows.stored.astype(np.int64))
    may_go = np.ones(len(found), bool)
    if known is not None:
        may_go[:] = False
        for fragment in known:
            row = found.rows_of(fragment.packs)
            may_go[row[row >= 0]] = True
    found.drop[:] = may_go & ((found.count == 0) | (found.live < MIN_USED_RATIO * found.size))
    found.drop[_small(found, may_go & ~found.drop)] = True
    return found


def _marked(needed: Marks, packs: Packs) -> Iterator[tuple[Fragment, Rows, I64]]:
    """The rows of needed blocks, a part of a fragment at a time, and for each its row in ``packs``, -1 if there is no such file."""
    last: Fragment | None = None
    for fragment, rows in needed.marked():
        if fragment is not last:
            last, row_of = fragment, packs.rows_of(fragment.packs)
        yield fragment, rows, row_of[rows.pack]


def _listed(backend: Backend) -> Packs:
    ids, sizes = bytearray(), []
    for pack, size in packs.all_packs(backend):
        ids += pack
        sizes.append(size)
    high, low = halves(ids)
    order = np.lexsort((low, high))
    none = np.zeros((2, len(order)), np.int64)
    return Packs(high[order], low[order], np.array(sizes, np.int64)[order], none[0], none[1], np.zeros(len(order), bool))


def _small(found: Packs, candidates: Mask) -> I64:
    """The small packs that are worth copying together, the smallest first."""
    rows = np.flatnonzero(candidates & (found.size < packs.PACK_SIZE // SMALL) & (found.live > 0))
    tier = np.log2(found.live[rows]).astype(np.int64) // 2  # up to four times the size
    many = np.bincount(tier)[tier] >= MERGED_AT_LEAST if len(rows) else np.zeros(0, bool)
    rows = rows[many][np.argsort(found.live[rows[many]], kind="stable")][:MAX_MERGED]
    return rows[np.cumsum(found.live[rows]) <= MAX_MERGED_SIZE]


@dataclass(frozen=True)
class Wanted:
    """What is to be copied of one pack: blocks in the order in which they stand."""

    pack: bytes
    digests: bytes
    offset: U64
    stored: I64


def wanted(needed: Marks, chosen: Packs) -> Iterable[Wanted]:
    """The needed blocks of each pack that is to be copied: the index is gone through once for some MAX_ROWS of them."""
    rows = np.flatnonzero(chosen.drop & (chosen.count > 0))
    batch = np.cumsum(chosen.count[rows]) // MAX_ROWS
    for number in np.unique(batch).tolist():
        yield from _of_batch(needed, chosen, rows[batch == number])


def _of_batch(needed: Marks, chosen: Packs, batch: I64) -> Iterable[Wanted]:
    is_in = np.zeros(len(chosen) + 1, bool)  # the last one: of no pack
    is_in[batch] = True
    parts = []
    for _fragment, rows, row in _marked(needed, chosen):
        hit = np.flatnonzero(is_in[row])
        if len(hit):
            parts.append((row[hit], rows.high[hit], rows.low[hit], rows.offset[hit], rows.stored[hit].astype(np.int64)))
    pack, high, low, offset, stored = map(np.concatenate, zip(*parts, strict=True))
    order = np.lexsort((offset, pack))
    pack, high, low, offset, stored = (column[order] for column in (pack, high, low, offset, stored))
    ends = np.searchsorted(pack, batch, "right").tolist()
    begins = np.searchsorted(pack, batch, "left").tolist()
    for name, begin, end in zip(chosen.ids(batch), begins, ends, strict=True):
        yield Wanted(name, joined(high[begin:end], low[begin:end]), offset[begin:end], stored[begin:end])
