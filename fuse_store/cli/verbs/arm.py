# SPDX-License-Identifier: GPL-3.0-or-later
"""``arm``: have the kernel resume, at the next boot, what was staged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import IMAGE_HELP, Verb, argument
from fuse_store.cli.verbs.preflight import DISK, ROOT, situation
from fuse_store.cli.verbs.stage import DEVICE
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    from fuse_store.hibernation.arm import arm
    from fuse_store.hibernation.preflight import CODES

    for code in options.force:
        if code not in CODES:
            raise UsageError(f"--force {code}", "there is no such code.", f"There are {', '.join(CODES)}.")
    with context.open_store() as store:
        done = arm(
            store, options.device, situation(context, options.device), reference=options.image or "", force=tuple(options.force),
            progress=context.progress,
        )  # fmt: skip
    context.emit({"id": done.id, "device": done.device, "changed": done.changed, "forced": list(done.forced)}, "")
    if done.forced:
        context.warn(f"armed in spite of {', '.join(done.forced)}")
    what = "armed: the next boot resumes it" if done.changed else "armed already"
    context.remark(f"{done.device}: version {done.id[:12]} is {what}")
    return 0


VERB = Verb(
    name="arm",
    summary="have the next boot resume what was staged on a device",
    description="Refuses what preflight refuses, unless --force names the code. The copy on the device is compared with the store "
    "first. A version that may have been resumed is not armed again.",
    run=run,
    arguments=(
        DEVICE,
        argument(
            "--image",
            metavar="IMAGE",
            help=f"the version that must stand there (default: what was staged last): {IMAGE_HELP}",
        ),
        argument(
            "--force", metavar="CODE", action="append", default=[], help="in spite of this reason; may be repeated"
        ),
        ROOT,
        DISK,
    ),
    keys={
        "id": "of the version",
        "device": "a name of the device that stays",
        "changed": "false if it was armed already",
        "forced": "the codes that spoke against it",
    },
    examples=(
        ("fuse-store arm /dev/pmem0", "what was staged there"),
        (
            "fuse-store arm /dev/pmem0 --force filesystems_unknown",
            "when it is known otherwise that no disk has changed",
        ),
    ),
    interrupted="The device is armed or not; disarm makes sure that it is not.",
)
