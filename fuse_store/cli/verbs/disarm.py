# SPDX-License-Identifier: GPL-3.0-or-later
"""``disarm``: have the next boot not resume what is on a device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb
from fuse_store.cli.verbs.stage import DEVICE
from fuse_store.errors import NotFound, StoreError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    from fuse_store.hibernation.arm import disarm

    done = disarm(options.device)
    image_id = _note(context, done.device) if done.changed else None
    context.emit({"device": done.device, "changed": done.changed, "held": done.held, "id": image_id}, "")
    context.remark(
        f"{done.device}: disarmed" if done.changed else f"{done.device}: nothing was armed; it holds {done.held}"
    )
    return 0


def _note(context: Context, device: str) -> str | None:
    """Note in the store, if one is named, that its version was not resumed; the id of that."""
    if not (context.options.store or os.environ.get("FUSE_STORE")):
        return None
    from fuse_store.hibernation import history

    try:
        with context.open_store() as store:
            image_id = history.staged_on(store, device)
            if store.state_log.state(image_id) != "armed":
                return None
            noted = context.record(store, [image_id], "staged", history.ENTRY.format(device=device, what=history.DISARMED))
            return image_id if noted else None
    except NotFound:
        return None
    except StoreError as error:
        context.remark(f"Not recorded: {error}")
        return None


VERB = Verb(
    name="disarm",
    summary="put the signature of the swap area back, so that the next boot does not resume",
    description="Ten bytes change, or nothing if nothing is armed. Needs no store; with one, the version is noted as not resumed.",
    run=run,
    arguments=(DEVICE,),
    keys={
        "device": "a name of the device that stays",
        "changed": "false if nothing was armed",
        "held": "what stood there before",
        "id": "the version that the store notes as not resumed; null if there is none",
    },
    examples=(("fuse-store disarm /dev/pmem0", "before the machine is to boot afresh"),),
    interrupted="Run it again.",
)
