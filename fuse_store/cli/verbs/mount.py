# SPDX-License-Identifier: GPL-3.0-or-later
"""``mount``: mount the versions of a store as files."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    remote = "://" in context.store_location and not options.foreground  # the S3 client would not survive the fork
    with nullcontext(context.open_store) if remote else context.open_store() as store:
        from fuse_store import mount

        record = {
            "store": context.store_location,
            "directory": options.directory,
            "foreground": options.foreground,
            "writable": options.writable,
            "allow_other": options.allow_other,
            "exec": options.exec,
        }
        access = mount.Access(options.writable, options.allow_other, options.exec)
        mount.mount(store, options.directory, foreground=options.foreground, access=access)
    context.emit(record, "")
    return 0


VERB = Verb(
    name="mount",
    summary="mount the versions as files, readable by this user only",
    description="Runs in the background until 'fusermount3 -u DIR'; with -f in the foreground.",
    run=run,
    arguments=(
        argument("directory", metavar="DIR", help="empty directory", complete="directory"),
        argument("-f", "--foreground", action="store_true", help="stay in the foreground"),
        argument("--writable", action="store_true", help="store each file copied to incoming/MACHINE/APPLICATION/ as a version"),
        argument(
            "--allow-other", action="store_true",
            help="allow all users to read the mount; memory images contain passwords and keys. Needs user_allow_other in /etc/fuse.conf",
        ),
        argument(
            "--exec", action="store_true",
            help="allow programs of the images to run, and worlds of Lisp to be mapped; without it the mount is noexec",
        ),
    ),
    keys={
        "store": "directory or URL of the store",
        "directory": "mount point",
        "foreground": "whether it ran in the foreground; this object is then printed after the unmount",
        "writable": "whether incoming/ exists",
        "allow_other": "whether all users may read the mount",
        "exec": "whether programs may be run from the mount",
    },
    examples=(
        ("fuse-store mount /mnt && ls /mnt/machines/web01/system/latest/", "list the files of the newest version of a machine"),
        ("fuse-store mount /mnt --exec && sbcl --core /mnt/machines/web01/world/latest/image", "run a world of Lisp where it lies"),
        ("fuse-store mount /mnt --writable && cp disk.raw /mnt/incoming/web01/disk/", "store a file by copying it"),
    ),
)
