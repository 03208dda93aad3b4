# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the pages of a swap file are on its block device, and why the kernel would not use the file. Reads only.

The kernel asks the filesystem once, at swapon, and then reads and writes the device itself (mm/swapfile.c, setup_swap_extents). ext4 and
XFS tell the place of an extent on the device (FIEMAP). btrfs tells an address of its own; its tree of chunks says where that is.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass

FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs")

FIEMAP = 0xC020660B  # include/uapi/linux/fiemap.h: FS_IOC_FIEMAP
FIEMAP_SYNC = 1
FIEMAP_HEAD = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, room for extents, reserved
FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
LAST = 0x1
AT_ONCE = 512  # extents that are asked for in one call
UNUSABLE = (  # flags of an extent, and what they say
    (0x6, "has parts that the filesystem has not placed on the device yet"),  # UNKNOWN, DELALLOC
    (0x88, "is compressed or encrypted"),  # ENCODED, DATA_ENCRYPTED
    (0x700, "is kept within the filesystem's own metadata"),  # NOT_ALIGNED, DATA_INLINE, DATA_TAIL
    (0x2000, "shares blocks with another file or a snapshot"),  # SHARED
)

GETFLAGS = 0x80086601  # include/uapi/linux/fs.h: FS_IOC_GETFLAGS
NOCOW = 0x00800000  # FS_NOCOW_FL
GETXATTR = 0x801C581F  # FS_IOC_FSGETXATTR
REALTIME = 0x1  # FS_XFLAG_REALTIME
FS_INFO = 0x8400941F  # include/uapi/linux/btrfs.h: BTRFS_IOC_FS_INFO, 1024 bytes: max_id, num_devices
TREE_SEARCH = 0xC0709411  # BTRFS_IOC_TREE_SEARCH_V2
SEARCH = struct.Struct("=7Q4I4QQ")  # btrfs_ioctl_search_key, size of the buffer
SEARCH_HEADER = struct.Struct("=QQQII")  # transid, objectid, offset, type, length
ROOM = 65536  # bytes of the buffer
CHUNK_TREE, CHUNK_OBJECT, CHUNK_ITEM = 3, 256, 228  # include/uapi/linux/btrfs_tree.h
CHUNK = struct.Struct("<4Q3IHHQQ")  # btrfs_chunk: length, owner, stripe length, type, 3 sizes, 2 counts; device, place of the first stripe
PROFILES = 0x7F8  # BTRFS_BLOCK_GROUP_PROFILE_MASK: RAID, DUP; single has none of them
MAX_U64 = (1 << 64) - 1


class Unusable(Exception):
    """Why the kernel would not use a file for swap, or not resume from it, as a predicate."""


@dataclass(frozen=True)
class Extent:
    """A run of a file: C(logical) place in it, C(physical) place on the block device, C(length); bytes."""

    logical: int
    physical: int
    length: int


def of_file(handle, kind, size, page):
    """The Extents of an open file of C(size) bytes on a filesystem of C(kind), without gaps, from its start; C(page): bytes of a page.

    Raises Unusable, OSError.
    """
    if kind == "btrfs":
        _check_btrfs(handle)
    elif kind == "xfs" and struct.unpack_from("=I", _ioctl(handle, GETXATTR, bytes(28)))[0] & REALTIME:
        raise Unusable("is on the realtime device of its filesystem")
    found = []
    end = 0
    for logical, physical, length, flags in _fiemap(handle, size):
        for bits, why in UNUSABLE:
            if flags & bits:
                raise Unusable(why)
        if logical != end:
            break
        found.append(Extent(logical, physical, length))
        end = logical + length
    if end < size:
        raise Unusable("has a hole at byte %d" % end)
    if kind == "btrfs":
        found = _on_device(handle, found)
    if any(extent.physical % page or extent.logical % page for extent in found):
        raise Unusable("is not placed in whole pages of %d bytes, because the blocks of its filesystem are smaller" % page)
    return _joined(found)


def _fiemap(handle, size):
    """(logical, physical, length, flags) of each extent, after what is not on the device yet was written there."""
    start = 0
    while start < size:
        buffer = bytearray(FIEMAP_HEAD.size + AT_ONCE * FIEMAP_EXTENT.size)
        FIEMAP_HEAD.pack_into(buffer, 0, start, size - start, FIEMAP_SYNC, 0, AT_ONCE, 0)
        fcntl.ioctl(handle, FIEMAP, buffer)
        count = FIEMAP_HEAD.unpack_from(buffer)[3]
        for number in range(count):
            extent = FIEMAP_EXTENT.unpack_from(buffer, FIEMAP_HEAD.size + number * FIEMAP_EXTENT.size)
            yield extent
            start = extent[0] + extent[2]
            if extent[3] & LAST:
                return
        if not count:
            return


def _joined(extents):
    """Extents that are one behind the other on the device as well count as one."""
    joined: list[Extent] = []
    for extent in extents:
        last = joined[-1] if joined else None
        if last and last.physical + last.length == extent.physical:
            joined[-1] = Extent(last.logical, last.physical, last.length + extent.length)
        else:
            joined.append(extent)
    return joined


# btrfs ---------------------------------------------------------------------------------------------------------------


def _check_btrfs(handle):
    """fs/btrfs/inode.c, btrfs_swap_activate: no copy on write; and one device, because resume=UUID= names all of several."""
    if not struct.unpack_from("=L", _ioctl(handle, GETFLAGS, bytes(8)))[0] & NOCOW:
        raise Unusable("is copied on write (it lacks the attribute C of chattr)")
    devices = struct.unpack_from("=QQ", _ioctl(handle, FS_INFO, bytes(1024)))[1]
    if devices != 1:
        raise Unusable("is on a btrfs of %d devices, of which resume= cannot name one" % devices)


def _on_device(handle, extents):
    """C(extents) with the places on the device in place of the addresses of btrfs, divided where a chunk ends."""
    chunks = _chunks(handle)
    found = []
    for extent in extents:
        logical, address, left = extent.logical, extent.physical, extent.length
        while left:
            start, length, kind, place = next(
                (chunk for chunk in chunks if chunk[0] <= address < chunk[0] + chunk[1]), (0, 0, 0, None))
            if place is None:
                raise Unusable("has parts whose place is not known")
            if kind & PROFILES:
                raise Unusable("is on a btrfs that stores data more than once (its profile is not single)")
            here = min(left, start + length - address)
            found.append(Extent(logical, place + address - start, here))
            logical, address, left = logical + here, address + here, left - here
    return found


def _chunks(handle):
    """(address, length, type, place on the device of its first stripe) of each chunk, in bytes."""
    chunks = []
    offset = 0
    while True:
        buffer = bytearray(SEARCH.size + ROOM)
        SEARCH.pack_into(buffer, 0, CHUNK_TREE, CHUNK_OBJECT, CHUNK_OBJECT, offset, MAX_U64, 0, MAX_U64,
                         CHUNK_ITEM, CHUNK_ITEM, 4096, 0, 0, 0, 0, 0, ROOM)
        fcntl.ioctl(handle, TREE_SEARCH, buffer)
        count = SEARCH.unpack_from(buffer)[9]
        at = SEARCH.size
        for _number in range(count):
            _transid, _object, address, _type, length = SEARCH_HEADER.unpack_from(buffer, at)
            at += SEARCH_HEADER.size
            chunk = CHUNK.unpack_from(buffer, at)
            chunks.append((address, chunk[0], chunk[3], chunk[10]))
            at += length
            offset = address + 1
        if not count:
            return chunks


def _ioctl(handle, code, content):
    return fcntl.ioctl(handle, code, content)
