# SPDX-License-Identifier: GPL-3.0-or-later
"""``memory.elf`` and ``memory.lime``: dumps of the machine's memory. Threads may share a MemoryDump.

Both have the same ranges of memory. Near ranges are joined: pages between them are zeros in the dump although the image does
not have them; ``pages.tsv`` lists the pages that it has.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from fuse_store.columns import I64
from fuse_store.formats.swsusp.kernel.addresses import direct_map, translation
from fuse_store.formats.swsusp.kernel.vmcoreinfo import MAX_NOTE_TEXT, NOTE_START
from fuse_store.formats.swsusp.views import dump_headers
from fuse_store.formats.swsusp.views.source import Source

DUMP_READ_SIZE = 8 << 20  # bytes that are read from the image at once



class MemoryDump:
    """The ranges of memory one after the other, after a header of ``header_size`` bytes; before each range stands a header of
    its own, of ``range_header_size`` bytes."""

    header_size: int = 0
    range_header_size: int = 0

    def __init__(self, name: str, source: Source) -> None:
        self.name, self._source = name, source

    def size(self) -> int:
        """Raises the errors of opening an image."""
        ranges = self._source.ranges()
        return self.header_size + self.range_header_size * len(ranges.first) + ranges.pages * self._source.image().page_size

    def read(self, offset: int, length: int) -> bytes:
        """Raises Damaged."""
        end = min(offset + length, self.size())
        parts = [self.header()[offset : min(end, self.header_size)]] if offset < self.header_size else []
        offset = max(offset, self.header_size)
        while offset < end:
            parts.append(self._memory(offset, min(end, offset + DUMP_READ_SIZE)))
            offset += DUMP_READ_SIZE
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def header(self) -> bytes:
        """``header_size`` bytes."""
        return b""

    def range_header(self, address: int, size: int) -> bytes:
        """``range_header_size`` bytes."""
        return b""

    @cached_property
    def begins(self) -> I64:
        """Where in this file the memory of each range begins."""
        ranges = self._source.ranges()
        headers = self.range_header_size * np.arange(1, len(ranges.first) + 1)
        return np.asarray(self.header_size + headers + ranges.before * self._source.image().page_size, np.int64)

    def _memory(self, offset: int, end: int) -> bytes:
        """The bytes between two offsets, both after the header of the dump."""
        ranges, begins, size = self._source.ranges(), self.begins, self._source.image().page_size
        low = max(0, int(np.searchsorted(begins, offset, "right")) - 1)
        high = int(np.searchsorted(begins, end + self.range_header_size, "left"))
        # As if ranges had no headers; those are put between the pages afterwards.
        within = np.minimum(np.maximum((offset, end) - begins[[low, high - 1]], 0), ranges.count[[low, high - 1]] * size)
        first, last = (within + ranges.before[[low, high - 1]] * size).tolist()
        pages = self._source.dense(first // size, -(-last // size)).reshape(-1)
        content = pages[first - first // size * size : last - first // size * size]
        if not self.range_header_size:
            return content.tobytes()
        parts = []
        for index in range(low, high):
            begin, address, length = int(begins[index]), int(ranges.first[index]) * size, int(ranges.count[index]) * size
            if offset < begin:
                header_begin = begin - self.range_header_size
                parts.append(self.range_header(address, length)[max(0, offset - header_begin) : end - header_begin])
            at = int(ranges.before[index]) * size - first
            parts.append(content[max(0, at) : max(0, at + length)].tobytes())
        return b"".join(parts)


class ElfCore(MemoryDump):
    """An ELF core of the kernel. The kernel's note is searched when the header is read, not before."""

    @cached_property
    def header_size(self) -> int:  # type: ignore[override]
        segments, note = len(self._source.ranges().first), NOTE_START + MAX_NOTE_TEXT
        return dump_headers.core_header_size(segments, note, self._source.image().page_size)

    @cached_property
    def _header(self) -> bytes:
        image, kernel, ranges = self._source.image(), self._source.kernel(), self._source.ranges()
        columns = (self.begins, ranges.first * image.page_size, ranges.count * image.page_size)
        segments = list(zip(*(column.tolist() for column in columns), strict=True))
        note, offset = kernel.info.note if kernel else b"", direct_map(image, kernel.info if kernel else None)
        return dump_headers.core_header(translation(image).elf_machine, segments, note, offset, self.header_size)

    def header(self) -> bytes:
        return self._header


class LimeDump(MemoryDump):
    """A dump in the format of LiME."""

    range_header_size = dump_headers.LIME.size

    def range_header(self, address: int, size: int) -> bytes:
        return dump_headers.lime_header(address, size)
