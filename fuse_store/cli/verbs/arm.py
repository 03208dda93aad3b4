# SPDX-License-Identifier: GPL-3.0-or-later
"""``arm``: set the signature that makes the kernel resume a staged version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import IMAGE_HELP, Verb, argument
from fuse_store.cli.verbs.preflight import DISK, ROOT, target_machine
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
            raise UsageError(f"--force {code}", "no such code.", f"Choose one of {', '.join(CODES)}.")
    with context.open_store() as store:
        armed = arm(
            store, options.device, target_machine(context, options.device), reference=options.image or "", force=tuple(options.force),
            progress=context.progress,
        )  # fmt: skip
        context.done = f"{armed.device} is armed."
    context.emit({"id": armed.id, "device": armed.device, "changed": armed.changed, "forced": list(armed.forced)}, "")
    if armed.forced:
        context.warn(f"refusals overridden: {', '.join(armed.forced)}")
    state = "armed: the next boot resumes it" if armed.changed else "already armed"
    context.remark(f"{armed.device}: version {armed.id[:12]} {state}")
    return 0


VERB = Verb(
    name="arm",
    summary="make the next boot resume the version staged on a device",
    description="Runs the checks of preflight and refuses if one fails; --force CODE overrides one refusal. Compares the device with "
    "the store first. A version that may have been resumed before is refused.",
    run=run,
    arguments=(
        DEVICE,
        argument("--image", metavar="IMAGE", help=f"version expected on the device (default: the one staged last); {IMAGE_HELP}"),
        argument(
            "--force", metavar="CODE", action="append", default=[], complete="code",
            help="override the refusal with this code; may be repeated",
        ),
        ROOT,
        DISK,
    ),
    keys={
        "id": "version id",
        "device": "persistent name of the device",
        "changed": "false if the device was already armed",
        "forced": "codes of the overridden refusals",
    },
    examples=(
        ("fuse-store arm /dev/pmem0", "arm the version that was staged last"),
        ("fuse-store arm /dev/pmem0 --force filesystems_unknown", "arm although the state of the filesystems is unknown"),
    ),
    interrupted="The device may be armed. Run 'fuse-store disarm DEVICE' to make sure that it is not.",
)
