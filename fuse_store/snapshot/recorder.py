# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes an image of the memory to a device in the form in which the kernel resumes it: a header, a swap map, and pages.

All memory is taken before the system is frozen, and nothing but the device is touched while it is (``write``). docs/hibernation-image.md
describes the format. For one thread.
"""

from __future__ import annotations

import mmap
import os
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence

from fuse_store.errors import Damaged, Refused
from fuse_store.formats.swsusp import layout
from fuse_store.image.devices import write_at

WINDOW_PAGES = 256  # pages that are read and written at once
ReadPages = Callable[[Sequence[memoryview]], int]  # fills buffers of a page each; returns the number of bytes
Run = tuple[int, int]  # (first block, number of blocks) of free room on the device


class Recorder:
    """``runs``: where the image may be, in ascending order, without the block of its header."""

    def __init__(self, descriptor: int, page_size: int, runs: Sequence[Run]) -> None:
        """``descriptor``: of the device, opened with O_DIRECT."""
        self._descriptor, self._page_size, self._runs = descriptor, page_size, list(runs)
        self._buffer = mmap.mmap(-1, WINDOW_PAGES * page_size)  # aligned, as O_DIRECT wants it
        window = memoryview(self._buffer)
        self._window = window
        self._pages = [window[at : at + page_size] for at in range(0, len(window), page_size)]
        self._blocks = array("Q")
        self._maps = self._count = self.checksum = 0
        self._buffer[:] = bytes(len(window))

    @property
    def capacity(self) -> int:
        """The number of pages that an image may have."""
        blocks = sum(length for _first, length in self._runs)
        entries = layout.map_entries(self._page_size)
        return blocks - -(-blocks // (entries + 1))

    @property
    def first_map(self) -> int:
        """Block of the first page of the swap map. A restored system asks for it as well: its memory is that of before ``write``."""
        return self._runs[0][0]

    def write(self, read: ReadPages, count: int) -> None:
        """Write the swap map of ``count`` pages, then the pages. Returns when the device has them. Raises Refused if there is too
        little room, Damaged if ``read`` ends early, OSError."""
        if count > self.capacity:
            raise Refused(
                "snapshot", f"the image has {count} pages, and there is space for {self.capacity}.", "Free memory, or use a larger device."
            )
        self._maps = -(-count // layout.map_entries(self._page_size))
        self._count = count
        self._blocks = array("Q")
        left = self._maps + count
        for first, length in self._runs:
            taken = min(left, length)
            self._blocks.extend(range(first, first + taken))
            left -= taken
        self._put(0, self._map_page, self._maps)
        self.checksum = 0

        def pages(_at: int, number: int) -> None:
            done = read(self._pages[:number])
            if done != number * self._page_size:
                raise Damaged("snapshot", "the kernel's image ended early.", "Try again.")
            self.checksum = zlib.crc32(self._window[:done], self.checksum)

        self._put(self._maps, pages, count)
        os.fsync(self._descriptor)

    def _put(self, start: int, fill: Callable[[int, int], None], count: int) -> None:
        """Write ``count`` pages to the blocks from index ``start`` on; ``fill(first, number)`` has them in the window."""
        for at in range(0, count, WINDOW_PAGES):
            number = min(WINDOW_PAGES, count - at)
            fill(at, number)
            for index, block, length in _adjacent(self._blocks[start + at : start + at + number]):
                part = self._window[index * self._page_size : (index + length) * self._page_size]
                write_at(self._descriptor, part, block * self._page_size)

    def _map_page(self, first: int, number: int) -> None:
        """Pages of the swap map: entries, then the block of the next page, 0 in the last one."""
        entries = layout.map_entries(self._page_size)
        for place in range(number):
            page = first + place
            begin = self._maps + page * entries
            part = self._blocks[begin : begin + entries]
            part.extend([0] * (entries - len(part)))
            part.append(self._blocks[page + 1] if page + 1 < self._maps else 0)
            self._pages[place][:] = part.tobytes()

    def read_back(self, read: Callable[[int, int], bytes]) -> int:
        """CRC-32 of the pages on the device, to be compared with ``checksum``; ``read(offset, length)``."""
        checksum = 0
        for at in range(self._maps, self._maps + self._count, WINDOW_PAGES):
            part = self._blocks[at : min(at + WINDOW_PAGES, self._maps + self._count)]
            for _index, block, length in _adjacent(part):
                checksum = zlib.crc32(read(block * self._page_size, length * self._page_size), checksum)
        return checksum


def _adjacent(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(index, block, length) of the runs of consecutive blocks."""
    begin = 0
    for index in range(1, len(blocks) + 1):
        if index == len(blocks) or blocks[index] != blocks[index - 1] + 1:
            yield begin, blocks[begin], index - begin
            begin = index
