# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel addresses in an image's memory, and the kernel that is in it. Used by ``describe`` and ``views``.

VMCOREINFO tells how the kernel's own addresses become physical ones; each row of ARCHITECTURES knows its items. A note is
believed when ``init_uts_ns``, looked up with its help, names the same release: notes of guests do not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fuse_store.formats.swsusp.header import text
from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.layout import UTS_FIELDS, UTS_LENGTH
from fuse_store.formats.swsusp.vmcoreinfo import VmCoreInfo, candidates, read_note

MASK = (1 << 64) - 1
KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map, x86
UTS_NAME = 4  # offset of name in uts_namespace before 5.11, which does not tell it: behind a kref

Offset = Callable[[HibernationImage, VmCoreInfo], int | None]


@dataclass(frozen=True)
class Architecture:
    """``machine`` is the ELF's e_machine. ``kernel`` and ``direct`` give what is subtracted from an address of the kernel's
    image, or of the direct map, to make it physical; None if it cannot be found out."""

    machine: int
    kernel: Offset
    direct: Offset


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


def _x86_direct(image: HibernationImage, info: VmCoreInfo) -> int | None:
    """page_offset_base: the lowest address that the kernel's half of the page tables maps, less where it leads.

    The direct map is the first thing in that half (Documentation/arch/x86/x86_64/mm.rst) and begins with page 0 or soon
    after; KASLR moves it by multiples of 1 GiB.
    """
    table = info.number("SYMBOL", "init_top_pgt") or info.number("SYMBOL", "swapper_pg_dir")
    base = info.number("NUMBER", "phys_base")
    if table is None or base is None:
        return None
    address, virtual = (table - KERNEL_MAP + base) & MASK, 0
    secret = info.number("NUMBER", "sme_mask") or 0  # the bit that says that memory is encrypted
    five = info.number("NUMBER", "pgtable_l5_enabled") == 1
    levels = (48, 39, 30, 21, 12) if five else (39, 30, 21, 12)
    for shift in levels:
        if not image.holds(address):
            return None
        entries = np.frombuffer(image.memory(address & ~0xFFF, 4096), "<u8")
        present = np.flatnonzero(entries & np.uint64(1))
        if shift == levels[0]:
            present = present[present >= 256]
        if not len(present):
            return None
        entry = int(entries[present[0]])
        virtual |= int(present[0]) << shift
        address = entry & 0x000FFFFFFFFFF000 & ~secret
        if shift == 12 or (entry & 0x80 and shift in (21, 30)):
            address &= ~((1 << shift) - 1)
            break
    if virtual >> (levels[0] + 8) & 1:
        virtual |= MASK & ~((1 << (levels[0] + 9)) - 1)
    offset = (virtual - address) & MASK
    return offset if not offset & ((1 << 30) - 1) else None


def _arm64_direct(image: HibernationImage, info: VmCoreInfo) -> int | None:
    bits, physical = info.number("NUMBER", "VA_BITS"), info.number("NUMBER", "PHYS_OFFSET")
    if bits is None or physical is None or not 36 <= bits <= 52:
        return None
    return (-(1 << bits) - physical) & MASK


ARCHITECTURES = {
    "x86": Architecture(62, _difference(KERNEL_MAP, ("NUMBER", "phys_base")), _x86_direct),
    "arm64": Architecture(183, _item("kimage_voffset"), _arm64_direct),
    "riscv": Architecture(
        243, _item("va_kernel_pa_offset"), _difference(("NUMBER", "PAGE_OFFSET"), ("NUMBER", "phys_ram_base"))
    ),
}
MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258, "ppc64le": 21, "mips64": 8}  # e_machine by uname -m
DIRECT_MAP = 0xFFFF888000000000  # where it is on x86 without KASLR; for want of a better one


@dataclass(frozen=True)
class Kernel:
    """The kernel in an image. ``host`` is the machine's name, empty if it is not found; ``uts`` its six names."""

    info: VmCoreInfo
    page_size: int
    uts: dict[str, str]

    @property
    def release(self) -> str:
        return self.info.release

    @property
    def host(self) -> str:
        return self.uts.get("nodename", "")


def kernel(image: HibernationImage, note: int | None = None) -> Kernel | None:
    """The Kernel in an image, None if there is no note. ``note`` is the PFN where ``describe`` found it earlier; without
    it, the image is read until it is found. Raises Damaged."""
    first: Kernel | None = None
    known = read_note(image, note) if note is not None and 0 <= note < 1 << 40 else None
    for info in (known,) if known else candidates(image):
        found = Kernel(info, image.page_size, _uts(image, info))
        if found.uts:
            return found
        first = first or found
    return first


def direct_map(image: HibernationImage, info: VmCoreInfo | None) -> int:
    """What to add to a physical address to have that of the direct map. Raises Damaged."""
    found = architecture(image).direct(image, info) if info else None
    return DIRECT_MAP if found is None else found


def architecture(image: HibernationImage) -> Architecture:
    known = ARCHITECTURES.get(image.info.architecture)
    machine = MACHINES.get(image.info.record.get("machine", ""), 0)
    return known or Architecture(machine, lambda image, info: None, lambda image, info: None)


def _uts(image: HibernationImage, info: VmCoreInfo) -> dict[str, str]:
    """The names in ``init_uts_ns``, if its release is that of the note; otherwise nothing."""
    symbol, offset = info.number("SYMBOL", "init_uts_ns"), architecture(image).kernel(image, info)
    name = info.number("OFFSET", "uts_namespace.name")
    if symbol is None or offset is None:
        return {}
    address = (symbol + (UTS_NAME if name is None else name) - offset) & MASK
    if not image.holds(address) or not image.holds(address + len(UTS_FIELDS) * UTS_LENGTH - 1):
        return {}
    content = image.memory(address, len(UTS_FIELDS) * UTS_LENGTH)
    names = {key: text(content[at * UTS_LENGTH : (at + 1) * UTS_LENGTH]) for at, key in enumerate(UTS_FIELDS)}
    return names if names["release"] == info.release else {}
