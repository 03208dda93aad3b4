# SPDX-License-Identifier: GPL-3.0-or-later
"""Atomic writes: a file appears complete or not at all, also after a power cut. Functions of paths; safe in threads.

The order of a commit (docs/format.md, "Commit"): content, fsync of the file, rename, fsync of the directory. ``fault_point``
names every step, for tests that kill the process there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"  # of files that the next writer removes
WRITE_BUFFER_SIZE = 64 << 10  # bytes; what is longer is written without a copy
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
AT_FDCWD, RENAME_NOREPLACE = -100, 1  # include/uapi/linux/fcntl.h
UNSUPPORTED = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)  # how file systems say that they can't
FAULT_POINT = "FUSE_STORE_FAULT_POINT"  # for tests: number or name of the step at which the process kills itself
LIBC = ctypes.CDLL(None, use_errno=True)
_steps = itertools.count(1)


def fault_point(step: str) -> None:
    """A step at which a kill must do no harm. Does nothing except in tests."""
    wanted = os.environ.get(FAULT_POINT)
    if wanted is not None and wanted in (str(next(_steps)), step):
        os.kill(os.getpid(), signal.SIGKILL)


class NewFile:
    """A file that is written before it has a name: it appears when it is complete, or not at all. A context manager that drops it,
    unless it was given a name. For one thread."""

    def __init__(self, directory: Path, sync: bool, suffix: str = "") -> None:
        """A partial file in ``directory``, which is created if it is missing. ``sync``: fsync the file and the directory in which
        it appears; ``suffix``: of the name that it will get, for fault points. Raises OSError."""
        self._partial, self._sync, self._suffix = directory / f"{os.urandom(8).hex()}{PARTIAL_SUFFIX}", sync, suffix
        make_directory(directory)
        self.file: BinaryIO = open(os.open(self._partial, NEW_FILE, 0o600), "w+b", WRITE_BUFFER_SIZE)  # noqa: SIM115
        fault_point(f"write {suffix}")

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.abandon()

    def create(self, path: Path, before: Callable[[], None] | None = None) -> None:
        """Let the file appear under ``path``. ``before`` is called when its content is durable, right before; it may raise.
        Raises FileExistsError if there is such a file, OSError."""
        self._appear(path, before, rename_new)

    def replace(self, path: Path, before: Callable[[], None] | None = None) -> None:
        """Let the file appear under ``path``, in the place of what may be there."""
        self._appear(path, before, os.rename)

    def abandon(self) -> None:
        """Drop the file, unless it was given a name."""
        self._partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it writes what is buffered; the disk may be full
            self.file.close()

    def _appear(self, path: Path, before: Callable[[], None] | None, rename: Callable[[Path, Path], None]) -> None:
        self.file.flush()
        if self._sync:
            os.fsync(self.file.fileno())
        self.file.close()
        changed = {path.parent} | make_directory(path.parent)
        fault_point(f"rename {self._suffix}")
        if before is not None:
            before()
        rename(self._partial, path)
        fault_point(f"renamed {self._suffix}")
        if self._sync:
            for directory in changed:
                sync_directory(directory)


def write_file(
    path: Path, content: bytes, sync: bool, before: Callable[[], None] | None = None, *, create: bool = False,
    partial_dir: Path | None = None,
) -> None:  # fmt: skip
    """Write a whole file, by a partial file in ``partial_dir``, by default beside it. ``create``: raise FileExistsError if there is
    one, instead of replacing it. Raises OSError."""
    with NewFile(partial_dir or path.parent, sync, path.suffix) as new:
        new.file.write(content)
        if create:
            new.create(path, before)
        else:
            new.replace(path, before)


def make_directory(path: Path) -> set[Path]:
    """Create a directory and those above it, as far as they are missing; the directories that have a new entry."""
    try:
        path.mkdir(0o700)
        return {path.parent}
    except FileExistsError:
        return set()
    except FileNotFoundError:
        return make_directory(path.parent) | make_directory(path)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file, unless there is one of that name: FileExistsError then. Where the file system has neither renameat2(2) with
    RENAME_NOREPLACE nor hard links, a file beside the target keeps others of this kind away. Raises OSError."""
    try:
        _rename_noreplace(source, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        try:
            os.link(source, target)
            os.unlink(source)
        except OSError as link_error:
            if link_error.errno not in UNSUPPORTED:
                raise
            _rename_guarded(source, target)


def _rename_noreplace(source: Path, target: Path) -> None:
    renameat2 = getattr(LIBC, "renameat2", None)  # not in every C library
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


def _rename_guarded(source: Path, target: Path) -> None:
    guard = target.with_name(f"{target.name}.guard{PARTIAL_SUFFIX}")  # of a killed writer: the next one removes it
    os.close(os.open(guard, NEW_FILE, 0o600))  # FileExistsError if another process is right here, with the same name
    try:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
    finally:
        guard.unlink(missing_ok=True)


def sync_filesystem(path: Path) -> None:
    """Make everything durable that was written to the file system of ``path`` (syncfs(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if LIBC.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def start_writing(file: BinaryIO, offset: int, length: int) -> None:
    """Start to write back a part of a file, so that a later fsync is shorter (sync_file_range(2))."""
    file.flush()
    LIBC.sync_file_range(file.fileno(), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(2))  # …_WRITE


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(directory: Path) -> None:
    """Remove the partial files of killed writers. For the holder of the writer lock."""
    for path in directory.glob("*" + PARTIAL_SUFFIX):
        path.unlink(missing_ok=True)
