# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations on numpy columns that pages, extents and digests need again and again, each once and with an example.

Pure functions. A *run* is a stretch of consecutive numbers, or of equal values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


def starts(counts: I64) -> I64:
    """Where each group begins, if groups of these sizes follow each other: [2, 1, 3] → [0, 2, 3]."""
    ends: I64 = np.cumsum(counts)
    return ends - counts


def expand(first: I64, counts: I64) -> I64:
    """Every number of the runs that begin at ``first``: [10, 20], [2, 3] → [10, 11, 20, 21, 22]."""
    numbers: I64 = np.repeat(first - starts(counts), counts) + np.arange(int(counts.sum()))
    return numbers


def group_starts(values: I64) -> I64:
    """Indexes at which a run of equal values begins: [7, 7, 8, 7] → [0, 2, 3]. Values are not negative."""
    return np.flatnonzero(np.diff(values, prepend=-1))


def distinct_values(values: I64) -> I64:
    """Each value once, ascending: [7, 3, 7] → [3, 7]. Values are not negative. np.unique would import numpy.ma, for as long as a put
    of a small file takes."""
    ordered = np.sort(values)
    return ordered[group_starts(ordered)]


def sums_by(keys: I64, values: I64) -> tuple[I64, I64]:
    """(each key once, ascending, the sum of its values): [7, 3, 7], [1, 2, 3] → [3, 7], [2, 4]. Keys are not negative."""
    order = np.argsort(keys)
    ordered = keys[order]
    begins = group_starts(ordered)
    return ordered[begins], np.add.reduceat(values[order], begins) if len(begins) else values


def run_starts(numbers: I64) -> I64:
    """Indexes at which a run of consecutive numbers begins: [4, 5, 9] → [0, 2]. Numbers are ascending, not negative."""
    return np.flatnonzero(np.diff(numbers, prepend=-2) != 1)


def runs(numbers: I64) -> list[tuple[int, int]]:
    """(first, end) of each run of consecutive numbers: [4, 5, 9] → [(4, 6), (9, 10)]."""
    if not len(numbers):
        return []
    begin = run_starts(numbers)
    ends = numbers[np.append(begin[1:], len(numbers)) - 1] + 1
    return list(zip(numbers[begin].tolist(), ends.tolist(), strict=True))


def joint_runs(page: I64, block: I64, slot: I64) -> tuple[I64, I64, I64, I64]:
    """(page, count, block, slot) of the runs in which page and slot count up and block stays, as in one extent:
    [4, 5, 6], [0, 0, 1], [8, 9, 0] → [4, 6], [2, 1], [0, 1], [8, 0]. ``page`` is ascending."""
    if not len(page):
        return page, page, page, page
    new = np.empty(len(page), bool)
    new[0] = True
    new[1:] = (np.diff(page) != 1) | (np.diff(block) != 0) | (np.diff(slot) != 1)
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(page)))
    return page[first], count, block[first], slot[first]


def halves(digests: bytes | bytearray | memoryview) -> tuple[U64, U64]:
    """(high, low): the two little-endian halves of digests of 16 bytes that stand one after the other."""
    both = np.frombuffer(digests, "<u8").reshape(-1, 2)
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def joined(high: U64, low: U64) -> bytes:
    """Digests of 16 bytes, of their halves."""
    return np.stack((high, low), 1).astype("<u8").tobytes()


def distinct(high: U64, low: U64) -> tuple[I64, I64]:
    """(first, back): the index at which each digest stands for the first time, ascending, and for each digest which of
    those it is: a, b, a → [0, 1], [0, 1, 0]."""
    order = np.argsort(high, kind="stable")
    sorted_high, sorted_low = high[order], low[order]
    new = np.ones(len(order), bool)
    new[1:] = (sorted_high[1:] != sorted_high[:-1]) | (sorted_low[1:] != sorted_low[:-1])
    first = order[new]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    back = np.empty(len(order), np.int64)
    back[order] = rank[np.cumsum(new) - 1]
    return np.sort(first), back
