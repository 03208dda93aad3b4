# SPDX-License-Identifier: GPL-3.0-or-later
"""``remove``: versions go, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.output import NAME_KEYS, label, name_record
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    with context.open_store() as store:
        versions = {one.id: one for one in map(store.find, context.options.image)}
        store.remove([*versions])
    context.emit({"removed": [name_record(one) for one in versions.values()]}, "")
    for one in versions.values():
        context.remark(f"{label(one)}: removed")
    context.remark("fuse-store gc frees the room that only they took.")
    return 0


VERB = Verb(
    name="remove",
    summary="remove versions by name",
    description="Whatever their state, and whether or not others were compared with them: those stay whole. Nothing is removed "
    "if one of them is not there. gc frees the room.",
    run=run,
    arguments=(argument("image", metavar="IMAGE", nargs="+", help=IMAGE_HELP),),
    keys={"removed": "one object for each version that went:", **{f"  {key}": what for key, what in NAME_KEYS.items()}},
    examples=(("fuse-store remove 4f1c9a && fuse-store gc", "one version, and the room that only it took"),),
    interrupted="What had been removed is gone, what had not is there. Run it again.",
)
