# SPDX-License-Identifier: GPL-3.0-or-later
"""``arm``: set the signature that makes the kernel resume a staged version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import values
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument
from fuse_store.cli.verbs.preflight import DISK, ROOT, target_machine
from fuse_store.cli.verbs.slots import slot_number
from fuse_store.cli.verbs.stage import DEVICE, SWAP_FILE
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
    if options.slot is not None and options.swap_file:
        raise UsageError("--swap-file", "not possible with --slot.", "Omit one of the two.")
    if options.slot is not None:
        return _run_slot(context)
    if options.swap_file:
        return _run_swap_file(context)
    with context.open_store() as store:
        armed = arm(
            store, options.device, target_machine(context, options.device), reference=options.image or "", force=tuple(options.force),
            progress=context.progress,
        )  # fmt: skip
        context.done = f"{armed.device} is armed."
    record = {
        "id": armed.id, "device": armed.device, "changed": armed.changed, "forced": list(armed.forced), "slot": None, "resume_offset": 0,
        "parameters": f"resume={armed.device}", "disarmed": [],
    }  # fmt: skip
    context.emit(record, "")
    if armed.forced:
        context.warn(f"refusals overridden: {', '.join(armed.forced)}")
    state = "armed: the next boot resumes it" if armed.changed else "already armed"
    context.remark(f"{armed.device}: version {armed.id[:12]} {state}")
    return 0


def _run_swap_file(context: Context) -> int:
    options = context.options
    from fuse_store.hibernation.swap_files.arm import arm

    with context.open_store() as store:
        armed = arm(
            store, options.device, target_machine(context, None), reference=options.image or "", force=tuple(options.force),
            progress=context.progress,
        )  # fmt: skip
        context.done = f"{armed.name} is armed."
    parameters = f"resume={armed.device} resume_offset={armed.offset}"
    record = {
        "id": armed.id, "device": armed.name, "changed": armed.changed, "forced": list(armed.forced), "slot": None,
        "resume_offset": armed.offset, "parameters": parameters, "disarmed": [],
    }  # fmt: skip
    context.emit(record, parameters)
    if armed.forced:
        context.warn(f"refusals overridden: {', '.join(armed.forced)}")
    state = "armed: a boot with these parameters resumes it" if armed.changed else "already armed"
    context.remark(f"{armed.name}: version {armed.id[:12]} {state}")
    return 0


def _run_slot(context: Context) -> int:
    options = context.options
    from fuse_store.hibernation.slots.arm import arm

    if options.image:
        raise UsageError("--image", "not possible with --slot: the table names the version.", "Omit it.")
    with context.open_store() as store:
        machine = target_machine(context, options.device)
        armed = arm(
            store, options.device, slot_number(options, "arm"), machine, force=tuple(options.force), progress=context.progress
        )  # fmt: skip
        context.done = f"Slot {armed.slot.number} of {armed.device} is armed."
    parameters = f"resume={armed.device} resume_offset={armed.offset}"
    record = {
        "id": armed.slot.image, "device": armed.device, "changed": armed.changed, "forced": list(armed.forced), "slot": armed.slot.number,
        "resume_offset": armed.offset, "parameters": parameters, "disarmed": list(armed.disarmed),
    }  # fmt: skip
    context.emit(record, parameters)
    if armed.forced:
        context.warn(f"refusals overridden: {', '.join(armed.forced)}")
    for number in armed.disarmed:
        context.remark(f"{armed.device}: slot {number} disarmed")
    state = "armed: a boot with these parameters resumes it" if armed.changed else "already armed"
    context.remark(f"{armed.device}: slot {armed.slot.number}, version {armed.slot.image[:12]}, {state}")
    return 0


VERB = Verb(
    name="arm",
    summary="make the next boot resume the version staged on a device",
    description="Runs the checks of preflight and refuses if one fails; --force CODE overrides one refusal. Compares the device with "
    "the store first. A version that may have been resumed before is refused. With --slot, arms that slot, disarms all others of the "
    "device, and prints the kernel parameters that resume it. With --swap-file, arms the version staged in a swap file of this system, and "
    "prints them.",
    run=run,
    arguments=(
        DEVICE,
        argument("--image", metavar="IMAGE", help=f"version expected on the device (default: the one staged last); {IMAGE_HELP}"),
        argument(
            "--force", metavar="CODE", action="append", default=[], complete="code",
            help="override the refusal with this code; may be repeated",
        ),
        SWAP_FILE,
        argument("--slot", metavar="N", type=values.number, help="slot of the device to arm"),
        ROOT,
        DISK,
    ),
    keys={
        "id": "version id",
        "device": "persistent name of the device",
        "changed": "false if the device was already armed",
        "forced": "codes of the overridden refusals",
        "slot": "number of the slot; null without --slot",
        "resume_offset": "for the kernel's resume_offset=; 0 without --slot and --swap-file",
        "parameters": "kernel parameters that resume it",
        "disarmed": "numbers of the slots that were armed before",
    },
    examples=(
        ("fuse-store arm /dev/pmem0", "arm the version that was staged last"),
        ("fuse-store arm /dev/pmem1 --slot 2", "arm one of the images on a device with slots"),
        ("fuse-store arm /dev/pmem0 --force filesystems_unknown", "arm although the state of the filesystems is unknown"),
    ),
    interrupted="The device may be armed. Run 'fuse-store disarm DEVICE' to make sure that it is not.",
)
