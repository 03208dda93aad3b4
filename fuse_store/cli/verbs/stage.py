# SPDX-License-Identifier: GPL-3.0-or-later
"""``stage``: write a hibernation image to a device, unarmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from fuse_store.cli.context import Context
    from fuse_store.image.reader import Image

DEVICE = argument(
    "device", metavar="DEVICE", complete="file",
    help="unused block device, or file that backs the NVM of a virtual machine that is off",
)  # fmt: skip


SWAP_FILE = argument(
    "--swap-file", action="store_true",
    help="DEVICE is a swap file of this system, on a mounted ext4, XFS or btrfs; the kernel finds it with resume= and resume_offset=",
)  # fmt: skip


@dataclass(frozen=True)
class _Staged:
    """What was staged: ``where``, for messages; ``name``, under which the store remembers it; ``written``, bytes, and ``share``, those
    bytes for messages; ``rest`` of the record."""

    where: str
    name: str
    written: int
    share: str
    rest: dict[str, object]
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def run(context: Context) -> int:
    options = context.options
    stage = _place(options)
    started = time.monotonic()
    with context.open_store() as store:
        from fuse_store.hibernation.history import newest_on

        version = context.find(store, options.image)
        staged = stage(context, store.open_image(version.id))
        context.done = f"The version was staged {staged.where}, which is not armed."
        recorded = context.record(store, [version.id], "staged", after=newest_on(store, staged.name), device=staged.name)
    seconds = time.monotonic() - started
    record = {
        "id": version.id, "size": version.size, "written": staged.written, "uuid": None, "uuid_before": None, "recorded": recorded,
        "seconds": round(seconds, 3), "slot": None, "resume_offset": 0, "dropped": [], **staged.rest,
    }  # fmt: skip
    context.emit({key: record[key] for key in VERB.keys}, "")
    context.remark(f"{label(version)} staged {staged.where}, not armed: {staged.share} in {seconds:.1f} s")
    for remark in staged.remarks:
        context.remark(remark)
    for warning in staged.warnings:
        context.warn(warning)
    return 0


def _place(options: Namespace) -> Callable[[Context, Image], _Staged]:
    """What stages where the options say. Raises UsageError."""
    if options.slot and options.swap_file:
        raise UsageError("--swap-file", "not possible with --slot.", "Omit one of the two.")
    if options.slot:
        return _in_slot
    for flag in ("golden", "replace"):
        if getattr(options, flag):
            raise UsageError(f"--{flag}", "only possible with --slot.", "Add --slot; 'fuse-store slots init' prepares the device.")
    if options.swap_file:
        return _in_swap_file
    from fuse_store.hibernation.swap_files.stage import named_in_fstab

    if named_in_fstab(options.device):
        raise UsageError(
            f"file {options.device}", "a swap file of this system (/etc/fstab): the kernel would not find an image in it as in a device.",
            "Add --swap-file.",
        )  # fmt: skip
    return _on_device


def _on_device(context: Context, image: Image) -> _Staged:
    from fuse_store.hibernation.stage import stage

    staged = stage(image, context.options.device, force=context.options.force, progress=context.progress)
    changed = staged.uuid_before not in (None, staged.uuid)
    return _Staged(
        f"on {staged.device}", staged.device, staged.differed, f"{text.size(staged.differed)} of {text.size(image.size)} written",
        {"device": staged.device, "held": staged.held, "uuid": staged.uuid, "uuid_before": staged.uuid_before},
        warnings=(f"UUID of the swap area changed from {staged.uuid_before} to {staged.uuid}",) if changed else (),
    )  # fmt: skip


def _in_swap_file(context: Context, image: Image) -> _Staged:
    from fuse_store.hibernation.swap_files.stage import stage

    staged = stage(image, context.options.device, force=context.options.force, progress=context.progress)
    return _Staged(
        f"in {staged.name} (page {staged.offset} of {staged.device})", staged.name, staged.written, text.size(staged.written),
        {
            "device": staged.name, "held": staged.held, "uuid": staged.uuid, "uuid_before": staged.uuid, "resume_offset": staged.offset,
        },
    )  # fmt: skip


def _in_slot(context: Context, image: Image) -> _Staged:
    from fuse_store.hibernation.slots.stage import Wishes, stage

    options = context.options
    staged = stage(image, options.device, Wishes(options.golden, options.replace, options.force), context.progress)
    slot = staged.slot
    return _Staged(
        f"in slot {slot.number} of {staged.device}", staged.name, staged.written, text.size(staged.written),
        {
            "device": staged.device, "held": "a table of slots", "slot": slot.number, "resume_offset": slot.header,
            "dropped": [gone.number for gone in staged.dropped],
        },
        remarks=tuple(f"slot {gone.number} dropped: version {gone.image[:12]}, {gone.state}" for gone in staged.dropped),
    )  # fmt: skip


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
