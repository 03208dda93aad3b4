# SPDX-License-Identifier: GPL-3.0-or-later
"""``repair``: rebuild the index, and list versions with missing data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import Verb
from fuse_store.errors import Damaged

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    with context.open_store() as store:
        from fuse_store.maintenance.repair import repair

        repaired = repair(store, context.progress)
    record = {
        "packs_found": repaired.packs_found, "packs_rescued": repaired.packs_rescued, "packs_bad": repaired.packs_bad,
        "lost": repaired.lost, "unknown": repaired.unknown,
    }  # fmt: skip
    context.emit(
        record,
        f"{text.count(repaired.packs_found, 'pack')} found, {text.count(repaired.packs_rescued, 'pack table')} rebuilt, "
        f"{text.count(len(repaired.packs_bad), 'pack')} damaged",
    )
    for problem in repaired.packs_bad:
        context.complain(f"pack {problem}")
    for image_id, reason in repaired.lost.items():
        context.complain(f"image {image_id}: {reason}")
    for image_id in repaired.unknown:
        context.warn(
            f"image {image_id}: its state log was missing or damaged, so it is not known whether it was resumed. arm refuses it until "
            "you run 'fuse-store report'."
        )
    if not repaired.lost and not repaired.packs_bad:
        context.remark("The index lists every block of every version. Run 'fuse-store verify' to read them.")
        return 0
    raise Damaged(
        f"store {context.store_location}",
        f"{text.count(len(repaired.lost), 'version')} incomplete, {text.count(len(repaired.packs_bad), 'pack')} damaged.",
        "Nothing was removed. Restore the damaged packs from a copy of the store.",
    )  # fmt: skip


VERB = Verb(
    name="repair",
    summary="rebuild the index from the packs, and list incomplete versions",
    description="Never removes packs or manifests. Exits with 4 if data is missing.",
    run=run,
    keys={
        "packs_found": "number of packs",
        "packs_rescued": "number of packs whose table of blocks was rebuilt",
        "packs_bad": "packs with missing blocks, with the reason",
        "lost": "object: id of each incomplete version, with the reason",
        "unknown": "ids of the hibernation images whose state log was lost, so that they may have been resumed",
    },
    examples=(("fuse-store repair && fuse-store verify", "after disk errors"),),
    interrupted="All versions are unchanged. Run it again.",
)
