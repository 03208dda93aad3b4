# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified kernel images as ukify makes them: PE files with sections."""

from __future__ import annotations

import struct

OSREL = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nVERSION="13 (trixie)"\nID=debian\n'
ALIGNMENT = 512


def pe(*sections: tuple[str, bytes], signed: bool = False) -> bytes:
    """A PE32+ file with C((name, content)), each content at a multiple of 512 bytes; C(signed): with a table of certificates."""
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<I", optional, 108, 16)
    start = -(-(0x40 + 24 + len(optional) + 40 * len(sections)) // ALIGNMENT) * ALIGNMENT
    table, body = b"", b""
    for name, content in sections:
        raw = -(-len(content) // ALIGNMENT) * ALIGNMENT
        table += struct.pack("<8sIIII12xI", name.encode(), len(content), 0x1000, raw, start + len(body), 0x40000040)
        body += content.ljust(raw, b"\0")
    certificates = b"\x10\0\0\0\0\2\2\0signature" if signed else b""
    if signed:
        struct.pack_into("<II", optional, 112 + 8 * 4, start + len(body), len(certificates))
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22E) + bytes(optional) + table
    return head.ljust(start, b"\0") + body + certificates


def uki(
    version: str, line: str, initrd: bytes, *more: tuple[str, bytes], osrel: str = OSREL, signed: bool = False
) -> bytes:
    return pe(
        (".text", b"stub"), (".osrel", osrel.encode()), (".cmdline", line.encode()), (".uname", version.encode()), (".linux", b"kernel"),
        *(((".initrd", initrd),) if initrd else ()), *more, signed=signed,
    )  # fmt: skip
