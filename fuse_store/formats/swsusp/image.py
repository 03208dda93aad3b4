# SPDX-License-Identifier: GPL-3.0-or-later
"""An open hibernation image: its header, its counts, and the memory of the machine page by page.

Opening reads the header, the swap map and one page; the lists of PFNs are read when memory is first needed. Threads may share
a HibernationImage.
"""

from __future__ import annotations

import threading
from types import TracebackType

import numpy as np

from fuse_store.errors import Damaged, NotFound
from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp import header as headers
from fuse_store.formats.swsusp import info as infos
from fuse_store.formats.swsusp.layout import IMAGE
from fuse_store.formats.swsusp.page_index import PageIndex
from fuse_store.formats.swsusp.stream import Pages, checksum, open_stream
from fuse_store.formats.swsusp.swap_map import read_map
from fuse_store.progress import SILENT, Progress


class HibernationImage:
    """``header``, ``info``, ``map`` and ``stream`` of an image; a context manager."""

    def __init__(self, readable: Readable, resume_offset: int = 0, page_size: int | None = None) -> None:
        """Raises NotFound if there is no image (any more), Refused for one that is not supported, Damaged."""
        self.header = headers.find(readable, resume_offset, page_size)
        self.page_size = self.header.page_size
        try:
            self.map = read_map(readable, self.header)
            self.info = infos.parse(self.map.read(0, 1).tobytes(), self.page_size)
            self.stream = open_stream(self.map, self.header, self.info)
        except Damaged as error:
            raise self._overwritten(error) from error
        self._pages: PageIndex | None = None
        self._lock = threading.Lock()

    @property
    def pages(self) -> PageIndex:
        """The pages of memory that the image holds. Raises Damaged, NotFound as opening does."""
        with self._lock:
            if self._pages is None:
                try:
                    self._pages = PageIndex(self.stream, self.info, self.page_size)
                except Damaged as error:
                    raise self._overwritten(error) from error
            return self._pages

    def _overwritten(self, error: Damaged) -> Damaged | NotFound:
        """A swap area that is in use again after a resume is not damaged: it holds no image any more."""
        if self.header.state == "armed":
            return error
        cause = f"the image in this swap area was resumed or disarmed, and then overwritten: {error.cause}"
        return NotFound(IMAGE, cause, "Hibernate again.")

    def stored(self, first: int, count: int) -> Pages:
        """``count`` stored pages of memory by their position, a row each. Raises Damaged."""
        return self.stream.read(self.info.lists + first, count)

    def memory_pages(self, first: int, count: int) -> Pages:
        """The pages of memory from PFN ``first`` on, a row each; zeros where the image has none. Raises Damaged."""
        pfn, position = self.pages.within(first, first + count)
        is_stored = position >= 0
        stored = int(np.count_nonzero(is_stored))
        content = self.stored(int(position[is_stored][0]), stored) if stored else np.empty((0, self.page_size), np.uint8)
        if stored == count:
            return content
        out = np.zeros((count, self.page_size), np.uint8)
        out[pfn[is_stored] - first] = content
        return out

    def memory(self, address: int, length: int) -> bytes:
        """``length`` bytes of physical memory; zeros where the image has none. Raises Damaged."""
        if not length:
            return b""
        first, last = address // self.page_size, (address + length - 1) // self.page_size
        begin = address - first * self.page_size
        return self.memory_pages(first, last - first + 1).reshape(-1)[begin : begin + length].tobytes()

    def holds(self, address: int) -> bool:
        """Whether the page of a physical address is in the image."""
        pfn = address // self.page_size
        return bool(len(self.pages.within(pfn, pfn + 1)[0]))

    def crc_matches(self, progress: Progress = SILENT) -> bool | None:
        """Whether the kernel's checksum matches; None if the image has none. Reads the whole image. Raises Damaged."""
        if self.header.crc32 is None:
            return None
        return checksum(self.stream, self.page_size, progress) == self.header.crc32

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> HibernationImage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
