# SPDX-License-Identifier: GPL-3.0-or-later
"""``preflight``: would the kernel of this machine resume an image, and would that be safe?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument
from fuse_store.errors import Refused

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.hibernation.preflight import Situation

ROOT = argument(
    "--root", metavar="DIR", complete="directory",
    help="where the machine's /proc, /sys, /dev, /boot and /lib/modules are, if it is not this one",
)  # fmt: skip
DISK = argument(
    "--evidence-disk", metavar="DISK", action="append", default=[], complete="file",
    help="a disk of the machine, as a device or a raw image, if they are not this machine's own; may be repeated",
)  # fmt: skip


def situation(context: Context, device: str | None) -> Situation:
    """Where the image is to be resumed, as the options say. A file as device belongs to another machine."""
    from fuse_store.hibernation.machine import Machine
    from fuse_store.hibernation.preflight import Situation

    options = context.options
    place = Path(device) if device else None
    other = place is not None and place.is_file()
    machine = Machine(options.root or "/") if options.root or not other else None
    size = None
    if place is not None:
        from fuse_store.formats import File

        with File(place) as file:
            size = file.size
    return Situation(machine, tuple(Path(disk) for disk in options.evidence_disk), place, size)


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        from fuse_store.hibernation.preflight import preflight

        version = store.find(options.image)
        report = preflight(store, store.open_image(version.id), situation(context, options.device), context.progress)
    record = {
        "id": version.id, "accepted": not report.refusals,
        "refusals": [vars(one) for one in report.refusals], "untold": [vars(one) for one in report.untold],
    }  # fmt: skip
    context.emit(record, "")
    for one in report.untold:
        context.remark(f"{one.code} was not checked: {one.message}")
    if not report.refusals:
        context.remark(f"{label(version)}: nothing speaks against resuming it")
        return 0
    for one in report.refusals:
        context.complain(f"{one.code}: {one.message} {one.remedy}".strip())
    codes = ", ".join(one.code for one in report.refusals)
    raise Refused(
        f"image {version.id[:12]}", f"it should not be resumed here: {codes}.", "arm refuses it for the same reasons."
    )


VERB = Verb(
    name="preflight",
    summary="tell whether the kernel of this machine would resume an image, and whether that is safe",
    description="Exit code 5 if anything speaks against it; each reason has a code, which arm --force takes. Reasons that "
    "can't be checked because the machine does not tell are named.",
    run=run,
    arguments=(
        IMAGE,
        argument("--device", metavar="DEVICE", complete="file", help="where it is to be staged, or is"),
        ROOT,
        DISK,
    ),
    keys={
        "id": "of the version",
        "accepted": "whether nothing speaks against it",
        "refusals": "objects with code, message and remedy",
        "untold": "the same for what could not be checked",
    },
    examples=(("fuse-store preflight web01/system/latest --device /dev/pmem0", "before it is staged"),),
    interrupted="Nothing was changed.",
)
