# SPDX-License-Identifier: GPL-3.0-or-later
"""Garbage collection: free the disk space of packs that no version needs. Takes the writer lock; one thread.

A pack that no version needs goes to the trash. The needed blocks of a mostly unneeded pack are copied to a new pack first. The
trash is emptied by a later collection, when the grace period is over.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import halves, starts
from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.maintenance import trash
from fuse_store.maintenance.trash import GRACE_PERIOD
from fuse_store.progress import Progress
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.backends import Lock
from fuse_store.repository.block import HEADER_SIZE, with_header
from fuse_store.repository.index import Rows
from fuse_store.repository.pack import PackWriter, all_packs, pack_name
from fuse_store.repository.state_log import outlives
from fuse_store.store import Store

DRY_RUNS = 5  # attempts of a dry run
MIN_USED_RATIO = 0.5  # a pack of which less than this is needed is copied; above, the space is not worth the work


@dataclass
class Collected:
    """What ``collect`` did, or would do. ``freed``: bytes freed once the trash is emptied."""

    packs_kept: int = 0
    packs_removed: int = 0
    packs_copied: int = 0
    freed: int = 0
    versions_needed: int = 0


def collect(store: Store, *, dry_run: bool, progress: Progress, grace: float = GRACE_PERIOD) -> Collected:
    """As ``_collect``. A dry run takes no lock; what it sees of a writer's work may not fit together, and then it looks again."""
    for _attempt in range(DRY_RUNS - 1 if dry_run else 0):
        before = _seen(store)
        try:
            return _collect(store, dry_run, progress, grace)
        except StoreError:
            store.backend.refresh("index")
            if before == _seen(store):
                raise
    return _collect(store, dry_run, progress, grace)


def _seen(store: Store) -> tuple[int, int]:
    """Something that differs once a writer changed the index or the versions. Ids are digests: no two sets have one sum by chance."""
    return store.backend.changed("index")[0], sum(int(image_id, 16) for image_id in store.versions.ids())


def _collect(store: Store, dry_run: bool, progress: Progress, grace: float) -> Collected:
    """Free the packs that no version needs, and copy the needed blocks out of mostly unneeded packs.

    A block is needed as long as any manifest names it. If a manifest or the index cannot be read, nothing is freed. Files that
    have been in the trash for ``grace`` seconds are destroyed first, because a full disk has no space for anything else.
    Raises Locked, Damaged, StoreError.
    """
    result = Collected()
    if not dry_run:
        trash.empty(store, grace)
    store.versions.directories()  # raises StoreError if images/ is missing: the lock would create it, and no block would be needed any more
    with nullcontext() if dry_run else store.writing() as lock:
        progress.start("gc", None, unit="versions")
        fragments = _checked_fragments(store)
        needed = _needed_rows(store, fragments, result, progress)
        drop, copy = _choose_packs(store, fragments, needed, result)
        if lock is not None:
            if drop:
                _replace_packs(store, lock, fragments, needed, drop, copy)
            _forget_states(store)
            store.versions.forget_names()
            trash.empty(store, grace)
        progress.finish()
    return result


def _forget_states(store: Store) -> None:
    """Remove the state logs of contents that no version has, unless they tell of use, or cannot be read: the same bytes may be
    stored again."""
    used = {version.content for versions in store.versions.by_machine() for version in versions}
    for content in (content for content in store.state_log.contents() if content not in used):
        log = store.state_log.read(content)
        if not log.problem and not outlives(log.entries):
            store.state_log.discard(content)


def _checked_fragments(store: Store) -> dict[str, Rows]:
    """Every fragment of the index, checked. Raises StoreError."""
    fragments = {}
    for name, rows in store.index.checked():
        if isinstance(rows, str):
            raise StoreError(f"index {name}", f"{rows}.", "Nothing was freed. Run 'fuse-store repair' first.")
        fragments[name] = rows
    return fragments


def _needed_rows(
    store: Store, fragments: dict[str, Rows], result: Collected, progress: Progress
) -> dict[str, NDArray[np.bool_]]:
    """For each fragment, which of its rows a version needs; of a block with several rows, one. Raises StoreError."""
    needed = {name: np.zeros(len(rows), bool) for name, rows in fragments.items()}
    for image_id in store.versions.ids():
        try:
            for digests, _located, _first_pages in store.open_image(image_id).blocks():
                _mark_needed(store, digests, fragments, needed)
        except (Damaged, NotFound) as error:
            if not store.versions.exists(image_id):
                continue  # without the lock, in a dry run: it was removed meanwhile
            raise StoreError(
                f"store {store.url}", f"cannot tell which blocks image {image_id} needs: {error}",
                "Nothing was freed. Run 'fuse-store repair'. If that does not help, restore the manifest from a copy of the store, "
                f"or give the version up: 'fuse-store remove --damaged {image_id}'.",
            ) from None  # fmt: skip
        result.versions_needed += 1
        progress.at(result.versions_needed)
    return needed


