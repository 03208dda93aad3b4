# SPDX-License-Identifier: GPL-3.0-or-later
"""``disarm``: restore the signature of the swap area on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb
from fuse_store.cli.verbs.stage import DEVICE
from fuse_store.errors import NotFound, StoreError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.hibernation.slots.layout import Slot


def run(context: Context) -> int:
    options = context.options
    from fuse_store.hibernation.arm import disarm
    from fuse_store.hibernation.slots.manage import has_slots

    if has_slots(options.device):
        return _run_slots(context)
    disarmed = disarm(options.device)
    context.done = f"{disarmed.device} is not armed."
    image_id = _record(context, disarmed.device) if disarmed.changed else None
    context.emit({"device": disarmed.device, "changed": disarmed.changed, "held": disarmed.held, "id": image_id, "slots": []}, "")
    context.remark(f"{disarmed.device}: " + ("disarmed" if disarmed.changed else f"not armed; contains {disarmed.held}"))
    return 0


def _run_slots(context: Context) -> int:
    from fuse_store.hibernation.slots.arm import disarm

    done = disarm(context.options.device)
    context.done = f"No slot of {done.device} is armed."
    images = [slot.image for name, slot in done.slots if _record_slot(context, name, slot)]
    numbers = [slot.number for _name, slot in done.slots]
    record = {
        "device": done.device, "changed": bool(numbers), "held": "a table of slots", "id": images[0] if images else None, "slots": numbers,
    }  # fmt: skip
    context.emit(record, "")
    disarmed = ", ".join(f"slot {number}" for number in numbers)
    context.remark(f"{done.device}: " + (f"{disarmed} disarmed" if numbers else "no slot is armed"))
    return 0


def _record_slot(context: Context, name: str, slot: Slot) -> bool:
    """Record in the store, if one is named, that the version in an armed slot was not resumed; whether it was recorded."""
    if not context.store_named:
        return False
    from fuse_store.hibernation.slots.arm import record_unused

    try:
        with context.open_store() as store:
            return record_unused(store, name, slot)
    except StoreError as error:
        context.remark(f"Not recorded: {error}")
        return False


def _record(context: Context, device: str) -> str | None:
    """Record in the store, if one is named, that the armed version was not resumed; the id of that version. If the device held
    another image, the armed one was resumed, and the machine has hibernated since."""
    if not context.store_named:
        return None
    from fuse_store.hibernation import history
    from fuse_store.hibernation.arm import holds
    from fuse_store.repository.state_log import DISARMED

    try:
        with context.open_store() as store:
            image_id = history.staged_on(store, device)
            image = store.open_image(image_id)
            if device not in store.state_log.read(image.head.content).usage.armed:
                return None
            if not holds(device, image):
                context.remark(f"Not recorded: {device} holds another image than version {image_id[:12]}, which was armed there.")
                return None
            after = history.newest_on(store, device)
            recorded = context.record(store, [image_id], "staged", after=after, device=device, action=DISARMED)
            return image_id if recorded else None
    except NotFound:
        return None
    except StoreError as error:
        context.remark(f"Not recorded: {error}")
        return None


VERB = Verb(
    name="disarm",
    summary="make the next boot not resume the image on a device",
    description="Restores the swap signature: ten bytes change, or none if the device is not armed. Works without a store; with one, "
    "records that the version was not resumed. On a device with slots, disarms all of them.",
    run=run,
    arguments=(DEVICE,),
    keys={
        "device": "persistent name of the device",
        "changed": "false if the device was not armed",
        "held": "content of the device before",
        "id": "version recorded as not resumed; null if none",
        "slots": "numbers of the slots that were armed",
    },
    examples=(("fuse-store disarm /dev/pmem0", "boot the machine without resuming"),),
    interrupted="The device may still be armed. Run it again.",
)
