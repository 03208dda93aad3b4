# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a filesystem shows on its device that it was changed: places that stay as they are from the moment of a snapshot, also when the
system goes on, until the first change of the filesystem is committed, and that are other then.

One that was mounted read-only shows it when it is mounted writable: in its superblock. One that was writable has been frozen for the
snapshot: its log is empty, and what is written next begins in the log. docs/decisions/0154 tells how that was found. From fs/ext4/ext4.h,
include/linux/jbd2.h, fs/xfs/libxfs/xfs_log_format.h, fs/btrfs/accessors.h, fs/squashfs/squashfs_fs.h, fs/erofs/erofs_fs.h and fs/isofs of
Linux 6.12. Devices are untrusted: offsets and sizes are bounded. Pure functions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from fuse_store.hibernation.filesystems import Read, extents_of_inode, fat_ranges, identify, log_of_xfs, uuid_text

Ranges = tuple[tuple[int, int], ...]  # (offset, length) in bytes

ANY = "any"  # in place of a UUID, of filesystems that have none: some device has to have these bytes
MAX_FAT_SIZE = 16 << 20  # bytes of the tables and the root directory, which are read while the system stands still
_SECTOR = 512
_NOTHING_MORE: Ranges = ()


class NotGuarded(Exception):
    """Nothing on the device tells for certain whether the filesystem has changed. The argument says why, in words."""


@dataclass(frozen=True)
class Places:
    """``uuid``: as blkid shows it, or ANY. ``ranges``: what to read. ``when_frozen`` returns further ranges, which are known no sooner; it
    raises NotGuarded if the filesystem is not at rest."""

    uuid: str
    ranges: Ranges
    when_frozen: Callable[[Read], Ranges] = lambda _read: _NOTHING_MORE


def places_of(kind: str, read: Read, size: int, writable: bool) -> Places:
    """The places of a filesystem of a ``kind`` of /proc/filesystems, in ``size`` bytes. Raises NotGuarded, and what ``read`` raises."""
    find = _WRITABLE.get(kind) if writable else _READ_ONLY.get(kind)
    if find is None:
        raise NotGuarded(f"{kind} cannot be watched{' while it is mounted writable' if kind in _READ_ONLY else ''}")
    return find(read, size)


def _identified(read: Read, size: int, kind: str) -> str:
    """The UUID of a filesystem. Raises NotGuarded if another kind is on the device."""
    found = identify(read, size)
    if found is None or found.kind != kind:
        raise NotGuarded(f"no {kind} is on its device")
    return found.uuid


# ext2, ext3, ext4 -----------------------------------------------------------------------------------------------------

_HAS_JOURNAL, _FAST_COMMIT = 0x4, 0x400  # s_feature_compat
_MULTIPLE_MOUNT_PROTECTION, _WIDE = 0x100, 0x80  # s_feature_incompat
_JOURNAL_INODE, _USES_EXTENTS = 8, 0x80000
_JOURNAL_MAGIC, _JOURNAL_SUPERBLOCKS = 0xC03B3998, (3, 4)
# The superblock without what thawing alone changes: s_wtime, features that say "needs recovery", s_kbytes_written, s_wtime_hi, s_checksum.
_SUPERBLOCK = ((0x0, 0x30), (0x34, 0x2C), (0x68, 0x110), (0x180, 0xF4), (0x275, 0x187))


def _ext(read: Read, size: int) -> Places:
    """Read-only: each writable mount counts itself (s_mnt_count, s_mtime), at once."""
    return Places(_identified(read, size, "ext4"), ((1024, 1024),))


