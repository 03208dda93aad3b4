# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are there whole or not at all, also after a power cut. Used by whatever writes into a store.

The order that matters (docs/format.md, "Commit"): content, fsync of the file, rename, fsync of the directory. ``fault_point``
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

PARTIAL = ".partial"  # the end of names that the next writer sweeps away
SETTLED = 20_000_000  # ns after which a folder's time tells whether it changed again
BUFFER = 1 << 20  # bytes that are written at once
FAULT_POINT = "FUSE_STORE_FAULT_POINT"  # for tests: the number, or the name, of the step at which the process kills itself
_steps = itertools.count(1)


def fault_point(step: str) -> None:
    """A step of something that must survive being killed here. Does nothing but in tests."""
    wanted = os.environ.get(FAULT_POINT)
    if wanted is not None and wanted in (str(next(_steps)), step):
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def new_file(
    path: Path, sync: bool, before: Callable[[], None] | None = None, folder: Path | None = None
) -> Iterator[BinaryIO]:
    """A file to write, which appears under ``path`` when the block ends, and not at all if it raises.

    ``before`` is called when the content is durable under its partial name, right before it appears; it may raise. Until
    then the file is in ``folder``, by default that of ``path``.
    """
    folder = folder or path.parent
    partial = folder / f"{path.name}.{os.urandom(4).hex()}{PARTIAL}"
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb", BUFFER) as file:
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
        for changed in {path.parent, folder}:
            sync_directory(changed)


def write_file(path: Path, content: bytes, sync: bool, before: Callable[[], None] | None = None) -> None:
    """A whole file; see ``new_file``."""
    with new_file(path, sync, before) as file:
        file.write(content)


def sync_filesystem(path: Path) -> None:
    """Have everything that was written to the file system of ``path`` on the disk (syncfs(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def start_writing(file: BinaryIO, offset: int, length: int) -> None:
    """Have the kernel begin to write a part of a file to the disk, so that a later fsync waits less (sync_file_range(2))."""
    file.flush()
    libc = ctypes.CDLL(None)
    libc.sync_file_range(file.fileno(), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(2))  # …_WRITE


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> int:
    """Remove what writers that were killed left in ``folder``; how many files. Only for who holds the writer's lock."""
    swept = 0
    for path in folder.glob("*" + PARTIAL):
        path.unlink(missing_ok=True)
        swept += 1
    return swept
