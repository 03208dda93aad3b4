# SPDX-License-Identifier: GPL-3.0-or-later
"""A device that images are staged on, opened for nobody else, and what stands on it. Used by ``stage`` and ``arm``.

A regular file may act as one: the file that is the non-volatile memory of a virtual machine. Whatever is written counts
only after ``sync``, which also drops what the kernel has cached, so that the next read comes from the device.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp import Header, disarmed, find, layout
from fuse_store.image import restore

EDGE = 1 << 20  # bytes at the beginning and the end that have to be zero on a device that counts as blank
_SWAPS = Path("/proc/swaps")
_BLOCK = Path("/sys/block")
_STABLE = tuple(Path("/dev/disk") / folder for folder in ("by-id", "by-path"))  # by-uuid goes with what is written


class Target:
    """An open device: ``size`` in bytes, ``name`` that stays, ``is_file``; a context manager and a Readable."""

    def __init__(self, path: Path | str) -> None:
        """Raises NotFound, UsageError, Refused if it is in use, Locked."""
        self.path = Path(path)
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise NotFound(f"device {path}", f"{error.strerror}.") from None
        if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise UsageError(f"device {path}", "it is neither a block device nor a file that acts as one.")
        self.is_file = stat.S_ISREG(mode)
        self.name = str(self.path.resolve()) if self.is_file else stable_name(self.path)
        self.descriptor = _open_file(self.path) if self.is_file else restore.open_device(self.path)
        self.size = os.lseek(self.descriptor, 0, os.SEEK_END)
        self.direct = self._open_direct()

    def read(self, offset: int, length: int) -> bytes:
        try:
            return restore.read_at(self.descriptor, offset, length)
        except OSError as error:
            raise StoreError(f"device {self.path}", f"reading at {offset:#x} failed: {error.strerror}.") from None

    def write(self, offset: int, content: bytes) -> None:
        try:
            restore.write_at(self.descriptor, memoryview(content), offset)
        except OSError as error:
            raise StoreError(f"device {self.path}", f"writing at {offset:#x} failed: {error.strerror}.") from None

    def sync(self) -> None:
        """Return when what was written is on the device, and forget what the kernel has cached of it."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise StoreError(f"device {self.path}", f"what was written did not reach it: {error.strerror}.") from None
        self.forget()

    def forget(self) -> None:
        """Have the next read come from the device."""
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def write_checked(self, offset: int, content: bytes) -> None:
        """Write, sync, and read back. Raises StoreError, Damaged."""
        self.write(offset, content)
        self.sync()
        if self.read(offset, len(content)) != content:
            raise Damaged(f"device {self.path}", f"what was written at {offset:#x} reads back otherwise.", "Do not use it.")

    def _open_direct(self) -> int:
        """A descriptor that reads past the kernel's cache, in multiples of a page; the other one where that can't be."""
        try:
            direct = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return self.descriptor
        try:
            os.preadv(direct, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
            return direct
        except OSError:
            os.close(direct)
            return self.descriptor

    def close(self) -> None:
        if self.direct != self.descriptor:
            os.close(self.direct)
        os.close(self.descriptor)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open_file(path: Path) -> int:
    """A descriptor of a file that no other fuse-store, no swap and no loop device uses. Raises Refused, Locked."""
    whole = path.resolve()
    used = [line.split()[0] for line in _lines(_SWAPS)[1:]]
    used += [line.strip() for loop in _BLOCK.glob("loop*/loop/backing_file") for line in _lines(loop)]
    if str(whole) in used:
        raise Refused(f"file {path}", "it is in use, as swap or behind a loop device.", "Take it out of use first.")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"file {path}", f"it can't be opened for writing: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Locked(f"file {path}", "another process has locked it.", "Stop the virtual machine that uses it.") from None
    return descriptor


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def stable_name(path: Path) -> str:
    """A name of a block device that outlives a reboot, where udev made one; else the path it has now."""
    whole = path.resolve()
    for folder in _STABLE:
        for link in sorted(folder.glob("*")):
            if link.resolve() == whole:
                return str(link)
    return str(whole)


# what stands there --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holding:
    """``what`` stands on a device, for people; ``armed`` tells that a kernel would resume it, ``ours`` that it is a swap
    area, an image that is not armed, or nothing: that an image may be staged over it. ``header`` is that of an image,
    ``swap`` the page with the header of the swap area, whatever else is in it, not armed."""

    what: str
    armed: bool = False
    ours: bool = False
    header: Header | None = None
    swap: bytes | None = None


def holding(target: Target) -> Holding:
    """What stands on the device. Raises Refused if blkid is not there to tell, StoreError."""
    for page_size in layout.PAGE_SIZES:
        if target.size < page_size:
            continue
        block = target.read(0, page_size)
        signature = block[-layout.SIGNATURE_SIZE :]
        for magic, maker in layout.FOREIGN.items():
            if signature.startswith(magic):
                return Holding(f"an image of {maker}", armed=True)
        if signature == layout.SIGNATURE:
            return Holding("an armed hibernation image", True, False, _header(target, page_size), _swap(block))
        if signature in layout.SWAP_SIGNATURES or _torn(block):
            kind = restore.recognised(target.path)
            if kind not in ("swap", "swsuspend", ""):
                return Holding(f"a swap area, and {kind}")
            header = _header(_Mended(target, block) if _torn(block) else target, page_size)
            what = "a swap area" if header is None else "a hibernation image that is not armed"
            return Holding(what, False, True, header, _swap(block))
    kind = restore.recognised(target.path)
    if kind:
        return Holding(kind)
    edges = (target.read(0, EDGE), target.read(max(0, target.size - EDGE), EDGE))
    if any(any(edge) for edge in edges):
        return Holding("data of an unknown kind")
    return Holding("nothing", ours=True)


def _header(readable: Readable, page_size: int) -> Header | None:
    try:
        return find(readable, page_size=page_size)
    except (NotFound, Refused, Damaged):
        return None


class _Mended:
    """A device whose signature was written in part, as if it was not."""

    def __init__(self, target: Target, block: bytes) -> None:
        self.size, self._target, self._block = target.size, target, disarmed(block)

    def read(self, offset: int, length: int) -> bytes:
        return self._block[offset : offset + length] if offset < len(self._block) else self._target.read(offset, length)


def _swap(block: bytes) -> bytes | None:
    try:
        return disarmed(block)
    except Damaged:
        return block if block[-layout.SIGNATURE_SIZE :] in layout.SWAP_SIGNATURES else None


def _torn(block: bytes) -> bool:
    """Whether the power went while the signature was written: a part of it is the one, the rest the other. Memory takes
    eight bytes at once, and the signature has ten."""
    *_fields, original, signature = layout.TAIL.unpack(block[-layout.TAIL.size :])
    halves = zip(original, layout.SIGNATURE, signature, strict=True)
    return original in layout.SWAP_SIGNATURES and all(now in (before, after) for before, after, now in halves)
