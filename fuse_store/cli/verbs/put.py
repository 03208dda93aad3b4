# SPDX-License-Identifier: GPL-3.0-or-later
"""``put``: store a new version."""

from __future__ import annotations

import os
import time
from argparse import REMAINDER
from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import VERSION_KEYS, label, version_record
from fuse_store.cli.parser import Verb, argument, see_help
from fuse_store.cli.verbs.slots import slot_number
from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.image.kind import KINDS
from fuse_store.paths import is_inside

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.image.inputs import Input


def run(context: Context) -> int:
    options = context.options
    if options.slots or options.slot is not None:
        return _of_slots(context)
    if options.machine is None:
        raise UsageError("put", "no machine specified: --machine M is needed.", see_help("put"))
    tags = dict(options.tag)
    if len(tags) < len(options.tag):
        raise UsageError("--tag", "the same key was given twice.", "Give each key once.")
    words = options.command
    if words is not None and words[:1] == ["--"]:
        words = words[1:]
    if (options.source is None) == (words is None):
        raise UsageError("put", "give either SOURCE or --command." if words is None else "SOURCE and --command given.", see_help("put"))
    if words is not None and options.allow_changing:
        raise UsageError("--allow-changing", "for files and devices, not for --command.", "Omit it.")
    started = time.monotonic()
    from fuse_store.image.inputs import open_input, run_command
    from fuse_store.store import Label

    def source() -> Input:
        if words is not None:
            return run_command(words, size=options.size)
        return open_input(options.source, size=options.size, allow_changing=options.allow_changing)

    with context.open_store() as store, source() as opened:
        if words is None and options.source != "-" and os.path.isdir(options.source) and is_inside(store.path, options.source):
            raise UsageError(f"source {options.source}", "contains the store.", "Name a directory without it, or move the store.")
        version = store.put(
            opened, Label(options.machine, options.application, options.kind, options.event, tags), bases=options.base,
            replace=options.replace, machine_disks=[Path(disk) for disk in options.machine_disk], progress=context.progress,
            warn=context.warn, done=context.note_done,
        )  # fmt: skip
    seconds = time.monotonic() - started
    context.emit({**version_record(version), "seconds": round(seconds, 3), "slots": []}, version.id)
    pages = f"{text.size(version.allocated)} allocated, {text.size(version.new)} new"
    if version.chunks:
        pages += f", {text.count(version.chunks, 'LZO chunk')} stored uncompressed"
    context.remark(
        f"{label(version)}: {text.size(version.size)}, {pages}; {text.size(version.stored)} written in {seconds:.1f} s"
    )
    return 0


def _of_slots(context: Context) -> int:
    """Images in the slots of a device: one, or all that are in no store."""
    options = context.options
    for name, given in (
        ("--slot", options.slot is not None and options.slots), ("--machine", options.machine), ("--event", options.event),
        ("--tag", options.tag), ("--base", options.base), ("--machine-disk", options.machine_disk),
        ("--size", options.size), ("--replace", options.replace),
        ("--allow-changing", options.allow_changing), ("--command", options.command is not None),
    ):  # fmt: skip
        if given:
            raise UsageError(name, "not possible with --slots or --slot N: the table of slots says it.", "Omit it.")
    device = _device(context)
    from fuse_store.formats.readable import File
    from fuse_store.hibernation.slots import table as tables
    from fuse_store.hibernation.slots.put import put, record_resumed, waiting
    from fuse_store.snapshot.service import upload

    restored = upload.restored_images() if options.source is None else []
    with File(device) as file:
        numbers = [slot_number(options, "put")] if options.slot is not None else waiting(tables.load(file, device).table)
    records: list[dict[str, object]] = []
    failed: list[StoreError] = []
    if numbers or restored:
        with context.open_store() as store:
            for number in numbers:
                try:
                    done = put(store, device, number, progress=context.progress, warn=context.warn)
                except (Damaged, NotFound, Refused, UsageError) as error:  # of this slot
                    failed.append(error)
                    continue
                context.done = f"Version {done.version.id} was stored."
                records.append({"slot": number, "id": done.version.id, "stored": done.stored, "noted": done.noted, "new": done.version.new})
                how = f"{text.size(done.version.new)} new" if done.stored else "there already"
                context.remark(f"slot {number}: {label(done.version)}: {text.size(done.version.size)}, {how}")
                if not done.noted:
                    context.warn(f"slot {number} of {device} was in use or has gone: the table does not say that the store has its image.")
            if restored:
                upload.noted(record_resumed(store, device, restored))
    context.emit({**dict.fromkeys(VERSION_KEYS), "seconds": None, "slots": records}, "\n".join(str(record["id"]) for record in records))
    for other in failed[1:]:
        context.complain(str(other))
    if failed:
        raise failed[0]
    if not numbers:
        context.remark(f"{device}: the store has every image")
    return 0


