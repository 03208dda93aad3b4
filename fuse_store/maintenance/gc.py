# SPDX-License-Identifier: GPL-3.0-or-later
"""Garbage collection: free the disk space of packs that no version needs. Takes the writer lock; one thread.

A pack that no version needs goes to the trash. The needed blocks of a mostly unneeded pack, and those of many small packs, are copied to a
new pack first (``packs``). What versions need is read from their manifests once, and remembered (``needed``). The trash is emptied
by a later collection, when the grace period is over.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np

from fuse_store.columns import I64, U64, halves, joined, starts
from fuse_store.errors import Damaged, StoreError
from fuse_store.maintenance import trash
from fuse_store.maintenance.needed import Needed
from fuse_store.maintenance.packs import Packs, Wanted, choose, wanted
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
PART = 1 << 16  # blocks that are looked up at once


@dataclass
class Collected:
    """What ``collect`` did, or would do. ``freed``: bytes freed once the trash is emptied."""

    packs_kept: int = 0
    packs_removed: int = 0
    packs_copied: int = 0
    freed: int = 0
    versions_needed: int = 0


def collect(store: Store, *, dry_run: bool, progress: Progress, grace: float = GRACE_PERIOD) -> Collected:
    """As ``_collect``. A dry run takes no lock; what it sees of a writer's work may not fit together, and then it looks again. On a full
    disk the space of what is remembered is used, and nothing is."""
    for _attempt in range(DRY_RUNS - 1 if dry_run else 0):
        before = _seen(store)
        try:
            return _collect(store, dry_run, progress, grace)
        except StoreError:
            store.backend.refresh("index")
            if before == _seen(store):
                raise
    try:
        return _collect(store, dry_run, progress, grace)
    except StoreError as error:
        cause = error.__context__
        if dry_run or not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    for name in store.versions.cache.names():
        store.versions.cache.remove(name)
    return _collect(store, dry_run, progress, grace, remember=False)


def _seen(store: Store) -> tuple[int, int]:
    """Something that differs once a writer changed the index or the versions. Ids are digests: no two sets have one sum by chance."""
    return store.backend.changed("index")[0], sum(int(image_id, 16) for image_id in store.versions.ids())


def _collect(store: Store, dry_run: bool, progress: Progress, grace: float, remember: bool = True) -> Collected:
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
        needed = Marks(fragments)
        contents = _mark_all(store, needed, result, progress, keep=remember and lock is not None)
        if damaged and lock is not None:  # every block that a version needs was found without them
            store.index.drop(damaged, store.sync, lambda: store.before_commit(lock), to_trash=True)
        chosen = choose(store.backend, needed, fragments if damaged else None)
        _count(chosen, result)
        if lock is not None:
            if chosen.drop.any():
                _replace_packs(store, lock, needed, chosen)
            _forget_states(store, contents)
            store.versions.forget_names()
            trash.empty(store, grace)
        progress.finish()
    return result


def _forget_states(store: Store, contents: bytes) -> None:
    """Remove the state logs of contents that no version has, unless they tell of use, or cannot be read: the same bytes may be
    stored again. ``contents``: of all versions, 16 bytes each."""
    used = np.unique(halves(contents)[0])  # a half is enough: of two with the same one both logs stay
    for content in store.state_log.contents():
        high = halves(content)[0]
        at = int(np.searchsorted(used, high[0]))
        if at < len(used) and used[at] == high[0]:
            continue
        log = store.state_log.read(content)
        if not log.problem and not outlives(log.entries) and not any(map(store.versions.exists, log.versions)):
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


def _mark_all(store: Store, marks: Marks, result: Collected, progress: Progress, keep: bool) -> bytes:
    """Mark the rows that a version needs; of a block with several rows, one. The contents of all versions, 16 bytes each. ``keep``: see
    ``Needed``. Raises StoreError."""
    tags = store.versions.directories()
    needed = Needed(store, lambda high, low: _mark_needed(store, high, low, marks), progress.at, keep=keep)
    for tag in tags:
        try:
            needed.of(tag)
        except Damaged as error:
            cause = StoreError(error.thing, error.cause, error.remedy)
            raise Damaged(
                f"store {store.url}", f"cannot tell which blocks image {error.image} needs: {cause}",
                "Nothing was freed. Run 'fuse-store repair'. If that does not help, restore the manifest from a copy of the store, "
                f"or give the version up: 'fuse-store remove --damaged {error.image}'.", image=error.image,
            ) from None  # fmt: skip
    result.versions_needed = needed.count
    if keep:
        needed.forget_others(tags)
    return bytes(needed.contents)


def _mark_needed(store: Store, high: U64, low: U64, marks: Marks) -> None:
    """Mark one row of each block as needed. Raises Damaged if a block has none."""
    for begin in range(0, len(high), PART):
        part = slice(begin, begin + PART)
        numbers, several = marks.find(high[part], low[part])
        missing = int(np.count_nonzero(numbers < 0))
        if missing:
            raise Damaged(f"{missing} blocks", "not in the index.")
        marks.set(numbers[~several])
        for block in (begin + np.flatnonzero(several & ~marks.are_set(numbers))).tolist():
            digest = joined(high[block : block + 1], low[block : block + 1])
            places = marks.places(digest)
            if not marks.are_set(np.array([number for number, _place in places])).any():  # else it was chosen for another version
                readable = (number for number, place in places if store.reader.has(digest, *place))  # a pack may be missing, or another
                marks.set(np.array([next(readable, places[0][0])]))


def _count(chosen: Packs, result: Collected) -> None:
    copied = chosen.drop & (chosen.count > 0)
    result.packs_kept = int(np.count_nonzero(~chosen.drop))
    result.packs_copied = int(np.count_nonzero(copied))
    result.packs_removed = int(np.count_nonzero(chosen.drop & ~copied))
    result.freed = int((chosen.size - chosen.live)[chosen.drop].sum())


def _replace_packs(store: Store, lock: Lock, needed: Marks, chosen: Packs) -> None:
    """Copy the needed blocks, then write an index without the dropped packs, then drop them."""
    _copy_blocks(store, wanted(needed, chosen))
    drop = set(chosen.ids(np.flatnonzero(chosen.drop)))
    store.index.without(drop, store.sync, lambda: store.before_commit(lock))
    for pack in drop:
        lock.check()
        fault_point("gc drop pack")
        trash.move_to_trash(store, pack_name(pack))
        store.reader.forget(pack)


def _copy_blocks(store: Store, every: Iterable[Wanted]) -> None:
    """Copy the needed blocks of packs, as they are stored, to new packs, which are durable and in the index when this returns.
    Raises Damaged: an unreadable block is not copied, and the collection ends."""
    writer = PackWriter(store.backend, store.aead, store.sync)
    try:
        for of_pack in every:
            table = store.reader.table(of_pack.pack)
            counts = table.counts(store.config.page_size)
            first_pages = starts(counts)
            rows = _rows_of(table, of_pack)
            for row, offset, stored in zip(rows.tolist(), of_pack.offset.tolist(), of_pack.stored.tolist(), strict=True):
                digest = table.digests[row * DIGEST : (row + 1) * DIGEST]
                store.reader.check(table, offset, digest, store.reader.read(digest, table.pack, offset, stored), store.config.page_size)
                body = store.reader.stored(table.pack, offset + HEADER_SIZE, stored - HEADER_SIZE)
                block = with_header(digest, int(table.length[row]), [body], store.aead)
                page_digests = table.pages[first_pages[row] : first_pages[row] + counts[row]]
                _add(store, writer.add(block, page_digests.astype("<u8").tobytes()))
        _add(store, writer.finish())
    finally:
        writer.abandon()


def _rows_of(table: Table, of_pack: Wanted) -> I64:
    """The rows of a pack's table that are to be copied. Raises Damaged if the index says something else than the table."""
    rows = np.searchsorted(table.offset, of_pack.offset)
    if not (len(rows) and rows.max() < len(table.offset)) or not (
        (table.offset[rows] == of_pack.offset).all()
        and (table.stored[rows] == of_pack.stored).all()
        and np.frombuffer(table.digests, f"V{DIGEST}")[rows].tobytes() == of_pack.digests
    ):
        raise Damaged(f"pack {table.pack.hex()}", "pack table does not match the index.", "Run 'fuse-store repair'.")
    return rows


def _add(store: Store, rows: Rows | None) -> None:
    if rows is not None:
        store.index.add([rows], store.sync)
