# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a filesystem as its device shows it: the same text, as long as nobody wrote to it. Used by ``evidence``.

A restored machine goes on with what it remembers of its filesystems. If one has been written to since, what it remembers is
wrong, and what it writes next destroys it (Documentation/power/swsusp.rst). Superblocks alone do not tell: a filesystem that
is mounted changes its log long before its superblock; so the log is part of the state. From fs/ext4/ext4.h,
fs/xfs/libxfs/xfs_format.h, fs/btrfs/ctree.h and fs/fat of Linux 6.12. Devices are untrusted; every offset is bounded.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Read = Callable[[int, int], bytes]  # (offset, length) → bytes, fewer past the end

STEP = 4 << 20
LARGEST_LOG = 4 << 30  # bytes; XFS has logs of up to 2 GiB
LARGEST_TABLE = 64 << 20  # bytes of a FAT that are looked at


@dataclass(frozen=True)
class Filesystem:
    """``uuid`` as blkid shows it. ``state()`` reads the log; empty if this filesystem's state can't be told."""

    kind: str
    uuid: str
    state: Callable[[], str]


def identify(read: Read, size: int) -> Filesystem | None:
    """The filesystem in ``size`` bytes; None if it is of no kind that is known here. Raises what ``read`` does."""
    for one in (_ext, _xfs, _btrfs, _fat):
        found = one(read, size)
        if found is not None:
            return found
    return None


def _digest(read: Read, ranges: Iterator[tuple[int, int]] | list[tuple[int, int]], size: int, most: int) -> str:
    """Of some (offset, length); empty if they are not all within ``size`` bytes, or more than ``most``."""
    digest = hashlib.blake2b(digest_size=8)
    for offset, length in ranges:
        most -= length
        if not 0 <= offset <= offset + length <= size or most < 0:
            return ""
        for at in range(offset, offset + length, STEP):
            digest.update(read(at, min(STEP, offset + length - at)))
    return digest.hexdigest()


def _uuid(content: bytes) -> str:
    digits = content.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _text(**fields: int | str) -> str:
    """The fields; empty if one of them is: then the state is not known."""
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
        unit = 1024 << log_block_size
        length = struct.unpack_from("<II", block, 0x10C + 60)
        ranges = list(_extents(read, block[0x10C : 0x10C + 60], unit, 0))
        covered = sum(length for _offset, length in ranges)
        return _digest(read, ranges, size, LARGEST_LOG) if covered >= (length[0] << 32 | length[1]) > 0 else ""

    def text() -> str:
        sum_of_all = hashlib.blake2b(block, digest_size=8).hexdigest()
        return _text(
            mounts=mounts, mounted=mounted, written=written, kbytes=kbytes, clean=state, superblock=sum_of_all, log=log()
        )

    return Filesystem("ext4", _uuid(block[0x68:0x78]), text)


def _extents(read: Read, node: bytes, unit: int, depth: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the extents below a node of an inode's tree; none if it is no such tree."""
    magic, entries, _most, level = struct.unpack_from("<HHHH", node)
    if magic != 0xF30A or 12 + entries * 12 > len(node) or depth > 5 or level > 5:
        return
    for number in range(entries):
        if level == 0:
            _block, count, high, low = struct.unpack_from("<IHHI", node, 12 + number * 12)
            count = count if count <= 32768 else count - 32768
            yield (high << 32 | low) * unit, count * unit
        else:
            _block, low, high = struct.unpack_from("<IIH", node, 12 + number * 12)
            child = read((high << 32 | low) * unit, unit)
            if len(child) == unit and struct.unpack_from("<H", child, 6)[0] < level:
                yield from _extents(read, child, unit, depth + 1)


# XFS ------------------------------------------------------------------------------------------------------------------


def _xfs(read: Read, size: int) -> Filesystem | None:
    block = read(0, 512)
    if len(block) < 512 or block[:4] != b"XFSB":
        return None
    (unit,) = struct.unpack_from(">I", block, 4)
    (log_start,) = struct.unpack_from(">Q", block, 48)
    per_group, groups = struct.unpack_from(">II", block, 84)
    (log_blocks,) = struct.unpack_from(">I", block, 96)
    group_bits = block[124]
    inodes, free_inodes, free_blocks = struct.unpack_from(">QQQ", block, 128)
    (lsn,) = struct.unpack_from(">Q", block, 240)

    def text() -> str:
        group, within = log_start >> group_bits, log_start & ((1 << group_bits) - 1)
        internal = log_start > 0 and group < groups and 512 <= unit <= 65536
        begin = (group * per_group + within) * unit
        log = _digest(read, [(begin, log_blocks * unit)], size, LARGEST_LOG) if internal else ""
        sum_of_all = hashlib.blake2b(block, digest_size=8).hexdigest()
        return _text(lsn=lsn, inodes=inodes - free_inodes, free=free_blocks, superblock=sum_of_all, log=log)

    return Filesystem("xfs", _uuid(block[32:48]), text) if group_bits < 64 else None


# btrfs ----------------------------------------------------------------------------------------------------------------


def _btrfs(read: Read, size: int) -> Filesystem | None:
    block = read(0x10000, 4096)
    if len(block) < 4096 or block[0x40:0x48] != b"_BHRfS_M":
        return None
    generation, root, _chunk_root, log_root = struct.unpack_from("<QQQQ", block, 0x48)
    # Each commit writes a new root, each fsync a new root of the log. The rest of the block differs between its devices.
    return Filesystem("btrfs", _uuid(block[0x20:0x30]), lambda: _text(generation=generation, root=root, log_root=log_root))


# FAT ------------------------------------------------------------------------------------------------------------------


def _fat(read: Read, size: int) -> Filesystem | None:
    block = read(0, 512)
    if len(block) < 512 or block[510:512] != b"\x55\xaa":
        return None
    wide = block[82:87] == b"FAT32"
    if not wide and block[54:58] != b"FAT1":
        return None
    sector, per_cluster, reserved, tables, entries = struct.unpack_from("<HBHBH", block, 11)
    (length,) = struct.unpack_from("<I", block, 36) if wide else struct.unpack_from("<H", block, 22)
    low, high = struct.unpack_from("<HH", block, 67 if wide else 39)

    def text() -> str:
        data = (reserved + tables * length) * sector + entries * 32
        ranges = [(0, data)]
        free = 0
        if wide:
            (root,) = struct.unpack_from("<I", block, 44)
            ranges.append((data + (root - 2) * per_cluster * sector, per_cluster * sector))
            (info,) = struct.unpack_from("<H", block, 48)
            free = int.from_bytes(read(info * sector + 488, 4), "little")
        dirty = block[65 if wide else 37] & 1
        return _text(free=free, dirty=dirty, table=_digest(read, ranges, size, LARGEST_TABLE))

    return Filesystem("vfat", f"{high:04X}-{low:04X}", text)
