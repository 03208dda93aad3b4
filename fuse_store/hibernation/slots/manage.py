# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots of a device: created, listed, removed. ``Slots`` is the open device with its table, for all that changes it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from fuse_store.errors import Damaged, Locked, Refused, StoreError, UsageError
from fuse_store.formats.readable import File, read_exactly
from fuse_store.formats.swsusp import disarmed, layout
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.layout import COPIES, COPY_SIZE, EDGE, IDENTITY, PAGE_SIZES, SECTOR, Slot, Table
from fuse_store.hibernation.swap_device import SwapDevice, contents_of, swap_uuid
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point

_INTERVAL = 0.1  # seconds between two attempts to get hold of a device
VERIFY_PART = 4 << 20  # bytes that are read at once
MIN_SIZE = 2 * EDGE + (1 << 20)  # bytes: the smallest device that is worth a table


class Slots:
    """A device with a table of slots, held exclusively; a context manager. ``found`` is the table as it is on the device."""

    def __init__(self, path: Path | str) -> None:
        """Raises NotFound, UsageError, Refused if the device is in use, Locked, Damaged, StoreError."""
        self.device = SwapDevice(path)
        try:
            self.found = tables.load(self.device, str(path))
        except BaseException:
            self.device.close()
            raise

    @property
    def table(self) -> Table:
        return self.found.table

    def save(self, table: Table) -> None:
        """Replace the table. Raises Refused, StoreError, Damaged."""
        self.found = tables.save(self.device, self.found, table, str(self.device.path))

    def load_again(self) -> None:
        """Read the table as it is on the device now, past the kernel's cache: a restored system has that of when its image was made.
        Raises NotFound, Damaged, StoreError."""
        self.device.drop_cache()
        self.found = tables.load(_Direct(self.device), str(self.device.path))

    def slot(self, number: int) -> Slot:
        """Raises NotFound."""
        return tables.slot_of(self.table, number, str(self.device.path))

    def name(self, number: int) -> str:
        """What state logs call a slot: each counts as a device of its own."""
        return f"{self.device.name}#{number}"

    def is_armed(self, slot: Slot) -> bool:
        return tables.is_armed(self.device, self.table, slot)

    def disarm(self, slot: Slot) -> bool:
        """Restore the signature of the swap area in a slot's header, also where it is there in part; whether it was armed. Raises
        StoreError, Damaged, Refused."""
        return slot.state != "writing" and _disarm(self.device, self.table, slot)

    def disarm_all(self, but: int = 0) -> list[Slot]:
        """Disarm the slots ``but`` one, and note what the table then says of them: ``complete`` if the signature was still there,
        ``used`` if the kernel had taken it away. Returns those that were armed and not resumed. The caller saves ``table``.
        Raises StoreError, Damaged, Refused."""
        unused = []
        table = self.table
        for slot in self.table.slots:
            if slot.number == but:
                continue
            was_armed = self.disarm(slot)
            if was_armed:
                unused.append(slot)
            if slot.state == "armed":
                table = table.with_slot(replace(slot, state="complete" if was_armed else "used"))
        if table != self.table:
            self.save(table)
        return unused

    def close(self) -> None:
        self.device.close()

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _disarm(device: SwapDevice, table: Table, slot: Slot) -> bool:
    size = table.page_size
    page = device.read(slot.header * size, size)
    try:
        plain = disarmed(page)
    except Damaged:
        if page[-layout.SIGNATURE_SIZE :] != layout.SIGNATURE:
            return False
        plain = page[: -layout.TAIL.size] + bytes(layout.TAIL.size)  # no header of a swap area: leads nowhere
    if page == plain:
        return False
    fault_point("slots disarm")
    device.write_checked(slot.header * size, plain)
    return page[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE


def wait_for(path: Path | str, seconds: float) -> Slots:
    """The device, also if another process has hold of it, for so many seconds at most. Raises what ``Slots`` does."""
    until = time.monotonic() + seconds
    while True:
        try:
            return Slots(path)
        except (Refused, Locked):
            if time.monotonic() >= until:
                raise
            time.sleep(_INTERVAL)


class _Direct:
    """A Readable: a device past the kernel's cache."""

    def __init__(self, device: SwapDevice) -> None:
        self.size, self.read = device.size, device.read_direct


def has_slots(path: Path | str) -> bool:
    """Whether there is a table of slots on a device, valid or not; also False if it cannot be read."""
    try:
        with File(path) as file:
            return tables.is_there(file)
    except StoreError:
        return False


@dataclass(frozen=True)
class Listing:
    """The table of a device, the numbers of its armed slots, and why one of the copies is not valid; empty if both are."""

    table: Table
    armed: frozenset[int]
    problem: str


def listing(path: Path | str) -> Listing:
    """What is on a device, which may be in use. Raises NotFound, Damaged, StoreError."""
    with File(path) as file:
        found = tables.load(file, str(path))
        armed = frozenset(slot.number for slot in found.table.slots if tables.is_armed(file, found.table, slot))
        return Listing(found.table, armed, found.problem)


@dataclass(frozen=True)
class Checked:
    """A slot, and whether its blocks have the checksum in the table."""

    slot: Slot
    sound: bool


def verify(path: Path | str, number: int | None = None, progress: Progress = SILENT) -> list[Checked]:
    """Compare a slot, or all whose images are whole, with their checksums in the table; also while the device is in use. Raises NotFound,
    Refused for a slot that is not whole, Damaged, StoreError."""
    with File(path) as file:
        table = tables.load(file, str(path)).table
        chosen = list(table.slots) if number is None else [tables.slot_of(table, number, str(path))]
        if number is not None and not chosen[0].sha256:
            raise Refused(f"slot {number} of {path}", f"not complete: {chosen[0].state}.", "It has no checksum yet.")
        chosen = [slot for slot in chosen if slot.sha256]
        progress.start("verify", sum(slot.blocks for slot in chosen) * table.page_size)
        done, checked = 0, []
        for slot in chosen:
            digest = hashlib.sha256()
            for content in _blocks(file, slot, table.page_size):
                digest.update(content)
                done += len(content)
                progress.at(done)
            checked.append(Checked(slot, digest.hexdigest() == slot.sha256))
        progress.finish()
        return checked


def _blocks(file: File, slot: Slot, size: int) -> Iterator[bytes]:
    """The blocks of a slot in order, in parts, as they are when it is not armed."""
    page = read_exactly(file, slot.header * size, size, f"slot {slot.number}")
    yield disarmed(page) if page[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE and _is_header(page) else page
    first, count = slot.extents[0]
    for begin, blocks in ((first + 1, count - 1), *slot.extents[1:]):
        for at in range(begin, begin + blocks, VERIFY_PART // size):
            length = min(VERIFY_PART // size, begin + blocks - at) * size
            file.drop_cache(at * size, length)
            yield read_exactly(file, at * size, length, f"slot {slot.number}")


def _is_header(page: bytes) -> bool:
    return layout.TAIL.unpack(page[-layout.TAIL.size :])[4] in layout.SWAP_SIGNATURES


def create(path: Path | str, *, page_size: int = 4096, force: bool = False) -> tuple[str, Table]:
    """Make a device one with slots; its stable path and the table. ``force`` overwrites existing data. Raises NotFound, UsageError,
    Refused, Locked, StoreError, Damaged."""
    if page_size not in PAGE_SIZES:
        raise UsageError(f"page size {page_size}", "not a page size of Linux.", f"Use one of {', '.join(map(str, PAGE_SIZES))}.")
    with SwapDevice(path) as device:
        if device.size < MIN_SIZE:
            cause = f"too small: {device.size} bytes, and at least {MIN_SIZE} are needed."
            raise Refused(f"device {path}", cause, "Choose a larger device.")
        contents = contents_of(device)
        if not contents.replaceable and not force:
            raise Refused(
                f"device {path}", f"contains {contents.description}.", "Choose another device, or overwrite the data with --force."
            )
        for old, slot in contents.armed_slots:
            _disarm(device, old, slot)
        swap = swap_uuid(contents.swap_page) or ""
        table = Table(secrets.token_hex(16), page_size, device.size // page_size, replaced=swap)
        found = tables.create(device, table, str(path))
        fault_point("slots tables")
        tables_end = COPIES[-1] + COPY_SIZE
        for begin, end in ((device.size - EDGE, device.size), (tables_end, EDGE), (SECTOR, COPIES[0])):
            device.write_checked(begin, bytes(end - begin))
        device.write_checked(0, IDENTITY.ljust(SECTOR, b"\n"))
        return device.name, found.table


def remove(path: Path | str, number: int, *, force: bool = False) -> tuple[str, Slot]:
    """Remove a slot: its blocks are free then. ``force``: also an armed or golden one. The device's stable path, and what was removed.
    Raises NotFound, Refused, Locked, Damaged, StoreError."""
    with Slots(path) as slots:
        slot = slots.slot(number)
        for wrong, cause, remedy in (
            (slots.is_armed(slot), "armed", "Run 'fuse-store disarm DEVICE' first, or use --force."),
            (slot.kept == "golden", "golden", "Use --force to remove it all the same."),
        ):
            if wrong and not force:
                raise Refused(f"slot {number} of {path}", f"{cause}.", remedy)
        slots.disarm(slot)
        slots.save(slots.table.without(number))
        return slots.device.name, slot
