# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes an image of the memory to a device in the form in which the kernel resumes it: a header, a swap map, and pages.

All memory is taken before the system is frozen, and nothing but the device is touched while it is (``write``). docs/hibernation-image.md
describes the format. For one thread.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Sequence

from fuse_store.errors import Damaged, Refused
from fuse_store.formats.checksums import Checksums
from fuse_store.formats.swsusp.placement import Extents, Placement, capacity
from fuse_store.image.devices import write_at

WINDOW_PAGES = 256  # pages that are read and written at once
ReadPages = Callable[[Sequence[memoryview]], int]  # fills buffers of a page each; returns the number of bytes


class TooLarge(Refused):
    """The image has more pages than there is space for: ``pages``."""

    def __init__(self, pages: int, space: int) -> None:
        remedy = "Free memory, or use a larger device."
        super().__init__("snapshot", f"the image has {pages} pages, and there is space for {space}.", remedy)
        self.pages = pages


class Recorder:
    """``place``: where the image is, once it is written."""

    def __init__(self, descriptor: int, page_size: int, extents: Extents) -> None:
        """``descriptor``: of the device, opened with O_DIRECT. ``extents``: where the image may be; the first block is that of its
        header, which is not written."""
        self._descriptor, self._page_size = descriptor, page_size
        self.place = Placement(extents, 0, page_size)
        self.capacity = capacity(sum(blocks for _first, blocks in extents), page_size)  # pages that an image may have
        self.first_map = self.place.first_map  # a restored system asks for it as well: its memory is that of before ``write``
        self.checksum = 0
        self._buffer = mmap.mmap(-1, WINDOW_PAGES * page_size)  # aligned, as O_DIRECT wants it
        self._window = memoryview(self._buffer)
        self._pages = [self._window[at : at + page_size] for at in range(0, len(self._window), page_size)]
        self._buffer[:] = bytes(len(self._window))

    def write(self, read: ReadPages, count: int) -> None:
        """Write the swap map of ``count`` pages, then the pages. Returns when the device has them. Raises TooLarge, Damaged if ``read``
        ends early, OSError."""
        if count > self.capacity:
            raise TooLarge(count, self.capacity)
        self.place = Placement(self.place.extents, count, self._page_size)
        self.checksum = 0

        def maps(at: int, number: int) -> None:
            content = self.place.map(at, number)
            self._window[: len(content)] = content
            self.checksum = zlib.crc32(content, self.checksum)

        def pages(_at: int, number: int) -> None:
            done = read(self._pages[:number])
            if done != number * self._page_size:
                raise Damaged("snapshot", "the kernel's image ended early.", "Try again.")
            self.checksum = zlib.crc32(self._window[:done], self.checksum)

        self._put(1, maps, self.place.stream - 1)
        self._put(self.place.stream, pages, count)
        os.fsync(self._descriptor)

    def _put(self, start: int, fill: Callable[[int, int], None], count: int) -> None:
        """Write ``count`` pages to the places from ``start`` on; ``fill(first, number)`` has them in the window."""
        for at in range(0, count, WINDOW_PAGES):
            number = min(WINDOW_PAGES, count - at)
            fill(at, number)
            begin = 0
            for block, length in self.place.runs(start + at, number):
                end = begin + length * self._page_size
                write_at(self._descriptor, self._window[begin:end], block * self._page_size)
                begin = end

    def read_back(self, read: Callable[[int, int], bytes], header: bytes) -> tuple[int, Checksums]:
        """(CRC-32 of what is on the device behind the header, to be compared with ``checksum``, the checksums of a slot with that behind
        this header page); ``read(offset, length)``."""
        checksum, sums = 0, Checksums()
        sums.update(header)
        for at in range(1, self.place.blocks, WINDOW_PAGES):
            for block, length in self.place.runs(at, min(WINDOW_PAGES, self.place.blocks - at)):
                content = read(block * self._page_size, length * self._page_size)
                sums.update(content)
                checksum = zlib.crc32(content, checksum)
        return checksum, sums
