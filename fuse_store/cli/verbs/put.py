# SPDX-License-Identifier: GPL-3.0-or-later
"""``put``: store a new version."""

from __future__ import annotations

import time
from argparse import REMAINDER
from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import VERSION_KEYS, label, version_record
from fuse_store.cli.parser import Verb, argument, see_help
from fuse_store.errors import UsageError
from fuse_store.image.kind import KINDS

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.image.inputs import Input


def run(context: Context) -> int:
    options = context.options
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
        version = store.put(
            opened, Label(options.machine, options.application, options.kind, options.event, tags), bases=options.base,
            replace=options.replace, machine_disks=[Path(disk) for disk in options.machine_disk], progress=context.progress,
            warn=context.warn,
        )  # fmt: skip
        context.done = f"Version {version.id} was stored."
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
    summary="store a file, block device, directory, standard input or the output of a command as a new version",
    description="Prints the id of the version. Stores only pages that its bases do not contain, at whatever offset. Refuses a source "
    "that is in use or changes while it is read. Where that cannot be known, it warns, and the version gets the tag consistent=unknown.",
    run=run,
    arguments=(
        argument("source", metavar="SOURCE", nargs="?", help="file, block device, directory, or - for standard input", complete="file"),
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
            "--command", metavar="CMD", nargs=REMAINDER, empty=True,
            help="command, in place of SOURCE and after all other options: it is run, and its output is stored if it exits with 0",
        ),
    ),
    keys={**VERSION_KEYS, "seconds": "elapsed time"},
    examples=(
        ("fuse-store put /dev/pmem0 --machine web01 --kind hibernation --event nightly", "store a hibernation image"),
        ("fuse-store put disk.raw --machine web01 --application disk --kind disk --tag ticket=4711", "store a disk image with a tag"),
        (
            "fuse-store put --machine web01 --kind hibernation --command ssh web01 cat /dev/pmem0",
            "store an image of another machine, if it came as a whole",
        ),
        ("ssh web01 cat /dev/pmem0 | fuse-store put - --machine web01 --kind hibernation", "the same through a pipe"),
    ),
    interrupted="No version was created, none was removed. Run it again.",
)  # fmt: skip
