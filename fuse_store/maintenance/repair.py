# SPDX-License-Identifier: GPL-3.0-or-later
"""Repair: rebuild the index from the packs, rescue readable blocks of damaged packs, begin lost state logs again, and
report damaged versions.

Takes the writer lock; blocks are read by a pool of threads. Manifests and packs are never removed: a damaged one may be restored
from a copy of the store later.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.image.kind import row_of
from fuse_store.progress import Progress
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.block import HEADER_SIZE, Block, Pages, split, with_header
from fuse_store.repository.index import Rows
from fuse_store.repository.pack import PackReader, PackWriter, Table, all_packs
from fuse_store.store import Store

MAX_PENDING_READS = 32  # blocks that are read at once
ROWS_PER_FRAGMENT = 1 << 19  # a rebuilt fragment of the index is written with about as many


@dataclass
class Repaired:
    """What ``repair`` did. ``lost``: versions that are not whole, and the reason; ``packs_bad``: what is wrong with
    each damaged pack;
    ``unknown``: versions whose state log was missing or damaged, and that may have been resumed."""

    packs_found: int = 0
    packs_rescued: int = 0
    packs_bad: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def repair(store: Store, progress: Progress) -> Repaired:
    """Rebuild the index from the packs, then find the versions with missing blocks.

    Every block is read. The readable blocks of a damaged pack (a damaged block, or a lost pack table) are found by the pack table or by the
    headers of blocks, and copied to a new pack; the new index does not name the damaged one. A later put stores the lost blocks again, and
    makes the versions that need them whole. Raises Locked, StoreError.
    """
    result = Repaired()
    with store.writing() as lock:
        progress.start("repair", None, unit="packs")
        index = store.index
        index.refresh()
        index.separate()
        old = {*index.fragments(), *index.damaged()}
        unwritten: list[Rows] = []
        damaged: dict[bytes, str] = {}
        for pack, _size in sorted(all_packs(store.backend)):
            try:
                unwritten.append(_checked_table(store, pack).rows())
            except Damaged as error:
                damaged[pack] = _where(error, f"pack {pack.hex()}")
                continue
            result.packs_found += 1
            progress.at(result.packs_found)
            if sum(map(len, unwritten)) > ROWS_PER_FRAGMENT:
                index.add(unwritten, store.sync)
                unwritten = []
        index.add(unwritten, store.sync)
        _rescue_blocks(store, damaged, old, result)
        fault_point("repair index")
        index.drop(old, store.sync, lambda: store.before_commit(lock))
        store.versions.cache.forget()
        store.versions.name_all(store.sync)
        _find_lost_versions(store, result)
        for version in store.versions.each():
            usable = row_of(version.recognised).bootable
            if store.state_log.mend(version.content, version.id, usable=usable) and usable:
                result.unknown.append(version.id)
        progress.finish()
    return result


def _checked_table(store: Store, pack: bytes) -> Table:
    """The table of a pack, every block of which was read and compared with it. Raises Damaged."""
    reader: PackReader = store.reader
    table = reader.table(pack, check=True)
    places = zip(table.offset.tolist(), table.stored.tolist(), strict=True)
    pending: deque[Future[None]] = deque()

    def check(digest: bytes, offset: int, stored: int) -> None:
        reader.check(table, offset, digest, reader.read(digest, pack, offset, stored), store.config.page_size)

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1), "repair") as pool:
        for row, (offset, stored) in enumerate(places):
            if len(pending) >= MAX_PENDING_READS:
                pending.popleft().result()
            digest = table.digests[row * DIGEST : (row + 1) * DIGEST]
            pending.append(pool.submit(check, digest, offset, stored))
        for job in pending:
            job.result()
    return table


def _rescue_blocks(store: Store, damaged: dict[bytes, str], old: Collection[str], result: Repaired) -> None:
    """Copy the readable blocks of damaged packs that are in no other pack to new packs, which are durable and in the index when
    this returns. A later collection frees the damaged packs once no version is damaged. ``old``: fragments not to look into."""
    page_size = store.config.page_size
    writer = PackWriter(store.backend, store.aead, store.sync)
    copied: set[bytes] = set()  # and not in the index yet
    try:
        for pack, error in damaged.items():
            readable = 0
            for block, pages in _readable_blocks(store, pack):
                readable += 1
                if block.digest in copied or _is_known(store, block.digest, old):
                    continue
                copied.add(block.digest)
                rows = writer.add(block, store.aead.page_digests(split(pages, page_size)))
                if rows is not None:
                    store.index.add([rows], store.sync)
                    copied.clear()
            result.packs_rescued += bool(readable)
            result.packs_bad.append(f"{error} Blocks found that can be read: {readable}.")
        rows = writer.finish()
        if rows is not None:
            store.index.add([rows], store.sync)
    finally:
        writer.abandon()


def _is_known(store: Store, digest: bytes, old: Collection[str]) -> bool:
    return any(name not in old and fragment.rows_of(digest) for name, fragment in store.index.fragments().items())


def _readable_blocks(store: Store, pack: bytes) -> Iterator[tuple[Block, Pages]]:
    """Those that the table of a damaged pack names, or if that cannot be read those that are found by their headers."""
    reader = store.reader
    try:
        table = reader.table(pack)
    except Damaged:
        yield from reader.scan(pack)
        return
    for row, (offset, stored) in enumerate(zip(table.offset.tolist(), table.stored.tolist(), strict=True)):
        digest = table.digests[row * DIGEST : (row + 1) * DIGEST]
        try:
            pages = reader.read(digest, pack, offset, stored)
            body = reader.stored(pack, offset + HEADER_SIZE, stored - HEADER_SIZE)
        except Damaged:
            continue
        yield with_header(digest, len(pages), [body], store.aead), pages


def _find_lost_versions(store: Store, result: Repaired) -> None:
    for image_id in store.versions.ids():
        try:
            for _digests, located, first_pages in store.open_image(image_id).blocks():
                missing = np.flatnonzero(located.pack < 0)
                if len(missing):
                    extent = f"{int(first_pages[missing].min()) * store.config.page_size:#x}"
                    blocks = f"{len(missing)} block{'' if len(missing) == 1 else 's'}"
                    raise Damaged(blocks, "not in any pack.", image=image_id, extent=extent)
        except (Damaged, NotFound) as error:
            result.lost[image_id] = _where(error, f"image {image_id}")


def _where(error: StoreError, thing: str) -> str:
    """What is wrong with a pack or an image, and where in it. Not the remedy, which often is to run this."""
    parts = [thing] + [error.thing] * (error.thing not in (thing, "pack", "image"))
    if isinstance(error, Damaged) and error.extent:
        parts.append(f"extent {error.extent}")
    return ": ".join([*parts, error.cause])
