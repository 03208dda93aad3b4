# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the state of a filesystem from its device: a text that stays the same until the filesystem is written to.

A resumed machine keeps its cached view of its filesystems. If one was written to in the meantime, the cache is stale, and the
next write destroys the filesystem (Documentation/power/swsusp.rst). Superblocks are not enough: a mounted filesystem changes
its log long before its superblock, so the log is part of the state. From fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h,
fs/btrfs/ctree.h and fs/fat of Linux 6.12. Devices are untrusted: offsets, sizes and counts are bounded. Pure functions.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[int, int], bytes]  # (offset, length) → bytes, fewer past the end

READ_SIZE = 4 << 20  # bytes that are read at once
MAX_LOG_SIZE = 4 << 30  # bytes; logs of XFS have up to 2 GiB
MAX_LOG_EXTENTS = 1 << 16  # of a journal of ext4, and as many nodes of their tree
MAX_FAT_SIZE = 64 << 20  # bytes of FATs and root directory


@dataclass(frozen=True)
class Filesystem:
    """``uuid`` as blkid shows it. ``state()`` reads the log; empty if the state cannot be determined."""

    kind: str
    uuid: str
    state: Callable[[], str]


def identify(read: Read, size: int) -> Filesystem | None:
    """The filesystem in ``size`` bytes; None if its kind is not supported. Raises what ``read`` raises."""
    filesystems = (recognise(read, size) for recognise in (_ext, _xfs, _btrfs, _fat))
    return next((filesystem for filesystem in filesystems if filesystem is not None), None)


def _digest(read: Read, ranges: list[tuple[int, int]], size: int, max_length: int) -> str:
    """Digest of (offset, length) ranges; empty if not all are within ``size`` bytes, or if they exceed ``max_length``."""
    digest = hashlib.blake2b(digest_size=8)
    for offset, length in ranges:
        max_length -= length
        if not 0 <= offset <= offset + length <= size or max_length < 0:
            return ""
        for at in range(offset, offset + length, READ_SIZE):
            digest.update(read(at, min(READ_SIZE, offset + length - at)))
    return digest.hexdigest()


def uuid_text(content: bytes) -> str:
    """16 bytes as blkid shows them."""
    digits = content.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _text(**fields: int | str) -> str:
    """The fields as text; empty if one of them is empty, because the state cannot be determined then."""
    return "" if "" in fields.values() else " ".join(f"{name}={value}" for name, value in fields.items())


# ext2, ext3, ext4 -----------------------------------------------------------------------------------------------------

_HAS_JOURNAL = 0x4  # s_feature_compat


def _ext(read: Read, size: int) -> Filesystem | None:
    block = read(1024, 1024)
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        return None
    (log_block_size,) = struct.unpack_from("<I", block, 0x18)
    mounted, written, mounts = struct.unpack_from("<IIH", block, 0x2C)
    (state,) = struct.unpack_from("<H", block, 0x3A)
    (compat,) = struct.unpack_from("<I", block, 0x5C)
    (kbytes,) = struct.unpack_from("<Q", block, 0x178)

    def log() -> str:
        if not compat & _HAS_JOURNAL or block[0xFD] != 1 or log_block_size > 6:
            return ""  # no journal, an external one, or no copy of its inode in the superblock
        block_size = 1024 << log_block_size
        high, low = struct.unpack_from("<II", block, 0x10C + 60)
        extents = extents_of_inode(read, block[0x10C : 0x10C + 60], block_size)
        covered = sum(length for _offset, length in extents)
        return _digest(read, extents, size, MAX_LOG_SIZE) if covered >= (high << 32 | low) > 0 else ""

    def text() -> str:
        superblock = hashlib.blake2b(block, digest_size=8).hexdigest()
        return _text(
            mounts=mounts, mounted=mounted, written=written, kbytes=kbytes, clean=state, superblock=superblock, log=log()
        )

    return Filesystem("ext4", uuid_text(block[0x68:0x78]), text)


def extents_of_inode(read: Read, root: bytes, block_size: int) -> list[tuple[int, int]]:
    """(offset, length) of the extents in the tree of an inode, in order; empty if it is damaged or too large.

    A node is an ext4_extent_header and its entries; the depth of a child is less than that of its parent.
    """
    extents: list[tuple[int, int]] = []
    pending = [(-1, 6)]  # block of a node to visit (-1: the root), and the depth it has to be below; the next one last
    for _visited in range(MAX_LOG_EXTENTS):
        if not pending:
            return extents
        block, below = pending.pop()
        node = root if block < 0 else read(block * block_size, block_size)
        magic, entries, _max_entries, depth = struct.unpack_from("<HHHH", node) if len(node) >= 12 else (0, 0, 0, 0)
        if magic != 0xF30A or 12 + entries * 12 > len(node) or depth >= below or len(extents) + entries > MAX_LOG_EXTENTS:
            return []
        offsets = range(12, 12 + entries * 12, 12)
        if depth == 0:
            leaves = [struct.unpack_from("<IHHI", node, offset) for offset in offsets]
            extents += [
                ((high << 32 | low) * block_size, (count if count <= 32768 else count - 32768) * block_size)
                for _block, count, high, low in leaves
            ]
        else:
            inner = [struct.unpack_from("<IIH", node, offset) for offset in offsets]
            pending += [((high << 32 | low), depth) for _block, low, high in reversed(inner)]
    return []