def _ext_writable(read: Read, size: int) -> Places:
    """The first commit after the thaw notes the start of the log in the superblock of the journal, before anything else is written."""
    uuid = _identified(read, size, "ext4")
    block = read(1024, 1024)
    compat, incompat = struct.unpack_from("<II", block, 0x5C)
    (journal,) = struct.unpack_from("<I", block, 0xE0)
    for wrong, what in (
        (not compat & _HAS_JOURNAL, "has no journal"),
        (journal != _JOURNAL_INODE, "has its journal on another device"),
        (compat & _FAST_COMMIT, "has fast commits"),
        (incompat & _MULTIPLE_MOUNT_PROTECTION, "has the protection against multiple mounts"),
    ):
        if wrong:
            raise NotGuarded(f"ext4 {what}")
    at = _journal(read, size, block)

    def empty(frozen: Read) -> Ranges:
        magic, blocktype = struct.unpack_from(">II", frozen(at, 1024))
        start, problem = struct.unpack_from(">Ii", frozen(at, 1024), 0x1C)
        if magic != _JOURNAL_MAGIC or blocktype not in _JOURNAL_SUPERBLOCKS or start or problem:
            raise NotGuarded("the journal of ext4 is not empty")
        return ((at, 1024),)

    return Places(uuid, tuple((1024 + offset, length) for offset, length in _SUPERBLOCK), empty)


def _journal(read: Read, size: int, superblock: bytes) -> int:
    """Where the superblock of the journal is, in bytes. Raises NotGuarded."""
    first_block, log_size = struct.unpack_from("<II", superblock, 0x14)
    (inode_size,) = struct.unpack_from("<H", superblock, 0x58)
    (incompat,) = struct.unpack_from("<I", superblock, 0x60)
    (descriptor_size,) = struct.unpack_from("<H", superblock, 0xFE)
    block_size = 1024 << log_size if log_size <= 6 else 0
    if block_size and 128 <= inode_size <= block_size:
        group = read((first_block + 1) * block_size, 64)
        if len(group) == 64:
            (table,) = struct.unpack_from("<I", group, 8)
            if incompat & _WIDE and descriptor_size >= 64:
                table |= struct.unpack_from("<I", group, 0x28)[0] << 32
            inode = read(table * block_size + (_JOURNAL_INODE - 1) * inode_size, 128)
            at = _first_block(read, inode, block_size) * block_size if len(inode) == 128 else 0
            if 0 < at <= size - 1024:
                return at
    raise NotGuarded("the journal of ext4 is not found")


def _first_block(read: Read, inode: bytes, block_size: int) -> int:
    """The first block of a file; 0 if it cannot be told."""
    (flags,) = struct.unpack_from("<I", inode, 0x20)
    if not flags & _USES_EXTENTS:
        return int(struct.unpack_from("<I", inode, 0x28)[0])
    extents = extents_of_inode(read, inode[0x28 : 0x28 + 60], block_size)
    return extents[0][0] // block_size if extents else 0


# XFS ------------------------------------------------------------------------------------------------------------------

_RECORD_MAGIC = 0xFEEDBABE
_RECORD_SECTORS = 512  # of the largest record of the log: 256 KiB
_HEADER_COVERS = 32 << 10  # bytes of a record that one sector of header is for
_AHEAD = 16  # sectors behind the end of the log that are read as well


