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

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    tags = dict(options.tag)
    if len(tags) < len(options.tag):
        raise UsageError("--tag", "one key is given twice.", "A version has one value for each.")
    began = time.monotonic()
    from fuse_store.store import Label

    label_of_it = Label(options.machine, options.application, options.kind, options.event, tags)
    with context.open_store() as store:
        version = store.put(
            options.source, label_of_it, bases=options.base, replace=options.replace,
            machine_disks=[Path(disk) for disk in options.evidence_disk], progress=context.progress, warn=context.warn,
        )  # fmt: skip
    seconds = time.monotonic() - began
    context.emit({**version_record(version), "seconds": round(seconds, 3)}, version.id)
    pages = f"{text.size(version.allocated)} in pages that are not zero, {text.size(version.new)} in new ones"
    if version.chunks:
        pages += f"; {version.chunks} compressed chunks as the pages they hold"
    context.remark(
        f"{label(version)}: {text.size(version.size)}; {pages}; {text.size(version.stored)} written in {seconds:.1f} s"
    )
    return 0


VERB = Verb(
    name="put",
    summary="store a file, a device, a directory or standard input as a new version",
    description="Prints the id. Pages that its bases have are not stored again, wherever in them they stand.",
    run=run,
    arguments=(
        argument("source", metavar="SOURCE", help="file, block device, directory of files, or - for standard input", complete="file"),
        argument("--machine", metavar="M", required=True, help="the machine that the image belongs to"),
        argument("--application", metavar="A", default="system", help="what asked for it (default: system)"),
        argument(
            "--kind", metavar="K", default="file",
            help="hibernation, memory, disk, process, vm, core, language, iso or file (default: file)",
        ),
        argument("--event", metavar="E", default="", help="why it was taken"),
        argument("--tag", metavar="KEY=VALUE", type=values.tag, action="append", default=[], help="may be repeated"),
        argument(
            "--base", metavar="IMAGE", action="append", default=None,
            help="a version that it has pages in common with; may be repeated (default: the newest of machine and application)",
        ),
        argument(
            "--evidence-disk", metavar="DISK", action="append", default=[], complete="file",
            help="of a hibernation image: a disk of the machine, as a device or a raw image, as it is while nobody has resumed the "
            "image; the state of its filesystems is recorded for preflight; may be repeated",
        ),
        argument("--replace", action="store_true", help="remove the version before it, once the new one is stored"),
    ),
    keys={**VERSION_KEYS, "seconds": "how long it took"},
    examples=(
        ("fuse-store put /dev/pmem0 --machine web01 --kind hibernation --event nightly", "a hibernation image"),
        ("fuse-store put disk.raw --machine web01 --application disk --kind disk --tag ticket=4711", "a disk image, tagged"),
        ("ssh web01 cat /dev/pmem0 | fuse-store put - --machine web01 --kind hibernation", "from another machine"),
    ),
    interrupted="No version was made, none was lost. Run it again.",
)  # fmt: skip
