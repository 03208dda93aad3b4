# SPDX-License-Identifier: GPL-3.0-or-later
"""An input of a directory of files.

A user who may write to the directory can put a link or a FIFO in the place of a file or directory at any moment. So everything is
opened relative to the directory that it was found in, never through a link, never waiting; and what was opened has to be what
was listed. After the last file the directory is listed again: no file may have changed since the first one was read.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from fuse_store.errors import StoreError, UsageError, failed
from fuse_store.image.inputs.holding import Lease
from fuse_store.image.inputs.input import NOTHING_STORED, Batch, Doubts, Input, InputFile
from fuse_store.image.inputs.reading import Run, batches, runs_of

CLOCK_TICK = 20_000_000  # ns; a file that changes again within one may keep its times

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Seen(NamedTuple):
    """What identifies a file, and changes when it does."""

    device: int
    inode: int
    mode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, status: os.stat_result) -> Seen:
        return cls(status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Directories:
    """Directories below a root, opened one in the other; those on the way to the last one stay open."""

    def __init__(self, root: Path) -> None:
        """Raises OSError. The root itself may be named by a link."""
        self._open = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._names: list[str] = []

    def open(self, names: Sequence[str]) -> int:
        """The descriptor, valid until the next call. Raises OSError."""
        shared = 0
        while shared < min(len(names), len(self._names)) and names[shared] == self._names[shared]:
            shared += 1
        self._close(shared)
        for name in names[shared:]:
            self._open.append(os.open(name, _DIRECTORY, dir_fd=self._open[-1]))
            self._names.append(name)
        return self._open[-1]

    def _close(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._open.pop())

    def close(self) -> None:
        self._close(0)
        os.close(self._open.pop())


class TreeInput(Input):
    """Every file below a directory, in the order of their names, those of a directory before those of its directories."""

    def __init__(self, root: Path, doubts: Doubts) -> None:
        """Raises UsageError for what is no regular file, StoreError, OSError."""
        super().__init__(str(root), doubts)
        self._root = root
        self._directories = _Directories(root)
        try:
            self._seen = self._list()
            if not self._seen:
                raise UsageError(f"source {root}", "no file in it.", "Name a directory that has files.")
        except BaseException:
            self._directories.close()
            raise
        self._lease = Lease(doubts)
        self.files = [
            InputFile("/".join(names), None, seen.size, stat.S_IMODE(seen.mode), seen.mtime) for names, seen in self._seen.items()
        ]
        age = time.time_ns() - max(seen.ctime for seen in self._seen.values())
        if 0 <= age < CLOCK_TICK:
            time.sleep((CLOCK_TICK - age) / 1e9)  # from now on each change shows

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        try:
            yield from batches(self._runs(page_size), self.end(page_size) or 0, page_size, self.doubts, buffers)
        except OSError as error:
            raise failed(f"source {self._root}", error, NOTHING_STORED) from None

    def _runs(self, page_size: int) -> Generator[Run, None, None]:
        for file, offset, (names, seen) in zip(self.files, self.offsets(page_size), self._seen.items(), strict=True):
            path = str(self._root.joinpath(*names))
            descriptor = self._open_seen(names, seen, path)
            try:
                self._lease.take(descriptor, path)
                yield from runs_of(descriptor, file, offset // page_size, page_size, path, self._lease.check)
                self._lease.check()
            finally:
                self._lease.drop()
                os.close(descriptor)
        after = self._list()
        if after != self._seen:
            names = next(names for names in {**self._seen, **after} if self._seen.get(names) != after.get(names))
            self.doubts.differs(self._root.joinpath(*names))

    def _open_seen(self, names: Sequence[str], seen: Seen, path: str) -> int:
        """Open a file that was listed. Raises StoreError if another one has its name, or it changed."""
        try:
            descriptor = os.open(names[-1], _FILE, dir_fd=self._directories.open(names[:-1]))
        except PermissionError:
            raise StoreError(f"source {path}", "permission denied.", "Run the command as root, or as the owner.") from None
        except OSError as error:
            raise StoreError(f"source {path}", f"changed while being read ({error.strerror}).", NOTHING_STORED) from None
        try:
            now = Seen.of(os.fstat(descriptor))
            if now[:2] != seen[:2] or not stat.S_ISREG(now.mode):
                raise StoreError(f"source {path}", "replaced while being read.", f"{NOTHING_STORED} Stop the program that writes to it.")
            if now != seen:
                self.doubts.differs(path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _list(self) -> dict[tuple[str, ...], Seen]:
        """Every file. Raises UsageError, OSError."""
        found = {}
        pending: list[tuple[str, ...]] = [()]
        while pending:
            directory = pending.pop()
            inner = []
            with os.scandir(self._directories.open(directory)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
                for entry in listed:
                    names = (*directory, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(names)
                        continue
                    found[names] = Seen.of(entry.stat(follow_symlinks=False))
                    self._check(names, found[names])
            pending += reversed(inner)
        return found

    def _check(self, names: Sequence[str], seen: Seen) -> None:
        path = self._root.joinpath(*names)
        if not stat.S_ISREG(seen.mode):
            raise UsageError(f"source {path}", "not a regular file.", "An image of several files holds regular files only.")
        if not all(name.isascii() for name in names):
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise UsageError(f"source {str(path)!r}", "the file name is not UTF-8.", "Rename the file.") from None

    def close(self) -> None:
        self._lease.close()
        self._directories.close()
