# SPDX-License-Identifier: GPL-3.0-or-later
"""An input of one file or block device. It is opened once, before anything is known of it, and held to the end."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Generator, Sequence
from pathlib import Path

from fuse_store.errors import UsageError, failed
from fuse_store.image.inputs.holding import Device, Lease
from fuse_store.image.inputs.input import NOTHING_STORED, Batch, Doubts, Input, InputFile
from fuse_store.image.inputs.reading import Run, batches, runs_of


class SingleInput(Input):
    """A regular file, or a block device."""

    def __init__(self, path: Path, doubts: Doubts) -> None:
        """Raises Refused, UsageError, OSError."""
        super().__init__(str(path), doubts)
        self._device: Device | None = None
        self._lease: Lease | None = None
        if stat.S_ISBLK(path.stat().st_mode):
            self._device = Device(path, doubts)
            self._descriptor = self._device.descriptor
        else:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # something else may have taken its place
        try:
            self._status = os.fstat(self._descriptor)
            if not (stat.S_ISREG if self._device is None else stat.S_ISBLK)(self._status.st_mode):
                doubts.allow = False
                doubts.differs(self.name, "replaced while being opened")
            if self._device is None:
                self._lease = Lease(doubts)
                self._lease.take(self._descriptor, self.name)
                self._status = os.fstat(self._descriptor)
            size = self._size()
        except BaseException:
            self.close()
            raise
        # Whoever else reads it has to read the same file, whatever has its name by then.
        again = Path(f"/proc/self/fd/{self._descriptor}")
        self.files = [InputFile("image", again, size, stat.S_IMODE(self._status.st_mode), self._status.st_mtime_ns)]

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        try:
            yield from batches(self._runs(page_size), self.files[0].size or 0, page_size, self.doubts, buffers)
        except OSError as error:
            raise failed(f"source {self.name}", error, NOTHING_STORED) from None

    def _runs(self, page_size: int) -> Generator[Run, None, None]:
        if self._lease is None:
            assert self._device is not None
            yield from runs_of(self._descriptor, self.files[0], 0, page_size, self.name, lambda: None)
            self._device.check()
            return
        yield from runs_of(self._descriptor, self.files[0], 0, page_size, self.name, self._lease.check)
        self._lease.check()
        after = os.fstat(self._descriptor)
        if changed(self._status, after, times=not self._lease.held):
            self.doubts.differs(self.name)

    def _size(self) -> int:
        """Raises UsageError for a file of the kernel's, such as most of /proc and /sys, that has other bytes than it says; OSError."""
        try:
            size = os.lseek(self._descriptor, 0, os.SEEK_END)
            if self._device is not None or self._status.st_blocks:  # of a file of the kernel's there are none
                return size
            if len(os.pread(self._descriptor, 1, max(size - 1, 0))) == min(size, 1):
                return size
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        cause = "does not tell its size, as most files of the kernel's in /proc and /sys."
        raise UsageError(f"source {self.name}", cause, f"Store what is read from it: --command cat {shlex.quote(self.name)}")

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
        os.close(self._descriptor)


def changed(before: os.stat_result, after: os.stat_result, times: bool) -> bool:
    """Whether a file changed. ``times``: its ctime counts too, which also tells that the mtime was put back, and changes when the
    file is renamed."""
    same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    return not same or (times and before.st_ctime_ns != after.st_ctime_ns)
