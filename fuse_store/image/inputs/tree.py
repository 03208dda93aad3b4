# SPDX-License-Identifier: GPL-3.0-or-later
"""An input of a directory: files, directories and symbolic links.

A user who may write to the directory can put a link or a FIFO in the place of a file or directory at any moment. So everything is
opened relative to the directory that it was found in, never through a link, never waiting; and what was opened has to be what
was listed. After the last file the directory is listed again: nothing may have changed since the first one was read. What a link
leads to is not looked at.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fuse_store.errors import StoreError, UsageError, failed
from fuse_store.image.inputs.holding import Lease
from fuse_store.image.inputs.input import NOTHING_STORED, Batch, Doubts, Input, InputFile, nearest_time
from fuse_store.image.inputs.reading import Run, batches, runs_of
from fuse_store.repository.entries import MAX_TARGET_SIZE, ImageDirectory, ImageLink

Names = tuple[str, ...]

STOP = "Stop the program that writes there, or put a snapshot."
CLOCK_TICK = 20_000_000  # ns; a file that changes again within one may keep its times

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OTHERS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device"}


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


class Listing(NamedTuple):
    """All that is below a directory, itself included: by names, what identifies it, and what a link says."""

    files: dict[Names, Seen]
    directories: dict[Names, Seen]
    links: dict[Names, tuple[Seen, str]]

    def first_changed(self, later: Listing) -> Names | None:
        """The names of something that is not the same in a later one."""
        pairs: list[tuple[Mapping[Names, object], Mapping[Names, object]]] = [
            (self.files, later.files), (self.directories, later.directories), (self.links, later.links),
        ]  # fmt: skip
        changed = (names for before, after in pairs for names in {**before, **after} if before.get(names) != after.get(names))
        return next(changed, None)


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
    """Everything below a directory, in the order of the names, those of a directory before those of its directories."""

    def __init__(self, root: Path, doubts: Doubts) -> None:
        """Raises UsageError for what is no file, directory or link, StoreError, OSError."""
        super().__init__(str(root), doubts)
        self._root = root
        self._directories = _Directories(root)
        try:
            self._listing = self._list()
            if not self._listing.files:
                raise UsageError(f"source {root}", "no file in it.", "Name a directory that has files.")
        except BaseException:
            self._directories.close()
            raise
        self._lease = Lease(doubts)
        self.files = [
            InputFile("/".join(names), None, seen.size, stat.S_IMODE(seen.mode), seen.mtime) for names, seen in self._listing.files.items()
        ]
        self.directories = [
            ImageDirectory("/".join(names), stat.S_IMODE(seen.mode), nearest_time(seen.mtime))
            for names, seen in self._listing.directories.items()
        ]
        self.links = [
            ImageLink("/".join(names), target, nearest_time(seen.mtime)) for names, (seen, target) in self._listing.links.items()
        ]
        age = time.time_ns() - max(seen.ctime for seen in (*self._listing.files.values(), *self._listing.directories.values()))
        if 0 <= age < CLOCK_TICK:
            time.sleep((CLOCK_TICK - age) / 1e9)  # from now on each change shows

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        try:
            yield from batches(self._runs(page_size), self.end(page_size) or 0, page_size, self.doubts, buffers)
        except OSError as error:
            raise failed(f"source {self._root}", error, NOTHING_STORED) from None

    def _runs(self, page_size: int) -> Generator[Run, None, None]:
        for file, offset, (names, seen) in zip(self.files, self.offsets(page_size), self._listing.files.items(), strict=True):
            path = str(self._root.joinpath(*names))
            descriptor = self._open_seen(names, seen, path)
            try:
                self._lease.take(descriptor, path)
                yield from runs_of(descriptor, file, offset // page_size, page_size, path, self._lease.check)
                self._lease.check()
            finally:
                self._lease.drop()
                os.close(descriptor)
        changed = self._listing.first_changed(self._list())
        if changed is not None:
            self.doubts.differs(self._root.joinpath(*changed))

    def _open_seen(self, names: Sequence[str], seen: Seen, path: str) -> int:
        """Open a file that was listed. Raises StoreError if another one has its name, or it changed."""
        try:
            descriptor = os.open(names[-1], _FILE, dir_fd=self._directories.open(names[:-1]))
        except PermissionError:
            raise StoreError(f"source {path}", "permission denied.", "Run the command as root, or as the owner.") from None
        except OSError as error:
            raise StoreError(f"source {path}", f"gone while being read ({error.strerror}).", f"{NOTHING_STORED} {STOP}") from None
        try:
            now = Seen.of(os.fstat(descriptor))
            if now[:2] != seen[:2] or not stat.S_ISREG(now.mode):
                raise StoreError(f"source {path}", "replaced while being read.", f"{NOTHING_STORED} {STOP}")
            if now != seen:
                self.doubts.differs(path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _list(self) -> Listing:
        """Everything. Raises UsageError, StoreError, OSError."""
        found = Listing({}, {}, {})
        pending: list[Names] = [()]
        while pending:
            directory = pending.pop()
            inner = []
            try:
                descriptor = self._directories.open(directory)
            except OSError as error:
                raise failed(f"source {self._root.joinpath(*directory)}", error, NOTHING_STORED) from None
            found.directories[directory] = Seen.of(os.fstat(descriptor))
            with os.scandir(descriptor) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
                for entry in listed:
                    names = (*directory, entry.name)
                    self._check(names)
                    seen = Seen.of(entry.stat(follow_symlinks=False))
                    if stat.S_ISDIR(seen.mode):
                        inner.append(names)
                    elif stat.S_ISLNK(seen.mode):
                        found.links[names] = seen, self._target(descriptor, names)
                    elif stat.S_ISREG(seen.mode):
                        found.files[names] = seen
                    else:
                        raise self._no_place(names, seen)
            pending += reversed(inner)
        return found

    def _target(self, directory: int, names: Names) -> str:
        """What a link says. Raises UsageError, OSError."""
        target = os.readlink(names[-1], dir_fd=directory)
        try:
            if len(target.encode()) <= MAX_TARGET_SIZE:
                return target
            cause, remedy = "the link leads to a name that is too long.", "Remove the link."
        except UnicodeEncodeError:
            cause, remedy = "what the link leads to is not UTF-8.", "Rename it, and make the link again."
        raise UsageError(f"source {self._root.joinpath(*names)}", cause, remedy)

    def _no_place(self, names: Names, seen: Seen) -> UsageError:
        what = _OTHERS.get(stat.S_IFMT(seen.mode), "no regular file")
        remedy = "Remove it, or store what tar makes of the directory, with --command."
        return UsageError(f"source {self._root.joinpath(*names)}", f"{what}, which the image of a directory cannot hold.", remedy)

    def _check(self, names: Names) -> None:
        if not names[-1].isascii():
            path = self._root.joinpath(*names)
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise UsageError(f"source {str(path)!r}", "the file name is not UTF-8.", "Rename the file.") from None

    def close(self) -> None:
        self._lease.close()
        self._directories.close()
