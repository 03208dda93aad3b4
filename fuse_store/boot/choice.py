# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running system says to the next boot, on the device with the slots: which one to resume, once; and that the session has ended.

On the device, because nothing may be written to the filesystems that the images know: a change there makes them useless.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fuse_store.errors import Refused, UsageError
from fuse_store.hibernation.slots.layout import GOOD, REPORT, SESSIONS, Slot
from fuse_store.hibernation.slots.manage import Slots, wait_for
from fuse_store.hibernation.slots.text import framed

NAME = "fuse-store-boot-next 1"
SIZE = 1024  # bytes
PLACE = sum(REPORT) - SIZE
PATIENCE = 15.0  # seconds in which another process may be done with the device: a shutdown waits for it


@dataclass(frozen=True)
class Choice:
    """``slot``: None for a normal boot."""

    device: str
    slot: Slot | None


def select(device: Path | str, number: int | None) -> Choice:
    """Have the next boot resume a slot, whatever the policy says, or with None none. Raises NotFound, Refused, Locked, Damaged,
    StoreError."""
    with Slots(device) as slots:
        slot = None if number is None else slots.slot(number)
        text = "cold\n" if slot is None else f"slot {slot.number} {slot.image}\n"
        if slot is not None:
            for wrong, cause in (
                (slot.state not in GOOD, f"not to be resumed: it is {slot.state}."),
                ("unsafe" in slot.tags, f"not safe to be resumed: {slot.tags.get('unsafe')}."),
                (not any(tag.startswith("guard.") for tag in slot.tags), "not to be resumed: no state of the filesystems was recorded."),
            ):
                if wrong:
                    raise Refused(f"slot {number} of {device}", cause, "Choose another slot: 'fuse-store slots list DEVICE'.")
        slots.device.write_checked(PLACE, framed(NAME, text.encode("ascii"), SIZE))
        return Choice(slots.device.name, slot)


def record_session(device: Path | str, session: str) -> bool:
    """Note in the table what the running system says of itself, one of SESSIONS; whether it was noted otherwise. Waits a while for another
    process that has the device. Raises UsageError, NotFound, Refused, Locked, Damaged, StoreError."""
    if session not in SESSIONS:
        raise UsageError(f"session {session!r}", "unknown.", f"Use one of {', '.join(SESSIONS)}.")
    with wait_for(device, PATIENCE) as slots:  # a snapshot may be being taken
        slots.load_again()
        changed = slots.table.session != session
        if changed:
            slots.save(replace(slots.table, session=session))
        return changed
