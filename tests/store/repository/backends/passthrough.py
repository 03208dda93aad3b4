# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system that shows a directory, and lacks something: ``python -m … SOURCE POINT ABILITY…``, in the foreground.

As exFAT, SMB and mounts of remote storage do. What it can lack: ``link``, ``noreplace`` (renameat2(2) with a flag), ``fsyncdir``,
``utimens``; ``seconds`` gives times in whole seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

TIMES = ("st_atime", "st_mtime", "st_ctime")
STATUS = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")


@contextlib.contextmanager
def mounted(source: Path, point: Path, *lacks: str) -> Iterator[Path]:
    source.mkdir()
    point.mkdir()
    command = [sys.executable, "-m", "tests.store.repository.backends.passthrough", str(source), str(point), *lacks]
    with subprocess.Popen(command, cwd=Path(__file__).parents[4]) as process:
        try:
            while not os.path.ismount(point):
                assert process.poll() is None, "the file system ended"
                time.sleep(0.02)
            yield point
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(point)], check=True)
            process.wait(10)


class Passthrough(mfusepy.Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, source: str, lacks: set[str]) -> None:
        self._source, self._lacks = source, lacks

    def _path(self, path: str) -> str:
        return self._source + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._path(path))
        times = {key: getattr(status, f"{key}_ns") for key in TIMES}
        if "seconds" in self._lacks:
            times = {key: value // 10**9 * 10**9 for key, value in times.items()}
        return {key: getattr(status, key) for key in STATUS} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._path(path))]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._path(path), os.O_RDWR)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._path(path), length)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        os.fsync(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        if "fsyncdir" in self._lacks:
            raise OSError(errno.EINVAL, "")

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._path(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._path(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._path(old), self._path(new))

    def link(self, target: str, source: str) -> None:
        if "link" in self._lacks:
            raise OSError(errno.EPERM, "")
        os.link(self._path(source), self._path(target))

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        if "utimens" in self._lacks:
            raise OSError(errno.EPERM, "")
        if times is None:
            os.utime(self._path(path))
        else:
            os.utime(self._path(path), ns=times)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._path(path), mode)


class Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """With the flags of a rename, which mfusepy drops."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        if flags and "noreplace" in self.operations._lacks:
            return -errno.EINVAL
        self.operations.rename(os.fsdecode(old), os.fsdecode(new))
        return 0


if __name__ == "__main__":
    _program, source, point, *lacks = sys.argv
    Fuse(Passthrough(source, set(lacks)), point, foreground=True, attr_timeout=0, entry_timeout=0)
