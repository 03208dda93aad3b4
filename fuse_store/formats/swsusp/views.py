# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are derived from a hibernation image when they are read, and stored nowhere. Used by the mount.

``memory.elf`` and ``memory.lime`` are dumps of the machine's memory, for drgn, crash and Volatility 3; ``header.json`` is
what the image says about itself; ``pages.tsv`` tells for each page of memory whether it is stored. Each is a DerivedFile:
``name``, ``size()``, ``read(offset, length)``. Both dumps have the same ranges: near ones are joined, and pages between
them are zeros in the dump though the image does not have them; pages.tsv tells them from the others. Threads may share
them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp import elf
from fuse_store.formats.swsusp.describe import header_fields, kernel_fields
from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.memory import Kernel, architecture, direct_map, kernel
from fuse_store.formats.swsusp.pages import PageIndex
from fuse_store.formats.swsusp.vmcoreinfo import LARGEST, NOTE_START

MOST_RANGES = 1024  # crash and Volatility 3 go through them one by one
STEP = 8 << 20  # bytes that are read from the image at once

I64 = NDArray[np.int64]


T = TypeVar("T")


class Once(Generic[T]):
    """What ``make`` gives, made when it is first asked for, and by one thread while the others wait."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]


class Source:
    """The image behind all its views, opened when it is first needed, and what they have in common.

    ``image``, ``kernel`` (which searches the image, unless it was told where the note is) and ``ranges`` raise what opening
    an image does.
    """

    def __init__(self, readable: Readable, resume_offset: int, note: int | None) -> None:
        self.image = Once(lambda: HibernationImage(readable, resume_offset))
        self.kernel: Once[Kernel | None] = Once(lambda: kernel(self.image(), note))
        self.ranges = Once(lambda: find_ranges(self.image().pages))

    def dense(self, first: int, last: int) -> NDArray[np.uint8]:
        """The pages of all ranges one after the other, from ``first`` to ``last`` (exclusive), a row each."""
        if first >= last:
            return np.empty((0, self.image().page_size), np.uint8)
        ranges = self.ranges()
        number = np.searchsorted(ranges.before, (first, last - 1), "right") - 1
        ends = (ranges.first[number] + (first, last - 1) - ranges.before[number]).tolist()
        pfn, place = self.image().pages.within(ends[0], ends[1] + 1)
        kept = place >= 0
        pfn, place = pfn[kept], place[kept]
        if not len(pfn):
            return np.zeros((last - first, self.image().page_size), np.uint8)
        content = self.image().stored(int(place[0]), len(place))
        if len(content) == last - first:
            return content
        out = np.zeros((last - first, self.image().page_size), np.uint8)
        number = np.searchsorted(ranges.first, pfn, "right") - 1
        out[ranges.before[number] + pfn - ranges.first[number] - first] = content
        return out


@dataclass(frozen=True)
class Ranges:
    """The ranges of memory that a dump has: the first page of each, how many, and how many are in those before."""

    first: I64
    count: I64
    before: I64
    pages: int


def find_ranges(pages: PageIndex) -> Ranges:
    """In order; at least two, if there are two pages. Those with the smallest gaps are joined until few are left."""
    most = MOST_RANGES * 64
    first, end = np.empty(0, np.int64), np.empty(0, np.int64)
    for pfn in pages.batches():
        breaks = np.flatnonzero(np.diff(pfn) != 1)
        first = np.concatenate((first, pfn[:1], pfn[breaks + 1]))
        end = np.concatenate((end, pfn[breaks] + 1, pfn[-1:] + 1))
        first, end = _joined(first, end, most)
    first, end = _joined(first, end, MOST_RANGES)
    count = end - first
    if len(first) == 1 and count[0] > 1:  # crash takes a core with one segment for another kind of dump
        first, count = np.array([first[0], first[0] + 1]), np.array([1, count[0] - 1])
    return Ranges(first, count, np.cumsum(count) - count, int(count.sum()))


def _joined(first: I64, end: I64, most: int) -> tuple[I64, I64]:
    gap = first[1:] - end[:-1]
    keep = gap > 0
    if np.count_nonzero(keep) >= most:
        keep = gap > np.partition(gap, len(gap) - most)[len(gap) - most]
    return np.concatenate((first[:1], first[1:][keep])), np.concatenate((end[:-1][keep], end[-1:]))


class Dump:
    """The ranges of memory one after the other, ``room`` bytes before the first and ``mark`` before each."""

    room: int = 0
    mark: int = 0

    def __init__(self, name: str, source: Source) -> None:
        self.name, self._source = name, source

    def size(self) -> int:
        """Raises what opening an image does."""
        ranges = self._source.ranges()
        return self.room + self.mark * len(ranges.first) + ranges.pages * self._source.image().page_size

    def read(self, offset: int, length: int) -> bytes:
        """Raises Damaged."""
        end = min(offset + length, self.size())
        parts = [self.head()[offset : min(end, self.room)]] if offset < self.room else []
        offset = max(offset, self.room)
        while offset < end:
            parts.append(self._memory(offset, min(end, offset + STEP)))
            offset += STEP
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def head(self) -> bytes:
        """``room`` bytes."""
        return b""

    def marked(self, address: int, size: int) -> bytes:
        """``mark`` bytes."""
        return b""

    @cached_property
    def begins(self) -> I64:
        """Where in this file the memory of each range begins."""
        ranges = self._source.ranges()
        marks = self.mark * np.arange(1, len(ranges.first) + 1)
        return np.asarray(self.room + marks + ranges.before * self._source.image().page_size, np.int64)

    def _memory(self, offset: int, end: int) -> bytes:
        """What stands between two offsets, behind ``room``."""
        ranges, begins, size = self._source.ranges(), self.begins, self._source.image().page_size
        low = max(0, int(np.searchsorted(begins, offset, "right")) - 1)
        high = int(np.searchsorted(begins, end + self.mark, "left"))
        # As if there were no marks, which are put between the pages afterwards.
        within = np.minimum(np.maximum((offset, end) - begins[[low, high - 1]], 0), ranges.count[[low, high - 1]] * size)
        first, last = (within + ranges.before[[low, high - 1]] * size).tolist()
        pages = self._source.dense(first // size, -(-last // size)).reshape(-1)
        content = pages[first - first // size * size : last - first // size * size]
        if not self.mark:
            return content.tobytes()
        parts = []
        for number in range(low, high):
            begin, address, length = int(begins[number]), int(ranges.first[number]) * size, int(ranges.count[number]) * size
            if offset < begin:
                parts.append(self.marked(address, length)[max(0, offset - begin + self.mark) : end - begin + self.mark])
            at = int(ranges.before[number]) * size - first
            parts.append(content[max(0, at) : max(0, at + length)].tobytes())
        return b"".join(parts)


class ElfCore(Dump):
    """An ELF core of the kernel. The search for the kernel's note is left until the head is read."""

    @cached_property
    def room(self) -> int:  # type: ignore[override]
        return elf.core_room(len(self._source.ranges().first), NOTE_START + LARGEST, self._source.image().page_size)

    @cached_property
    def _head(self) -> bytes:
        image, found, ranges = self._source.image(), self._source.kernel(), self._source.ranges()
        table = (self.begins, ranges.first * image.page_size, ranges.count * image.page_size)
        segments = list(zip(*(column.tolist() for column in table), strict=True))
        offset = direct_map(image, found.info if found else None)
        return elf.core_head(architecture(image).machine, segments, found.info.note if found else b"", offset, self.room)

    def head(self) -> bytes:
        return self._head


