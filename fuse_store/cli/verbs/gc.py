# SPDX-License-Identifier: GPL-3.0-or-later
"""``gc``: reclaim the disk space of packs that no version needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import DRY_RUN, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    dry_run = context.options.dry_run
    with context.open_store() as store:
        from fuse_store.maintenance.gc import collect
        from fuse_store.maintenance.trash import GRACE_PERIOD

        grace = 0 if context.options.now else GRACE_PERIOD
        collected = collect(store, dry_run=dry_run, progress=context.progress, grace=grace)
        context.done = "" if dry_run else "The collection is complete."
    record = {
        "dry_run": dry_run, "versions": collected.versions_needed, "packs_kept": collected.packs_kept,
        "packs_removed": collected.packs_removed, "packs_copied": collected.packs_copied, "freed": collected.freed,
    }  # fmt: skip
    packs = f"{text.count(collected.packs_removed, 'pack')} removed, {collected.packs_copied} repacked, {collected.packs_kept} kept"
    freed = "freed" if dry_run or context.options.now else "moved to the trash"
    context.emit(record, f"{'Dry run: ' if dry_run else ''}{packs}; {text.size(collected.freed)} {freed}")
    if collected.freed and not dry_run and not context.options.now:
        context.remark("Removed packs stay in the trash for an hour. The next gc after that deletes them.")
    return 0


VERB = Verb(
    name="gc",
    summary="remove data that no version needs, to reclaim disk space",
    description="Moves unneeded packs to the trash, and repacks those that are mostly unneeded. Deletes what has been in the trash "
    "for an hour. Readers and mounts are not affected.",
    run=run,
    arguments=(
        DRY_RUN,
        argument("--now", action="store_true", help="delete unneeded packs at once; readers of a version removed before fail"),
    ),
    keys={
        "dry_run": "true if nothing was changed",
        "versions": "number of versions in the store",
        "packs_kept": "number of packs left as they are",
        "packs_removed": "number of packs removed",
        "packs_copied": "number of packs repacked without unneeded blocks",
        "freed": "bytes freed once the trash is emptied",
    },
    examples=(
        ("fuse-store gc --dry-run", "show how much would be freed"),
        ("fuse-store gc", "after prune, or in a nightly job"),
        ("fuse-store gc --now", "when the disk is full"),
    ),
    interrupted="All versions are intact. Run it again.",
)
