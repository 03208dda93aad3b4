# SPDX-License-Identifier: GPL-3.0-or-later
"""The first page of an image's stream, ``struct swsusp_info``: how many pages there are of each sort.

Architectures with CONFIG_ARCH_HIBERNATION_HEADER write a record of their own over the names and the version of the kernel,
which are then missing. The page does not say which architecture it is; each row of ARCHITECTURE_RECORDS recognises its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuse_store.errors import Damaged, Refused
from fuse_store.formats.swsusp import layout
from fuse_store.formats.swsusp.header import printable
from fuse_store.formats.swsusp.layout import IMAGE

OVERWRITTEN = "The image was overwritten, or this is not the device that it was written to."
MAX_MEMORY_PAGES = 1 << 34  # pages: 64 TiB in the smallest ones


@dataclass(frozen=True)
class ArchitectureRecord:
    """The record of an architecture: ``words`` names the 64-bit words from ``offset`` on, ``digest`` the 16 bytes after them,
    which are shown in hexadecimal. ``recognises`` tells whether a page begins with this record."""

    architecture: str
    offset: int
    words: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    version: bool = False  # utsname.version is at 0
    digest: str = ""

    def parse(self, page: bytes) -> dict[str, Any]:
        layout_of_words = struct.Struct(f"<{len(self.words)}Q")
        fields: dict[str, Any] = {"version": printable(page[: layout.UTS_LENGTH])} if self.version else {}
        fields.update(zip(self.words, layout_of_words.unpack_from(page, self.offset), strict=True))
        if self.digest:
            end = self.offset + layout_of_words.size
            fields[self.digest] = page[end : end + 16].hex()
        return fields


def _word(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 8], "little")


X86_MAGIC = 0x23456789ABCDEF02
X86_MAGIC_MD5 = 0x23456789ABCDEF01  # until 5.12
X86_MAGICS_32 = (0x12345678, 0x12345679)

ARCHITECTURE_RECORDS = (
    # arch/x86/power/hibernate.c, struct restore_data_record; until 5.12 with the MD5 of the memory map, then with its CRC.
    ArchitectureRecord(
        "x86", 0, ("jump_address", "jump_address_phys", "cr3", "magic", "e820_checksum"),
        lambda page: _word(page, 24) == X86_MAGIC,
    ),
    ArchitectureRecord(
        "x86", 0, ("jump_address", "jump_address_phys", "cr3", "magic"),
        lambda page: _word(page, 24) == X86_MAGIC_MD5,
        digest="e820_digest",
    ),
    # arch/riscv/kernel/hibernate.c, struct arch_hibernate_hdr: satp has its mode (Sv39, Sv48, Sv57) in the highest four bits.
    ArchitectureRecord(
        "riscv", 72, ("hartid", "saved_satp", "restore_cpu_addr"),
        lambda page: page[0] != 0 and _word(page, 80) >> 60 in (8, 9, 10) and _word(page, 88) >> 48 == 0xFFFF,
        version=True,
    ),
    # arch/arm64/kernel/hibernate.c, struct arch_hibernate_hdr.
    ArchitectureRecord(
        "arm64", 72, ("ttbr1_el1", "reenter_kernel", "__hyp_stub_vectors", "sleep_cpu_mpidr"),
        lambda page: page[0] != 0 and _word(page, 80) >> 48 == 0xFFFF,
        version=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Info:
    """Counts of pages: ``memory`` of the machine, ``stored`` of data in the image, ``pages`` of the stream, which includes this
    page and the lists of PFNs. ``record`` has the fields of the architecture, or of ``utsname`` for ``generic``."""

    architecture: str
    record: dict[str, Any]
    version_code: int
    memory: int
    cpus: int
    stored: int
    pages: int
    size: int

    @property
    def lists(self) -> int:
        """Pages that list PFNs (nr_meta_pages)."""
        return self.pages - self.stored - 1

    @property
    def data(self) -> int:
        """Pages after this one: lists and stored pages."""
        return self.pages - 1


def parse(page: bytes, page_size: int) -> Info:
    """The Info in the first page of the stream. Raises Damaged, Refused."""
    version_code, memory, cpus, stored, pages, size = layout.INFO.unpack_from(page, layout.INFO_AT)
    if size != pages * page_size or not pages:
        _memory, _cpus, _stored, pages_32, size_32 = layout.INFO_32.unpack_from(page, layout.INFO_32_AT)
        if (pages_32 and size_32 == pages_32 * page_size) or _word(page, 12) & 0xFFFFFFFF in X86_MAGICS_32:
            raise Refused(IMAGE, "written by a 32-bit kernel.", "Only images of 64-bit kernels are supported.")
        raise Damaged(IMAGE, f"swsusp_info has {pages} pages of {page_size} bytes, but a size of {size}.", OVERWRITTEN)
    per_list = page_size // layout.ENTRY
    lists = pages - stored - 1
    if memory > MAX_MEMORY_PAGES:
        raise Damaged(IMAGE, f"swsusp_info has an impossible memory size of {memory} pages.", OVERWRITTEN)
    if not 0 <= stored <= memory or not 0 < lists <= memory // per_list + 1 or stored > lists * per_list:
        raise Damaged(
            IMAGE, f"swsusp_info has {stored} stored pages of {pages} for a memory of {memory} pages, which is impossible.", OVERWRITTEN
        )
    for record in ARCHITECTURE_RECORDS:
        if not version_code and record.recognises(page):
            return Info(record.architecture, record.parse(page), 0, memory, cpus, stored, pages, size)
    names = {
        name: printable(page[index * layout.UTS_LENGTH : (index + 1) * layout.UTS_LENGTH])
        for index, name in enumerate(layout.UTS_FIELDS)
    }
    return Info("generic", names, version_code, memory, cpus, stored, pages, size)
