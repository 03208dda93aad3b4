# SPDX-License-Identifier: GPL-3.0-or-later
"""Where on a device an image is that is written there: its header, the pages of the swap map, and the stream, in this order.

The kernel takes blocks as its swap allocator returns them; here they are those of a list of extents, from its first one on. Pure functions
and immutable data, for 64-bit little-endian kernels. Needs the standard library alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fuse_store.formats.swsusp.layout import map_entries

Extents = Sequence[tuple[int, int]]  # (first block, number of blocks) of each, in the order in which they are used


def map_pages(pages: int, page_size: int) -> int:
    """Pages of a swap map that lists so many. A full last page is not followed by an empty one, as kernels from 7.3 on write it; all
    kernels read both."""
    return -(-pages // map_entries(page_size))


def blocks_needed(pages: int, page_size: int) -> int:
    """Blocks for a header, a swap map, and a stream of so many pages."""
    return 1 + map_pages(pages, page_size) + pages


def capacity(blocks: int, page_size: int) -> int:
    """Pages of the longest stream for which so many blocks are enough; less than 1 if they are for none."""
    return blocks - 1 - -(-(blocks - 1) // (map_entries(page_size) + 1))


def first_blocks(extents: Extents, blocks: int) -> tuple[tuple[int, int], ...]:
    """The extents of the first blocks of these. They must have so many."""
    kept = []
    for first, count in extents:
        if blocks > 0:
            kept.append((first, min(count, blocks)))
            blocks -= count
    return tuple(kept)


@dataclass(frozen=True)
class Placement:
    """``extents``: blocks, of which the first is that of the header; there may be more than a stream of ``pages`` pages needs."""

    extents: Extents
    pages: int
    page_size: int

    @property
    def header(self) -> int:
        """The block of the header: the kernel's ``resume_offset=``."""
        return self.extents[0][0]

    @property
    def first_map(self) -> int:
        """The block of the first page of the swap map, to which the header leads. It does not depend on ``pages``."""
        return next(self.runs(1, 1))[0]

    @property
    def stream(self) -> int:
        """The place in the extents where the stream begins; that of the header is 0."""
        return 1 + map_pages(self.pages, self.page_size)

    @property
    def blocks(self) -> int:
        return self.stream + self.pages

    def runs(self, at: int, count: int) -> Iterator[tuple[int, int]]:
        """(first block, number) of the runs that hold ``count`` places from ``at`` on."""
        for first, blocks in self.extents:
            if at < blocks and count:
                here = min(count, blocks - at)
                yield first + at, here
                at, count = 0, count - here
            else:
                at -= blocks

    def map(self, first: int = 0, count: int | None = None) -> bytes:
        """``count`` pages of the swap map from page ``first`` on; all of them by default. Each has entries, then the block of the next
        page, 0 in the last one."""
        per_page, maps = map_entries(self.page_size), self.stream - 1
        content = bytearray()
        for page in range(first, maps if count is None else first + count):
            listed = min(per_page, self.pages - page * per_page)
            entries: list[int] = []
            for block, number in self.runs(self.stream + page * per_page, listed):
                entries.extend(range(block, block + number))
            entries += [0] * (per_page - listed)
            entries.append(next(self.runs(page + 2, 1))[0] if page + 1 < maps else 0)
            content += struct.pack(f"<{per_page + 1}Q", *entries)
        return bytes(content)
