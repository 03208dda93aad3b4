# SPDX-License-Identifier: GPL-3.0-or-later
"""Physical addresses of a kernel's virtual ones, by architecture.

VMCOREINFO has the values that this takes; each row of TRANSLATIONS knows the ones of its architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.kernel.vmcoreinfo import VmCoreInfo

MASK = (1 << 64) - 1
KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map, x86
DEFAULT_DIRECT_MAP = 0xFFFF888000000000  # of x86 without KASLR; used if the real one cannot be determined
ELF_MACHINES = {  # e_machine by the machine name of uname
    "x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258, "ppc64le": 21, "mips64": 8,
}  # fmt: skip

Offset = Callable[[HibernationImage, VmCoreInfo], int | None]


@dataclass(frozen=True)
class AddressTranslation:
    """``elf_machine`` is the ELF's e_machine. ``kernel`` and ``direct_map`` return what is subtracted from an address in the
    kernel's image, or in the direct map, to get the physical address; None if it cannot be determined."""

    elf_machine: int
    kernel: Offset
    direct_map: Offset


def _difference(plus: tuple[str, str] | int, minus: tuple[str, str]) -> Offset:
    def offset(image: HibernationImage, info: VmCoreInfo) -> int | None:
        first = plus if isinstance(plus, int) else info.number(*plus)
        second = info.number(*minus)
        return None if first is None or second is None else (first - second) & MASK

    return offset


def _item(name: str) -> Offset:
    def offset(image: HibernationImage, info: VmCoreInfo) -> int | None:
        value = info.number("NUMBER", name)
        return None if value is None else value & MASK

    return offset


def _x86_direct_map(image: HibernationImage, info: VmCoreInfo) -> int | None:
    """page_offset_base: the lowest address that the kernel's half of the page tables maps, minus the physical address it maps to.

    The direct map is the first thing in that half (Documentation/arch/x86/x86_64/mm.rst) and begins with page 0 or soon
    after; KASLR moves it by multiples of 1 GiB.
    """
    table = info.number("SYMBOL", "init_top_pgt") or info.number("SYMBOL", "swapper_pg_dir")
    base = info.number("NUMBER", "phys_base")
    if table is None or base is None:
        return None
    five_levels = info.number("NUMBER", "pgtable_l5_enabled") == 1
    encrypted = info.number("NUMBER", "sme_mask") or 0  # the bit in an entry that marks encrypted memory
    mapping = _lowest_mapping(image, (table - KERNEL_MAP + base) & MASK, 5 if five_levels else 4, encrypted)
    if mapping is None:
        return None
    virtual, physical = mapping
    offset = (virtual - physical) & MASK
    return offset if not offset & ((1 << 30) - 1) else None


def _lowest_mapping(image: HibernationImage, table: int, levels: int, encrypted: int) -> tuple[int, int] | None:
    """(virtual, physical address) of the lowest page that the upper half of x86 page tables maps; None if the tables are not in
    the image. ``table`` is the physical address of the top one, ``encrypted`` the bits that are no part of an address."""
    top = 12 + 9 * (levels - 1)
    virtual, physical = 0, table
    for shift in range(top, 11, -9):
        if not image.holds(physical):
            return None
        entries = np.frombuffer(image.memory(physical & ~0xFFF, 4096), "<u8")
        present = np.flatnonzero(entries & np.uint64(1))
        if shift == top:
            present = present[present >= 256]
        if not len(present):
            return None
        entry = int(entries[present[0]])
        virtual |= int(present[0]) << shift
        physical = entry & 0x000FFFFFFFFFF000 & ~encrypted
        if shift == 12 or (entry & 0x80 and shift in (21, 30)):  # a page, or a large one
            physical &= ~((1 << shift) - 1)
            break
    if virtual >> (top + 8) & 1:  # addresses are sign-extended
        virtual |= MASK & ~((1 << (top + 9)) - 1)
    return virtual, physical


def _arm64_direct_map(image: HibernationImage, info: VmCoreInfo) -> int | None:
    bits, physical = info.number("NUMBER", "VA_BITS"), info.number("NUMBER", "PHYS_OFFSET")
    if bits is None or physical is None or not 36 <= bits <= 52:
        return None
    return (-(1 << bits) - physical) & MASK


TRANSLATIONS = {
    "x86": AddressTranslation(62, _difference(KERNEL_MAP, ("NUMBER", "phys_base")), _x86_direct_map),
    "arm64": AddressTranslation(183, _item("kimage_voffset"), _arm64_direct_map),
    "riscv": AddressTranslation(
        243, _item("va_kernel_pa_offset"), _difference(("NUMBER", "PAGE_OFFSET"), ("NUMBER", "phys_ram_base"))
    ),
}


def translation(image: HibernationImage) -> AddressTranslation:
    """The AddressTranslation of an image's architecture; one that determines nothing for an unknown architecture."""
    known = TRANSLATIONS.get(image.info.architecture)
    machine = ELF_MACHINES.get(image.info.record.get("machine", ""), 0)
    return known or AddressTranslation(machine, lambda image, info: None, lambda image, info: None)


def direct_map(image: HibernationImage, info: VmCoreInfo | None) -> int:
    """What to add to a physical address to get its address in the direct map. Raises Damaged."""
    offset = translation(image).direct_map(image, info) if info else None
    return DEFAULT_DIRECT_MAP if offset is None else offset
