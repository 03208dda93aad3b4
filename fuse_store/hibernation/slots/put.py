# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the image in a slot into a store, as a version that can be staged again: into a slot, or on a device of its own.

The version is what the slot would be as a device: header, swap map, stream, from block 0 on. The slot is read without holding its device,
which may take minutes, while snapshots go on; the checksum in the table tells at the end whether it was the image all the time. Only to
note the version's content in the table, the device is held for a moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fuse_store.errors import Damaged, Locked, NotFound, Refused
from fuse_store.formats import checksums
from fuse_store.formats.readable import File, read_exactly
from fuse_store.formats.swsusp import HibernationImage, disarmed, layout, leading_to
from fuse_store.formats.swsusp.placement import Placement
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.layout import GOOD, Slot, Table
from fuse_store.hibernation.slots.manage import wait_for
from fuse_store.hibernation.slots.stage import KERNEL
from fuse_store.hibernation.slots.writer import PART_SIZE, stream_of
from fuse_store.hibernation.swap_device import stable_name
from fuse_store.image.inputs import Batch, Input, InputFile
from fuse_store.image.inputs.reading import in_order
from fuse_store.policy.names import recorded_tags
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.manifest import Summary
from fuse_store.store import Label, Store
from fuse_store.versions import GOLDEN, SNAPSHOT

BUSY_SECONDS = 60.0  # for which a snapshot, or another command, may hold the device before the content is noted


@dataclass(frozen=True)
class PutSlot:
    """``version``: in the store. ``stored``: False if it was there already. ``noted``: whether the table has its content now."""

    slot: Slot
    version: Summary
    stored: bool
    noted: bool


def put(
    store: Store, device: Path | str, number: int, *, progress: Progress = SILENT, warn: Callable[[str], None] = lambda _text: None,
    busy: float = BUSY_SECONDS,
) -> PutSlot:  # fmt: skip
    """Put one slot into the store, if it is not there, read the version back, and note its content in the table. May be run again at any
    time. Raises NotFound, Refused, Locked, Damaged, StoreError."""
    with File(device) as file:
        table = tables.load(file, str(device)).table
        slot, name = tables.slot_of(table, number, str(device)), f"slot {number} of {device}"
        if slot.state not in GOOD or not slot.sha256:
            raise Refused(name, f"not complete: {slot.state}.", "Put it when the image is complete.")
        version = _version_of(store, slot.image)
        stored = version is None or not _is_of(store, version, slot, table, progress)
        if version is None or stored:
            label = Label(slot.machine, slot.application, "hibernation", slot.event)
            with SlotInput(file, table, slot, name) as source:
                version = store.put(source, label, taken=slot.taken * 10**9, progress=progress, warn=warn)
            fault_point("slots put")
            if not _is_of(store, version, slot, table, progress):
                raise Damaged(f"image {version.id[:12]}", "differs from its slot when it is read back.", "Run 'fuse-store verify'.")
    store.record([version.id], "verified")
    return PutSlot(slot, version, stored, _note(device, slot, version, busy))


def waiting(table: Table) -> list[int]:
    """The numbers of the slots whose image is whole, and in no store as far as the table says, the oldest first."""
    slots = [slot for slot in table.slots if slot.state in GOOD and slot.sha256 and not slot.content]
    return [slot.number for slot in sorted(slots, key=lambda slot: slot.staged)]


def record_resumed(store: Store, device: Path | str, images: Sequence[str]) -> list[str]:
    """Have the state log say of snapshots that a system was restored from them; those of which it does: the others are not in the store.
    Raises Refused, StoreError."""
    recorded = []
    with File(device) as file:
        numbers = {slot.image: slot.number for slot in tables.load(file, str(device)).table.slots}
    for image in images:
        version = _version_of(store, image)
        if version is not None:
            name = f"{stable_name(Path(device))}#{numbers[image]}" if image in numbers else ""
            store.record([version.id], "resumed", "selected at boot", device=name)
            recorded.append(image)
    return recorded


def _version_of(store: Store, image: str) -> Summary | None:
    """The version of an earlier put of a snapshot. Raises Damaged, StoreError."""
    try:
        return store.find(image)
    except NotFound:
        return None


def _is_of(store: Store, version: Summary, slot: Slot, table: Table, progress: Progress) -> bool:
    """Whether a version is the image in a slot: all of it is read, and has the slot's checksum there. Raises Damaged, StoreError."""
    try:
        with HibernationImage(store.open_image(version.id)) as image:
            return image.map.count == slot.pages and image.page_size == table.page_size and _sha256(image, slot, progress) == slot.sha256
    except (NotFound, Refused):
        return False


