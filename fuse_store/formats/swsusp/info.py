# SPDX-License-Identifier: GPL-3.0-or-later
"""The first page of an image's stream, ``struct swsusp_info``: how many pages of what. Used by ``image`` and ``write``.

Architectures with CONFIG_ARCH_HIBERNATION_HEADER lay a record of their own over the names and the version of the kernel,
which are then not there. Which it is, the page does not say; each row of ARCHITECTURES knows its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuse_store.errors import Damaged, Refused
from fuse_store.formats.swsusp import layout
from fuse_store.formats.swsusp.header import THING, text

MOST_PAGES = 1 << 34  # of memory: 64 TiB in the smallest pages


@dataclass(frozen=True)
class Architecture:
    """``record`` names the 64-bit words at ``at``; ``digest`` 16 bytes behind them, shown in hexadecimal. ``knows`` tells
    whether a page's start has this form."""

    name: str
    at: int
    record: tuple[str, ...]
    knows: Callable[[bytes], bool]
    version: bool = False  # utsname.version stands at 0
    digest: str = ""

    def parse(self, page: bytes) -> dict[str, Any]:
        words = struct.Struct(f"<{len(self.record)}Q")
        fields: dict[str, Any] = {"version": text(page[: layout.UTS_LENGTH])} if self.version else {}
        fields.update(zip(self.record, words.unpack_from(page, self.at), strict=True))
        if self.digest:
            fields[self.digest] = page[self.at + words.size : self.at + words.size + 16].hex()
        return fields


def _word(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 8], "little")


X86_MAGIC = 0x23456789ABCDEF02
X86_MAGIC_MD5 = 0x23456789ABCDEF01  # until 5.12
X86_MAGICS_32 = (0x12345678, 0x12345679)

ARCHITECTURES = (
    # arch/x86/power/hibernate.c, struct restore_data_record; until 5.12 with the MD5 of the memory map, then with its CRC.
    Architecture(
        "x86", 0, ("jump_address", "jump_address_phys", "cr3", "magic", "e820_checksum"),
        lambda page: _word(page, 24) == X86_MAGIC,
    ),
    Architecture(
        "x86", 0, ("jump_address", "jump_address_phys", "cr3", "magic"),
        lambda page: _word(page, 24) == X86_MAGIC_MD5,
        digest="e820_digest",
    ),
    # arch/riscv/kernel/hibernate.c, struct arch_hibernate_hdr: satp has its mode (Sv39, 48, 57) in the highest four bits.
    Architecture(
        "riscv", 72, ("hartid", "saved_satp", "restore_cpu_addr"),
        lambda page: page[0] != 0 and _word(page, 80) >> 60 in (8, 9, 10) and _word(page, 88) >> 48 == 0xFFFF,
        version=True,
    ),
    # arch/arm64/kernel/hibernate.c, struct arch_hibernate_hdr.
    Architecture(
        "arm64", 72, ("ttbr1_el1", "reenter_kernel", "__hyp_stub_vectors", "sleep_cpu_mpidr"),
        lambda page: page[0] != 0 and _word(page, 80) >> 48 == 0xFFFF,
        version=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Info:
    """Counts are of pages: ``memory`` all of the machine's, ``stored`` of data in the image, ``pages`` of the stream with
    this one and the lists of PFNs. ``record`` has the fields of the architecture, or of ``utsname`` for ``generic``."""

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
            raise Refused(THING, "it was made by a 32-bit kernel.", "Only images of 64-bit kernels are understood.")
        raise Damaged(THING, f"its first page says {pages} pages of {page_size} bytes, and a size of {size}.", _OVERWRITTEN)
    per_list = page_size // layout.ENTRY
    lists = pages - stored - 1
    if memory > MOST_PAGES:
        raise Damaged(THING, f"it would be of a machine with {memory} pages of memory.", _OVERWRITTEN)
    if not 0 <= stored <= memory or not 0 < lists <= memory // per_list + 1 or stored > lists * per_list:
        raise Damaged(
            THING, f"its first page says {stored} stored pages, {pages} in all, of a machine with {memory}.", _OVERWRITTEN
        )
    for one in ARCHITECTURES:
        if not version_code and one.knows(page):
            return Info(one.name, one.parse(page), 0, memory, cpus, stored, pages, size)
    record = {
        name: text(page[number * layout.UTS_LENGTH : (number + 1) * layout.UTS_LENGTH])
        for number, name in enumerate(layout.UTS_FIELDS)
    }
    return Info("generic", record, version_code, memory, cpus, stored, pages, size)


_OVERWRITTEN = "It was overwritten, or this is not the device that it was written to."


def patched(page: bytes, stored: int, pages: int, page_size: int) -> bytes:
    """The same page with other counts."""
    version_code, memory, cpus, _stored, _pages, _size = layout.INFO.unpack_from(page, layout.INFO_AT)
    changed = bytearray(page)
    layout.INFO.pack_into(changed, layout.INFO_AT, version_code, memory, cpus, stored, pages, pages * page_size)
    return bytes(changed)
