# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections of a PE file, as unified kernel images are (UAPI.5), and whether it is signed (Microsoft's PE format, 2.4 to 4 and 5.7).

Nothing is taken at its word: whatever would be outside of the file, or larger than it can be, makes the file none.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

SECTIONS = 256  # at most that many are looked at; a unified kernel image has a dozen, and some for each profile
TEXT = 1 << 16  # bytes of a section that are read as text
DIRECTORIES = {0x10B: 96, 0x20B: 112}  # PE32, PE32+: where the data directories begin in the optional header
CERTIFICATES = 4  # the data directory with the signatures, whose address is a place in the file
PROFILE = ".profile"


@dataclass(frozen=True)
class Section:
    """A section: C(size) bytes at C(offset) of the file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Pe:
    """A PE file: C(path) is a real one."""

    path: str
    sections: tuple
    signed: bool

    def variants(self):
        """What the stub starts, as a list of C({name: Section}): one for each profile, or a single one without profiles."""
        base: dict = {}
        profiles: list = []
        for section in self.sections:
            if section.name == PROFILE:
                profiles.append({})
            (profiles[-1] if profiles else base).setdefault(section.name, section)
        return [{**base, **profile} for profile in profiles] or [base]

    def names(self):
        return {section.name for section in self.sections}

    def text(self, section):
        """The text in a Section, without zeros at its end; empty without one, or if it is too large."""
        if section is None or section.size > TEXT:
            return ""
        with open(self.path, "rb") as file:
            file.seek(section.offset)
            return file.read(section.size).rstrip(b"\0").decode("utf-8", "surrogateescape")

    def ends_with(self, section, path):
        """Whether the bytes in a Section are those of the file C(path), behind others or not, and with up to three zeros at their end."""
        size = os.stat(path).st_size
        for more in range(4):
            start = section.offset + section.size - more - size
            if start < section.offset:
                return False
            if self._holds(start, path) and self._zeros(start + size, more):
                return True
        return False

    def _holds(self, start, path):
        with open(self.path, "rb") as own, open(path, "rb") as other:
            own.seek(start)
            for part in iter(lambda: other.read(1 << 20), b""):
                if own.read(len(part)) != part:
                    return False
        return True

    def _zeros(self, start, count):
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(count) == bytes(count)


def read(path):
    """The Pe in the file C(path), a real one, or None if it is none, is damaged, or cannot be read."""
    try:
        with open(path, "rb") as file:
            return _read(file, path, os.fstat(file.fileno()).st_size)
    except (OSError, struct.error):
        return None


def _read(file, path, size):
    if file.read(2) != b"MZ":
        return None
    start = struct.unpack("<I", _at(file, 0x3C, 4))[0]
    if _at(file, start, 4) != b"PE\0\0":
        return None
    count, optional = struct.unpack("<2xH12xH2x", _at(file, start + 4, 20))
    if count > SECTIONS:
        return None
    found = []
    for number in range(count):
        name, virtual, raw, offset = struct.unpack("<8sI4xII16x", _at(file, start + 24 + optional + 40 * number, 40))
        length = min(virtual, raw)
        if offset + length > size:
            return None
        found.append(Section(name.rstrip(b"\0").decode("ascii", "replace"), offset, length))
    return Pe(path, tuple(found), _is_signed(file, start + 24, optional, size))


def _is_signed(file, start, length, size):
    """Whether there are certificates, in the optional header of C(length) bytes at C(start)."""
    if length < 2:
        return False
    directories = DIRECTORIES.get(struct.unpack("<H", _at(file, start, 2))[0])
    if directories is None or length < directories + 8 * (CERTIFICATES + 1):
        return False
    count = struct.unpack("<I", _at(file, start + directories - 4, 4))[0]
    offset, taken = struct.unpack("<II", _at(file, start + directories + 8 * CERTIFICATES, 8))
    return count > CERTIFICATES and 0 < taken <= size and offset + taken <= size


def _at(file, place, length):
    """C(length) bytes at C(place) of a file, or what is there of them."""
    file.seek(place)
    return file.read(length)