def _sha256(image: HibernationImage, slot: Slot, progress: Progress) -> str:
    place = Placement(slot.extents, slot.pages, image.page_size)
    digest = hashlib.sha256(leading_to(image.header.block, place.first_map) + place.map())
    progress.start("verify", place.blocks * place.page_size)
    done = place.stream * place.page_size
    for part in stream_of(image):
        digest.update(part)
        done += len(part)
        progress.at(done)
    progress.finish()
    return digest.hexdigest()


def _note(device: Path | str, slot: Slot, version: Summary, busy: float) -> bool:
    """Have the table say which content the slot has. False if the device is in use for longer than ``busy`` seconds, or it has gone."""
    try:
        with wait_for(device, busy) as slots:
            now = slots.table.slot(slot.number)
            if now is None or (now.image, now.sha256, now.staged) != (slot.image, slot.sha256, slot.staged):
                return False
            if now.content != version.content.hex():
                slots.save(slots.table.with_slot(replace(now, content=version.content.hex())))
                fault_point("slots put noted")
            return True
    except (Refused, Locked):
        return False


# the input ----------------------------------------------------------------------------------------------------------------


class SlotInput(Input):
    """The image in a slot as a device of its own, which ends where the swap area in its header says, or behind the image."""

    complete = True

    def __init__(self, file: File, table: Table, slot: Slot, name: str) -> None:
        super().__init__(name)
        self._file, self._table, self._slot = file, table, slot
        self._digest = hashlib.sha256()
        self.files = [InputFile("image", None, None)]  # a stream: it can be read once

    @property
    def tags(self) -> dict[str, str]:
        """What the table says of it."""
        own = {KERNEL if key == "kernel" else key: value for key, value in self._slot.tags.items() if key != checksums.TAG}
        golden = {GOLDEN: "yes"} if self._slot.kept == "golden" else {}
        return recorded_tags({**own, **golden, SNAPSHOT: self._slot.image})

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        """Raises Damaged if it was not the image that the table says, Refused if it has been dropped meanwhile."""
        yield from in_order(_read_into(self._parts()), page_size, buffers)
        self._check()

    def _parts(self) -> Iterator[bytes]:
        slot, size = self._slot, self._table.page_size
        place = Placement(slot.extents, slot.pages, size)
        own = Placement(((0, place.blocks),), slot.pages, size)
        page = read_exactly(self._file, place.header * size, size, self.name)
        page = disarmed(page) if page[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE else page
        _version, last, *_rest = layout.SWAP.unpack_from(page, layout.SWAP_AT)
        self.files[0].size = (max(place.blocks, last + 1) if last < self._table.blocks else place.blocks) * size
        self._digest.update(page)
        yield leading_to(page, own.first_map)
        for part in self._read(place, 1, place.stream - 1):
            self._digest.update(part)
        yield own.map()
        for part in self._read(place, place.stream, place.pages):
            self._digest.update(part)
            yield part

    def _read(self, place: Placement, at: int, count: int) -> Iterator[bytes]:
        """So many places of the slot, in parts, without keeping them in the kernel's cache: it may be old, and others need it more."""
        for first, blocks in place.runs(at, count):
            step = PART_SIZE // place.page_size
            for begin in range(first, first + blocks, step):
                length = min(step, first + blocks - begin) * place.page_size
                self._file.drop_cache(begin * place.page_size, length)
                yield read_exactly(self._file, begin * place.page_size, length, self.name)
                self._file.drop_cache(begin * place.page_size, length)

    def _check(self) -> None:
        if self._digest.hexdigest() == self._slot.sha256:
            return
        now = tables.load(self._file, str(self._file.path)).table.slot(self._slot.number)
        if now is None or (now.image, now.staged) != (self._slot.image, self._slot.staged):
            raise Refused(self.name, "dropped for another image while it was read.", "Nothing was stored.")
        raise Damaged(self.name, "its content differs from the checksum in the table.", "Nothing was stored. Remove the slot.")


def _read_into(parts: Iterator[bytes]) -> Callable[[memoryview], int]:
    """The function that has the next bytes of ``parts`` in a buffer: how many, 0 at the end."""
    rest = memoryview(b"")

    def read_into(buffer: memoryview) -> int:
        nonlocal rest
        while not rest:
            part = next(parts, None)
            if part is None:
                return 0
            rest = memoryview(part)
        got = min(len(rest), len(buffer))
        buffer[:got], rest = rest[:got], rest[got:]
        return got

    return read_into
