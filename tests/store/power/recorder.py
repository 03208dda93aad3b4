# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that remembers its writes: a FUSE filesystem with one file, ``disk``, for a loop device to stand on.

A loop device passes a flush on as fsync. So the log has, in their order, the writes and the flushes that the filesystem on the
loop device relies on. One thread serves all requests. ``with recorded_disk(directory, size) as disk``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<QI")  # offset and length of a write, whose bytes follow
FLUSH = (1 << 64) - 1  # as an offset: a flush
START_SECONDS = 20


@dataclass(frozen=True)
class Event:
    """A write of ``data`` at ``offset``, or a flush: then ``data`` is None."""

    offset: int
    data: memoryview | None


@dataclass(frozen=True)
class Disk:
    """``file``: to be used as a disk; ``log``: what was written to it; ``size`` in bytes."""

    file: Path
    log: Path
    size: int

    def position(self) -> int:
        """Where the log ends now."""
        return self.log.stat().st_size

    def events(self) -> list[tuple[int, Event]]:
        """(position in the log behind it, Event) of all that was logged."""
        content = memoryview(self.log.read_bytes())
        events, at = [], 0
        while at < len(content):
            offset, length = RECORD.unpack_from(content, at)
            at += RECORD.size
            data = None if offset == FLUSH else content[at : at + length]
            at += 0 if offset == FLUSH else length
            events.append((at, Event(offset, data)))
        return events


@contextlib.contextmanager
def recorded_disk(directory: Path, size: int) -> Iterator[Disk]:
    """A disk of zeros, in a directory that is made."""
    mount = directory / "mount"
    mount.mkdir(parents=True)
    with open(directory / "backing", "wb") as file:
        file.truncate(size)
    disk = Disk(mount / "disk", directory / "log", size)
    disk.log.touch()
    command = [sys.executable, "-m", __name__, str(mount), str(directory / "backing"), str(disk.log)]
    server = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not disk.file.exists():
            assert server.poll() is None and time.monotonic() < deadline, "the recording disk was not mounted"
            time.sleep(0.01)
        yield disk
    finally:
        subprocess.run(["fusermount3", "-u", str(mount)], check=False, capture_output=True)
        try:
            server.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _serve(mount: str, backing: str, log: str) -> None:
    import mfusepy

    class OneFile(mfusepy.Operations):  # type: ignore[misc]  # mfusepy has no types
        use_ns = True

        def __init__(self) -> None:
            self.backing = os.open(backing, os.O_RDWR)
            self.log = os.open(log, os.O_WRONLY | os.O_APPEND)
            self.size = os.fstat(self.backing).st_size

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": 0o40700, "st_nlink": 2}
            if path == "/disk":
                return {"st_mode": 0o100600, "st_nlink": 1, "st_size": self.size, "st_blocks": self.size >> 9}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", "disk"]

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(self.backing, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            os.write(self.log, RECORD.pack(offset, len(data)) + data)
            return os.pwrite(self.backing, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            os.write(self.log, RECORD.pack(FLUSH, 0))
            return 0

    mfusepy.FUSE(OneFile(), mount, foreground=True, nothreads=True, nonempty=False, fsname="recorder")


if __name__ == "__main__":
    _serve(*sys.argv[1:4])
