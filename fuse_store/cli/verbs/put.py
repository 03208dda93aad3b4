# SPDX-License-Identifier: GPL-3.0-or-later
"""``put``: store a new version."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import VERSION_KEYS, label, version_record
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import UsageError
from fuse_store.image.kind import KINDS

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    tags = dict(options.tag)
    if len(tags) < len(options.tag):
        raise UsageError("--tag", "the same key was given twice.", "Give each key once.")
    started = time.monotonic()
    from fuse_store.store import Label

    with context.open_store() as store:
        version = store.put(
            options.source, Label(options.machine, options.application, options.kind, options.event, tags), bases=options.base,
            replace=options.replace, machine_disks=[Path(disk) for disk in options.machine_disk], progress=context.progress,
            warn=context.warn,
        )  # fmt: skip
    seconds = time.monotonic() - started
    context.emit({**version_record(version), "seconds": round(seconds, 3)}, version.id)
    pages = f"{text.size(version.allocated)} allocated, {text.size(version.new)} new"
    if version.chunks:
        pages += f", {text.count(version.chunks, 'LZO chunk')} stored uncompressed"
    context.remark(
        f"{label(version)}: {text.size(version.size)}, {pages}; {text.size(version.stored)} written in {seconds:.1f} s"
    )
    return 0


VERB = Verb(
    name="put",
    summary="store a file, block device, directory or standard input as a new version",
    description="Prints the id of the version. Stores only pages that its bases do not contain, at whatever offset. Refuses a source "
    "that changes while it is read.",
    run=run,
    arguments=(
        argument("source", metavar="SOURCE", help="file, block device, directory, or - for standard input", complete="file"),
        argument("--machine", metavar="M", required=True, help="machine name"),
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
            "--replace", action="store_true",
            help="remove the previous version once the new one is stored, of which it reads every block that both share",
        ),
    ),
    keys={**VERSION_KEYS, "seconds": "elapsed time"},
    examples=(
        ("fuse-store put /dev/pmem0 --machine web01 --kind hibernation --event nightly", "store a hibernation image"),
        ("fuse-store put disk.raw --machine web01 --application disk --kind disk --tag ticket=4711", "store a disk image with a tag"),
        ("ssh web01 cat /dev/pmem0 | fuse-store put - --machine web01 --kind hibernation", "store an image of another machine"),
    ),
    interrupted="No version was created, none was removed. Run it again.",
)  # fmt: skip
