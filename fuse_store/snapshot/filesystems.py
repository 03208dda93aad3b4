# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems that are quiet while an image is made: all is written, and nothing begins (FIFREEZE, ioctl_fifreeze(2)).

Frozen from the last mounted to the first, and thawed the other way round, because one may stand on a file of another.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from fuse_store.errors import StoreError
from fuse_store.hibernation.machine import Machine, mounts_in

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
_KINDS = ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "gfs2", "jfs", "nilfs2", "ocfs2", "vfat", "xfs")


def writable(machine: Machine) -> list[str]:
    """Paths of the filesystems on block devices that are mounted writable, one for each, in the order of their mounting; those that are
    only mounted in other mount namespaces, as those of containers are, by way of /proc."""
    points: dict[str, str] = {}
    for prefix, mounts in namespaces(machine):
        for one in mounts_in(mounts):
            if one.kind in _KINDS and one.writable:
                points.setdefault(one.number, prefix + one.point)
    return list(points.values())


def namespaces(machine: Machine) -> Iterator[tuple[str, str]]:
    """(how paths begin, mounts) of each mount namespace, this process's own first."""
    seen = set()
    processes = sorted((path.name for path in (machine.root / "proc").glob("[0-9]*")), key=int)
    for process in ("self", *processes):
        try:
            namespace = os.readlink(machine.root / "proc" / process / "ns/mnt")
        except OSError:  # it has ended
            continue
        if namespace not in seen:
            seen.add(namespace)
            yield "" if process == "self" else f"/proc/{process}/root", machine.text(f"proc/{process}/mountinfo") or ""


class Filesystems:
    """Those with these mount points; a context manager that thaws what is frozen."""

    def __init__(self, points: list[str]) -> None:
        """Opens them, before any is frozen. Raises StoreError."""
        self._open: list[tuple[str, int]] = []
        self._frozen: list[int] = []
        try:
            for point in points:
                self._open.append((point, os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        except OSError as error:
            self._close()
            raise StoreError(f"mount {point}", f"{error.strerror}.", "Run the command as root.") from None

    @property
    def descriptors(self) -> list[int]:
        return [descriptor for _point, descriptor in self._open]

    def freeze(self) -> None:
        """Raises StoreError; what was frozen until then stays so until ``thaw``."""
        for point, descriptor in reversed(self._open):
            try:
                fcntl.ioctl(descriptor, FIFREEZE, 0)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:  # FAT: what was to be written is, and all processes stand still
                    continue
                raise StoreError(f"filesystem {point}", f"cannot be frozen: {error.strerror}.", "If it is frozen: fsfreeze -u.") from None
            self._frozen.append(descriptor)

    def thaw(self) -> None:
        """All that ``freeze`` has frozen."""
        while self._frozen:
            _thaw(self._frozen.pop())

    def thaw_all(self) -> None:
        """For another process, which does not know what this one has frozen."""
        for descriptor in self.descriptors:
            _thaw(descriptor)

    def __enter__(self) -> Filesystems:
        return self

    def __exit__(self, *_error: object) -> None:
        self.thaw()
        self._close()

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])


def _thaw(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # it is not frozen, or was thawed by another
        fcntl.ioctl(descriptor, FITHAW, 0)
