# SPDX-License-Identifier: GPL-3.0-or-later
"""What formats read from. Used by every module of ``formats``; a version of the store (``image.Image``) fits as it is.

A reader never sees a file's descriptor or a device's path, only this; so a live device, a file and a stored version are
read by the same code. Threads may share a Readable.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fuse_store.errors import Damaged, NotFound, StoreError


class Readable(Protocol):
    """``size`` bytes; ``read`` gives ``length`` of them, fewer only at the end. It may raise any StoreError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class File:
    """A file or a block device as a Readable; a context manager. Raises NotFound, StoreError."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"source {self.path}", "there is no such file.") from None
        except OSError as error:
            raise StoreError(f"source {self.path}", f"{error.strerror}.") from None
        try:
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)  # st_size of a block device is 0
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(f"source {self.path}", f"its size cannot be had: {error.strerror}.") from None

    def read(self, offset: int, length: int) -> bytes:
        try:
            content = os.pread(self._descriptor, length, offset)
            while len(content) < length and (more := os.pread(self._descriptor, length - len(content), offset + len(content))):
                content += more
        except OSError as error:
            raise StoreError(f"source {self.path}", f"reading at {offset:#x} failed: {error.strerror}.") from None
        return content

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_exactly(readable: Readable, offset: int, length: int, thing: str) -> bytes:
    """``length`` bytes, or Damaged, which says that ``thing`` is cut off."""
    content = readable.read(offset, length) if 0 <= offset <= readable.size - length else b""
    if len(content) != length:
        raise Damaged(thing, f"it ends before {offset + length:#x}, at {readable.size:#x}.", "Copy it again, whole.")
    return content
