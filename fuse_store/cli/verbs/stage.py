# SPDX-License-Identifier: GPL-3.0-or-later
"""``stage``: write a hibernation image to a device, unarmed."""

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
    help="unused block device, or file that backs the NVM of a virtual machine that is off",
)  # fmt: skip


def run(context: Context) -> int:
    options = context.options
    started = time.monotonic()
    with context.open_store() as store:
        from fuse_store.hibernation.history import newest_on
        from fuse_store.hibernation.stage import stage

        version = context.find(store, options.image)
        staged = stage(store.open_image(version.id), options.device, force=options.force, progress=context.progress)
        context.done = f"The version was staged on {staged.device}, which is not armed."
        recorded = context.record(store, [version.id], "staged", after=newest_on(store, staged.device), device=staged.device)
    seconds = time.monotonic() - started
    record = {
        "id": version.id, "device": staged.device, "size": version.size, "written": staged.differed, "held": staged.held,
        "uuid": staged.uuid, "uuid_before": staged.uuid_before, "recorded": recorded, "seconds": round(seconds, 3),
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} staged on {staged.device}, not armed: {text.size(staged.differed)} of {text.size(version.size)} "
        f"written in {seconds:.1f} s"
    )
    if staged.uuid_before not in (None, staged.uuid):
        context.warn(f"UUID of the swap area changed from {staged.uuid_before} to {staged.uuid}")
    return 0


VERB = Verb(
    name="stage",
    summary="write a hibernation image to a device, without arming it",
    description="Writes and reads back only pages that differ from the content of the device, the header last. Refuses a device or "
    "file that is in use and, without --force, one that contains an armed image, a filesystem or anything but a swap area. Then run arm.",
    run=run,
    arguments=(
        IMAGE,
        DEVICE,
        argument("--force", action="store_true", help="overwrite existing data on the device"),
    ),
    keys={
        "id": "version id",
        "device": "persistent name of the device",
        "size": "bytes of the version",
        "written": "bytes that differed and were written",
        "held": "content of the device before",
        "uuid": "UUID of the swap area",
        "uuid_before": "UUID of the swap area before; null if none",
        "recorded": "whether the store has recorded the version as staged",
        "seconds": "elapsed time",
    },
    examples=(("fuse-store stage web01/system/latest /dev/pmem0", "stage the newest image of a machine"),),
    interrupted="The device is not armed; its content is the previous one or an empty swap area. Run it again.",
)