def _xfs(read: Read, size: int) -> Places:
    """The superblock, and the sector at the end of the log: there the next record begins, also that of a writable mount."""
    uuid = _identified(read, size, "xfs")
    log = log_of_xfs(read, size)
    if log is None:
        raise NotGuarded("XFS has its log on another device")
    begin, length = log

    def end_of_log(frozen: Read) -> Ranges:
        first, beyond = _last_record(lambda at, count: frozen(begin + at * _SECTOR, count * _SECTOR), length // _SECTOR)
        ahead = min(_AHEAD, length // _SECTOR - beyond)
        return ((begin + first * _SECTOR, _SECTOR), (begin + beyond * _SECTOR, ahead * _SECTOR))

    return Places(uuid, ((0, _SECTOR),), end_of_log)


def _last_record(read: Read, sectors: int) -> tuple[int, int]:
    """(first sector of the last record of the log, the sector behind it). ``read`` counts sectors. The log is a ring, and each sector has
    the number of the round in which it was written. Raises NotGuarded if the log does not end with a whole record."""

    def cycle(sector: int) -> int:
        first, second = struct.unpack_from(">II", read(sector, 1))
        return int(second if first == _RECORD_MAGIC else first)

    low, high = 0, sectors - 1
    if cycle(low) == cycle(high):
        beyond = 0
    else:
        newest = cycle(low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cycle(middle) == newest else (low, middle)
        beyond = high
    for back in range(1, min(_RECORD_SECTORS + 9, sectors)):
        first = (beyond - back) % sectors
        header = read(first, 1)
        (magic,) = struct.unpack_from(">I", header)
        if magic == _RECORD_MAGIC:
            (version, length), (record_size,) = struct.unpack_from(">II", header, 8), struct.unpack_from(">I", header, 320)
            headers = -(-record_size // _HEADER_COVERS) if version & 2 and record_size > _HEADER_COVERS else 1
            if headers + -(-length // _SECTOR) == back:
                return first, beyond
            break
    raise NotGuarded("the log of XFS does not end with a whole record")


# the others -----------------------------------------------------------------------------------------------------------


def _btrfs(read: Read, size: int) -> Places:
    """fsid to bytes_used of the superblock, as on all its devices: each commit has a generation, each fsync a root of the log."""
    return Places(_identified(read, size, "btrfs"), ((0x10020, 0x60),))


def _fat(read: Read, size: int) -> Places:
    """The sign of a writable mount, the tables and the root directory."""
    uuid = _identified(read, size, "vfat")
    ranges = fat_ranges(read)
    if sum(length for _offset, length in ranges) > MAX_FAT_SIZE or any(not 0 <= offset <= size - length for offset, length in ranges):
        raise NotGuarded(f"vfat has tables of more than {MAX_FAT_SIZE >> 20} MiB")
    return Places(uuid, ranges)


def _squashfs(read: Read, size: int) -> Places:
    """Nothing writes to it; another image has another superblock, or other tables at its end."""
    block = read(0, 96)
    if len(block) < 96 or block[:4] != b"hsqs":
        raise NotGuarded("no squashfs is on its device")
    (used,) = struct.unpack_from("<Q", block, 40)
    tail = min(4096, used)
    if not 96 <= used <= size:
        raise NotGuarded("the superblock of squashfs is damaged")
    return Places(ANY, ((0, 96), (used - tail, tail)))


def _erofs(read: Read, size: int) -> Places:
    block = read(1024, 128)
    if len(block) < 128 or block[:4] != struct.pack("<I", 0xE0F5E1E2):
        raise NotGuarded("no erofs is on its device")
    uuid = block[48:64]
    return Places(uuid_text(uuid) if any(uuid) else ANY, ((1024, 128),))


def _iso9660(read: Read, size: int) -> Places:
    """Its UUID is the time of its last change, or of its creation."""
    block = read(32768, 2048)
    if len(block) < 2048 or block[:6] != b"\x01CD001":
        raise NotGuarded("no iso9660 is on its device")
    times = (block[at : at + 16].decode("ascii", "replace") for at in (830, 813))
    digits = next((time for time in times if time.isascii() and time.isdecimal() and time.strip("0")), "")
    uuid = "-".join((digits[:4], *(digits[at : at + 2] for at in range(4, 16, 2)))) if digits else ANY
    return Places(uuid, ((32768, 2048),))


_Find = Callable[[Read, int], Places]
_READ_ONLY: dict[str, _Find] = {
    "ext2": _ext, "ext3": _ext, "ext4": _ext, "xfs": _xfs, "btrfs": _btrfs, "vfat": _fat, "msdos": _fat,
    "squashfs": _squashfs, "erofs": _erofs, "iso9660": _iso9660,
}  # fmt: skip
_WRITABLE: dict[str, _Find] = {"ext3": _ext_writable, "ext4": _ext_writable, "xfs": _xfs, "btrfs": _btrfs}
