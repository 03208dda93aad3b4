# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps others from changing a source while it is read, or tells that they did.

A file: a read lease (fcntl(2), F_SETLEASE). It is refused while the file is open for writing anywhere on this machine, also if
only a shared mapping is left of that (i_writecount of the inode), and broken by a process that opens or truncates it later, which waits
until it is given back. So a lease that was held to the end proves that no byte changed, which times do not: a mapping changes
them only when a page of it is first written. Leases know nothing of other machines, so on file systems that others may write
to nothing is proven.

A device: opened with O_EXCL, which fails while it is mounted, used as swap, or part of something else, and keeps it from
becoming so. A process that opens it without O_EXCL can still write; so the sectors that the kernel wrote to it are counted.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from pathlib import Path

from fuse_store.image.inputs.input import Doubts
from fuse_store.image.targets import usage

# f_type of file systems that only this machine writes to (linux/magic.h, statfs(2)).
LOCAL = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs", 0x858458F6: "ramfs", 0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs", 0x2FC12FC1: "zfs", 0x794C7630: "overlay", 0x73717368: "squashfs", 0xE0F5E1E2: "erofs", 0x9660: "iso9660",
    0x3434: "nilfs2", 0x52654973: "reiserfs", 0x3153464A: "jfs",
}  # fmt: skip
WATCH_INTERVAL = 0.05  # seconds
_WRITTEN, _DISCARDED = 6, 13  # fields of /sys/dev/block/*/stat, in sectors (Documentation/block/stat.rst)

_libc = ctypes.CDLL(None, use_errno=True)
_is_local: dict[int, bool] = {}  # by device number of the file system


class Lease:
    """A read lease on one open file after the other. A thread of its own gives it back as soon as another process waits for it:
    the one that reads may be waiting for the one that stores."""

    def __init__(self, doubts: Doubts) -> None:
        self._doubts = doubts
        self._descriptor, self._path = -1, ""
        self._held = self._broken = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="lease", daemon=True)
        self._watching.start()

    @property
    def held(self) -> bool:
        """Whether nothing can have changed in the file since ``take``."""
        return self._held and not self._broken

    def take(self, descriptor: int, path: str) -> None:
        """Raises Refused if the file is open for writing, unless that is allowed."""
        if not _on_local_file_system(descriptor):
            self._doubts.unsure(path, "on a file system that others may write to, so it is not known whether it changed while being read")
            return
        try:
            granted = usage.has_lease(descriptor, fcntl.F_RDLCK)
        except PermissionError:
            self._doubts.unsure(path, "another user's file, so it is not known whether it changed while being read")
            return
        except OSError:
            self._doubts.unsure(path, "no lease can be taken, so it is not known whether it changed while being read")
            return
        if not granted:
            self._doubts.in_use("source", path, *usage.writer_of(descriptor, path))
            return
        with self._lock:
            self._descriptor, self._path, self._held, self._broken = descriptor, path, True, False

    def check(self) -> None:
        """Raises StoreError if the file was opened for writing since, unless that is allowed."""
        self._give_back_if_wanted()
        if self._held and self._broken:
            self._held = False
            self._doubts.differs(self._path, "changed while being read: it was opened for writing")

    def drop(self) -> None:
        """The descriptor will be closed."""
        with self._lock:
            self._descriptor, self._held = -1, False

    def close(self) -> None:
        self.drop()
        self._closed.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_INTERVAL):
            self._give_back_if_wanted()

    def _give_back_if_wanted(self) -> None:
        with self._lock:
            if self._descriptor >= 0 and not self._broken and fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                self._broken = True


def _on_local_file_system(descriptor: int) -> bool:
    device = os.fstat(descriptor).st_dev
    if device not in _is_local:
        status = (ctypes.c_long * 32)()  # struct statfs begins with f_type
        if _libc.fstatfs(descriptor, status):
            return False
        _is_local[device] = status[0] & 0xFFFFFFFF in LOCAL
    return _is_local[device]


class Device:
    """A block device that is open for reading. For one thread."""

    def __init__(self, path: Path, doubts: Doubts) -> None:
        """Raises Refused if it is in use, unless ``doubts`` allow that; OSError."""
        self._path, self._doubts = path, doubts
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            cause, remedy = "in use: mounted, swap, or part of another device", "Unmount it, or stop what uses it (see lsblk)"
            doubts.in_use("device", path, cause, remedy)
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._before = self._written()

    def check(self) -> None:
        """Raises StoreError if it was written to since it was opened, unless that is allowed."""
        after = self._written()
        if self._before is None or after is None:
            self._doubts.unsure(self._path, "the kernel does not count its writes, so it is not known whether it changed while being read")
        elif after != self._before:
            self._doubts.differs(self._path)

    def _written(self) -> tuple[int, int] | None:
        """How many sectors were written and discarded so far, those that were still in memory included; None if not counted."""
        try:
            os.fsync(self.descriptor)
            number = os.fstat(self.descriptor).st_rdev
            directory = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
            disk = directory.parent if (directory / "partition").exists() else directory
            if (disk / "queue/iostats").read_text().strip() == "0":
                return None
            fields = (directory / "stat").read_text().split()
            return int(fields[_WRITTEN]), int(fields[_DISCARDED])
        except (OSError, ValueError, IndexError):
            return None
