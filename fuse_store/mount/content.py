# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the files of the tree, once they are open. Used by ``tree``, which makes them, and by whoever reads them.

Every Content may be read by several threads at once. What is read sequentially is read ahead in windows, in the
background and by all readers of a version together, because reading a large piece of an image costs little more than a
small one. A window that can't be read as a whole is read piece by piece, so that only what is damaged is lost.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from fuse_store.errors import StoreError
from fuse_store.image.kind import View
from fuse_store.mount.prefetch import Readers
from fuse_store.mount.ranges import Ranges

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

WINDOW = 4 << 20  # bytes, a multiple of the page size
WINDOWS = 16  # that are kept
AHEAD = 3  # windows that are read before they are asked for
SEQUENTIAL = 256 << 10  # bytes after which reading in order is taken for a habit
NEAR = 2 << 20  # how far from the end of the last request the next one may begin: the kernel asks for several at once


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


class Windows:
    """Pieces of images, read in the background, the ones used last. One for all files of a tree."""

    def __init__(self, readers: Readers | None = None) -> None:
        self._readers = readers
        self._pool = ThreadPoolExecutor(2, "window")
        self._windows: OrderedDict[tuple[str, int], Future[memoryview]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, image: Image, number: int) -> Future[memoryview]:
        """The bytes from ``number`` * WINDOW. The result may raise StoreError."""
        key = image.id, number
        with self._lock:
            window = self._windows.get(key)
            if window is None:
                window = self._readers.begin(image.id, number * WINDOW) if self._readers else None
                if window is None:
                    window = self._pool.submit(image.read_view, number * WINDOW, WINDOW)
                self._windows[key] = window
                if len(self._windows) > WINDOWS:
                    self._windows.popitem(last=False)
            else:
                self._windows.move_to_end(key)
        return window

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._readers:
            self._readers.close()


class ImageContent:
    """``size`` bytes of an image from ``base``."""

    def __init__(self, image: Image, base: int, size: int, windows: Windows) -> None:
        self.size = size
        self._image, self._base, self._windows = image, base, windows
        self._ranges = Ranges(image, base, size)
        self._next = 0  # where a reader in order would go on, in the image
        self._run = 0  # bytes read in order
        self._ahead = 0  # the window up to which reading has begun

    def read(self, offset: int, length: int) -> bytes | memoryview:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        start = self._base + offset
        if not self._in_order(start, length):
            return self._image.read_view(start, length)
        number, within = divmod(start, WINDOW)
        if within + length > WINDOW:
            return self._image.read_view(start, length)
        window = self._windows.begin(self._image, number)
        for ahead in range(max(number + 1, self._ahead), number + 1 + AHEAD):
            if ahead * WINDOW < self._base + self.size:
                self._windows.begin(self._image, ahead)
        self._ahead = number + 1 + AHEAD
        try:
            return window.result()[within : within + length]
        except StoreError:
            return self._image.read_view(start, length)

    def data(self, offset: int) -> int | None:
        return self._ranges.data(offset)

    def hole(self, offset: int) -> int:
        return self._ranges.hole(offset)

    def _in_order(self, start: int, length: int) -> bool:
        """Whether this request goes on with those before. Without a lock: a wrong guess costs time, nothing else."""
        if abs(start - self._next) > NEAR:
            self._run, self._ahead = 0, 0
            self._next = start + length
            return False
        self._run += length
        self._next = max(self._next, start + length)
        return self._run >= SEQUENTIAL


class MadeContent:
    """A small file that is made as a whole when it is first read; ``size`` is known before."""

    def __init__(self, size: int, make: Callable[[], bytes]) -> None:
        self.size, self._make = size, make

    def read(self, offset: int, length: int) -> bytes:
        return self._make()[offset : offset + length]

    def data(self, offset: int) -> int | None:
        return offset

    def hole(self, offset: int) -> int:
        return self.size


class DerivedContent:
    """A derived file."""

    def __init__(self, file: View, size: int) -> None:
        self.size, self._file = size, file

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, min(length, self.size - offset))

    def data(self, offset: int) -> int | None:
        return offset

    def hole(self, offset: int) -> int:
        return self.size
