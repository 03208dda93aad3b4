# SPDX-License-Identifier: GPL-3.0-or-later
"""Core dumps in ELF, of 32 and 64 bits, in both orders of bytes, out of nothing but what elf(5) says."""

from __future__ import annotations

import struct

PRPSINFO = {True: (16, "IIii", 40), False: (8, "HHii", 28)}  # by 64 bits: where user, group, pid and parent are; where the names


def note(order: str, name: bytes, what: int, content: bytes) -> bytes:
    named = name + b"\0"
    padded = named.ljust(len(named) + 3 & ~3, b"\0") + content.ljust(len(content) + 3 & ~3, b"\0")
    return struct.pack(order + "III", len(named), len(content), what) + padded


def process_notes(wide: bool, order: str) -> bytes:
    at, kinds_, text = PRPSINFO[wide]
    process = bytearray(text + 96)
    struct.pack_into(order + kinds_, process, at, 1000, 100, 4711, 1)
    process[text : text + 3] = b"app"
    process[text + 16 : text + 27] = b"app --fast "
    word = "Q" if wide else "I"
    info = struct.pack(order + "iii", 11, 0, 1).ljust(16 if wide else 12, b"\0") + struct.pack(order + word, 0x1234)
    files = struct.pack(order + 11 * word, 3, 4096, 1, 2, 0, 3, 4, 0, 5, 6, 0) + b"/bin/app\0/lib/c\xff\0/bin/app\0"
    status = struct.pack(order + "iiiH", 11, 0, 0, 11).ljust(336, b"\0")
    return b"".join(
        note(order, b"CORE", what, content)
        for what, content in ((1, status), (3, bytes(process)), (0x53494749, info.ljust(128, b"\0")), (0x46494C45, files), (1, status))
    )


def core(wide: bool, order: str, machine: int, notes: bytes, kind: int = 4, extended: bool = False, data: bytes = b"x" * 4096) -> bytes:
    """Two mappings, of which one is stored."""
    head, row = (64, 56) if wide else (52, 32)
    section = (64 if wide else 40) if extended else 0
    start = head + section + 3 * row
    rows = [(4, start, 0, len(notes)), (1, start + len(notes), 0x10000, len(data)), (1, 0, 0x20000, 0)]
    size = {4: len(notes), 0x10000: 4096, 0x20000: 8192}
    headers = b"".join(
        struct.pack(order + "IIQQQQQQ", what, 4, offset, place, 0, stored, size.get(place, 0), 1) if wide
        else struct.pack(order + "IIIIIIII", what, offset, place, 0, stored, size.get(place, 0), 4, 1)
        for what, offset, place, stored in rows
    )  # fmt: skip
    count = 0xFFFF if extended else 3
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    fields = struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        kind, machine, 1, 0, head + section, head if extended else 0, 0, head, row, count, section, int(extended), 0,
    )  # fmt: skip
    table = bytearray(section)
    if extended:
        struct.pack_into(order + "I", table, 44 if wide else 28, 3)
    return ident + fields + bytes(table) + headers + notes + data
