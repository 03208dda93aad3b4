# SPDX-License-Identifier: GPL-3.0-or-later
"""Garbage collection: free the disk space of packs that no version needs. Takes the writer lock; one thread.

A pack that no version needs goes to the trash. The needed blocks of a mostly unneeded pack are copied to a new pack first. The
trash is emptied by a later collection, when the grace period is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np

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
from fuse_store.repository.index.fragment import Fragment
from fuse_store.repository.index.marks import Marks
from fuse_store.repository.pack import PackWriter, Table, all_packs, pack_name
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
        fragments, damaged = store.index.check()
        if lock is not None:
            if damaged:
                _list_packs(store, fragments)
            store.index.compact(store.sync, lambda: store.before_commit(lock))
            fragments = list(store.index.fragments().values())
        needed = _needed_rows(store, Marks(fragments), result, progress)
        if damaged and lock is not None:  # every block that a version needs was found without them
            store.index.drop(damaged, store.sync, lambda: store.before_commit(lock), to_trash=True)
        known = _packs_of(fragments) if damaged else None
        drop, copy = _choose_packs(store, needed, known, result)
        if lock is not None:
            if drop:
                _replace_packs(store, lock, needed, drop, copy)
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


def _list_packs(store: Store, sound: Sequence[Fragment]) -> None:
    """List the blocks of every pack that no sound fragment names. A fragment that names a pack has a row for each of its blocks."""
    known = _packs_of(sound)
    for pack, _size in all_packs(store.backend):
        if pack not in known:
            with suppress(Damaged):  # of a put that ended before its commit, with the power; what is needed of it is missed below
                store.index.add([store.reader.table(pack).rows()], store.sync)


def _packs_of(fragments: Sequence[Fragment]) -> set[bytes]:
    return {pack for fragment in fragments for pack in fragment.pack_ids()}


def _needed_rows(store: Store, marks: Marks, result: Collected, progress: Progress) -> Marks:
    """Mark the rows that a version needs; of a block with several rows, one. Raises StoreError."""
    for image_id in store.versions.ids():
        try:
            for digests, _located, _first_pages in store.open_image(image_id).blocks():
                _mark_needed(store, digests, marks)
        except (Damaged, NotFound) as error:
            if not store.versions.exists(image_id):
                continue  # without the lock, in a dry run: it was removed meanwhile
            raise Damaged(
                f"store {store.url}", f"cannot tell which blocks image {image_id} needs: {error}",
                "Nothing was freed. Run 'fuse-store repair'. If that does not help, restore the manifest from a copy of the store, "
                f"or give the version up: 'fuse-store remove --damaged {image_id}'.", image=image_id,
            ) from None  # fmt: skip
        result.versions_needed += 1
        progress.at(result.versions_needed)
    return marks


def _mark_needed(store: Store, digests: bytes, marks: Marks) -> None:
    """Mark one row of each block as needed. Raises Damaged if a block has none."""
    numbers, several = marks.find(*halves(digests))
    if (numbers < 0).any():
        raise Damaged(f"{np.count_nonzero(numbers < 0)} blocks", "not in the index.")
    marks.set(numbers[~several])
    for block in np.flatnonzero(several & ~marks.are_set(numbers)).tolist():
        digest = digests[block * DIGEST : (block + 1) * DIGEST]
        places = marks.places(digest)
        if not marks.are_set(np.array([number for number, _place in places])).any():  # else it was chosen for another version
            readable = (number for number, place in places if store.reader.has(digest, *place))  # a pack may be missing, or another
            marks.set(np.array([next(readable, places[0][0])]))


def _choose_packs(store: Store, needed: Marks, known: set[bytes] | None, result: Collected) -> tuple[set[bytes], dict[bytes, int]]:
    """(packs to drop; of those among them whose needed blocks are copied first, how many these are). With ``known``, other packs
    stay: the index does not account for them. Raises StoreError."""
    used: dict[bytes, tuple[int, int]] = {}  # by pack: how many of its blocks are needed, and their bytes
    for fragment, rows in needed.marked():
        counts = np.bincount(rows.pack)
        sizes = np.bincount(rows.pack, rows.stored)
        for ordinal in np.flatnonzero(counts).tolist():
            pack = fragment.pack_id(ordinal)
            count, size = used.get(pack, (0, 0))
            used[pack] = count + int(counts[ordinal]), size + int(sizes[ordinal])
    drop, copy = set(), {}
    packs = dict(all_packs(store.backend))
    for pack in used.keys() - packs.keys():
        raise Damaged(f"pack {pack.hex()}", "missing, and versions need it.", "Nothing was freed. Run 'fuse-store repair'.")
    for pack, size in packs.items():
        count, live = used.get(pack, (0, 0))
        if (count and live >= MIN_USED_RATIO * size) or (known is not None and pack not in known):
            result.packs_kept += 1
            continue
        drop.add(pack)
        if count:
            copy[pack] = count
        result.packs_copied += bool(count)
        result.packs_removed += not count
        result.freed += size - live
    return drop, copy


def _replace_packs(store: Store, lock: Lock, needed: Marks, drop: set[bytes], copy: Mapping[bytes, int]) -> None:
    """Copy the needed blocks, then write an index without the dropped packs, then drop them."""
    _copy_blocks(store, needed, copy)
    store.index.without(drop, store.sync, lambda: store.before_commit(lock))
    for pack in drop:
        lock.check()
        fault_point("gc drop pack")
        trash.move_to_trash(store, pack_name(pack))
        store.reader.forget(pack)


def _copy_blocks(store: Store, needed: Marks, copy: Mapping[bytes, int]) -> None:
    """Copy the needed blocks of packs, as they are stored, to new packs, which are durable and in the index when this returns.
    Raises Damaged: an unreadable block is not copied, and the collection ends."""
    writer = PackWriter(store.backend, store.aead, store.sync)
    try:
        for pack, count in copy.items():
            table = store.reader.table(pack)
            counts = table.counts(store.config.page_size)
            first_pages = starts(counts)
            wanted = _needed_blocks(table, needed)
            if len(wanted) != count:
                raise Damaged(f"pack {pack.hex()}", "pack table does not match the index.", "Run 'fuse-store repair'.")
            for row in wanted:
                digest = table.digests[row * DIGEST : (row + 1) * DIGEST]
                offset, stored = int(table.offset[row]), int(table.stored[row])
                store.reader.check(table, offset, digest, store.reader.read(digest, pack, offset, stored), store.config.page_size)
                body = store.reader.stored(pack, offset + HEADER_SIZE, stored - HEADER_SIZE)
                block = with_header(digest, int(table.length[row]), [body], store.aead)
                page_digests = table.pages[first_pages[row] : first_pages[row] + counts[row]]
                _add(store, writer.add(block, page_digests.astype("<u8").tobytes()))
        _add(store, writer.finish())
    finally:
        writer.abandon()


def _add(store: Store, rows: Rows | None) -> None:
    if rows is not None:
        store.index.add([rows], store.sync)


def _needed_blocks(table: Table, needed: Marks) -> list[int]:
    """The rows of a pack's table whose blocks are needed in this pack."""
    numbers, several = needed.find(*halves(table.digests))
    known = numbers >= 0
    known[known] = several[known] | needed.are_set(numbers[known])
    blocks = []
    for row in np.flatnonzero(known).tolist():
        here = table.pack, int(table.offset[row])
        places = needed.places(table.digests[row * DIGEST : (row + 1) * DIGEST])
        if needed.are_set(np.array([number for number, place in places if place[:2] == here], np.int64)).any():
            blocks.append(row)
    return blocks
