# SPDX-License-Identifier: GPL-3.0-or-later
"""Arms a slot: sets the signature in its header, and in no other, so that the kernel resumes this one. And disarms all of them.

Everything that ``hibernation.arm`` checks before it arms a device is checked here: preflight, resume history, each byte against the
store. The table says ``armed`` before the signature does, and the state log before the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage, armed, leading_to
from fuse_store.formats.swsusp.placement import Placement
from fuse_store.hibernation import history
from fuse_store.hibernation.arm import refuse
from fuse_store.hibernation.preflight import TargetMachine, preflight
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots import writer
from fuse_store.hibernation.slots.layout import Slot
from fuse_store.hibernation.slots.manage import Slots
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.manifest import Summary
from fuse_store.repository.state_log import DISARMED
from fuse_store.store import Store
from fuse_store.versions import SNAPSHOT


@dataclass(frozen=True)
class ArmedSlot:
    """``device``: its stable path. ``offset``: for ``resume_offset=``. ``changed`` is False if the slot was armed already; ``forced``:
    codes that were overridden; ``disarmed``: the numbers of the slots that were armed before."""

    device: str
    slot: Slot
    offset: int
    changed: bool
    forced: tuple[str, ...] = ()
    disarmed: tuple[int, ...] = ()


def arm(
    store: Store, device: Path | str, number: int, machine: TargetMachine, *, force: tuple[str, ...] = (), progress: Progress = SILENT
) -> ArmedSlot:
    """Raises NotFound, Refused with the codes of ``preflight`` that are not in ``force``, Damaged if the slot differs from the store,
    Locked, StoreError."""
    with Slots(device) as slots:
        slot = slots.slot(number)
        if slot.state == "writing":
            raise Refused(f"slot {number} of {device}", "not complete: its staging was interrupted.", "Stage the version again.")
        version = _version_of(store, slot, f"slot {number} of {device}")
        name, was_armed = slots.name(number), slots.is_armed(slot)
        place = Placement(slot.extents, slot.pages, slots.table.page_size)
        with HibernationImage(version) as image:
            if image.map.count != slot.pages or image.page_size != place.page_size:
                raise Refused(f"slot {number} of {device}", "another image than the version.", "Stage the version again.")
            if was_armed and name in store.state_log.read(version.head.content).usage.armed:
                _compare(slots, slot, place, image, progress)
                others = _disarm_others(store, slots, number)
                return ArmedSlot(slots.device.name, slot, slot.header, False, (), others)
            report = preflight(store, version, replace(machine, device=slots.device.path, size=None, swap=slot.swap), progress)
            refuse(report, force)
            _compare(slots, slot, place, image, progress)
            header = leading_to(image.header.block, place.first_map)
        others = _disarm_others(store, slots, number)
        store.record([version.id], "armed", after=history.newest_on(store, name), device=name)
        fault_point("slots arm recorded")
        slot = replace(slot, state="armed", attempts=slot.attempts + 1)
        slots.save(slots.table.with_slot(slot))
        try:
            slots.device.write_checked(slot.header * place.page_size, armed(header))
        except StoreError:
            slots.device.write_checked(slot.header * place.page_size, header)
            store.record([version.id], "failed", "the signature could not be written", device=name)
            slots.save(slots.table.with_slot(replace(slot, state="failed")))
            raise
        fault_point("slots armed")
        codes = tuple(refusal.code for refusal in report.refusals)
        return ArmedSlot(slots.device.name, slot, slot.header, not was_armed, codes, others)


def _version_of(store: Store, slot: Slot, name: str) -> Image:
    """The version that is in a slot. Raises NotFound if the store does not have it, as a snapshot that was not put yet; Refused,
    Damaged."""
    try:
        version = store.open_image(store.find(slot.image).id)
    except NotFound:
        raise NotFound(
            name, f"image {slot.image[:12]} is not in the store.",
            "Use the store that has it. A snapshot that is in none is resumed by what selects at boot: docs/slots.md.",
        ) from None  # fmt: skip
    if slot.content not in ("", version.head.content.hex()):
        raise Refused(name, f"another image than version {slot.image[:12]}.", "Stage the version again.")
    return version


def _compare(slots: Slots, slot: Slot, place: Placement, image: HibernationImage, progress: Progress) -> None:
    """Compare a slot with the store, and its checksum in the table with what is there. Raises Damaged."""
    if writer.compare(slots.device, place, image, progress) != slot.sha256:
        raise Damaged(
            f"slot {slot.number} of {slots.device.path}", "the checksum in the table is not that of the image.",
            "The slot was not armed. Remove it, and stage the version again.",
        )  # fmt: skip


def _disarm_others(store: Store, slots: Slots, number: int) -> tuple[int, ...]:
    """Disarm all slots but one, and record which were not resumed. Returns their numbers."""
    unused = slots.disarm_all(but=number)
    for slot in unused:
        record_unused(store, slots.name(slot.number), slot)
    return tuple(slot.number for slot in unused)


def record_unused(store: Store, name: str, slot: Slot) -> bool:
    """Record that the image in a slot was not resumed, if the state log says that it was armed there; whether it did. Raises
    StoreError."""
    try:
        version = store.open_image(store.find(slot.image).id)
    except NotFound:
        return False
    content = version.head.content
    if slot.content not in ("", content.hex()) or name not in store.state_log.read(content).usage.armed:
        return False
    store.record([version.id], "staged", after=history.newest_on(store, name), device=name, action=DISARMED)
    return True


@dataclass(frozen=True)
class DisarmedSlots:
    """``device``: its stable path. ``slots``: name in state logs and slot of each that was armed and not resumed."""

    device: str
    slots: tuple[tuple[str, Slot], ...]


def disarm(device: Path | str) -> DisarmedSlots:
    """Restore the signatures of the swap areas in all slots. Raises NotFound, Refused, Locked, Damaged, StoreError."""
    with Slots(device) as slots:
        return DisarmedSlots(slots.device.name, tuple((slots.name(slot.number), slot) for slot in slots.disarm_all()))


def in_slot(target: TargetMachine, number: int, version: Summary) -> TargetMachine:
    """For a preflight of the version in a slot of ``target.device``, without arming it. Raises UsageError without a device, NotFound,
    Refused if the slot does not hold it, Damaged, StoreError."""
    if target.device is None:
        raise UsageError("--slot", "no device specified.", "Name it with --device.")
    with File(target.device) as file:
        slot = tables.slot_of(tables.load(file, str(target.device)).table, number, str(target.device))
    name = f"slot {number} of {target.device}"
    if not slot.sha256:
        raise Refused(name, "not complete: its staging was interrupted.", "Stage the version again.")
    if slot.content != version.content.hex() and slot.image not in (version.id, version.tags.get(SNAPSHOT)):
        raise Refused(name, f"holds image {slot.image[:12]}, another one.", "Name the version that is in the slot.")
    return replace(target, size=None, swap=slot.swap)
