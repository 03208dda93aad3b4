# SPDX-License-Identifier: GPL-3.0-or-later
"""The headers of two formats of memory dumps: ELF core and LiME. Knows nothing of images.

crash and drgn read the ELF as a kdump, Volatility 3 as a dump of memory. Their requirements: at least two PT_LOAD and p_align
0 (crash, netdump.c); the name of the note (drgn); p_filesz equal to p_memsz and fewer than 65535 segments (Volatility 3).
LiME is https://github.com/504ensicsLabs/LiME, version 1, whose end addresses are inclusive.
"""

from __future__ import annotations

import struct

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")  # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64-bit, little-endian, version 1
ET_CORE, PT_LOAD, PT_NOTE, PF_RWX, PF_R = 4, 1, 4, 7, 4
LIME = struct.Struct("<IIQQ8x")
LIME_MAGIC = 0x4C694D45

MASK = (1 << 64) - 1
CoreSegment = tuple[int, int, int]  # file offset, physical address, bytes


def core_header(machine: int, segments: list[CoreSegment], note: bytes, direct_map: int, size: int) -> bytes:
    """ELF header, program headers and ``note``, padded to ``size`` bytes, where the first segment may begin.

    Virtual addresses are those of the direct map, ``direct_map`` above the physical ones.
    """
    begin = EHDR.size + (1 + len(segments)) * PHDR.size
    header = EHDR.pack(IDENT, ET_CORE, machine, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, 1 + len(segments), 0, 0, 0)
    notes = PHDR.pack(PT_NOTE, PF_R, begin, 0, 0, len(note), len(note), 0)
    loads = b"".join(
        PHDR.pack(PT_LOAD, PF_RWX, offset, (address + direct_map) & MASK, address, length, length, 0)
        for offset, address, length in segments
    )
    return (header + notes + loads + note).ljust(size, b"\0")


def core_header_size(segments: int, note: int, page_size: int) -> int:
    """Bytes of the header of a core with a note of up to ``note`` bytes, rounded up to whole pages."""
    return -(-(EHDR.size + (1 + segments) * PHDR.size + note) // page_size) * page_size


def lime_header(address: int, size: int) -> bytes:
    """The header of one range of LiME."""
    return LIME.pack(LIME_MAGIC, 1, address, address + size - 1)
