# SPDX-License-Identifier: GPL-3.0-or-later
"""``gc``: free the room that no version needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import DRY_RUN, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    dry_run = context.options.dry_run
    with context.open_store() as store:
        from fuse_store.maintenance import upkeep

        grace = 0 if context.options.now else upkeep.GRACE
        done = upkeep.collect(store, dry_run=dry_run, progress=context.progress, grace=grace)
    record = {
        "dry_run": dry_run, "versions": done.versions_needed, "packs_kept": done.packs_kept, "packs_removed": done.packs_removed,
        "packs_copied": done.packs_copied, "freed": done.freed,
    }  # fmt: skip
    would = "would be " if dry_run else ""
    context.emit(
        record,
        f"{done.packs_removed} packs {would}removed, {done.packs_copied} {would}copied without what nobody needs, "
        f"{done.packs_kept} kept; {text.size(done.freed)} {would}freed",
    )
    if done.freed and not dry_run and not context.options.now:
        context.remark(
            "They are in the trash for an hour, for readers that need them still; the gc after that destroys them."
        )
    return 0


VERB = Verb(
    name="gc",
    summary="free the room of what no version needs",
    description="Packs that no version needs go to the trash; what is needed of packs that are mostly unneeded is copied first. "
    "What has been in the trash for an hour is destroyed. Readers, mounts included, are not disturbed.",
    run=run,
    arguments=(
        DRY_RUN,
        argument(
            "--now", action="store_true",
            help="destroy what nobody needs at once, and not an hour later; a reader of a version that was just removed fails",
        ),
    ),
    keys={
        "dry_run": "whether nothing was done",
        "versions": "how many versions were asked what they need",
        "packs_kept": "how many packs stay as they are",
        "packs_removed": "how many packs nobody needs",
        "packs_copied": "of how many packs a part was copied",
        "freed": "bytes that are free once the trash is emptied",
    },
    examples=(
        ("fuse-store gc --dry-run", "how much would be freed"),
        ("fuse-store gc", "after prune, or in a nightly job"),
        ("fuse-store gc --now", "on a full disk"),
    ),
    interrupted="No version was touched. Run it again.",
)
