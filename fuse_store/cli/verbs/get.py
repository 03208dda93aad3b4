# SPDX-License-Identifier: GPL-3.0-or-later
"""``get``: restore a version to a file, a directory, a device or standard output."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from fuse_store import streams
from fuse_store.cli import text
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument
from fuse_store.errors import UsageError
from fuse_store.paths import is_inside

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    if options.target == "-" and context.json:
        raise UsageError("--json", "not possible when the image is written to standard output.", "Name a file, or omit --json.")
    if options.target == "-" and sys.stdout.isatty():
        raise UsageError("standard output", "is a terminal.", "Redirect it to a file or a pipe.")
    if options.target == "-" and "stdout" in streams.closed:
        raise UsageError("standard output", "closed.", "Redirect it to a file or a pipe.")
    started = time.monotonic()
    with context.open_store() as store:
        version = context.find(store, options.image)
        if is_inside(options.target, store.path):
            raise UsageError(f"target {options.target}", "is inside the store.", "Name a place outside of it.")
        image = store.open_image(version.id)
        from fuse_store.image import restore

        written = restore.get(image, options.target, context.progress, changed_only=options.changed_only, force=options.force)
        if options.target != "-":
            context.done = f"{options.target} was written."
    seconds = time.monotonic() - started
    record = {
        "id": version.id, "target": options.target, "size": version.size, "written": written, "seconds": round(seconds, 3),
    }  # fmt: skip
    context.emit(record, "")
    context.remark(
        f"{label(version)} restored to {options.target}: {text.size(version.size)}, {text.size(written)} written in {seconds:.1f} s"
    )
    return 0


VERB = Verb(
    name="get",
    summary="restore a version to a file, a directory, a block device or standard output",
    description="A file is replaced atomically, and is sparse where the image has zeros; a symbolic link stays. A new file has the "
    "permissions of the source, as far as the umask allows, and those of its owner alone if the kind has secrets, such as memory; one that "
    "is replaced keeps its own. Data written to a device "
    "is read back and compared. Refuses a file or device that is in use and, without --force, a device with content that blkid "
    "recognizes, or of which it cannot tell.",
    run=run,
    arguments=(
        IMAGE,
        argument("target", metavar="TARGET", help="file, new directory, block device, or - for standard output", complete="file"),
        argument(
            "--changed-only", action="store_true",
            help="write only pages that differ from the content of the device: an older version, with the same UUID, or a swap area",
        ),
        argument("--force", action="store_true", help="overwrite a device that contains data"),
    ),
    keys={
        "id": "version id",
        "target": "target as given",
        "size": "bytes of the version, holes included",
        "written": "bytes written, without holes and unchanged pages",
        "seconds": "elapsed time",
    },
    examples=(
        ("fuse-store get web01/system/latest image.raw", "restore the newest version to a file"),
        ("fuse-store get 4f1c9a /dev/pmem0 --changed-only", "update a device that contains an older version"),
        ("fuse-store get 4f1c9a - | ssh web02 dd of=/dev/vdb bs=4M", "restore to another machine"),
    ),
    interrupted="A target file is unchanged. A target directory or device may be partly written: run it again.",
)
