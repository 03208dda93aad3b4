# SPDX-License-Identifier: GPL-3.0-or-later
"""``stage``: a hibernation image back onto a device, not armed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

DEVICE = argument(
    "device", metavar="DEVICE", complete="file",
    help="block device that is not in use, or the file that is a virtual machine's non-volatile memory",
)  # fmt: skip


def run(context: Context) -> int:
    options = context.options
    began = time.monotonic()
    with context.open_store() as store:
        from fuse_store.hibernation import history
        from fuse_store.hibernation.stage import stage

        version = store.find(options.image)
        done = stage(store.open_image(version.id), options.device, force=options.force, progress=context.progress)
        recorded = context.record(store, [version.id], "staged", history.ENTRY.format(device=done.device, what="staged"))
    seconds = time.monotonic() - began
    record = {
        "id": version.id, "device": done.device, "size": version.size, "written": done.differed, "held": done.held,
        "uuid": done.uuid, "uuid_before": done.uuid_before, "recorded": recorded, "seconds": round(seconds, 3),
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} staged on {done.device}, not armed: {text.size(done.differed)} of {text.size(version.size)} "
        f"differed and were written in {seconds:.1f} s"
    )
    if done.uuid_before not in (None, done.uuid):
        context.warn(
            f"the UUID of the swap area on it was {done.uuid_before}, and is now that of the image, {done.uuid}"
        )
    return 0


VERB = Verb(
    name="stage",
    summary="write a hibernation image onto a device, not armed",
    description="Only pages that differ from what stands there are written, and read back; the header comes last. A device that is "
    "in use is refused, and so is one that holds an armed image, a filesystem, or anything that is no swap area.",
    run=run,
    arguments=(
        IMAGE,
        DEVICE,
        argument("--force", action="store_true", help="also onto a device that holds something, which is lost"),
    ),
    keys={
        "id": "of the version",
        "device": "a name of the device that stays",
        "size": "bytes of the version",
        "written": "bytes that differed from what stood there",
        "held": "what stood there before",
        "uuid": "of the swap area, now",
        "uuid_before": "the same, before; null if there was none",
        "recorded": "whether the store notes it as staged",
        "seconds": "how long it took",
    },
    examples=(("fuse-store stage web01/system/latest /dev/pmem0", "the newest image of a machine"),),
    interrupted="Nothing on the device is armed; it is as it was, or an empty swap area: run it again.",
)
