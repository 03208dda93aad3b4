# SPDX-License-Identifier: GPL-3.0-or-later
"""The LUKS header at the start of a device, read without a command.

LUKS2 On-Disk Format Specification 1.1: a binary header of 4 KiB and an area of JSON, both twice, the second one behind the first, each
with a checksum. Sizes are checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

MAGIC, SECOND_MAGIC = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
BINARY = 4096
SIZES = tuple(1 << bits for bits in range(14, 23))  # 16 KiB to 4 MiB, one of a header with its JSON
FIELDS = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
CHECKSUM = slice(448, 512)
UUID_1 = slice(168, 208)  # LUKS1
DATA_LIMIT = 1 << 30  # of what is erased with a header


@dataclass(frozen=True)
class Header:
    """C(version) 1 or 2. C(damage): what is wrong with it, as a clause, or "". C(data): bytes up to the encrypted data, all of them part
    of the header. C(encryption): such as aes-xts-plain64. C(tokens): their types. Of a damaged header, C(uuid) may be "" and C(data) 0."""

    version: int
    uuid: str = ""
    label: str = ""
    data: int = 0
    encryption: str = ""
    tokens: tuple = ()
    damage: str = ""


def read(host, device):
    """The Header on C(device), or None where there is no trace of one."""
    start = host.read_bytes(device, b"", BINARY)
    if not start:
        return None
    if start[:6] == MAGIC and start[6:8] == b"\0\1":
        return Header(1, _text(start[UUID_1]))
    first, first_damage = _copy(host, device, 0, MAGIC)
    size = struct.unpack_from(">Q", start, 8)[0] if start[:6] == MAGIC else 0
    second, second_damage = _copy(host, device, size if size in SIZES else SIZES[0], SECOND_MAGIC)
    if first_damage == second_damage == "is missing":
        return None
    found = first or second
    damage = "; ".join("the %s header %s" % each for each in (("first", first_damage), ("second", second_damage)) if each[1])
    if found is None:
        return Header(2, damage=damage)
    values = dict(found, damage=damage)
    return Header(2, **values)


def _copy(host, device, offset, magic):
    """One of the two headers as the values of a Header, or None, and what is wrong with it, or ""."""
    try:
        with open(host.path(device), "rb") as file:
            file.seek(offset)
            start = file.read(BINARY)
            if len(start) < BINARY or start[:6] != magic:
                return None, "is missing"
            fields = FIELDS.unpack_from(start)
            size = fields[2]
            if size not in SIZES:
                return None, "has the size %d" % size
            rest = file.read(size - BINARY)
    except OSError as error:
        return None, "cannot be read (%s)" % error.strerror
    algorithm = _text(fields[5])
    if algorithm not in ("sha256", "sha512", "sha1"):
        return None, "has an unknown checksum"
    zeroed = start[: CHECKSUM.start] + bytes(64) + start[CHECKSUM.stop :]
    digest = hashlib.new(algorithm, zeroed + rest).digest()
    if len(rest) != size - BINARY or fields[11][: len(digest)] != digest:
        return None, "has another checksum than its content"
    try:
        return _values(fields, json.loads(rest.rstrip(b"\0").decode("utf-8"))), ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, "has JSON that is not understood"


def _values(fields, content):
    segments = [content["segments"][name] for name in sorted(content["segments"])]
    data = int(str(segments[0]["offset"])[:16])
    if not 0 < data <= DATA_LIMIT:
        raise ValueError(data)
    tokens = tuple(str(token["type"]) for _name, token in sorted(content.get("tokens", {}).items()))
    return {
        "uuid": _text(fields[7]),
        "label": _text(fields[4]),
        "data": data,
        "encryption": str(segments[0]["encryption"]),
        "tokens": tokens,
    }


def _text(field):
    return field.split(b"\0")[0].decode("utf-8", "backslashreplace")
