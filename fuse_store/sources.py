# SPDX-License-Identifier: GPL-3.0-or-later
"""What images are made from: a file, a block device, a directory of files, standard input. Used by ``capture``.

A source gives its files, and the data of each in order; what it passes over is a hole, which reads as zeros.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fuse_store.errors import NotFound, Refused, StoreError, UsageError

CHUNK = 16 << 20  # bytes that are read at once; a multiple of every page size and of a block


@dataclass
class SourceFile:
    """One file of a source. ``size`` is None for a stream, until it has been read."""

    name: str
    path: Path | None
    size: int | None
    mode: int = 0o600
    mtime: int = 0

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """(offset, data) in ascending order; offsets are multiples of CHUNK, data are CHUNK bytes or what is left.

        The data are valid until the next one is asked for. Raises StoreError if it changes while it is read.
        """
        yield from _stream(sys.stdin.buffer, self) if self.path is None else _seekable(self.path, self)


def open_source(text: str) -> tuple[str, list[SourceFile]]:
    """(kind of source, its files) of what a user named. Raises NotFound, Refused, UsageError."""
    if text == "-":
        if sys.stdin.isatty():
            raise UsageError("standard input", "it is a terminal.", "Pipe an image into it, or name a file.")
        return "stream", [SourceFile("image", None, None)]
    path = Path(text)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return "directory", _directory(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise UsageError(f"source {text}", "it is neither a file nor a block device nor a directory.")
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise NotFound(f"source {text}", "it does not exist.") from None
    except PermissionError:
        raise Refused(f"source {text}", "this user may not read it.", "Run as a user who may.") from None
    except OSError as error:
        raise StoreError(f"source {text}", f"{error.strerror}.") from None
    kind = "device" if stat.S_ISBLK(status.st_mode) else "file"
    return kind, [SourceFile("image", path, size, stat.S_IMODE(status.st_mode), status.st_mtime_ns)]


def _directory(root: Path) -> list[SourceFile]:
    files = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"source {path}", "it is not a regular file.", "An image of several files holds such only.")
            relative = str(path.relative_to(root))
            files.append(SourceFile(relative, path, status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns))
    if not files:
        raise UsageError(f"source {root}", "there is no file in it.")
    return files


def _seekable(path: Path, file: SourceFile) -> Iterator[tuple[int, memoryview]]:
    buffer = memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as opened:
        before = os.fstat(opened.fileno())
        assert file.size is not None
        at = 0
        while at < file.size:
            at = _next_data(opened.fileno(), at, file.size) // CHUNK * CHUNK
            wanted = min(CHUNK, file.size - at)
            if wanted <= 0:
                break
            got = 0
            while got < wanted:
                number = os.preadv(opened.fileno(), [buffer[got:wanted]], at + got)
                if number == 0:
                    raise StoreError(f"source {path}", "it became shorter while it was read.", "Nothing was stored.")
                got += number
            yield at, buffer[:wanted]
            at += wanted
        after = os.fstat(opened.fileno())
        if stat.S_ISREG(after.st_mode) and (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise StoreError(f"source {path}", "it changed while it was read.", "Nothing was stored. Stop what writes to it.")


def _next_data(descriptor: int, at: int, size: int) -> int:
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size + CHUNK  # only a hole is left
        return at  # whatever it is, it knows no holes


def _stream(stream: BinaryIO, file: SourceFile) -> Iterator[tuple[int, memoryview]]:
    buffer = memoryview(bytearray(CHUNK))
    at = 0
    while True:
        got = 0
        while got < CHUNK:
            number = stream.readinto(buffer[got:])  # type: ignore[attr-defined]
            if not number:
                break
            got += number
        if got:
            yield at, buffer[:got]
            at += got
        if got < CHUNK:
            break
    file.size = at
