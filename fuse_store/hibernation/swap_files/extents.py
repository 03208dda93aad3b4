# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a file is on its block device, and why the kernel would not take it for swap. Reads only.

ext4 and XFS tell the place of an extent on the device (FIEMAP). btrfs tells an address of its own; its tree of chunks says where that is.
The collection has the same for the machines that it configures (plugins/module_utils/_swap/extents.py): see decision 0075.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused

_FIEMAP = 0xC020660B  # include/uapi/linux/fiemap.h
_FIEMAP_SYNC = 1
_FIEMAP_HEAD = struct.Struct("<QQIIII")  # start, length, flags, mapped extents, room for extents, reserved
_FIEMAP_EXTENT = struct.Struct("<QQQ16xI12x")  # logical, physical, length, flags
_LAST = 0x1
_AT_ONCE = 512
_UNUSABLE = (  # flags of an extent, and what they say
    (0x6, "has parts that the filesystem has not placed on the device yet"),  # UNKNOWN, DELALLOC
    (0x88, "is compressed or encrypted"),  # ENCODED, DATA_ENCRYPTED
    (0x700, "is kept within the filesystem's own metadata"),  # NOT_ALIGNED, DATA_INLINE, DATA_TAIL
    (0x2000, "shares blocks with another file or a snapshot"),  # SHARED
)
_GETFLAGS = 0x80086601  # include/uapi/linux/fs.h
_NOCOW = 0x00800000
_FS_INFO = 0x8400941F  # include/uapi/linux/btrfs.h, 1024 bytes: max_id, num_devices
_DEV_INFO = 0xD000941E  # 4096 bytes: devid …, path at 3072
_TREE_SEARCH = 0xC0709411
_SEARCH = struct.Struct("<7Q4I4QQ")
_SEARCH_HEADER = struct.Struct("<QQQII")  # transid, objectid, offset, type, length
_CHUNK_TREE, _CHUNK_OBJECT, _CHUNK_ITEM = 3, 256, 228  # include/uapi/linux/btrfs_tree.h
_CHUNK = struct.Struct("<4Q3IHHQQ")  # length, owner, stripe length, type, 3 sizes, 2 counts; device, place of the first stripe
_PROFILES = 0x7F8
_ROOM = 65536
_KINDS = ("ext2", "ext3", "ext4", "xfs")

Run = tuple[int, int, int]  # place in the file, place on the device, length; bytes


@dataclass(frozen=True)
class Place:
    """``device``: the block device of the filesystem. ``runs``: all of the file, from its start on, without gaps."""

    device: Path
    runs: tuple[Run, ...]


def place_of(descriptor: int, path: Path, page_size: int) -> Place:
    """Where an open file is. Raises Refused if the kernel would not use it for swap, or not resume from it."""
    try:
        btrfs = fcntl.ioctl(descriptor, _FS_INFO, bytes(1024))
    except OSError:
        btrfs = b""
    try:
        device = _device_of_btrfs(descriptor, path, btrfs) if btrfs else _device(descriptor, path)
        size = os.fstat(descriptor).st_size // page_size * page_size
        found = list(_runs(descriptor, path, size))
        if btrfs:
            found = _on_device(descriptor, path, found)
    except OSError as error:
        raise Refused(f"swap file {path}", f"its place on the device cannot be read: {error.strerror}.", "Run as root.") from None
    if any(logical % page_size or physical % page_size for logical, physical, _length in found):
        raise _unusable(path, f"is not placed in whole pages of {page_size} bytes")
    return Place(device, tuple(_joined(found)))


def _unusable(path: Path, why: str) -> Refused:
    return Refused(f"swap file {path}", f"the kernel cannot resume from it: it {why}.", "Create the swap file again, or name another one.")


def _device(descriptor: int, path: Path) -> Path:
    number = os.fstat(descriptor).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    kind = next((line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == name), "an unknown filesystem")
    if kind not in _KINDS:
        raise Refused(f"swap file {path}", f"on {kind}.", "Only ext4, XFS and btrfs on a block device are supported.")
    return Path("/dev", (Path("/sys/dev/block") / name).resolve().name.replace("!", "/"))


