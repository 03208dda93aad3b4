# SPDX-License-Identifier: GPL-3.0-or-later
"""The checksums of a slot's blocks, in order: SHA-256 of all, and CRC-32 of each part, which an initramfs compares in less time, on all
processors at once (docs/slots.md). For what reads or writes the blocks once, one after the other."""

from __future__ import annotations

import hashlib
import zlib

PART_SIZE = 16 << 20  # bytes of a part; the last one has what is left
TAG = "crc32"  # of a slot: PART_SIZE, and the SHA-256 of a line for each part, its CRC-32 in eight hexadecimal digits


class Checksums:
    """Of what ``update`` was given so far."""

    def __init__(self) -> None:
        self._all, self._lines = hashlib.sha256(), hashlib.sha256()
        self._part, self._left = 0, PART_SIZE

    def update(self, content: bytes) -> None:
        self._all.update(content)
        view = memoryview(content)
        while view:
            here = view[: self._left]
            self._part = zlib.crc32(here, self._part)
            self._left -= len(here)
            view = view[len(here) :]
            if not self._left:
                self._lines.update(_line(self._part))
                self._part, self._left = 0, PART_SIZE

    @property
    def sha256(self) -> str:
        return self._all.hexdigest()

    @property
    def tags(self) -> dict[str, str]:
        """For the table."""
        lines = self._lines.copy()
        if self._left < PART_SIZE:
            lines.update(_line(self._part))
        return {TAG: f"{PART_SIZE} {lines.hexdigest()}"}


def _line(checksum: int) -> bytes:
    return b"%08x\n" % checksum
