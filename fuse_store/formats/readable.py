# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface that formats read from. A stored version (``fuse_store.image.reader.Image``) has it, and so has File.

A format never sees a file descriptor or the path of a device, so a live device, a file and a stored version are read by the
same code. What only some sources can do are Protocols of their own, which ``isinstance`` tests. Threads may share a Readable.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fuse_store.errors import Damaged, NotFound, UsageError, failed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Readable(Protocol):
    """``size`` bytes; ``read`` returns ``length`` of them, fewer only at the end. It may raise any StoreError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@runtime_checkable
class Prefetchable(Protocol):
    """A Readable that can read a range in the background, for a read that follows. May raise Damaged."""

    def prefetch(self, offset: int, length: int) -> None: ...


@runtime_checkable
class CompressedChunks(Protocol):
    """A Readable that stores some compressed chunks of a hibernation image as the pages they hold, so that they need not be
    compressed to be read and decompressed again."""

    def chunk_at(self, offset: int) -> tuple[int, Callable[[], NDArray[np.uint8]]] | None:
        """(length of the compressed data in bytes, function that returns its pages, a row each) of the chunk that begins at
        ``offset``; None if none does that is stored like this. Both may raise Damaged."""
        ...


class File:
    """A file or a block device as a Readable; a context manager. Raises NotFound, UsageError, StoreError."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would have it wait
        except FileNotFoundError:
            raise NotFound(f"source {self.path}", "no such file.", "Check the path.") from None
        except OSError as error:
            raise failed(f"source {self.path}", error) from None
        mode = os.fstat(self._descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(self._descriptor)
            raise UsageError(f"source {self.path}", "not a file or block device.", "Name one of these.")
        try:
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)  # st_size of a block device is 0
        except OSError as error:
            os.close(self._descriptor)
            raise failed(f"source {self.path}", error, what="cannot determine the size") from None

    def read(self, offset: int, length: int) -> bytes:
        try:
            content = os.pread(self._descriptor, length, offset)
            while len(content) < length and (more := os.pread(self._descriptor, length - len(content), offset + len(content))):
                content += more
        except OSError as error:
            raise failed(f"source {self.path}", error, what=f"cannot read at {offset:#x}") from None
        return content

    def drop_cache(self, offset: int = 0, length: int = 0) -> None:
        """Have the kernel forget what it has cached of a range, by default of all, so that the next read comes from the device."""
        os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_exactly(readable: Readable, offset: int, length: int, thing: str) -> bytes:
    """``length`` bytes. Raises Damaged, which names ``thing``, if there are fewer."""
    content = readable.read(offset, length) if 0 <= offset <= readable.size - length else b""
    if len(content) != length:
        raise Damaged(thing, f"truncated at {readable.size:#x}, data up to {offset + length:#x} is needed.", "Copy it again.")
    return content
