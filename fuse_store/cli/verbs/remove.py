# SPDX-License-Identifier: GPL-3.0-or-later
"""``remove``: remove the named versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.context import GC_HINT
from fuse_store.cli.output import NAME_KEYS, label, name_record
from fuse_store.cli.parser import IMAGE_HELP, PROGRAM, Verb, argument
from fuse_store.errors import Damaged

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.repository.manifest import Summary


def run(context: Context) -> int:
    removed: dict[str, Summary | None] = {}  # None: the manifest cannot be read
    with context.open_store() as store:
        for reference in context.options.image:
            image_id = store.versions.id_of(reference)
            try:
                removed[image_id] = store.find(image_id)
            except Damaged as error:
                if not context.options.damaged or reference != image_id:
                    remedy = f"Restore it from a copy of the store, or give the version up: '{PROGRAM} remove --damaged {image_id}'."
                    raise Damaged(error.thing, error.cause, remedy, image=image_id) from None
                removed[image_id] = None
        store.remove([*removed], force=context.options.force)
        context.done = f"Removed: {text.count(len(removed), 'version')}."
    records = [
        {**dict.fromkeys(NAME_KEYS), "id": image_id} if version is None else name_record(version)
        for image_id, version in removed.items()
    ]
    context.emit({"removed": records}, "")
    for image_id, version in removed.items():
        context.remark(f"{f'image {image_id} (unreadable manifest)' if version is None else label(version)}: removed")
    context.remark(GC_HINT)
    return 0


VERB = Verb(
    name="remove",
    summary="remove the named versions",
    description="Removes nothing if one of them does not exist, or is staged or armed on a device and how it went was not reported. "
    "Versions that share pages with a removed one stay intact. Run gc "
    "afterwards to reclaim disk space.",
    run=run,
    arguments=(
        argument("image", metavar="IMAGE", nargs="+", help=IMAGE_HELP, empty=True),
        argument("--force", action="store_true", help="remove versions that are staged or armed on a device, too"),
        argument(
            "--damaged", action="store_true",
            help="also remove versions whose manifest cannot be read, if named by their whole ids: they are lost for good",
        ),
    ),
    keys={
        "removed": "one object for each version removed; of one whose manifest cannot be read, all but the id are null:",
        **{f"  {key}": meaning for key, meaning in NAME_KEYS.items()},
    },
    examples=(("fuse-store remove 4f1c9a && fuse-store gc", "remove a version and reclaim its disk space"),),
    interrupted="Some versions may have been removed, each of them completely. Run it again.",
)  # fmt: skip
