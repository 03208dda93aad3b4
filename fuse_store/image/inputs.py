# SPDX-License-Identifier: GPL-3.0-or-later
"""Inputs of ``put``: a file, a block device, a directory of files, standard input.

An input gives its files, and the data of each in order; what is left out is a hole, which reads as zeros. Holes are looked
up, not read: reading them would fill the page cache with zeros. Each file is read by one thread.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import expand
from fuse_store.errors import NotFound, StoreError, UsageError

BATCH_SIZE = 16 << 20  # bytes that are read at once; a multiple of every page size
MIN_HOLE = 16 << 10  # a hole that is smaller than this is read
SKIP_RUNS = 1 << 16  # of what is skipped, looked at at once


@dataclass(frozen=True)
class Batch:
    """Some pages of a file: their numbers, ascending, and their content, one after the other. ``end`` is how far in the
    file, in bytes, the source has been read."""

    page: NDArray[np.int64]
    data: memoryview
    end: int


@dataclass
class InputFile:
    """One file of a source. ``size`` is None for a stream, until it has been read."""

    name: str
    path: Path | None
    size: int | None
    mode: int = 0o600
    mtime: int = 0
    skip: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # first page and number of pages of what is not read

    def batches(self, page_size: int) -> Iterator[Batch]:
        """Its data, in ascending order; a last page that is not full ends in zeros. A batch is valid until the next one is
        asked for. Raises StoreError if the source changes while it is read."""
        try:
            if self.path is None:
                yield from _stream(sys.stdin.buffer, self, page_size)
                return
            source = _seekable(self.path, self, page_size)
            with ThreadPoolExecutor(1, "read") as pool:  # the next batch is read while this one is used
                job = pool.submit(next, source, None)
                while (batch := job.result()) is not None:
                    job = pool.submit(next, source, None)
                    yield batch
        except OSError as error:
            raise StoreError(f"source {self.path or '-'}", f"{error.strerror}.", "Nothing was stored.") from None


def open_input(text: str) -> list[InputFile]:
    """The files of what a user named; ``-`` is standard input. Raises NotFound, StoreError, UsageError."""
    if not text:
        raise UsageError("SOURCE", "empty.", "Name a file, block device or directory, or - for standard input.")
    if text == "-":
        if sys.stdin.isatty():
            raise UsageError("standard input", "is a terminal.", "Pipe an image into it, or name a file.")
        return [InputFile("image", None, None)]
    path = Path(text)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return _directory(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise UsageError(f"source {text}", "not a file, block device or directory.", "Name one of these, or - for standard input.")
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise NotFound(f"source {text}", "no such file or directory.") from None
    except PermissionError:
        raise StoreError(f"source {text}", "permission denied.", "Run the command as root, or as the owner.") from None
    except OSError as error:
        raise StoreError(f"source {text}", f"{error.strerror}.") from None
    return [InputFile("image", path, size, stat.S_IMODE(status.st_mode), status.st_mtime_ns)]


def _directory(root: Path) -> list[InputFile]:
    files = []
    for directory, directories, names in os.walk(root):
        directories.sort()
        links = [name for name in directories if (Path(directory) / name).is_symlink()]  # os.walk does not go into them
        for name in sorted((*names, *links)):
            path = Path(directory) / name
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"source {path}", "not a regular file.", "An image of several files holds regular files only.")
            relative = str(path.relative_to(root))
            try:
                relative.encode()
            except UnicodeEncodeError:
                raise UsageError(f"source {str(path)!r}", "the file name is not UTF-8.", "Rename the file.") from None
            files.append(InputFile(relative, path, status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns))
    if not files:
        raise UsageError(f"source {root}", "no file in it.")
    return files


def _seekable(path: Path, file: InputFile, page_size: int) -> Iterator[Batch]:
    assert file.size is not None
    room = min(BATCH_SIZE, -(-file.size // page_size) * page_size)
    buffer, other = (np.empty(room, np.uint8).data for _ in range(2))  # in huge pages, unlike a bytearray
    with open(path, "rb", buffering=0) as opened:
        descriptor = opened.fileno()
        filled = 0
        parts: list[tuple[int, int]] = []  # first page, number of pages
        for start, end in _without(_data(descriptor, file.size, page_size), file.skip, page_size):
            while start < end:
                length = min(end - start, room - filled)
                _fill(descriptor, buffer[filled : filled + length], start, min(length, file.size - start), path)
                parts.append((start // page_size, length // page_size))
                filled, start = filled + length, start + length
                if filled == room:
                    yield Batch(_pages(parts), buffer, start)
                    filled, parts, buffer, other = 0, [], other, buffer
        if filled:
            yield Batch(_pages(parts), buffer[:filled], file.size)
        after = os.fstat(descriptor)
        if stat.S_ISREG(after.st_mode) and (file.mtime, file.size) != (after.st_mtime_ns, after.st_size):
            raise StoreError(f"source {path}", "changed while being read.", "Nothing was stored. Stop the program that writes to it.")


def _pages(parts: list[tuple[int, int]]) -> NDArray[np.int64]:
    first, count = (np.array(column, np.int64) for column in zip(*parts, strict=True))
    return expand(first, count)


def _data(descriptor: int, size: int, page_size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is no hole, in whole pages; the last end may lie past the end of the file."""
    start = end = at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # only a hole is left
            begin, at = at, size  # whatever it is, it knows no holes
        begin, stop = begin // page_size * page_size, -(-at // page_size) * page_size
        if begin - end < MIN_HOLE and end:
            end = max(end, stop)
            continue
        if end:
            yield start, end
        start, end = begin, stop
    if end:
        yield start, end


def _without(
    data: Iterator[tuple[int, int]], skip: tuple[NDArray[np.int64], NDArray[np.int64]] | None, page_size: int
) -> Iterator[tuple[int, int]]:
    """The same without the runs of pages in ``skip``, which are in order."""
    if skip is None:
        yield from data
        return
    begin, stop = skip[0] * page_size, (skip[0] + skip[1]) * page_size
    for start, end in data:
        low, high = int(np.searchsorted(stop, start, "right")), int(np.searchsorted(begin, end, "left"))
        for at in range(low, high, SKIP_RUNS):
            part = slice(at, min(at + SKIP_RUNS, high))
            for gap, after in zip(begin[part].tolist(), stop[part].tolist(), strict=True):
                if start < gap:
                    yield start, gap
                start = max(start, after)
        if start < end:
            yield start, end


def _fill(descriptor: int, buffer: memoryview, offset: int, wanted: int, path: Path) -> None:
    """``wanted`` bytes at ``offset`` of the file, zeros after them."""
    got = 0
    while got < wanted:
        number = os.preadv(descriptor, [buffer[got:wanted]], offset + got)
        if number == 0:
            raise StoreError(f"source {path}", "became shorter while being read.", "Nothing was stored.")
        got += number
    if got < len(buffer):
        buffer[got:] = bytes(len(buffer) - got)


def _stream(stream: BinaryIO, file: InputFile, page_size: int) -> Iterator[Batch]:
    buffer = np.empty(BATCH_SIZE, np.uint8).data
    at = 0
    while True:
        got = 0
        while got < BATCH_SIZE:
            number = os.readv(stream.fileno(), [buffer[got:]])  # not readinto, which sees no signal while the producer stalls
            if not number:
                break
            got += number
        if got:
            whole = -(-got // page_size) * page_size
            buffer[got:whole] = bytes(whole - got)
            yield Batch(at // page_size + np.arange(whole // page_size), buffer[:whole], at + got)
            at += got
        if got < BATCH_SIZE:
            break
    file.size = at
