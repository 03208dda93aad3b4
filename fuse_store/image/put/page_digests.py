# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests of the pages of batches, and which of them a base has: in memory that processes share, so that each digests a part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, halves
from fuse_store.image.inputs import Batch, reading
from fuse_store.image.put.page_table import PageTable
from fuse_store.processes.forking import shared
from fuse_store.processes.workers import Result, Workers
from fuse_store.repository.aead import Aead
from fuse_store.repository.block import split

BUFFERS = 3  # batches: one is read, one is digested, of one the new pages are taken
PART = 512  # pages that are digested in one go


def page_sums(pages: NDArray[np.uint8]) -> U64:
    """The sum of the words of each page, a row each. Taken before the digests of pages and after the last use of a copy of them: a bit
    that flips in memory in between would be stored under the digest of what it was."""
    sums: U64 = pages.view(np.uint64).sum(axis=1, dtype=np.uint64)
    return sums


@dataclass(frozen=True)
class DigestedPages:
    """Columns of equal length, an element for each page: the halves of its digest, its sum, and its place in a base, -1 if there is
    none."""

    high: U64
    low: U64
    sums: U64
    place: I64

    @classmethod
    def of_rows(cls, rows: NDArray[np.uint64]) -> DigestedPages:
        """What is in ``rows``, four rows of numbers."""
        return cls(rows[0], rows[1], rows[2], rows[3].view(np.int64))

    def select(self, pages: I64) -> DigestedPages:
        return DigestedPages(self.high[pages], self.low[pages], self.sums[pages], self.place[pages])


class PageDigests:
    """Digests batches that are in ``buffers``, which are used in turn, and others. ``known``: the pages of the bases; complete when
    ``workers`` begin."""

    def __init__(self, aead: Aead, page_size: int, known: PageTable, workers: Workers) -> None:
        self._aead, self._page_size, self._known = aead, page_size, known
        pages = reading.BATCH_SIZE // page_size
        self.buffers = [shared(pages * page_size) for _buffer in range(BUFFERS)]
        self._rows = np.frombuffer(shared(BUFFERS * 4 * pages * 8), np.uint64).reshape(BUFFERS, 4, pages)
        self._begin_part = workers.task(self._digest_part, threads=False)

    def begin(self, batch: Batch) -> list[Result[bool]]:
        """Have its pages digested. When all that is returned is done, ``of`` has the result."""
        pages = len(batch.page)
        if batch.buffer < 0:
            return []
        return [self._begin_part(batch.buffer, at, min(at + PART, pages)) for at in range(0, pages, PART)]

    def of(self, batch: Batch) -> DigestedPages:
        """Of one that was begun; of one that is in no buffer, now."""
        if batch.buffer >= 0:
            return DigestedPages.of_rows(self._rows[batch.buffer, :, : len(batch.page)])
        rows = np.empty((4, len(batch.page)), np.uint64)
        self._digest(batch.data, rows)
        return DigestedPages.of_rows(rows)

    def _digest_part(self, buffer: int, first: int, last: int) -> bool:
        size = self._page_size
        self._digest(self.buffers[buffer][first * size : last * size], self._rows[buffer, :, first:last])
        return True

    def _digest(self, data: memoryview, rows: NDArray[np.uint64]) -> None:
        """Have what ``DigestedPages`` has of these pages in ``rows``."""
        rows[2] = page_sums(np.frombuffer(data, np.uint8).reshape(-1, self._page_size))
        rows[0], rows[1] = halves(self._aead.page_digests(split(data, self._page_size)))
        rows[3] = self._known.find(rows[0], rows[1]).view(np.uint64)
