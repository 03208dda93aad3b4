# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the kernel's variables in an image, by their names: from the kernel's own table of symbols (kallsyms).

VMCOREINFO tells where the table is, from Linux 6.0 on (kernel/vmcore_info.c). It is compressed by tokens, and addresses are
relative in one of two ways (kernel/kallsyms.c); ``init_uts_ns``, whose address VMCOREINFO has as well, tells which one, and that the
table was read rightly. Variables are in it if the kernel was built with CONFIG_KALLSYMS_ALL, as those of distributions are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection

import numpy as np

from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.kernel.addresses import MASK, translation
from fuse_store.formats.swsusp.kernel.identity import Kernel

MAX_SYMBOLS = 1 << 21
MAX_TABLE_SIZE = 64 << 20  # bytes of names
TOKENS = 256
MAX_TOKENS_SIZE = 16 << 10  # bytes
KNOWN = "init_uts_ns"

# How an entry of kallsyms_offsets and kallsyms_relative_base give an address: the entries of x86 before Linux 6.15, then all others.
MODES: tuple[Callable[[int, int], int], ...] = (
    lambda offset, base: offset if offset >= 0 else (base - 1 - offset) & MASK,
    lambda offset, base: (base + (offset & 0xFFFFFFFF)) & MASK,
)


def read_longs(image: HibernationImage, kernel: Kernel, names: Collection[str]) -> dict[str, int]:
    """The values of variables of type long, by name; none if not all of them can be determined. Raises Damaged."""
    addresses = _addresses(image, kernel, {*names, KNOWN})
    memory = _Memory(image, kernel)
    values = {name: memory.number("q", addresses[name]) for name in names if name in addresses}
    found = {name: value for name, value in values.items() if value is not None}
    return found if len(found) == len(names) else {}


class _Memory:
    """The memory of an image by addresses in the kernel's image."""

    def __init__(self, image: HibernationImage, kernel: Kernel) -> None:
        self._image, self._offset = image, translation(image).kernel(image, kernel.info)

    def read(self, address: int, length: int) -> bytes | None:
        """None if not all of it is in the image. Raises Damaged."""
        if self._offset is None:
            return None
        physical, size = (address - self._offset) & MASK, self._image.page_size
        if physical + length >= 1 << 52:
            return None
        first, last = physical // size, (physical + length - 1) // size
        pages, _position = self._image.pages.within(first, last + 1)
        return self._image.memory(physical, length) if len(pages) == last + 1 - first else None

    def number(self, form: str, address: int) -> int | None:
        content = self.read(address, struct.calcsize(f"<{form}"))
        return None if content is None else int(struct.unpack(f"<{form}", content)[0])


def _addresses(image: HibernationImage, kernel: Kernel, wanted: Collection[str]) -> dict[str, int]:
    """The addresses of symbols, by name; none if the table of symbols cannot be read. Raises Damaged."""
    symbol = {
        name: kernel.info.number("SYMBOL", f"kallsyms_{name}")
        for name in ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
    }
    known, memory = kernel.info.number("SYMBOL", KNOWN), _Memory(image, kernel)
    places = {name: address for name, address in symbol.items() if address is not None}
    if len(places) < len(symbol) or known is None:
        return {}
    count, base = memory.number("I", places["num_syms"]), memory.number("Q", places["relative_base"])
    size = places["token_table"] - places["names"]
    if count is None or base is None or not 0 < count <= MAX_SYMBOLS or not 0 < size <= MAX_TABLE_SIZE:
        return {}
    names, offsets = memory.read(places["names"], size), memory.read(places["offsets"], 4 * count)
    tokens = _tokens(memory, places["token_table"], places["token_index"])
    if names is None or offsets is None or not tokens:
        return {}
    entries = np.frombuffer(offsets, "<i4")
    found = {name: int(entries[at]) for name, at in _find(names, count, tokens, wanted).items()}
    for mode in MODES:
        if KNOWN in found and mode(found[KNOWN], base) == known:
            return {name: mode(offset, base) for name, offset in found.items()}
    return {}


def _tokens(memory: _Memory, table: int, index: int) -> list[bytes]:
    """What each byte of a name stands for; empty if that is not in the image."""
    begins = memory.read(index, 2 * TOKENS)
    if begins is None:
        return []
    places = np.frombuffer(begins, "<u2").tolist()
    content = memory.read(table, min(max(places), MAX_TOKENS_SIZE) + 1)
    if content is None:
        return []
    end = memory.read(table + len(content), 64) or b""  # of the last one
    content += end
    return [content[begin:].split(b"\0", 1)[0] for begin in places]


def _find(names: bytes, count: int, tokens: list[bytes], wanted: Collection[str]) -> dict[str, int]:
    """The number of each wanted symbol. A name has its length, in one byte or two, and its tokens; the first letter is its type."""
    looked_for = {name.encode(): name for name in wanted}
    found: dict[str, int] = {}
    at = 0
    for number in range(count):
        if at + 2 > len(names):
            break
        length = names[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | names[at] << 7
            at += 1
        name = b"".join([tokens[token] for token in names[at : at + length]])[1:]
        at += length
        if name in looked_for:
            found.setdefault(looked_for[name], number)
    return found
