# SPDX-License-Identifier: GPL-3.0-or-later
"""VMCOREINFO: what a kernel records about itself in a page of its memory. Found and parsed.

The kernel keeps it as an ELF note at the start of a block of two pages or more (kernel/vmcore_info.c, ``vmcoreinfo_note``), so
only the starts of pages are searched. The memory of a host may also hold the notes of its guests: ``identity`` finds out which
one is the kernel's own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fuse_store.formats.swsusp.image import HibernationImage

NOTE_HEAD = struct.Struct("<III")  # n_namesz, n_descsz, n_type
NAME = b"VMCOREINFO\0"
NOTE_START = NOTE_HEAD.size + 12  # the name is padded to a multiple of 4
MAX_NOTE_TEXT = 1 << 16  # bytes
SEARCH_READ_SIZE = 4 << 20  # bytes that are searched at once
MAX_CANDIDATES = 64  # notes that are tried
_ITEM = re.compile(r"(?:(SYMBOL|NUMBER|OFFSET|SIZE|LENGTH)\(([\w.]+)\)|(\w[\w-]*))=(.*)")


@dataclass(frozen=True)
class VmCoreInfo:
    """``note`` is the ELF note at the physical address ``address``, byte for byte. Its items: ``fields`` (such as
    ``OSRELEASE``), and ``numbers`` by kind (such as ``SYMBOL``) and name."""

    address: int
    note: bytes
    fields: dict[str, str]
    numbers: dict[tuple[str, str], int]

    def number(self, kind: str, name: str) -> int | None:
        """The value of ``SYMBOL(name)``, ``NUMBER(name)`` and so on; None if the note lacks it."""
        return self.numbers.get((kind, name))

    @property
    def release(self) -> str:
        return self.fields["OSRELEASE"]


def candidates(image: HibernationImage) -> Iterator[VmCoreInfo]:
    """The notes in an image, in the order of its pages. Reads only as far as the caller iterates. Raises Damaged."""
    step = max(2, SEARCH_READ_SIZE // image.page_size)
    notes = 0
    for first in range(0, image.info.stored, step):
        content = image.stored(first, min(step, image.info.stored - first))
        words = content[:, :24].view("<u4")
        rows = np.flatnonzero((words[:, 0] == len(NAME)) & (words[:, 2] == 0))
        for row in rows:
            if content[row, NOTE_HEAD.size : NOTE_HEAD.size + len(NAME)].tobytes() == NAME:
                info = read_note(image, image.pages.pfn_of(first + int(row)))
                if info is not None:
                    yield info
                    notes += 1
                    if notes == MAX_CANDIDATES:
                        return


def read_note(image: HibernationImage, pfn: int) -> VmCoreInfo | None:
    """The note at the start of page ``pfn``, None if there is none. Raises Damaged."""
    address = pfn * image.page_size
    name_size, size, kind = NOTE_HEAD.unpack(image.memory(address, NOTE_HEAD.size))
    if name_size != len(NAME) or kind or not 0 < size <= MAX_NOTE_TEXT:
        return None
    note = image.memory(address, NOTE_START + (size + 3) // 4 * 4)
    if note[NOTE_HEAD.size : NOTE_HEAD.size + len(NAME)] != NAME:
        return None
    return parse(address, note, note[NOTE_START : NOTE_START + size])


def parse(address: int, note: bytes, content: bytes) -> VmCoreInfo | None:
    """The items of a note's text; None without a printable OSRELEASE."""
    fields: dict[str, str] = {}
    numbers: dict[tuple[str, str], int] = {}
    for line in content.rstrip(b"\0").decode("utf-8", "replace").splitlines():
        item = _ITEM.fullmatch(line)
        if item is None:
            continue
        kind, name, field, value = item.groups()
        if field:
            fields[field] = value
        else:
            # SYMBOL is hexadecimal; the others are decimal, unless they begin with 0x.
            base = 16 if kind == "SYMBOL" or value.startswith("0x") else 10
            try:
                numbers[kind, name] = int(value[:32], base)
            except ValueError:
                continue
    release = fields.get("OSRELEASE", "")
    return VmCoreInfo(address, note, fields, numbers) if release and release.isprintable() else None
