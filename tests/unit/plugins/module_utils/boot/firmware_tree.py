# SPDX-License-Identifier: GPL-3.0-or-later
"""EFI variables as a firmware leaves them in /sys/firmware/efi/efivars."""

from __future__ import annotations

import struct
import uuid

GLOBAL = "/sys/firmware/efi/efivars/%s-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LOADER = "/sys/firmware/efi/efivars/%s-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
PARTITION = "5c2e1d6e-5a0c-4c3f-9e43-3b1d2f3f7c11"


def numbers(name: str, *values: int) -> dict[str, bytes]:
    """BootCurrent, BootNext or BootOrder."""
    return {GLOBAL % name: b"\6\0\0\0" + struct.pack("<%dH" % len(values), *values)}


def option(number: int, title: str, path: str | None, partition: str = PARTITION, active: bool = True, data: str = "") -> dict[str, bytes]:
    """A boot option for a file on a GPT partition; without a path, for the network. C(data) is handed to the program."""
    nodes = node(2, 1, struct.pack("<II", 0x0A0341D0, 0))  # ACPI PciRoot(0)
    if path is None:
        nodes += node(3, 11, bytes(33))  # MAC address
    else:
        place = struct.pack("<IQQ", 1, 2048, 1 << 20) + uuid.UUID(partition).bytes_le + bytes([2, 2])
        nodes += node(4, 1, place) + node(4, 4, (path + "\0").encode("utf-16-le"))
    nodes += node(0x7F, 0xFF, b"")
    head = struct.pack("<IH", int(active), len(nodes)) + (title + "\0").encode("utf-16-le")
    return {GLOBAL % ("Boot%04X" % number): b"\7\0\0\0" + head + nodes + data.encode("utf-16-le")}


def node(kind: int, subtype: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, len(data) + 4) + data


def text(name: str, value: str) -> dict[str, bytes]:
    """A variable of the Boot Loader Interface."""
    return {LOADER % name: b"\6\0\0\0" + (value + "\0").encode("utf-16-le")}
