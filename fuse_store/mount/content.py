# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of the tree's files, once they are open.

Several threads may read one Content at the same time. Sequential reads are served from windows of READ_AHEAD_WINDOW bytes
that are read ahead in the background and shared by all readers of a version: a large read of an image costs little more
than a small one. A window that cannot be read as a whole is read in pieces, so only the damaged bytes are lost.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from fuse_store.errors import Damaged, StoreError
from fuse_store.image.kind import View
from fuse_store.mount.prefetch import PATIENCE, PrefetchProcesses
from fuse_store.mount.ranges import DataRanges

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

READ_AHEAD_WINDOW = 4 << 20  # bytes, a multiple of the page size
MAX_CACHED_WINDOWS = 16  # windows, of all files of a tree together
WINDOWS_AHEAD = 3  # windows that are read before they are requested
SEQUENTIAL_THRESHOLD = 256 << 10  # bytes read in order before reading ahead begins
SEQUENTIAL_TOLERANCE = 2 << 20  # bytes between the end of one request and the start of the next: the kernel sends several at once


class Content(Protocol):
    """An open file of ``size`` bytes."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """``length`` bytes, fewer only at the end. Raises Damaged, NotFound, StoreError."""
        ...

    def data(self, offset: int) -> int | None:
        """The first byte of data at or after ``offset``, which is inside the file; None if there is none. Raises Damaged."""
        ...

    def hole(self, offset: int) -> int:
        """The first byte of a hole at or after ``offset``; the end of the file counts as one. Raises Damaged."""
        ...


class WindowCache:
    """The windows of images that were used last, read in the background. One for all files of a tree."""

    def __init__(self, prefetch: PrefetchProcesses | None = None) -> None:
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(2, "window")
        self._windows: OrderedDict[tuple[str, int], Future[memoryview]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, image: Image, window: int) -> Future[memoryview]:
        """The bytes from ``window`` * READ_AHEAD_WINDOW on. The result may raise StoreError."""
        key, offset = (image.id, window), window * READ_AHEAD_WINDOW
        with self._lock:
            future = self._windows.get(key)
            if future is None:
                future = self._prefetch.begin(image.id, offset) if self._prefetch else None
                if future is None:
                    future = self._pool.submit(image.read_view, offset, READ_AHEAD_WINDOW)
                self._windows[key] = future
                if len(self._windows) > MAX_CACHED_WINDOWS:
                    self._windows.popitem(last=False)
            else:
                self._windows.move_to_end(key)
        return future

    def read(self, image: Image, future: Future[memoryview], start: int, length: int) -> bytes | memoryview:
        """A part of an image inside of the window that ``future`` is. Raises Damaged, NotFound, StoreError."""
        try:
            within = start % READ_AHEAD_WINDOW
            return future.result(PATIENCE if self._prefetch else None)[within : within + length]
        except TimeoutError:
            if self._prefetch and self._prefetch.give_up(future):
                with self._lock:  # all that were asked of that process, and of others a moment ago
                    for key in [key for key, begun in self._windows.items() if not begun.done()]:
                        del self._windows[key]
        except StoreError:
            pass
        return image.read_view(start, length)

    def kill(self) -> None:
        """End the prefetch processes, without waiting for anything."""
        if self._prefetch:
            self._prefetch.kill()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._prefetch:
            self._prefetch.close()


class ImageContent:
    """``size`` bytes of an image, from byte ``base`` of it on."""

    def __init__(self, image: Image, base: int, size: int, windows: WindowCache) -> None:
        self.size, self.base = size, base
        self._image, self._windows = image, windows
        self._ranges = DataRanges(image, base, size)
        self._next_offset = 0  # in the image: where a sequential reader would continue
        self._sequential_bytes = 0  # read in order so far
        self._requested_up_to = 0  # the window up to which reading has begun

    def read(self, offset: int, length: int) -> bytes | memoryview:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        start = self.base + offset
        if not self._is_sequential(start, length):
            return self._image.read_view(start, length)
        current, within = divmod(start, READ_AHEAD_WINDOW)
        if within + length > READ_AHEAD_WINDOW:
            return self._image.read_view(start, length)
        window = self._windows.begin(self._image, current)
        for later in range(max(current + 1, self._requested_up_to), current + 1 + WINDOWS_AHEAD):
            if later * READ_AHEAD_WINDOW < self.base + self.size:
                self._windows.begin(self._image, later)
        self._requested_up_to = current + 1 + WINDOWS_AHEAD
        return self._windows.read(self._image, window, start, length)

    def data(self, offset: int) -> int | None:
        return self._ranges.data(offset)

    def hole(self, offset: int) -> int:
        return self._ranges.hole(offset)

    def _is_sequential(self, start: int, length: int) -> bool:
        """Whether a request continues the ones before. Without a lock: a wrong answer costs time only."""
        if abs(start - self._next_offset) > SEQUENTIAL_TOLERANCE:
            self._sequential_bytes, self._requested_up_to = 0, 0
            self._next_offset = start + length
            return False
        self._sequential_bytes += length
        self._next_offset = max(self._next_offset, start + length)
        return self._sequential_bytes >= SEQUENTIAL_THRESHOLD


def offset_of(content: Content, error: Exception, offset: int) -> int:
    """Where in a file a read from ``offset`` on met the error: at the damaged page if that is known, which may be a MiB behind it."""
    if isinstance(content, ImageContent) and isinstance(error, Damaged) and error.extent:
        return max(offset, int(error.extent, 16) - content.base)
    return offset


class GeneratedContent:
    """A small file of known ``size`` whose bytes ``generate`` returns when they are first read."""

    def __init__(self, size: int, generate: Callable[[], bytes]) -> None:
        self.size, self._generate = size, generate

    def read(self, offset: int, length: int) -> bytes:
        return self._generate()[offset : offset + length]

    def data(self, offset: int) -> int | None:
        return offset

    def hole(self, offset: int) -> int:
        return self.size


class DerivedContent:
    """A file that is computed from an image, such as ``memory.elf``."""

    def __init__(self, file: View, size: int) -> None:
        self.size, self._file = size, file

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, min(length, self.size - offset))

    def data(self, offset: int) -> int | None:
        return offset

    def hole(self, offset: int) -> int:
        return self.size
