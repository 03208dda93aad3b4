# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's interface to hibernation, /dev/snapshot (kernel/power/user.c, include/uapi/linux/suspend_ioctls.h of Linux 6.12).

One process has it open at a time. When that ends, the kernel frees the image and thaws the other processes.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
from collections.abc import Sequence

from fuse_store.errors import Refused, StoreError

DEVICE = "/dev/snapshot"
FREEZE, UNFREEZE, FREE, CREATE_IMAGE = 0x3301, 0x3302, 0x3305, 0x40043311  # of x86-64 and arm64
PREFER_SIZE, IMAGE_SIZE = 0x3312, 0x8008330E
_KERNEL_LOG = "/dev/kmsg"
_OPEN_ERRORS = {
    errno.ENOENT: ("the kernel has no hibernation.", "Boot a kernel with CONFIG_HIBERNATION and CONFIG_HIBERNATION_SNAPSHOT_DEV."),
    errno.EACCES: ("permission denied.", "Run the command as root."),
    errno.EPERM: (
        "the kernel does not allow hibernation now.",
        "Look for nohibernate on the kernel command line, Secure Boot (/sys/kernel/security/lockdown), and users of memfd_secret(2).",
    ),
    errno.EBUSY: ("another program has it open, or hibernates.", "Try again when it has finished."),
}  # fmt: skip


class SnapshotDevice:
    """The open device; a context manager. After ``create`` call ``free`` before ``unfreeze``: the kernel ignores an unfreeze until
    then."""

    def __init__(self) -> None:
        """Raises Refused."""
        try:
            self.descriptor = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(DEVICE, *_OPEN_ERRORS.get(error.errno or 0, (f"{error.strerror}.",))) from None

    def close(self) -> None:
        os.close(self.descriptor)

    def freeze(self) -> None:
        """Stop all processes but this thread. Raises Refused: after 20 seconds, if one does not stop."""
        try:
            fcntl.ioctl(self.descriptor, FREEZE)
        except OSError as error:
            names = ", ".join(_not_frozen()) or "a process"
            cause = f"{names} could not be stopped." if error.errno == errno.EBUSY else f"stopping all processes failed: {error.strerror}."
            raise Refused("snapshot", cause, "It waits for something, such as a network filesystem: end it, and try again.") from None

    def prefer(self, size: int) -> None:
        """Have ``create`` free memory until the image has at most ``size`` bytes, if it can."""
        fcntl.ioctl(self.descriptor, PREFER_SIZE, size)

    def create(self) -> bool:
        """Make an image of the memory. True when it was made; False when this call returns once more because it was resumed.
        If memory is short, it is tried again with all that the kernel can free. Raises StoreError."""
        made = array.array("i", [-1])
        for attempt in (1, 2):
            try:
                fcntl.ioctl(self.descriptor, CREATE_IMAGE, made, True)
                break
            except OSError as error:
                short = error.errno in (errno.ENOMEM, errno.ENOSPC)
                if attempt == 2 or not short:
                    remedy = "Stop programs that need much memory: half of it has to be free." if short else "The kernel log says more."
                    raise StoreError("snapshot", f"the kernel made no image: {error.strerror}.", remedy) from None
                self.prefer(0)
        return bool(made[0])

    def size(self) -> int:
        """Bytes of the image."""
        size = array.array("q", [0])
        fcntl.ioctl(self.descriptor, IMAGE_SIZE, size, True)
        return size[0]

    def read(self, pages: Sequence[memoryview]) -> int:
        """Fill buffers of a page each with the next pages of the image; returns the number of bytes. The kernel gives one page to
        each buffer."""
        return os.readv(self.descriptor, pages)

    def free(self) -> None:
        fcntl.ioctl(self.descriptor, FREE)

    def unfreeze(self) -> None:
        fcntl.ioctl(self.descriptor, UNFREEZE)


def _not_frozen() -> list[str]:
    """Names of the processes that the last attempt to stop all could not stop, from the kernel log."""
    names: list[str] = []
    try:
        log = os.open(_KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return names
    try:
        while True:
            try:
                record = os.read(log, 8192).decode("utf-8", "replace")
            except BrokenPipeError:  # records were overwritten before they were read
                continue
            except OSError:
                return list(dict.fromkeys(names))
            if "Freezing" in record and "failed after" in record:
                names = []
            elif match := re.search(r"task:(\S+)\s+state:", record):
                names.append(match[1])
    finally:
        os.close(log)
