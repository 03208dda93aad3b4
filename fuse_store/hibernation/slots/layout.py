# SPDX-License-Identifier: GPL-3.0-or-later
"""What a table of slots says, and where it is on the device. Immutable data; no input or output.

docs/slots.md describes the layout for other programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MAGIC = "fuse-store-slots"
FORMAT = 1
SECTOR = 512  # bytes: the unit of the table, so that dd and sha256sum can check it
IDENTITY = f"{MAGIC} {FORMAT}\n".encode()  # how the device begins
BEGINNING = IDENTITY.ljust(SECTOR, b"\n") + bytes((256 << 10) - SECTOR)  # up to the first copy; a filesystem would be noticed here
COPY_SIZE = 256 << 10  # bytes of one copy of the table
COPIES = (256 << 10, 512 << 10)  # bytes: where the copies begin
REPORT = (768 << 10, 64 << 10)  # (place, size) in bytes of what a boot writes down of its selection
MACHINE = (832 << 10, 192 << 10)  # (place, size) in bytes of the identity that a machine takes which is restored from a golden image
EDGE = 1 << 20  # bytes at both ends of the device that no slot has: signatures of filesystems, RAID and partition tables are there
PAGE_SIZES = (4096, 16384, 65536)

MAX_SLOTS = 64
MAX_EXTENTS = 256  # of a slot
MAX_NUMBER = 1 << 48  # exclusive, of anything in a table

STATES = ("writing", "complete", "armed", "used", "failed")
GOOD = ("complete", "armed", "used")  # all of the image is there
KEPT = ("replaceable", "golden")  # whether another image may take the space
SWAP = ("inactive", "unused", "unknown")  # what is known of the swap areas of the machine in the image: see ``swap_use``
SESSIONS = ("ended", "running", "unknown")  # what the running system last said of itself: ended by an orderly shutdown, or not

Extents = tuple[tuple[int, int], ...]  # (first block, number of blocks) of each, in the order of the slot


@dataclass(frozen=True)
class Slot:
    """One image. ``image``: its id, which is that of its version once it is in a store; ``content``: the content digest of that
    version, empty before. Both have 32 hexadecimal digits. ``taken``: when it was captured, seconds since 1970. ``staged``: the
    generation of the table in which it appeared, so that a higher one is newer, whatever the clock says. ``pages``: of the image's
    stream. ``extents``: all blocks, of which the first is that of the header. ``sha256``: of these blocks in order, not armed; empty
    until it is complete. ``attempts``: how often it was armed since it was last seen to be restored. ``tags``: what was recorded when
    it was captured, such as the state of filesystems."""

    number: int
    state: str
    machine: str
    application: str
    event: str
    image: str
    content: str
    taken: int
    staged: int
    pages: int
    extents: Extents
    sha256: str = ""
    attempts: int = 0
    kept: str = "replaceable"
    swap: str = "unknown"
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def header(self) -> int:
        """The block of its header: the kernel's ``resume_offset=``."""
        return self.extents[0][0]

    @property
    def blocks(self) -> int:
        return sum(count for _first, count in self.extents)


@dataclass(frozen=True)
class Table:
    """All slots of a device. ``device``: 32 hexadecimal digits, chosen at its creation. ``page_size``: bytes of a block. ``blocks``:
    of the device, as far as slots may use it. ``replaced``: the UUID of the swap area that was on the device before, or empty.
    ``session``: see SESSIONS."""

    device: str
    page_size: int
    blocks: int
    generation: int = 0
    replaced: str = ""
    session: str = "unknown"
    slots: tuple[Slot, ...] = ()

    @property
    def first(self) -> int:
        """The first block that a slot may have."""
        return EDGE // self.page_size

    @property
    def end(self) -> int:
        """The block after the last one that a slot may have."""
        return self.blocks - EDGE // self.page_size

    def slot(self, number: int) -> Slot | None:
        return next((slot for slot in self.slots if slot.number == number), None)

    def with_slot(self, slot: Slot) -> Table:
        """With a slot added, or in place of the one of its number."""
        others = [other for other in self.slots if other.number != slot.number]
        return replace(self, slots=tuple(sorted([*others, slot], key=lambda one: one.number)))

    def without(self, *numbers: int) -> Table:
        return replace(self, slots=tuple(slot for slot in self.slots if slot.number not in numbers))

    def free_number(self) -> int:
        """The lowest number that no slot has."""
        taken = {slot.number for slot in self.slots}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)
