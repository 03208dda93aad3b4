# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of slots as it is on the device: lines of text behind a sector with their checksum. Pure functions.

Text, so that an initramfs reads it with busybox alone. Tables are untrusted input: ``unpack`` raises ValueError, and nothing else,
for anything that ``pack`` does not write.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from fuse_store.hibernation.slots.layout import (
    COPY_SIZE,
    EDGE,
    FORMAT,
    KEPT,
    MAGIC,
    MAX_EXTENTS,
    MAX_NUMBER,
    MAX_SLOTS,
    PAGE_SIZES,
    SECTOR,
    SESSIONS,
    STATES,
    SWAP,
    Extents,
    Slot,
    Table,
)

MAX_TAGS = 64
_NAME = f"{MAGIC} {FORMAT}"
_HEAD = re.compile(r"([0-9]{1,6}) ([0-9a-f]{64})\n+", re.ASCII)
_SAFE = "!#$&'()*+,/:;=?@[]~ "  # beside letters, digits and _.-~, what a value has as it is


@dataclass(frozen=True)
class _Form:
    """How a value is written, and read; ``read`` raises ValueError."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]


def _text(value: str) -> str:
    encoded = quote(value, safe=_SAFE)
    inner = encoded.strip(" ")  # a shell would strip spaces at the ends
    before = len(encoded) - len(encoded.lstrip(" "))
    return "%20" * before + inner + "%20" * (len(encoded) - before - len(inner))


def _plain(text: str) -> str:
    value = unquote_to_bytes(text).decode()
    if _text(value) != text:
        raise ValueError(f"{text!r} is not in its one form")
    return value


def _number(text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,14}", text, re.ASCII) or int(text) >= MAX_NUMBER:
        raise ValueError(f"{text!r} is not a number")
    return int(text)


def _one_of(names: tuple[str, ...]) -> _Form:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")
        return text

    return _Form(str, read)


def _hex(digits: int, empty: bool = False) -> _Form:
    def read(text: str) -> str:
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text, re.ASCII) and not (empty and not text):
            raise ValueError(f"{text!r} has not {digits} hexadecimal digits")
        return text

    return _Form(str, read)


def _uuid(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f-]{0,36}", text, re.ASCII):
        raise ValueError(f"{text!r} is not a UUID")
    return text


def _extents(text: str) -> Extents:
    pairs = []
    for pair in text.split(" ", MAX_EXTENTS):
        first, _plus, count = pair.partition("+")
        pairs.append((_number(first), _number(count)))
    if len(pairs) > MAX_EXTENTS:
        raise ValueError("too many extents")
    return tuple(pairs)


TEXT, NUMBER = _Form(_text, _plain), _Form(str, _number)
# The lines of a device, and of a slot, in their order; "header" is there for the shell: the first block of the first extent.
DEVICE = {
    "device": _hex(32), "generation": NUMBER, "page_size": NUMBER, "blocks": NUMBER, "replaced": _Form(str, _uuid),
    "session": _one_of(SESSIONS),
}  # fmt: skip
SLOT = {
    "state": _one_of(STATES), "machine": TEXT, "application": TEXT, "event": TEXT, "image": _hex(32), "content": _hex(32, empty=True),
    "taken": NUMBER, "staged": NUMBER, "pages": NUMBER, "header": NUMBER,
    "extents": _Form(lambda extents: " ".join(f"{first}+{count}" for first, count in extents), _extents),
    "sha256": _hex(64, empty=True), "attempts": NUMBER, "kept": _one_of(KEPT), "swap": _one_of(SWAP),
}  # fmt: skip


def pack(table: Table) -> bytes:
    """A copy of the table, whole sectors. Raises ValueError if it is larger than a copy may be."""
    lines = [_line(key, form.write(getattr(table, key))) for key, form in DEVICE.items()]
    for slot in table.slots:
        lines += ["", f"slot {slot.number}"]
        lines += [_line(key, form.write(getattr(slot, key))) for key, form in SLOT.items()]
        lines += [_line(f"tag {quote(key, safe='.-')}", _text(value)) for key, value in sorted(slot.tags.items())]
    body = "".join(f"{line}\n" for line in lines).encode("ascii")
    return framed(_NAME, body, COPY_SIZE)


def framed(name: str, body: bytes, size: int) -> bytes:
    """Text behind a sector with its name and checksum, whole sectors. Raises ValueError if it has more than ``size`` bytes."""
    body += b"\n" * (-len(body) % SECTOR)
    head = f"{name} {len(body) // SECTOR} {hashlib.sha256(body).hexdigest()}\n".encode("ascii")
    content = head + b"\n" * (SECTOR - len(head)) + body
    if len(content) > size:
        raise ValueError(f"the text has {len(content)} bytes, and there is space for {size}")
    return content


def unframed(name: str, content: bytes) -> bytes:
    """What ``framed`` made a text to, with the line feeds that fill up its last sector; ``content`` may have more behind it. Raises
    ValueError."""
    beginning = content[:SECTOR].decode("ascii")
    head = _HEAD.fullmatch(beginning.removeprefix(f"{name} ")) if beginning.startswith(f"{name} ") else None
    if head is None or len(beginning) < SECTOR:
        raise ValueError("no table begins here")
    body = content[SECTOR : SECTOR + int(head[1]) * SECTOR]
    if len(body) != int(head[1]) * SECTOR or hashlib.sha256(body).hexdigest() != head[2]:
        raise ValueError("the checksum is wrong")
    return body


def _line(key: str, value: str) -> str:
    return f"{key} {value}" if value else key


def unpack(content: bytes) -> Table:
    """The table in a copy: ``COPY_SIZE`` bytes, of which the last ones may be anything. Raises ValueError."""
    body = unframed(_NAME, content)
    sections = body.decode("ascii").rstrip("\n").split("\n\n")
    if len(sections) - 1 > MAX_SLOTS:
        raise ValueError("too many slots")
    table = Table(**_values(iter(sections[0].split("\n")), DEVICE))
    if table.page_size not in PAGE_SIZES or table.blocks * table.page_size < 2 * EDGE:
        raise ValueError("the device cannot be of this size")
    for section in sections[1:]:
        table = table.with_slot(_slot(section))
    if len(table.slots) != len(sections) - 1:
        raise ValueError("a slot is there twice")
    _check_extents(table)
    if pack(table) != content[: SECTOR + len(body)]:
        raise ValueError("the table is not in its one form")
    return table


def _values(lines: Iterator[str], forms: dict[str, _Form]) -> dict[str, Any]:
    values = {}
    for name, form in forms.items():
        key, _space, value = next(lines, "").partition(" ")
        if key != name:
            raise ValueError(f"{name} is missing")
        values[name] = form.read(value)
    return values


def _slot(section: str) -> Slot:
    first, *rest = section.split("\n")
    key, _space, number = first.partition(" ")
    if key != "slot" or not 0 < _number(number) <= MAX_SLOTS:
        raise ValueError("a slot has no number")
    lines = iter(rest)
    values = _values(lines, SLOT)
    header = values.pop("header")
    tags: dict[str, str] = {}
    for line in lines:
        key, _space, pair = line.partition(" ")
        name, _space, value = pair.partition(" ")
        if key != "tag" or len(tags) == MAX_TAGS:
            raise ValueError(f"{key!r} is not a line of a slot")
        tags[unquote_to_bytes(name).decode()] = _plain(value)
    slot = Slot(number=_number(number), **values, tags=tags)
    if slot.header != header:
        raise ValueError("the header is not in the first block")
    return slot


def _check_extents(table: Table) -> None:
    """Raises ValueError if slots are not within the device, or overlap."""
    end = table.first
    for first, count in sorted(extent for slot in table.slots for extent in slot.extents):
        if first < end or not count:
            raise ValueError("the extents overlap, or leave the device")
        end = first + count
    if end > max(table.end, table.first):
        raise ValueError("the extents leave the device")
