# SPDX-License-Identifier: GPL-3.0-or-later
"""``stage``: write a hibernation image to a device, unarmed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

DEVICE = argument(
    "device", metavar="DEVICE", complete="file",
    help="unused block device, or file that backs the NVM of a virtual machine that is off",
)  # fmt: skip


SWAP_FILE = argument(
    "--swap-file", action="store_true",
    help="DEVICE is a swap file of this system, on a mounted ext4, XFS or btrfs; the kernel finds it with resume= and resume_offset=",
)  # fmt: skip


def run(context: Context) -> int:
    options = context.options
    if options.slot and options.swap_file:
        raise UsageError("--swap-file", "not possible with --slot.", "Omit one of the two.")
    if options.slot:
        return _run_slot(context)
    for flag in ("golden", "replace"):
        if getattr(options, flag):
            raise UsageError(f"--{flag}", "only possible with --slot.", "Add --slot; 'fuse-store slots init' prepares the device.")
    from fuse_store.hibernation.swap_files.stage import named_in_fstab

    if options.swap_file:
        return _run_swap_file(context)
    if named_in_fstab(options.device):
        raise UsageError(
            f"file {options.device}", "a swap file of this system (/etc/fstab): the kernel would not find an image in it as in a device.",
            "Add --swap-file.",
        )  # fmt: skip
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
        "slot": None, "resume_offset": 0, "dropped": [],
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} staged on {staged.device}, not armed: {text.size(staged.differed)} of {text.size(version.size)} "
        f"written in {seconds:.1f} s"
    )
    if staged.uuid_before not in (None, staged.uuid):
        context.warn(f"UUID of the swap area changed from {staged.uuid_before} to {staged.uuid}")
    return 0


def _run_swap_file(context: Context) -> int:
    options = context.options
    started = time.monotonic()
    with context.open_store() as store:
        from fuse_store.hibernation.history import newest_on
        from fuse_store.hibernation.swap_files.stage import stage

        version = context.find(store, options.image)
        staged = stage(store.open_image(version.id), options.device, force=options.force, progress=context.progress)
        context.done = f"The version was staged in {staged.name}, which is not armed."
        recorded = context.record(store, [version.id], "staged", after=newest_on(store, staged.name), device=staged.name)
    seconds = time.monotonic() - started
    record = {
        "id": version.id, "device": staged.name, "size": version.size, "written": staged.written, "held": staged.held,
        "uuid": staged.uuid, "uuid_before": staged.uuid, "recorded": recorded, "seconds": round(seconds, 3),
        "slot": None, "resume_offset": staged.offset, "dropped": [],
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} staged in {staged.name} (page {staged.offset} of {staged.device}), not armed: {text.size(staged.written)} "
        f"in {seconds:.1f} s"
    )
    return 0


def _run_slot(context: Context) -> int:
    options = context.options
    started = time.monotonic()
    with context.open_store() as store:
        from fuse_store.hibernation.history import newest_on
        from fuse_store.hibernation.slots.stage import Wishes, stage

        version = context.find(store, options.image)
        wishes = Wishes(options.golden, options.replace, options.force)
        staged = stage(store.open_image(version.id), options.device, wishes, context.progress)
        context.done = f"The version was staged in slot {staged.slot.number} of {staged.device}, which is not armed."
        recorded = context.record(store, [version.id], "staged", after=newest_on(store, staged.name), device=staged.name)
    seconds = time.monotonic() - started
    slot = staged.slot
    record = {
        "id": version.id, "device": staged.device, "size": version.size, "written": staged.written, "held": "a table of slots",
        "uuid": None, "uuid_before": None, "recorded": recorded, "seconds": round(seconds, 3),
        "slot": slot.number, "resume_offset": slot.header, "dropped": [gone.number for gone in staged.dropped],
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} staged in slot {slot.number} of {staged.device}, not armed: {text.size(staged.written)} in {seconds:.1f} s"
    )
    for gone in staged.dropped:
        context.remark(f"slot {gone.number} dropped: version {gone.image[:12]}, {gone.state}")
    return 0


VERB = Verb(
    name="stage",
    summary="write a hibernation image to a device, without arming it",
    description="Writes and reads back only pages that differ from the content of the device, the header last. Refuses a device or "
    "file that is in use and, without --force, one that contains an armed image, a filesystem or anything but a swap area. Then run arm. "
    "With --slot, writes the image beside others into a free slot of a device that 'slots init' has prepared; if there is no space, the "
    "oldest replaceable image that is in a store goes, then others, but not the last good one of an application. With --swap-file, writes "
    "the image into a swap file of this system that is not in use, and keeps its own UUID.",
    run=run,
    arguments=(
        IMAGE,
        DEVICE,
        argument(
            "--force", action="store_true",
            help="overwrite existing data on the device; with --slot or --swap-file: even if it is not known whether pages were swapped "
            "out",
        ),
        SWAP_FILE,
        argument("--slot", action="store_true", help="write to a slot of the device, beside other images"),
        argument("--golden", action="store_true", help="with --slot: never drop this image for another one"),
        argument(
            "--replace", action="store_true",
            help="with --slot: when it is complete, drop older replaceable images of the same machine, application and event",
        ),
    ),
    keys={
        "id": "version id",
        "device": "persistent name of the device, or path of the swap file",
        "size": "bytes of the version",
        "written": "bytes that differed and were written",
        "held": "content of the device before",
        "uuid": "UUID of the swap area; null with --slot",
        "uuid_before": "UUID of the swap area before; null if none, and with --slot",
        "recorded": "whether the store has recorded the version as staged",
        "seconds": "elapsed time",
        "slot": "number of the slot; null without --slot",
        "resume_offset": "for the kernel's resume_offset=; 0 without --slot and --swap-file",
        "dropped": "numbers of the slots that were dropped for it",
    },
    examples=(
        ("fuse-store stage web01/system/latest /dev/pmem0", "stage the newest image of a machine"),
        ("fuse-store stage web01/shop/latest /dev/pmem1 --slot", "stage it beside other images"),
        ("fuse-store stage kiosk/system/latest /srv/swapfile --swap-file", "stage it in a swap file of this system"),
    ),
    interrupted="The device is not armed; its content is the previous one or an empty swap area. Other slots are as before. Run it again.",
)