def _device_of_btrfs(descriptor: int, path: Path, info: bytes) -> Path:
    largest, count = struct.unpack_from("<QQ", info)
    if count != 1:
        raise _unusable(path, f"is on a btrfs of {count} devices")
    if not struct.unpack_from("<I", fcntl.ioctl(descriptor, _GETFLAGS, bytes(8)))[0] & _NOCOW:
        raise _unusable(path, "is copied on write (it lacks the attribute C of chattr)")
    buffer = bytearray(struct.pack("<Q", largest).ljust(4096, b"\0"))
    fcntl.ioctl(descriptor, _DEV_INFO, buffer)
    return Path(os.path.realpath(os.fsdecode(bytes(buffer[3072:]).split(b"\0")[0])))


def _runs(descriptor: int, path: Path, size: int) -> Iterator[Run]:
    end = 0
    for logical, physical, length, flags in _fiemap(descriptor, size):
        for bits, why in _UNUSABLE:
            if flags & bits:
                raise _unusable(path, why)
        if logical != end:
            break
        yield logical, physical, length
        end = logical + length
    if end < size:
        raise _unusable(path, f"has a hole at byte {end}")


def _fiemap(descriptor: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """(logical, physical, length, flags) of each extent, after what is not on the device yet was written there."""
    start = 0
    while start < size:
        buffer = bytearray(_FIEMAP_HEAD.size + _AT_ONCE * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(buffer, 0, start, size - start, _FIEMAP_SYNC, 0, _AT_ONCE, 0)
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        count = _FIEMAP_HEAD.unpack_from(buffer)[3]
        for number in range(count):
            extent = _FIEMAP_EXTENT.unpack_from(buffer, _FIEMAP_HEAD.size + number * _FIEMAP_EXTENT.size)
            yield extent
            start = extent[0] + extent[2]
            if extent[3] & _LAST:
                return
        if not count:
            return


def _on_device(descriptor: int, path: Path, runs: list[Run]) -> list[Run]:
    """With places on the device in place of the addresses of btrfs, divided where a chunk ends."""
    chunks = list(_chunks(descriptor))
    found = []
    for logical, address, left in runs:
        while left:
            chunk = next((chunk for chunk in chunks if chunk[0] <= address < chunk[0] + chunk[1]), None)
            if chunk is None:
                raise _unusable(path, "has parts whose place is not known")
            start, length, kind, place = chunk
            if kind & _PROFILES:
                raise _unusable(path, "is on a btrfs that stores data more than once (its profile is not single)")
            here = min(left, start + length - address)
            found.append((logical, place + address - start, here))
            logical, address, left = logical + here, address + here, left - here
    return found


def _chunks(descriptor: int) -> Iterator[tuple[int, int, int, int]]:
    """(address, length, type, place on the device of its first stripe) of each chunk, in bytes."""
    offset, most = 0, (1 << 64) - 1
    while True:
        buffer = bytearray(_SEARCH.size + _ROOM)
        key = (_CHUNK_TREE, _CHUNK_OBJECT, _CHUNK_OBJECT, offset, most, 0, most, _CHUNK_ITEM, _CHUNK_ITEM, 4096, 0, 0, 0, 0, 0)
        _SEARCH.pack_into(buffer, 0, *key, _ROOM)
        fcntl.ioctl(descriptor, _TREE_SEARCH, buffer)
        count, at = _SEARCH.unpack_from(buffer)[9], _SEARCH.size
        for _number in range(count):
            _transid, _object, address, _type, length = _SEARCH_HEADER.unpack_from(buffer, at)
            chunk = _CHUNK.unpack_from(buffer, at + _SEARCH_HEADER.size)
            yield address, chunk[0], chunk[3], chunk[10]
            at += _SEARCH_HEADER.size + length
            offset = address + 1
        if not count:
            return


def _joined(runs: list[Run]) -> list[Run]:
    """Runs that are one behind the other on the device as well count as one."""
    joined: list[Run] = []
    for logical, physical, length in runs:
        if joined and joined[-1][1] + joined[-1][2] == physical:
            first, place, before = joined[-1]
            joined[-1] = (first, place, before + length)
        else:
            joined.append((logical, physical, length))
    return joined
