# SPDX-License-Identifier: GPL-3.0-or-later
"""``repair``: rebuild the index, and list versions with missing data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import Verb
from fuse_store.errors import Damaged

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

REMEDY = (
    "Nothing was removed. Restore the named packs and manifests from a copy of the store, and repair again. Without a copy, give the "
    "versions up with 'fuse-store remove ID' ('--damaged' if the manifest cannot be read), then run 'fuse-store gc'."
)
REMOVE_PACKS = "Run 'fuse-store gc' to remove them."


def run(context: Context) -> int:
    with context.open_store() as store:
        from fuse_store.maintenance.repair import repair

        repaired = repair(store, context.progress)
        context.done = "The index was rebuilt."
    record = {
        "packs_found": repaired.packs_found, "packs_rescued": repaired.packs_rescued, "packs_bad": repaired.packs_bad,
        "lost": repaired.lost, "unknown": repaired.unknown,
    }  # fmt: skip
    context.emit(
        record,
        f"{text.count(repaired.packs_found, 'pack')} found, {text.count(repaired.packs_rescued, 'pack table')} rebuilt, "
        f"{text.count(len(repaired.packs_bad), 'pack')} damaged",
    )
    for problem in (*repaired.packs_bad, *repaired.lost.values()):
        context.complain(problem)
    for image_id in repaired.unknown:
        context.warn(
            f"image {image_id}: its state log was missing or damaged, so it is not known whether it was resumed. arm refuses it until "
            "you run 'fuse-store report'."
        )
    if repaired.lost:
        raise Damaged(
            f"store {context.store_location}",
            f"{text.count(len(repaired.lost), 'version')} incomplete, {text.count(len(repaired.packs_bad), 'pack')} damaged.", REMEDY,
        )  # fmt: skip
    if repaired.packs_bad:
        context.remark(f"No version lacks anything: what the damaged packs had can be read elsewhere. {REMOVE_PACKS}")
    context.remark("The index lists every block of every version. Run 'fuse-store verify' to read them.")
    return 0


VERB = Verb(
    name="repair",
    summary="rebuild the index from the packs, and list incomplete versions",
    description="Reads every block, and copies what can be read of damaged packs to new ones. Never removes packs or manifests. Exits with "
    "4 if a version lacks something.",
    run=run,
    keys={
        "packs_found": "number of packs",
        "packs_rescued": "number of packs whose table of blocks was rebuilt",
        "packs_bad": "list of what is wrong with damaged packs",
        "lost": "object: id of each incomplete version, with the reason",
        "unknown": "ids of the hibernation images whose state log was lost, so that they may have been resumed",
    },
    examples=(("fuse-store repair && fuse-store verify", "after disk errors"),),
    interrupted="All versions are unchanged. Run it again.",
)
