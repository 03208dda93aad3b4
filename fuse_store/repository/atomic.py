# SPDX-License-Identifier: GPL-3.0-or-later
"""Atomic writes: a file appears complete or not at all, also after a power cut. Functions of paths; safe in threads.

The order of a commit (docs/format.md, "Commit"): content, fsync of the file, rename, fsync of the directory. ``fault_point``
names every step, for tests that kill the process there.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"  # of files that the next writer removes
MTIME_TRUSTED_AFTER = 20_000_000  # ns; a directory changed more recently may change again without a new mtime
WRITE_BUFFER_SIZE = 1 << 20  # bytes
FAULT_POINT = "FUSE_STORE_FAULT_POINT"  # for tests: number or name of the step at which the process kills itself
_steps = itertools.count(1)


def fault_point(step: str) -> None:
    """A step at which a kill must do no harm. Does nothing except in tests."""
    wanted = os.environ.get(FAULT_POINT)
    if wanted is not None and wanted in (str(next(_steps)), step):
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def new_file(
    path: Path, sync: bool, before: Callable[[], None] | None = None, partial_dir: Path | None = None
) -> Iterator[BinaryIO]:
    """A file to write. It appears under ``path`` when the ``with`` block ends, and not at all if the block raises.

    ``sync``: fsync the file and the directories. ``before`` is called when the content is durable in the partial file, right
    before the rename; it may raise. The partial file is in ``partial_dir``, by default the directory of ``path``. Raises OSError.
    """
    partial_dir = partial_dir or path.parent
    partial = partial_dir / f"{path.name}.{os.urandom(4).hex()}{PARTIAL_SUFFIX}"
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb", WRITE_BUFFER_SIZE) as file:
            fault_point(f"write {path.suffix}")
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        fault_point(f"rename {path.suffix}")
        if before is not None:
            before()
        os.rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fault_point(f"renamed {path.suffix}")
    if sync:
        for changed in {path.parent, partial_dir}:
            sync_directory(changed)


def write_file(path: Path, content: bytes, sync: bool, before: Callable[[], None] | None = None) -> None:
    """Write a whole file; see ``new_file``."""
    with new_file(path, sync, before) as file:
        file.write(content)


def sync_filesystem(path: Path) -> None:
    """Make everything durable that was written to the file system of ``path`` (syncfs(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def start_writing(file: BinaryIO, offset: int, length: int) -> None:
    """Start to write back a part of a file, so that a later fsync is shorter (sync_file_range(2))."""
    file.flush()
    libc = ctypes.CDLL(None)
    libc.sync_file_range(file.fileno(), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(2))  # …_WRITE


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
