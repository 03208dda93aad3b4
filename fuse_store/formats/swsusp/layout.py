# SPDX-License-Identifier: GPL-3.0-or-later
"""Offsets, flags and signatures of hibernation images: tables only.

From kernel/power/swap.c, kernel/power/power.h and include/linux/swap.h of Linux 5.10 to 7.3, for 64-bit little-endian
kernels. docs/hibernation-image.md explains them; tests compare the two.
"""

from __future__ import annotations

import struct

IMAGE = "hibernation image"  # the thing that error messages name

PAGE_SIZES = (4096, 16384, 65536)

# struct swsusp_header: the last 40 bytes of the page at resume_offset.
TAIL = struct.Struct("<IIQI10s10s")  # hw_sig, crc32, image, flags, orig_sig, sig
SIGNATURE = b"S1SUSPEND\0"
SIGNATURE_SIZE = len(SIGNATURE)
SWAP_SIGNATURES = (b"SWAPSPACE2", b"SWAP-SPACE")

# union swap_header, in the same page: version, last_page, nr_badpages, uuid, label.
SWAP = struct.Struct("<III16s16s")
SWAP_AT = 1024

# Bit → name, as in kernel/power/power.h without its SF_.
FLAGS = {1: "platform_mode", 2: "nocompress_mode", 4: "crc32_mode", 8: "hw_sig", 16: "compression_alg_lz4"}
PLATFORM, NOCOMPRESS, CRC32, HW_SIG, LZ4 = FLAGS

# Signatures of other programs in the same place (util-linux, libblkid/src/superblocks/swap.c).
FOREIGN = {
    b"ULSUSPEND\0": "s2disk (uswsusp)",
    b"S2SUSPEND\0": "Software Suspend 2",
    b"LINHIB0001": "a kernel patched for LINHIB",
    b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c": "TuxOnIce",
}

# struct swsusp_info on 64-bit kernels.
INFO_AT = 392
INFO = struct.Struct("<I4xQi4xQQQ")  # version_code, num_physpages, cpus, image_pages, pages, size
INFO_32 = struct.Struct("<IiIII")  # of 32-bit kernels: num_physpages, cpus, image_pages, pages, size
INFO_32_AT = 396
UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")
UTS_LENGTH = 65  # of each, with its NUL

ENTRY = 8  # bytes of sector_t and of a PFN
ZERO_FLAG = 1 << 63  # in a PFN: all zeros, not stored (Linux 6.6)
END_OF_PFNS = (1 << 64) - 1
MAX_PFN = 1 << 40  # exclusive: 52 bits of physical address, in the smallest pages

CHUNK_PAGES = 32  # UNC_PAGES
CHUNK_HEAD = struct.Struct("<Q")  # cmp_len


def map_entries(page_size: int) -> int:
    """Entries in a page of the swap map; the 8 bytes after them are ``next_swap``."""
    return page_size // ENTRY - 1


def largest_compressed(length: int) -> int:
    """The largest compressed size of ``length`` bytes (bytes_worst_compress, kernel/power/swap.c)."""
    return length + length // 16 + 64 + 3 + 2
