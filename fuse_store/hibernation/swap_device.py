# SPDX-License-Identifier: GPL-3.0-or-later
"""A swap device that images are staged on, opened exclusively, and its contents.

A regular file may take its place: the backing file of a virtual machine's NVM. Writes are durable only after ``sync``, which
also drops the kernel's cache, so that the next read comes from the device. Not safe for use from several threads.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fuse_store.errors import Damaged, Locked, NotFound, Refused, UsageError, advice, failed
from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp import Header, disarmed, find, layout
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.layout import Slot, Table
from fuse_store.image import devices
from fuse_store.image.targets import usage

BLANK_EDGE = 1 << 20  # bytes: a device whose first and last bytes are zero, this many each, counts as blank
_ALIGNED = 4096  # bytes: places and lengths that a read past the cache may have
_STABLE_LINKS = tuple(Path("/dev/disk") / name for name in ("by-id", "by-path"))  # by-uuid changes with the contents


class SwapDevice:
    """An open device: ``size`` in bytes, ``name`` (a stable path), ``is_file``; a context manager and a Readable."""

    def __init__(self, path: Path | str) -> None:
        """Raises NotFound, UsageError, Refused if the device is in use, Locked."""
        self.path = Path(path)
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise NotFound(f"device {path}", f"{error.strerror}.", "Check the path, for example with lsblk.") from None
        if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise UsageError(f"device {path}", "not a block device or a regular file.", "Name one of these.")
        self.is_file = stat.S_ISREG(mode)
        self._check_unused = usage.check_alone if self.is_file else usage.check_device
        self.name = os.path.realpath(self.path) if self.is_file else stable_name(self.path)
        self.descriptor = _open_file(self.path) if self.is_file else devices.open_device(self.path)
        self.size = os.lseek(self.descriptor, 0, os.SEEK_END)
        self.direct = self._open_direct()

    def read(self, offset: int, length: int) -> bytes:
        try:
            return devices.read_at(self.descriptor, offset, length)
        except OSError as error:
            raise failed(f"device {self.path}", error, what=f"reading at {offset:#x} failed") from None

    def read_direct(self, offset: int, length: int) -> bytes:
        """Like ``read``, but past the kernel's cache, where the device can do that: a restored system has that of long ago."""
        if self.direct == self.descriptor:
            self.drop_cache()
            return self.read(offset, length)
        begin, end = offset // _ALIGNED * _ALIGNED, -(-(offset + length) // _ALIGNED) * _ALIGNED
        with mmap.mmap(-1, max(end - begin, _ALIGNED)) as buffer:
            try:
                done = os.preadv(self.direct, [buffer], begin)
            except OSError as error:
                raise failed(f"device {self.path}", error, what=f"reading at {offset:#x} failed") from None
            return buffer[offset - begin : min(done, offset - begin + length)]

    def write(self, offset: int, content: bytes | memoryview) -> None:
        try:
            devices.write_at(self.descriptor, memoryview(content), offset)
        except OSError as error:
            raise failed(f"device {self.path}", error, what=f"writing at {offset:#x} failed") from None

    def sync(self) -> None:
        """Return when all writes are on the device, and drop the kernel's cache of it. Raises StoreError."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise failed(f"device {self.path}", error, what="sync failed") from None
        self.drop_cache()

    def drop_cache(self) -> None:
        """Drop the kernel's cache, so that the next read comes from the device."""
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def write_checked(self, offset: int, content: bytes) -> None:
        """Write, sync, and read back, if no one else has opened it meanwhile. Raises StoreError, Refused, Damaged."""
        self._check_unused(self.descriptor, self.path)
        self.write(offset, content)
        self.sync()
        if self.read(offset, len(content)) != content:
            raise self.not_kept(offset)

    def not_kept(self, offset: int) -> Damaged:
        """The error for a write that reads back differently."""
        return Damaged(f"device {self.path}", f"data written at {offset:#x} reads back differently.", "Do not use this device.")

    def _open_direct(self) -> int:
        """A descriptor that bypasses the kernel's cache (O_DIRECT); ``descriptor`` where that is not supported, and for a file:
        opening it again would break the lease."""
        if self.is_file:
            return self.descriptor
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open_file(path: Path) -> int:
    """A locked descriptor of a file that no one else has open: no virtual machine, loop device or swap. Raises Refused, Locked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError:  # another process has it alone
        raise _locked(path) from None
    except OSError as error:
        raise Refused(f"file {path}", f"cannot be opened for writing: {error.strerror}.", advice(error.errno)) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        usage.hold_alone(descriptor, path)
    except BaseException as error:
        os.close(descriptor)
        raise (_locked(path) if isinstance(error, BlockingIOError) else error) from None
    return descriptor


def _locked(path: Path) -> Locked:
    return Locked(f"file {path}", "locked by another process.", "Stop the virtual machine that uses the file.")


def stable_name(path: Path) -> str:
    """A path of a block device that survives a reboot, if udev made one; else its current path."""
    resolved = os.path.realpath(path)
    for directory in _STABLE_LINKS:
        for link in sorted(directory.glob("*")):
            if os.path.realpath(link) == resolved:
                return str(link)
    return resolved


# contents -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceContents:
    """``description`` is for messages. ``armed``: a kernel would resume the image. ``replaceable``: a swap area, an image that
    is not armed, or nothing, so that another image may be staged without force. ``header`` is that of an image; ``swap_page``
    is the header page of the swap area with its own signature, not armed, if known. ``armed_slots``: those of a table of slots, with it."""

    description: str
    armed: bool = False
    replaceable: bool = False
    header: Header | None = None
    swap_page: bytes | None = None
    armed_slots: tuple[tuple[Table, Slot], ...] = ()


def contents_of(device: SwapDevice) -> DeviceContents:
    """Recognise the contents of a device. Raises Refused if blkid is not installed, StoreError."""
    if tables.is_there(device):
        return _slots_contents(device)
    for page_size in layout.PAGE_SIZES:
        if device.size >= page_size:
            contents = _swap_contents(device, page_size)
            if contents is not None:
                return contents
    kind = devices.content_of(device, device.path).kind
    if kind:
        return DeviceContents(kind)
    edges = (device.read(0, BLANK_EDGE), device.read(max(0, device.size - BLANK_EDGE), BLANK_EDGE))
    if any(any(edge) for edge in edges):
        return DeviceContents("data of an unknown kind")
    return DeviceContents("nothing", replaceable=True)


def _slots_contents(device: SwapDevice) -> DeviceContents:
    name = str(device.path)
    kind = tables.written_over(device, name)
    if kind:
        return DeviceContents(f"{kind}, and what is left of a table of slots")
    try:
        table = tables.load(device, name).table
    except (NotFound, Damaged):
        return DeviceContents("a table of slots that is damaged")
    armed = tuple((table, slot) for slot in table.slots if tables.is_armed(device, table, slot))
    numbers = ", ".join(str(slot.number) for _table, slot in armed)
    return DeviceContents(f"a table of slots{f', with an armed image in slot {numbers}' if armed else ''}", bool(armed), armed_slots=armed)


def _swap_contents(device: SwapDevice, page_size: int) -> DeviceContents | None:
    """The contents of a device whose header page has ``page_size`` bytes; None if that page has no swap signature."""
    page = device.read(0, page_size)
    signature = page[-layout.SIGNATURE_SIZE :]
    for magic, maker in layout.FOREIGN.items():
        if signature.startswith(magic):
            return DeviceContents(f"an image of {maker}", armed=True)
    if signature == layout.SIGNATURE:
        return DeviceContents("an armed hibernation image", True, False, _image_header(device, page_size), _swap_page(page))
    torn = _is_torn(page)
    if signature not in layout.SWAP_SIGNATURES and not torn:
        return None
    kind = devices.content_of(device, device.path).kind
    if kind not in ("swap", "swsuspend", ""):
        return DeviceContents(f"a swap area and {kind}")
    header = _image_header(_WithSwapSignature(device, page) if torn else device, page_size)
    description = "a swap area" if header is None else "a hibernation image that is not armed"
    return DeviceContents(description, False, True, header, _swap_page(page))


def _image_header(readable: Readable, page_size: int) -> Header | None:
    try:
        return find(readable, page_size=page_size)
    except (NotFound, Refused, Damaged):
        return None


class _WithSwapSignature:
    """A Readable: a device whose signature was written in part, as if its header page were not armed."""

    def __init__(self, device: SwapDevice, page: bytes) -> None:
        self.size, self._device, self._page = device.size, device, disarmed(page)

    def read(self, offset: int, length: int) -> bytes:
        return self._page[offset : offset + length] if offset < len(self._page) else self._device.read(offset, length)


def _swap_page(page: bytes) -> bytes | None:
    try:
        return disarmed(page)
    except Damaged:
        return page if page[-layout.SIGNATURE_SIZE :] in layout.SWAP_SIGNATURES else None


def swap_uuid(page: bytes | None) -> str | None:
    """The UUID in the header page of a swap area; None without a page."""
    if page is None:
        return None
    digits = layout.SWAP.unpack_from(page, layout.SWAP_AT)[3].hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _is_torn(page: bytes) -> bool:
    """Whether the power failed while the signature was written: each byte is that of one signature or the other. Memory is
    written in units of eight bytes, and the signature has ten."""
    *_fields, original, signature = layout.TAIL.unpack(page[-layout.TAIL.size :])
    candidates = zip(original, layout.SIGNATURE, signature, strict=True)
    return original in layout.SWAP_SIGNATURES and all(byte in (before, after) for before, after, byte in candidates)
