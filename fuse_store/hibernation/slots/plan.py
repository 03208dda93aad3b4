# SPDX-License-Identifier: GPL-3.0-or-later
"""Which block of a slot holds what: the header, the pages of the swap map, and the stream of the image, in this order.

The image's own swap map lists blocks of the device that it was captured from; here it is made again, for the blocks of the slot. The
stream is as it was, byte by byte, so are the flags and the kernel's checksum in the header. Pure functions and immutable data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fuse_store.columns import I64
from fuse_store.formats.swsusp import disarmed, layout
from fuse_store.hibernation.slots.layout import Extents


def blocks_needed(pages: int, page_size: int) -> int:
    """Blocks of a slot for a stream of so many pages."""
    return 1 + map_pages(pages, page_size) + pages


def map_pages(pages: int, page_size: int) -> int:
    """Pages of a swap map that lists so many. A full last page is not followed by an empty one, as kernels from 7.3 on write it; all
    kernels read both."""
    return -(-pages // layout.map_entries(page_size))


@dataclass(frozen=True)
class Plan:
    """A slot of ``extents`` for a stream of ``pages`` pages."""

    extents: Extents
    pages: int
    page_size: int

    @property
    def header(self) -> int:
        return self.extents[0][0]

    @property
    def blocks(self) -> int:
        return blocks_needed(self.pages, self.page_size)

    @cached_property
    def _starts(self) -> tuple[I64, I64]:
        """(place in the slot, block) with which each extent begins."""
        first, count = np.array(self.extents, np.int64).T
        return np.cumsum(count) - count, first

    def blocks_of(self, at: I64) -> I64:
        """The blocks of places in the slot, of which 0 is the header."""
        places, first = self._starts
        extent = np.searchsorted(places, at, "right") - 1
        blocks: I64 = first[extent] + at - places[extent]
        return blocks

    def runs(self, at: int, count: int) -> Iterator[tuple[int, int]]:
        """(first block, number) of the runs that hold ``count`` places from ``at`` on."""
        for first, blocks in self.extents:
            if at < blocks and count:
                here = min(count, blocks - at)
                yield first + at, here
                at, count = 0, count - here
            else:
                at -= blocks

    @property
    def stream(self) -> int:
        """The place in the slot where the stream begins."""
        return 1 + map_pages(self.pages, self.page_size)

    def map(self) -> bytes:
        """All pages of the swap map."""
        per_page, maps = layout.map_entries(self.page_size), self.stream - 1
        rows = np.zeros((maps, per_page + 1), "<u8")
        entries = np.zeros(maps * per_page, np.int64)
        entries[: self.pages] = self.blocks_of(np.arange(self.stream, self.stream + self.pages))
        rows[:, :per_page] = entries.reshape(maps, per_page)
        rows[:-1, per_page] = self.blocks_of(np.arange(2, 1 + maps))
        return rows.tobytes()

    def header_page(self, page: bytes) -> bytes:
        """The header page of an image, not armed, as it is in this slot. Raises Damaged."""
        tail = list(layout.TAIL.unpack(disarmed(page)[-layout.TAIL.size :]))
        tail[2] = int(self.blocks_of(np.array([1]))[0])
        return page[: -layout.TAIL.size] + layout.TAIL.pack(*tail)
