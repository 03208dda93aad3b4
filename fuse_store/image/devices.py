# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices and files that are written in place: opened for one process alone, identified, read and written.

Functions on paths and descriptors; callers see to it that one thread writes at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused, advice
from fuse_store.formats.readable import Readable
from fuse_store.image.targets import usage

PROBED = 8 << 20  # bytes at the start and at the end that are shown to blkid: no signature that it knows is elsewhere
SWAP_TYPES = ("swap", "swsuspend")
_BLKROGET = 0x125E  # include/uapi/linux/fs.h


def open_device(path: Path, directory: int | None = None) -> int:
    """A descriptor of a block device that no one else has in use; ``directory``: the open directory that it is in. Raises Refused."""
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC
    try:
        # O_EXCL: fails with EBUSY while it is mounted, swap, or part of something, or a partition of it is (blkdev_open).
        descriptor = os.open(path, flags) if directory is None else os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=directory)
    except OSError as error:
        raise Refused(f"device {path}", f"cannot be opened exclusively: {error.strerror}.", _remedy(error.errno)) from None
    try:
        if any(fcntl.ioctl(descriptor, _BLKROGET, bytes(4))):  # such a device can be opened for writing, and every write fails
            raise Refused(f"device {path}", "read-only.", "Run blockdev --setrw, or name another device.")
        usage.check_device(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remedy(number: int | None) -> str:
    if number == errno.EBUSY:
        return "Unmount it, or wait for what uses it (see lsblk), which may be another fuse-store."
    if number in (errno.EACCES, errno.EPERM) and os.geteuid() == 0:
        return "Name another device, or have what confines this process (a container, a security module) allow it."
    return advice(number)


@dataclass(frozen=True)
class Content:
    """What blkid recognises: ``kind``, such as ext4, swap or gpt, empty if nothing; ``ids`` of the filesystem and of the partition
    table, each empty if it has none."""

    kind: str
    ids: tuple[str, str] = ("", "")

    def may_be_replaced_by(self, other: Content) -> bool:
        """Whether this may be an earlier version of the other: the same filesystem, partition table or empty place, or a swap area
        as well."""
        if self.kind in SWAP_TYPES or not self.kind:
            return not self.kind or other.kind in SWAP_TYPES
        return self.ids == other.ids and any(self.ids)


def content_of(source: Readable, path: Path) -> Content:
    """What a device or an image holds. ``path`` is for messages. Raises Refused if that cannot be known, StoreError."""
    with _edges(source) as descriptor:
        try:
            done = subprocess.run(
                ["blkid", "-p", "-o", "export", f"/proc/self/fd/{descriptor}"],
                capture_output=True, encoding="utf-8", errors="surrogateescape", check=False, pass_fds=(descriptor,),
                env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
            )  # fmt: skip
        except OSError:
            remedy = "Install util-linux, or use --force."
            raise Refused(f"device {path}", "blkid cannot be run; it tells what a device holds.", remedy) from None
    fields = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    kind = fields.get("TYPE") or fields.get("PTTYPE") or ""
    match done.returncode:
        case 0 if kind:
            return Content(kind, (fields.get("UUID", ""), fields.get("PTUUID", "")))
        case 2 if not done.stderr:  # also after an error, which it then names
            return Content("")
        case 8:
            return Content("several signatures")
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise Refused(f"device {path}", f"blkid cannot tell what it holds: {reason.removesuffix('.')}.", "Use --force to overwrite it.")


@contextlib.contextmanager
def _edges(source: Readable) -> Iterator[int]:
    """A file in memory as large as the source, with what is at both of its ends: blkid reads this, not a device that others could
    change meanwhile, or a file whose lease its opening would break."""
    with open(os.memfd_create("edges"), "wb", buffering=0) as file:
        file.truncate(source.size)
        for at in (0, max(0, source.size - PROBED)):
            file.seek(at)
            file.write(source.read(at, PROBED))
        yield file.fileno()


class OpenDevice:
    """An open block device as a Readable."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, os.lseek(descriptor, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        return read_at(self.descriptor, offset, length)


def read_at(descriptor: int, at: int, length: int) -> bytes:
    """``length`` bytes, fewer at the end. Raises OSError."""
    parts = []
    while length and (part := os.pread(descriptor, length, at)):
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def write_at(descriptor: int, data: memoryview, at: int) -> None:
    """All of ``data``. Raises OSError."""
    while len(data):
        number = os.pwrite(descriptor, data, at)
        data, at = data[number:], at + number
