# SPDX-License-Identifier: GPL-3.0-or-later
"""``mount``: the versions as files."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    far = "://" in context.store_place and not options.foreground  # its client would not survive the fork
    with nullcontext(context.open_store) if far else context.open_store() as store:
        from fuse_store import mount

        record = {
            "store": context.store_place,
            "directory": options.directory,
            "foreground": options.foreground,
            "writable": options.writable,
            "allow_other": options.allow_other,
        }
        mount.mount(
            store, options.directory, foreground=options.foreground, writable=options.writable, allow_other=options.allow_other
        )
    context.emit(record, "")
    return 0


VERB = Verb(
    name="mount",
    summary="mount the versions as files, for this user only unless told otherwise",
    description="It goes on in the background until fusermount3 -u DIR; with -f it stays in the foreground.",
    run=run,
    arguments=(
        argument("directory", metavar="DIR", help="an empty directory", complete="directory"),
        argument("-f", "--foreground", action="store_true", help="stay in the foreground"),
        argument(
            "--writable", action="store_true", help="what is copied to incoming/MACHINE/APPLICATION/ becomes a version"
        ),
        argument(
            "--allow-other", action="store_true",
            help="let every user read it; memory images hold every secret of a machine. Needs user_allow_other in /etc/fuse.conf",
        ),
    ),
    keys={
        "store": "its folder or URL",
        "directory": "where it is mounted",
        "foreground": "whether it stayed in the foreground; then this is printed when it has been unmounted",
        "writable": "whether there is incoming/",
        "allow_other": "whether every user may read it",
    },
    examples=(
        ("fuse-store mount /mnt && ls /mnt/machines/web01/system/latest/", "look at the newest version of a machine"),
        ("fuse-store mount /mnt --writable && cp disk.raw /mnt/incoming/web01/disk/", "store by copying"),
    ),
)