# XFS ------------------------------------------------------------------------------------------------------------------


def _xfs(read: Read, size: int) -> Filesystem | None:
    block = read(0, 512)
    if len(block) < 512 or block[:4] != b"XFSB":
        return None
    inodes, free_inodes, free_blocks = struct.unpack_from(">QQQ", block, 128)
    (lsn,) = struct.unpack_from(">Q", block, 240)

    def text() -> str:
        extent = log_of_xfs(read, size)
        log = _digest(read, [extent], size, MAX_LOG_SIZE) if extent else ""
        superblock = hashlib.blake2b(block, digest_size=8).hexdigest()
        return _text(lsn=lsn, inodes=inodes - free_inodes, free=free_blocks, superblock=superblock, log=log)

    return Filesystem("xfs", uuid_text(block[32:48]), text) if block[124] < 64 else None


def log_of_xfs(read: Read, size: int) -> tuple[int, int] | None:
    """(offset, length) of the log; None if it is on another device, or cannot be where the superblock says."""
    block = read(0, 512)
    (unit,) = struct.unpack_from(">I", block, 4)
    (log_start,) = struct.unpack_from(">Q", block, 48)
    per_group, groups = struct.unpack_from(">II", block, 84)
    (log_blocks,) = struct.unpack_from(">I", block, 96)
    group_bits = min(block[124], 63)
    group, within = log_start >> group_bits, log_start & ((1 << group_bits) - 1)
    if not (log_start > 0 and group < groups and 512 <= unit <= 65536 and log_blocks):
        return None
    begin, length = (group * per_group + within) * unit, log_blocks * unit
    return (begin, length) if begin + length <= size else None


# btrfs ----------------------------------------------------------------------------------------------------------------


def _btrfs(read: Read, size: int) -> Filesystem | None:
    block = read(0x10000, 4096)
    if len(block) < 4096 or block[0x40:0x48] != b"_BHRfS_M":
        return None
    generation, root, _chunk_root, log_root = struct.unpack_from("<QQQQ", block, 0x48)
    # Each commit writes a new root, each fsync a new root of the log. The rest of the block differs between its devices.
    return Filesystem("btrfs", uuid_text(block[0x20:0x30]), lambda: _text(generation=generation, root=root, log_root=log_root))


# FAT ------------------------------------------------------------------------------------------------------------------


def _fat(read: Read, size: int) -> Filesystem | None:
    block = read(0, 512)
    if len(block) < 512 or block[510:512] != b"\x55\xaa":
        return None
    wide = block[82:87] == b"FAT32"
    if not wide and block[54:58] != b"FAT1":
        return None
    low, high = struct.unpack_from("<HH", block, 67 if wide else 39)

    def text() -> str:
        free = 0
        if wide:
            (info,) = struct.unpack_from("<H", block, 48)
            free = int.from_bytes(read(info * _sector_size(block) + 488, 4), "little")
        dirty = block[65 if wide else 37] & 1
        return _text(free=free, dirty=dirty, table=_digest(read, list(fat_ranges(read)), size, MAX_FAT_SIZE))

    return Filesystem("vfat", f"{high:04X}-{low:04X}", text)


def _sector_size(block: bytes) -> int:
    return int(struct.unpack_from("<H", block, 11)[0])


def fat_ranges(read: Read) -> tuple[tuple[int, int], ...]:
    """(offset, length) of the tables with all that is before them, and of the root directory. They may leave a damaged device."""
    block = read(0, 512)
    sector, per_cluster, reserved, tables, entries = struct.unpack_from("<HBHBH", block, 11)
    wide = block[82:87] == b"FAT32"
    (length,) = struct.unpack_from("<I", block, 36) if wide else struct.unpack_from("<H", block, 22)
    data = (reserved + tables * length) * sector + entries * 32
    if not wide:
        return ((0, data),)
    (root,) = struct.unpack_from("<I", block, 44)
    return ((0, data), (data + (root - 2) * per_cluster * sector, per_cluster * sector))
