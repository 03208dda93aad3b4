# SPDX-License-Identifier: GPL-3.0-or-later
"""``repair``: make the index anew, and say what is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb
from fuse_store.errors import Damaged

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    with context.open_store() as store:
        from fuse_store.maintenance import upkeep

        done = upkeep.repair(store, context.progress)
    record = {
        "packs_found": done.packs_found, "packs_rescued": done.packs_rescued, "packs_bad": done.packs_bad, "lost": done.lost,
    }  # fmt: skip
    context.emit(record, f"{done.packs_found} packs found, {done.packs_rescued} rescued, {len(done.packs_bad)} bad")
    for problem in (
        *(f"pack {one}" for one in done.packs_bad),
        *(f"image {image}: {why}" for image, why in done.lost.items()),
    ):
        context.complain(problem)
    if not done.lost and not done.packs_bad:
        context.remark("Every version is whole, as far as the index tells; fuse-store verify reads them.")
        return 0
    raise Damaged(
        f"store {context.store_place}", f"{len(done.lost)} versions are not whole, {len(done.packs_bad)} packs are bad.",
        "Nothing was removed: what is damaged may come back from a copy of the store.",
    )  # fmt: skip


VERB = Verb(
    name="repair",
    summary="make what is missing of the index anew from the packs, and say which versions are not whole",
    description="Packs and manifests are never removed. Exit code 4 if anything is lost.",
    run=run,
    keys={
        "packs_found": "how many packs there are",
        "packs_rescued": "of how many the table of blocks was made anew from the blocks",
        "packs_bad": "packs of which blocks are lost, and why",
        "lost": "object of the ids of versions that are not whole, with the reason",
    },
    examples=(("fuse-store repair && fuse-store verify", "after something happened to the disk"),),
    interrupted="No version was touched. Run it again.",
)
