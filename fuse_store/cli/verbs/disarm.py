# SPDX-License-Identifier: GPL-3.0-or-later
"""``disarm``: restore the signature of the swap area on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb
from fuse_store.cli.verbs.stage import DEVICE
from fuse_store.errors import NotFound, StoreError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    from fuse_store.hibernation.arm import disarm

    disarmed = disarm(options.device)
    context.done = f"{disarmed.device} is not armed."
    image_id = _record(context, disarmed.device) if disarmed.changed else None
    context.emit({"device": disarmed.device, "changed": disarmed.changed, "held": disarmed.held, "id": image_id}, "")
    context.remark(f"{disarmed.device}: " + ("disarmed" if disarmed.changed else f"not armed; contains {disarmed.held}"))
    return 0


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
    "records that the version was not resumed.",
    run=run,
    arguments=(DEVICE,),
    keys={
        "device": "persistent name of the device",
        "changed": "false if the device was not armed",
        "held": "content of the device before",
        "id": "version recorded as not resumed; null if none",
    },
    examples=(("fuse-store disarm /dev/pmem0", "boot the machine without resuming"),),
    interrupted="The device may still be armed. Run it again.",
)
