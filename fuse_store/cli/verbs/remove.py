# SPDX-License-Identifier: GPL-3.0-or-later
"""``remove``: remove the named versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.context import GC_HINT
from fuse_store.cli.output import NAME_KEYS, label, name_record
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    with context.open_store() as store:
        versions = {version.id: version for version in map(store.find, context.options.image)}
        store.remove([*versions])
    context.emit({"removed": [name_record(version) for version in versions.values()]}, "")
    for version in versions.values():
        context.remark(f"{label(version)}: removed")
    context.remark(GC_HINT)
    return 0


VERB = Verb(
    name="remove",
    summary="remove the named versions",
    description="Removes nothing if one of them does not exist. Versions that share pages with a removed one stay intact. Run gc "
    "afterwards to reclaim disk space.",
    run=run,
    arguments=(argument("image", metavar="IMAGE", nargs="+", help=IMAGE_HELP, empty=True),),
    keys={
        "removed": "one object for each version removed:",
        **{f"  {key}": meaning for key, meaning in NAME_KEYS.items()},
    },
    examples=(("fuse-store remove 4f1c9a && fuse-store gc", "remove a version and reclaim its disk space"),),
    interrupted="Some versions may have been removed, each of them completely. Run it again.",
)