def _mark_needed(store: Store, digests: bytes, fragments: dict[str, Rows], needed: dict[str, NDArray[np.bool_]]) -> None:
    """Mark one row of each block as needed. Raises Damaged if a block has none."""
    high, low = halves(digests)
    row_of = {name: rows.find(high, low) for name, rows in fragments.items()}
    copies = np.zeros(len(high), np.int64)
    for rows_found in row_of.values():
        copies += rows_found >= 0
    if not copies.all():
        raise Damaged(f"{np.count_nonzero(copies == 0)} blocks", "not in the index.")
    for name, rows_found in row_of.items():
        needed[name][rows_found[(rows_found >= 0) & (copies == 1)]] = True
    for block in np.flatnonzero(copies > 1).tolist():  # the pack of one of the rows may be missing or another one
        digest = digests[block * DIGEST : (block + 1) * DIGEST]
        candidates = [(name, int(rows_found[block])) for name, rows_found in row_of.items() if rows_found[block] >= 0]
        readable = ((name, row) for name, row in candidates if store.reader.has(digest, *fragments[name].place(row)))
        name, row = next(readable, candidates[0])
        needed[name][row] = True


def _choose_packs(
    store: Store, fragments: dict[str, Rows], needed: dict[str, NDArray[np.bool_]], result: Collected
) -> tuple[set[bytes], set[bytes]]:
    """(packs to drop, those among them whose needed blocks are copied first). Raises StoreError."""
    used: dict[bytes, int] = {}  # bytes needed, by pack
    for name, rows in fragments.items():
        sums = np.bincount(rows.pack[needed[name]], rows.stored[needed[name]], len(rows.packs) // DIGEST)
        for ordinal, size in enumerate(sums.tolist()):
            pack = rows.pack_id(ordinal)
            used[pack] = used.get(pack, 0) + int(size)
    drop, copy = set(), set()
    packs = dict(all_packs(store.backend))
    for pack in used.keys() - packs.keys():
        if used[pack]:
            remedy = "Nothing was freed. Run 'fuse-store repair'."
            raise StoreError(f"pack {pack.hex()}", "missing, and versions need it.", remedy)
    for pack, size in packs.items():
        live = used.get(pack, 0)
        if live and live >= MIN_USED_RATIO * size:
            result.packs_kept += 1
            continue
        drop.add(pack)
        if live:
            copy.add(pack)
        result.packs_copied += bool(live)
        result.packs_removed += not live
        result.freed += size - live
    return drop, copy


def _replace_packs(
    store: Store, lock: Lock, fragments: dict[str, Rows], needed: dict[str, NDArray[np.bool_]], drop: set[bytes], copy: set[bytes]
) -> None:
    """Copy the needed blocks, then write an index without the dropped packs, then drop them."""
    wanted: dict[bytes, list[NDArray[np.uint64]]] = {pack: [] for pack in copy}  # a pack may be in several fragments
    for name, rows in fragments.items():
        for ordinal in range(len(rows.packs) // DIGEST):
            pack = rows.pack_id(ordinal)
            if pack in copy:
                wanted[pack].append(np.stack((rows.high, rows.low), 1)[needed[name] & (rows.pack == ordinal)])
    new = _copy_blocks(store, {pack: np.concatenate(parts) for pack, parts in wanted.items()})
    for name, rows in fragments.items():
        dropped = np.array([rows.pack_id(ordinal) in drop for ordinal in range(len(rows.packs) // DIGEST)], bool)
        if dropped.any():
            kept = rows.select(~dropped[rows.pack])
            parts = [part for part in (kept, *new) if len(part)]
            store.index.replace([name], parts, store.sync, lambda: store.before_commit(lock), to_trash=True)
            new = []
    for pack in drop:
        lock.check()
        fault_point("gc drop pack")
        trash.move_to_trash(store, pack_name(pack))
        store.reader.forget(pack)


def _copy_blocks(store: Store, wanted: dict[bytes, NDArray[np.uint64]]) -> list[Rows]:
    """Copy blocks, as they are stored, to new packs, which are durable when this returns. Raises Damaged: an unreadable
    block is not copied, and the collection ends."""
    writer = PackWriter(store.backend, store.aead, store.sync)
    written: list[Rows | None] = []
    try:
        for pack, digests in wanted.items():
            table = store.reader.table(pack)
            chosen = {row.tobytes() for row in digests.astype("<u8")}
            counts = table.counts(store.config.page_size)
            first_pages = starts(counts)
            for row in range(len(counts)):
                digest = table.digests[row * DIGEST : (row + 1) * DIGEST]
                if digest not in chosen:
                    continue
                chosen.discard(digest)
                offset, stored = int(table.offset[row]), int(table.stored[row])
                store.reader.check(table, offset, digest, store.reader.read(digest, pack, offset, stored), store.config.page_size)
                body = store.reader.stored(pack, offset + HEADER_SIZE, stored - HEADER_SIZE)
                block = with_header(digest, int(table.length[row]), [body], store.aead)
                page_digests = table.pages[first_pages[row] : first_pages[row] + counts[row]]
                written.append(writer.add(block, page_digests.astype("<u8").tobytes()))
            if chosen:
                raise Damaged(f"pack {pack.hex()}", "pack table does not match the index.", "Run 'fuse-store repair'.")
        written.append(writer.finish())
    finally:
        writer.abandon()
    return [rows for rows in written if rows is not None]
