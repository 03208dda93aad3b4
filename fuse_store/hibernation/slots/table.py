# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and writes the table of slots on a device. There are two copies; a write replaces the older one, so that the other stays
valid if the power fails. Keeps no state; one process at a time writes, which holds the device exclusively."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp import layout
from fuse_store.hibernation.slots.layout import BEGINNING, COPIES, COPY_SIZE, IDENTITY, Slot, Table
from fuse_store.hibernation.slots.text import pack, unpack
from fuse_store.image import devices
from fuse_store.repository.atomic import fault_point


class Writable(Readable, Protocol):
    """A device: ``write_checked`` returns when the bytes are durable and were read back."""

    def write_checked(self, offset: int, content: bytes) -> None: ...


@dataclass(frozen=True)
class Found:
    """The newest valid table, the copy that it is in, why the other copy is not valid: empty if it is; and whether the device begins as it
    should."""

    table: Table
    copy: int
    problem: str = ""
    begins: bool = True


def is_there(readable: Readable) -> bool:
    """Whether a device has a table of slots, valid or not."""
    return readable.read(0, len(IDENTITY)) == IDENTITY or isinstance(_newest(readable), Found)


def written_over(readable: Readable, name: str) -> str:
    """What blkid finds on a device with a table of slots that does not begin as one; empty if nothing. Raises Refused, StoreError."""
    return "" if _begins(readable) else devices.content_of(readable, Path(name)).kind


def _begins(readable: Readable) -> bool:
    return readable.read(0, len(BEGINNING)) == BEGINNING


def load(readable: Readable, name: str) -> Found:
    """The table of a device; ``name`` is for messages. Raises NotFound if there is none, Damaged if both copies are, Refused if something
    else was written over it."""
    found = _newest(readable)
    if isinstance(found, Found):
        begins = _begins(readable)
        kind = "" if begins else devices.content_of(readable, Path(name)).kind
        if kind:
            raise Refused(
                f"device {name}", f"had slots, and {kind} was written over them.",
                "If that is not needed, run 'fuse-store slots init --force DEVICE'.",
            )  # fmt: skip
        if not begins:
            problem = "; ".join(filter(None, (found.problem, "the device does not begin as it was written")))
            found = replace(found, problem=problem, begins=False)
        if found.table.blocks * found.table.page_size > readable.size:
            raise Damaged(
                f"device {name}", f"has {readable.size} bytes, and its table of slots is for {found.table.blocks * found.table.page_size}.",
                "Restore the size of the device, or create the slots again with 'fuse-store slots init --force'.",
            )  # fmt: skip
        return found
    if readable.read(0, len(IDENTITY)) != IDENTITY:
        raise NotFound(f"device {name}", "has no table of slots.", "Run 'fuse-store slots init DEVICE' first.")
    raise Damaged(
        f"device {name}", f"both copies of its table of slots are damaged: {'; '.join(found)}.",
        "Take resume_offset= from the kernel's command line: an image that was armed could still be resumed. Create the slots again with "
        "'fuse-store slots init --force', and stage the images from the store.",
    )  # fmt: skip


def slot_of(table: Table, number: int, name: str) -> Slot:
    """A slot; ``name`` is that of the device, for messages. Raises NotFound."""
    slot = table.slot(number)
    if slot is None:
        raise NotFound(f"device {name}", f"has no slot {number}.", "Run 'fuse-store slots list DEVICE'.")
    return slot


def is_armed(readable: Readable, table: Table, slot: Slot) -> bool:
    """Whether a kernel that is told the slot's ``resume_offset=`` would resume it."""
    end = (slot.header + 1) * table.page_size
    return readable.read(end - layout.SIGNATURE_SIZE, layout.SIGNATURE_SIZE) == layout.SIGNATURE


def save(device: Writable, found: Found, table: Table, name: str) -> Found:
    """Write a table in place of the older copy, with the next generation. Raises Refused if it is too large, StoreError, Damaged."""
    table = replace(table, generation=found.table.generation + 1)
    try:
        content = pack(table)
    except ValueError as error:
        raise Refused(f"device {name}", f"{error}.", "Remove a slot first.") from None
    if not found.begins:
        device.write_checked(0, BEGINNING)
    copy = 1 - found.copy
    fault_point("slots table")
    device.write_checked(COPIES[copy], content)
    fault_point("slots table written")
    return Found(table, copy)


def create(device: Writable, table: Table, name: str) -> Found:
    """Write both copies. Raises StoreError, Damaged."""
    found = Found(table, 1)
    for _copy in COPIES:
        found = save(device, found, table, name)
    return found


def _newest(readable: Readable) -> Found | list[str]:
    """The newest valid copy, or what is wrong with each."""
    valid: list[Found] = []
    problems = []
    for copy, at in enumerate(COPIES):
        try:
            valid.append(Found(unpack(readable.read(at, COPY_SIZE)), copy))
        except ValueError as error:  # also of bytes that are no text
            problems.append(f"copy {copy + 1}: {error}" if not isinstance(error, UnicodeError) else f"copy {copy + 1}: not text")
    if not valid:
        return problems
    newest = max(valid, key=lambda found: found.table.generation)
    return replace(newest, problem="; ".join(problems))
