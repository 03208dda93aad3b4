# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of slots while an image is written: a slot is reserved, its image is complete, and what it replaces goes.

For all that fills slots: ``stage`` from the store, ``fuse_store.snapshot`` from the running system. Needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fuse_store.errors import Refused
from fuse_store.formats.swsusp.placement import blocks_needed, first_blocks
from fuse_store.hibernation.slots.allocate import allocate, victims
from fuse_store.hibernation.slots.layout import GOOD, Slot
from fuse_store.hibernation.slots.manage import Slots
from fuse_store.repository.atomic import fault_point


def reserve(slots: Slots, wanted: Slot) -> tuple[Slot, tuple[Slot, ...]]:
    """Have a slot for ``wanted.pages`` in the table, in state ``writing``; and the slots that were dropped for it. What is dropped has been
    interrupted, or there is no space for both. Raises Refused, StoreError, Damaged."""
    table, name = slots.table, f"device {slots.device.path}"
    needed = blocks_needed(wanted.pages, table.page_size)
    gone = victims(table, needed, (wanted.machine, wanted.application))
    if gone is None:
        cause = f"no space for {needed * table.page_size} bytes"
        if allocate(table.without(*(slot.number for slot in table.slots)), needed) is None:
            raise Refused(name, f"{cause}: too small.", "Use a larger device.")
        raise Refused(
            name, f"{cause}: what is there is golden, armed, or the last good image of its application.",
            "Remove a slot with 'fuse-store slots remove', or use a larger device.",
        )  # fmt: skip
    table = table.without(*(slot.number for slot in gone))
    extents = allocate(table, needed)
    assert extents is not None
    slot = replace(wanted, number=table.free_number(), extents=extents, staged=table.generation + 1, state="writing")
    slots.save(table.with_slot(slot))
    fault_point("slots reserved")
    return slot, tuple(gone)


def complete(slots: Slots, slot: Slot, sha256: str, *, pages: int | None = None, tags: Mapping[str, str] | None = None) -> Slot:
    """The image is in the slot, and synced: have the table say so. ``pages``, if it has fewer than were reserved: the blocks that it does
    not need are free then. ``tags``, in place of those that were reserved. Raises Refused, StoreError, Damaged."""
    pages = slot.pages if pages is None else pages
    done = replace(
        slot, state="complete", sha256=sha256, pages=pages, tags=slot.tags if tags is None else tags,
        extents=first_blocks(slot.extents, blocks_needed(pages, slots.table.page_size)),
    )  # fmt: skip
    slots.save(slots.table.with_slot(done))
    fault_point("slots complete")
    return done


def replaced(slots: Slots, new: Slot) -> tuple[Slot, ...]:
    """Drop the older images of the same machine, application and event that a complete one replaces; those slots. None that is golden or
    armed. Raises Refused, StoreError, Damaged."""
    same = (new.machine, new.application, new.event)
    return _drop(slots, [slot for slot in _older(slots, new) if (slot.machine, slot.application, slot.event) == same])


def keep(slots: Slots, new: Slot, most: int) -> tuple[Slot, ...]:
    """Drop the oldest images of the machine's application, so that of those that may be replaced the ``most`` newest whole ones stay, of
    which one is complete now; those slots. None that is golden or armed. Raises Refused, StoreError, Damaged."""
    same = (new.machine, new.application)
    of_it = [slot for slot in _older(slots, new) if (slot.machine, slot.application) == same and slot.state in GOOD]
    counted = sorted([*of_it, *([new] if new.kept == "replaceable" else [])], key=lambda slot: -slot.staged)
    return _drop(slots, [slot for slot in counted[most:] if slot.number != new.number])


def _older(slots: Slots, new: Slot) -> list[Slot]:
    """The slots that were there before a complete one and may go now."""
    return [
        slot for slot in slots.table.slots if slot.number != new.number and slot.kept == "replaceable" and slot.state != "armed"
    ]  # fmt: skip


def _drop(slots: Slots, gone: list[Slot]) -> tuple[Slot, ...]:
    if gone:
        slots.save(slots.table.without(*(slot.number for slot in gone)))
        fault_point("slots dropped")
    return tuple(gone)


def restored(slots: Slots, image: str) -> Slot | None:
    """The system was resumed from a slot: the kernel has disarmed it, so it is ``complete`` again, and it has come up, so no attempt
    counts. The one of the image with this id; or, as the same image may have another id in a store that it was staged from, the one that is
    armed. Reads the table as it is on the device. None if no slot may be it. Raises NotFound, Refused, StoreError, Damaged."""
    slots.load_again()
    table = slots.table
    found = [slot for slot in table.slots if slot.image == image] or [slot for slot in table.slots if slot.state == "armed"]
    found = [slot for slot in found if slot.state != "writing" and not slots.is_armed(slot)]
    slot = replace(found[0], state="complete", attempts=0) if len(found) == 1 else None
    slots.save(replace(table.with_slot(slot) if slot else table, session="running"))
    fault_point("slots restored")
    return slot