def _device(context: Context) -> str:
    """The device with slots; without one on the command line, it and the store are those of the policy of the snapshot service."""
    options = context.options
    if options.source is not None:
        return str(options.source)
    from fuse_store.snapshot.service import upload
    from fuse_store.snapshot.service.policy import load

    upload.begin()
    policy = load(options.policy)
    if not context.store_named:
        if not policy.store:
            raise UsageError(f"policy {options.policy}", "names no store.", "Add a line with store, or use --store.")
        options.store, options.key_file = policy.store, options.key_file or policy.key_file or None
    return policy.device


VERB = Verb(
    name="put",
    summary="store a file, block device, directory, standard input or the output of a command as a new version",
    description="Prints the id of the version. Stores only pages that its bases do not contain, at whatever offset. Refuses a source "
    "that is in use or changes while it is read. Where that cannot be known, it warns, and the version gets the tag consistent=unknown.",
    run=run,
    arguments=(
        argument("source", metavar="SOURCE", nargs="?", help="file, block device, directory, or - for standard input", complete="file"),
        argument("--machine", metavar="M", help="machine name; needed except with --slots and --slot"),
        argument("--application", metavar="A", default="system", help="application name (default: system)"),
        argument("--kind", metavar="K", default="file", choices=tuple(KINDS), help=f"{text.one_of(KINDS)} (default: file)"),
        argument("--event", metavar="E", default="", help="reason for the capture", empty=True),
        argument("--tag", metavar="KEY=VALUE", type=values.tag, action="append", default=[], help="add a tag; may be repeated"),
        argument(
            "--base", metavar="IMAGE", action="append", default=None,
            help="version to share pages with; may be repeated (default: the newest of the same machine and application)",
        ),
        argument(
            "--machine-disk", metavar="DISK", action="append", default=[], complete="file",
            help="disk of the hibernated machine: a device or raw image, unchanged since it hibernated; may be repeated. Records the "
            "state of its filesystems for preflight (default: the disks of this machine)",
        ),
        argument(
            "--size", metavar="SIZE", type=values.size, default=None,
            help="refuse a source that does not have exactly SIZE bytes, such as 1073741824 or 1GiB",
        ),
        argument(
            "--allow-changing", action="store_true",
            help="store a source that is in use or changes while it is read; the version gets the tag consistent=no or consistent=unknown",
        ),
        argument(
            "--replace", action="store_true",
            help="remove the previous version once the new one is stored, of which it reads every block that both share; standard "
            "input needs --size for it, or a whole hibernation image",
        ),
        argument(
            "--slots", action="store_true",
            help="SOURCE is a device with slots: store each of its images that is in no store; without SOURCE, device, store and key file "
            "are those of --policy",
        ),
        argument("--slot", metavar="N", type=values.number, help="SOURCE is a device with slots: store the image in slot N"),
        argument("--policy", metavar="FILE", default="/etc/fuse-store/snapshots.toml", complete="file",
                 help="policy of the snapshot service, for --slots; default /etc/fuse-store/snapshots.toml"),
        argument(
            "--command", metavar="CMD", nargs=REMAINDER, empty=True,
            help="command, in place of SOURCE and after all other options: it is run, and its output is stored if it exits with 0",
        ),
    ),
    keys={
        **VERSION_KEYS,
        "seconds": "elapsed time; null with --slots or --slot, as all before",
        "slots": "with --slots or --slot, one object for each slot that was put: slot, id of the version, stored (false: it was there "
        "already), noted (whether the table of slots says so), new",
    },
    examples=(
        ("fuse-store put /dev/pmem0 --machine web01 --kind hibernation --event nightly", "store a hibernation image"),
        ("fuse-store put disk.raw --machine web01 --application disk --kind disk --tag ticket=4711", "store a disk image with a tag"),
        (
            "fuse-store put --machine web01 --kind hibernation --command ssh web01 cat /dev/pmem0",
            "store an image of another machine, if it came as a whole",
        ),
        ("fuse-store put /dev/pmem1 --slots", "store the snapshots in slots that are in no store yet"),
        ("ssh web01 cat /dev/pmem0 | fuse-store put - --machine web01 --kind hibernation", "the same through a pipe"),
    ),
    interrupted="No version was created, none was removed. Run it again.",
)  # fmt: skip
