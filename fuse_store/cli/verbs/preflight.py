# SPDX-License-Identifier: GPL-3.0-or-later
"""``preflight``: check whether the kernel would resume a version on a machine, and whether that is safe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument
from fuse_store.cli.verbs.slots import slot_number
from fuse_store.errors import NotFound, Refused

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.hibernation.preflight import TargetMachine

ROOT = argument(
    "--root", metavar="DIR", complete="directory",
    help="directory with /proc, /sys, /dev, /boot and /lib/modules of the target machine (default: this machine)",
)  # fmt: skip
DISK = argument(
    "--machine-disk", metavar="DISK", action="append", default=[], complete="file",
    help="disk of the target machine: a device or raw image; may be repeated (default: the disks of this machine)",
)  # fmt: skip


def target_machine(context: Context, device: str | None) -> TargetMachine:
    """The machine and device that are to resume the version, by the options. A regular file is the device of another machine."""
    from fuse_store.hibernation.machine import Machine
    from fuse_store.hibernation.preflight import TargetMachine

    options = context.options
    path = Path(device) if device else None
    is_remote = path is not None and path.is_file()
    if options.root and not Path(options.root).is_dir():
        raise NotFound(f"root {options.root}", "no such directory.", "Name the tree of the machine, which has proc and sys.")
    machine = Machine(options.root or "/") if options.root or not is_remote else None
    size = None
    if path is not None:
        from fuse_store.formats.readable import File

        with File(path) as file:
            size = file.size
    return TargetMachine(machine, tuple(Path(disk) for disk in options.machine_disk), path, size)


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        from fuse_store.hibernation.preflight import preflight

        version = context.find(store, options.image)
        target = target_machine(context, options.device)
        if options.slot is not None:
            from fuse_store.hibernation.slots.arm import in_slot

            target = in_slot(target, slot_number(options, "preflight"), version)
        report = preflight(store, store.open_image(version.id), target, context.progress)
    record = {
        "id": version.id, "accepted": not report.refusals,
        "refusals": [vars(refusal) for refusal in report.refusals], "untold": [vars(skipped) for skipped in report.not_checked],
    }  # fmt: skip
    context.emit(record, "")
    for skipped in report.not_checked:
        context.remark(f"{skipped.code}: not checked: {skipped.message}")
    if not report.refusals:
        skipped_checks = f"; {text.count(len(report.not_checked), 'check')} not possible" if report.not_checked else ""
        context.remark(f"{label(version)}: {'no check failed' if report.not_checked else 'all checks passed'}{skipped_checks}")
        return 0
    for refusal in report.refusals:
        context.complain(f"{refusal.code}: {refusal.message} {refusal.remedy}".strip())
    codes = ", ".join(refusal.code for refusal in report.refusals)
    raise Refused(f"image {version.id[:12]}", f"not safe to resume here: {codes}.", "'arm' refuses it for the same reasons.")


VERB = Verb(
    name="preflight",
    summary="check whether the kernel of this machine would resume a version, and whether that is safe",
    description="Exits with 5 if a check fails. Each failed check has a code, which arm --force takes. Checks that lack information "
    "about the machine are listed as not checked.",
    run=run,
    arguments=(
        IMAGE,
        argument("--device", metavar="DEVICE", complete="file", help="device that the version is or will be staged on"),
        argument("--slot", metavar="N", type=values.number, help="slot that the version is in: what 'arm --slot N' would refuse"),
        ROOT,
        DISK,
    ),
    keys={
        "id": "version id",
        "accepted": "whether all checks passed",
        "refusals": "one object for each failed check, with code, message and remedy",
        "untold": "one object for each check that was not possible, with the same keys",
    },
    examples=(("fuse-store preflight web01/system/latest --device /dev/pmem0", "check before staging"),),
    interrupted="Nothing was changed.",
)
