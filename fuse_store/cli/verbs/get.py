# SPDX-License-Identifier: GPL-3.0-or-later
"""``get``: a version back to a file, a directory, a device or standard output."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    if options.target == "-" and context.json:
        raise UsageError("--json", "standard output is where the image goes.", "Name a file, or leave it out.")
    if options.target == "-" and sys.stdout.isatty():
        raise UsageError("standard output", "it is a terminal.", "Send it into a file or a pipe.")
    began = time.monotonic()
    with context.open_store() as store:
        version = store.find(options.image)
        image = store.open_image(version.id)
        from fuse_store.image import restore

        written = restore.get(
            image, options.target, context.progress, changed_only=options.changed_only, force=options.force
        )
    seconds = time.monotonic() - began
    record = {
        "id": version.id, "target": options.target, "size": version.size, "written": written, "seconds": round(seconds, 3),
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} → {options.target}: {text.size(version.size)}, {text.size(written)} written in {seconds:.1f} s"
    )
    return 0


VERB = Verb(
    name="get",
    summary="write a version to a file, a directory, a block device or standard output",
    description="A file appears whole or not at all, sparse where the image has zeros. What was written to a device is read back "
    "and compared.",
    run=run,
    arguments=(
        IMAGE,
        argument(
            "target",
            metavar="TARGET",
            help="file, directory that is not there yet, block device, or -",
            complete="file",
        ),
        argument(
            "--changed-only", action="store_true", help="to a device: write only what differs from what stands there"
        ),
        argument("--force", action="store_true", help="also to a device that holds something"),
    ),
    keys={
        "id": "of the version",
        "target": "as it was named",
        "size": "bytes of the version",
        "written": "bytes that were written, without holes and what was there already",
        "seconds": "how long it took",
    },
    examples=(
        ("fuse-store get web01/system/latest image.raw", "into a file"),
        ("fuse-store get 4f1c9a /dev/pmem0 --changed-only", "onto a device that holds an older version of it"),
        ("fuse-store get 4f1c9a - | ssh web02 dd of=/dev/vdb bs=4M", "to another machine"),
    ),
    interrupted="A file is as it was before; a device may hold a part of the image: run it again.",
)