class Lime(Dump):
    """What LiME writes."""

    mark = elf.LIME.size

    def marked(self, address: int, size: int) -> bytes:
        return elf.lime_head(address, size)


class Text:
    """A file that is made as a whole when it is first asked for."""

    def __init__(self, name: str, make: Callable[[], str]) -> None:
        self.name, self._make = name, make

    @cached_property
    def _content(self) -> bytes:
        return self._make().encode()

    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


class PageTable:
    """One line of equal length for each page of memory in the image: its PFN, what is known, its number among the stored.

    PFNs are hexadecimal, numbers decimal; pages that are not stored are ``zeroes`` and have no number.
    """

    name = "pages.tsv"
    HEAD = b"pfn\tcontent\tnumber\n"
    PFN, NUMBER = 10, 12  # digits
    STORED, ZEROES = b"stored", b"zeroes"
    LINE = 2 + PFN + 1 + len(STORED) + 1 + NUMBER + 1

    def __init__(self, source: Source) -> None:
        self._source = source

    def size(self) -> int:
        """Raises what opening an image does."""
        return len(self.HEAD) + self._source.image().pages.count * self.LINE

    def read(self, offset: int, length: int) -> bytes:
        """Raises Damaged."""
        end = min(offset + length, self.size())
        if offset >= end:
            return b""
        begin = max(0, offset - len(self.HEAD))
        first, last = begin // self.LINE, -(-(end - len(self.HEAD)) // self.LINE)
        lines = self._lines(first, last - first) if last > first else b""
        start = len(self.HEAD) + first * self.LINE
        return self.HEAD[offset:end] + lines[max(0, offset - start) : max(0, end - start)]

    def _lines(self, first: int, count: int) -> bytes:
        pfn, place = self._source.image().pages.numbered(first, count)
        table = np.full((len(pfn), self.LINE), ord("\t"), np.uint8)
        table[:, :2] = list(b"0x")
        table[:, 2 : 2 + self.PFN] = _digits(pfn, self.PFN, 16)
        stored = place >= 0
        at = 3 + self.PFN
        table[:, at : at + 6] = np.where(stored[:, None], list(self.STORED), list(self.ZEROES))
        number = _digits(place, self.NUMBER, 10)
        number[~stored] = ord("-")
        table[:, at + 7 : -1] = number
        table[:, -1] = ord("\n")
        return table.tobytes()


def _digits(values: I64, count: int, base: int) -> NDArray[np.uint8]:
    powers = np.array([base**power for power in range(count - 1, -1, -1)], np.int64)
    digits: NDArray[np.uint8] = np.frombuffer(b"0123456789abcdef", np.uint8)[values[:, None] // powers % base]
    return digits


DerivedFile = ElfCore | Lime | Text | PageTable


def derived(readable: Readable, resume_offset: int = 0, note: int | None = None) -> list[DerivedFile]:
    """The files of a hibernation image. ``note`` is the ``vmcoreinfo_page`` that ``describe`` has found; without it the
    image is searched when memory.elf or header.json is first read, and not before."""
    source = Source(readable, resume_offset, note)

    def header() -> str:
        return json.dumps({**header_fields(source.image()), **kernel_fields(source.kernel())}, indent=1, sort_keys=True) + "\n"

    return [ElfCore("memory.elf", source), Lime("memory.lime", source), Text("header.json", header), PageTable(source)]
