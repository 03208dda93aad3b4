# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping a store: verify what is there, free what nobody needs, make a lost index anew. Used by ``cli``.

``verify`` only reads. ``collect`` and ``repair`` take the writer's lock. What they no longer need is moved to the trash
and destroyed by a collection an hour later, so that a reader which knew it a moment ago can still finish.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.progress import Progress
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.backends import Lock
from fuse_store.repository.block import Block
from fuse_store.repository.index import Rows, halves, merged
from fuse_store.repository.pack import PackReader, PackWriter, Table, all_packs, pack_name
from fuse_store.store import Store

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

WORTH_KEEPING = 0.5  # a pack of which less than this is needed is copied; above, room is not worth the work
GRACE = 3600.0  # seconds that something stays in the trash
QUEUE = 32  # blocks that are being opened at once


@dataclass
class Verdict:
    """What ``verify`` found of one version. ``state`` is sound or damaged; ``blocks`` is how many were looked at."""

    id: str
    state: str = "sound"
    blocks: int = 0
    problems: list[str] = field(default_factory=list)


def verify(store: Store, ids: Sequence[str], sample: float, progress: Progress) -> list[Verdict]:
    """Read ``sample`` percent of the blocks of each version (0 to 100), and compare their pages with their digests.

    With 100 the checksums of the index and the tables of the packs are compared as well; a damaged index is a problem of
    every version.
    """
    verifier = _Verifier(store, sample, progress)
    progress.start("verify", None)
    try:
        return [verifier.verify(image_id) for image_id in ids]
    finally:
        progress.finish()


class _Verifier:
    def __init__(self, store: Store, sample: float, progress: Progress) -> None:
        self._store, self._sample, self._progress = store, sample, progress
        self._chance = random.Random(time.time_ns())
        self._seen: dict[bytes, str] = {}  # blocks that were read, and what is wrong with them
        self._read = 0
        self._packs: dict[bytes, str] = {}  # what is wrong with the tables of packs
        self._general = []
        if sample >= 100:
            damaged = [(name, what) for name, what in store.index.checked() if isinstance(what, str)]
            self._general = [f"index {name}: {what}. Run fuse-store repair." for name, what in damaged]

    def verify(self, image_id: str) -> Verdict:
        verdict = Verdict(image_id, problems=list(self._general))
        jobs: deque[tuple[bytes, int, Future[bytes]]] = deque()
        try:
            image = self._store.open_image(image_id)
            for digests, located, first in image.blocks():
                if self._sample >= 100:
                    self._tables(verdict, located.packs)
                for number in range(len(first)):
                    digest, offset = digests[number * DIGEST : (number + 1) * DIGEST], int(first[number]) * image.head.page_size
                    if digest in self._seen:
                        self._settle(verdict, digest, offset)
                    elif self._chance.random() * 100 < self._sample:
                        verdict.blocks += 1
                        jobs.append((digest, offset, self._store.blocks.begin(digest, located, number)))
                        if len(jobs) >= QUEUE:
                            self._finish(verdict, *jobs.popleft())
            while jobs:
                self._finish(verdict, *jobs.popleft())
            self._computed(verdict, image)
        except (Damaged, NotFound) as error:
            verdict.problems.append(str(error))
        if verdict.problems:
            verdict.state = "damaged"
        return verdict

    def _computed(self, verdict: Verdict, image: Image) -> None:
        """Chunks that are stored as the pages they hold: whether they come out as they were."""
        jobs: deque[Future[bytes]] = deque()
        for make in image.computed_blocks():
            if self._chance.random() * 100 < self._sample:
                jobs.append(make())
            if len(jobs) >= QUEUE:
                self._finish_computed(verdict, jobs.popleft())
        while jobs:
            self._finish_computed(verdict, jobs.popleft())

    def _finish_computed(self, verdict: Verdict, job: Future[bytes]) -> None:
        try:
            self._read += len(job.result())
            self._progress.at(self._read)
        except Damaged as error:
            verdict.problems.append(str(error))

    def _tables(self, verdict: Verdict, packs: Sequence[bytes]) -> None:
        for pack in packs:
            if pack not in self._packs:
                try:
                    self._store.reader.table(pack, check=True)
                    self._packs[pack] = ""
                except (Damaged, FileNotFoundError) as error:
                    self._packs[pack] = str(error)
            if self._packs[pack] and self._packs[pack] not in verdict.problems:
                verdict.problems.append(self._packs[pack])

    def _finish(self, verdict: Verdict, digest: bytes, offset: int, job: Future[bytes]) -> None:
        try:
            pages = job.result()
            wrong = "" if self._store.aead.digest(pages) == digest else "its pages are not those it was named after."
            self._seen[digest] = wrong and f"block {digest.hex()}: {wrong}"
            self._read += len(pages)
            self._progress.at(self._read)
        except Damaged as error:
            self._seen[digest] = str(error)
        self._settle(verdict, digest, offset)

    def _settle(self, verdict: Verdict, digest: bytes, offset: int) -> None:
        if self._seen[digest]:
            verdict.problems.append(f"{self._seen[digest]} (image {verdict.id}, extent {offset:#x})")


@dataclass
class Collected:
    """What ``collect`` did, or would do: packs, and bytes freed once the trash is emptied."""

    packs_kept: int = 0
    packs_removed: int = 0
    packs_copied: int = 0
    freed: int = 0
    versions_needed: int = 0


def collect(store: Store, *, dry_run: bool, progress: Progress, grace: float = GRACE) -> Collected:
    """Free the packs that no version needs, and copy what is needed out of those that are mostly unneeded.

    A block is needed as long as any manifest names it. If a manifest, or the index, can't be read, nothing is freed. What
    has been in the trash for ``grace`` seconds is destroyed; that comes first, as a full disk has no room for anything else.
    """
    result = Collected()
    if not dry_run:
        _empty(store, grace)
    with store.writing() as lock:
        progress.start("gc", None, unit="versions")
        fragments = _fragments(store)
        needed = _needed(store, fragments, result, progress)
        drop, copy = _choose(store, fragments, needed, result)
        if not dry_run:
            if drop:
                _rebuild(store, lock, fragments, needed, drop, copy)
            for image_id in set(store.state_log.ids()) - set(store.ids()):
                store.state_log.forget(image_id)  # whoever removed the version was killed before its state_log
            _empty(store, grace)
        progress.finish()
    return result


def _fragments(store: Store) -> dict[str, Rows]:
    """Every fragment of the index, checked. Raises StoreError."""
    found = {}
    for name, rows in store.index.checked():
        if isinstance(rows, str):
            raise StoreError(f"index {name}", f"{rows}.", "Nothing was freed. Run fuse-store repair first.")
        found[name] = rows
    return found


def _needed(store: Store, fragments: dict[str, Rows], result: Collected, progress: Progress) -> dict[str, NDArray[np.bool_]]:
    """For each fragment, which of its rows a version needs; of a block with several rows one is. Raises StoreError."""
    needed = {name: np.zeros(len(rows), bool) for name, rows in fragments.items()}
    for image_id in store.ids():
        try:
            for digests, _located, _first in store.open_image(image_id).blocks():
                _mark(store, digests, fragments, needed)
        except (Damaged, NotFound) as error:
            raise StoreError(
                f"store {store.url}", f"what image {image_id} needs is not known: {error}",
                "Nothing was freed. Run fuse-store repair, or restore it from a copy.",
            ) from None  # fmt: skip
        result.versions_needed += 1
        progress.at(result.versions_needed)
    return needed


def _mark(store: Store, digests: bytes, fragments: dict[str, Rows], needed: dict[str, NDArray[np.bool_]]) -> None:
    high, low = halves(digests)
    found = {name: rows.find(high, low) for name, rows in fragments.items()}
    places = np.zeros(len(high), np.int64)
    for row in found.values():
        places += row >= 0
    if not places.all():
        raise Damaged(f"{np.count_nonzero(places == 0)} blocks", "they are in no pack that the index knows.")
    for name, row in found.items():
        needed[name][row[(row >= 0) & (places == 1)]] = True
    for number in np.flatnonzero(places > 1).tolist():  # the pack of one of them may be gone, or another's
        digest = digests[number * DIGEST : (number + 1) * DIGEST]
        rows_of_it = [(name, int(row[number])) for name, row in found.items() if row[number] >= 0]
        whole = (one for one in rows_of_it if store.reader.has(digest, *fragments[one[0]].place(one[1])))
        name, at = next(whole, rows_of_it[0])
        needed[name][at] = True


def _choose(
    store: Store, fragments: dict[str, Rows], needed: dict[str, NDArray[np.bool_]], result: Collected
) -> tuple[set[bytes], set[bytes]]:
    """(packs to drop, those among them of which blocks have to be copied first)."""
    used: dict[bytes, int] = {}
    for name, rows in fragments.items():
        sums = np.bincount(rows.pack[needed[name]], rows.stored[needed[name]], len(rows.packs) // DIGEST)
        for number, size in enumerate(sums.tolist()):
            pack = rows.packs[number * DIGEST : (number + 1) * DIGEST]
            used[pack] = used.get(pack, 0) + int(size)
    drop, copy = set(), set()
    packs = dict(all_packs(store.backend))
    for pack in used.keys() - packs.keys():
        if used[pack]:
            raise StoreError(f"pack {pack.hex()}", "it is gone, and versions need it.", "Nothing was freed. Run fuse-store repair.")
    for pack, size in packs.items():
        live = used.get(pack, 0)
        if live and live >= WORTH_KEEPING * size:
            result.packs_kept += 1
            continue
        drop.add(pack)
        if live:
            copy.add(pack)
        result.packs_copied += bool(live)
        result.packs_removed += not live
        result.freed += size - live
    return drop, copy


def _rebuild(
    store: Store, lock: Lock, fragments: dict[str, Rows], needed: dict[str, NDArray[np.bool_]], drop: set[bytes],
    copy: set[bytes],
) -> None:  # fmt: skip
    """Copy, then an index without the packs that go, then drop them."""
    wanted: dict[bytes, list[NDArray[np.uint64]]] = {pack: [] for pack in copy}  # a pack may be in several fragments
    for name, rows in fragments.items():
        for number in range(len(rows.packs) // DIGEST):
            pack = rows.packs[number * DIGEST : (number + 1) * DIGEST]
            if pack in copy:
                wanted[pack].append(np.stack((rows.high, rows.low), 1)[needed[name] & (rows.pack == number)])
    new = _copy(store, {pack: np.concatenate(parts) for pack, parts in wanted.items()})
    for name, rows in fragments.items():
        gone = np.array([rows.packs[at : at + DIGEST] in drop for at in range(0, len(rows.packs), DIGEST)], bool)
        if gone.any():
            kept = rows.select(~gone[rows.pack])
            parts = [part for part in (kept, *new) if len(part)]
            store.index.replace([name], parts, store.sync, lambda: store.settle(lock), to_trash=True)
            new = []
    for pack in drop:
        lock.check()
        fault_point("gc drop pack")
        _to_trash(store, pack_name(pack))
        store.reader.forget(pack)


def _copy(store: Store, wanted: dict[bytes, NDArray[np.uint64]]) -> list[Rows]:
    """Copy blocks, as they are stored, into new packs, which are durable when this returns. Raises Damaged: a block that
    can't be read is not copied, and the collection ends."""
    writer = PackWriter(store.backend, store.aead, store.sync)
    made: list[Rows | None] = []
    try:
        for pack, digests in wanted.items():
            table = store.reader.table(pack)
            chosen = {row.tobytes() for row in digests.astype("<u8")}
            count = table.counts(store.config.page_size)
            first = np.cumsum(count) - count
            for number in range(len(count)):
                digest = table.digests[number * DIGEST : (number + 1) * DIGEST]
                if digest not in chosen:
                    continue
                chosen.discard(digest)
                offset, stored = int(table.offset[number]), int(table.stored[number])
                store.reader.read(digest, pack, offset, stored)
                block = Block(digest, int(table.length[number]), store.reader.stored(pack, offset, stored))
                pages = table.pages[first[number] : first[number] + count[number]]
                made.append(writer.add(block, pages.astype("<u8").tobytes()))
            if chosen:
                raise Damaged(f"pack {pack.hex()}", "the index and its table contradict each other.", "Run fuse-store repair.")
        made.append(writer.finish())
    finally:
        writer.abandon()
    return [rows for rows in made if rows is not None]


def _to_trash(store: Store, name: str) -> None:
    store.backend.to_trash(name)
    if store.sync:
        store.backend.sync("trash")
        store.backend.sync(name.rpartition("/")[0])


def _empty(store: Store, grace: float) -> None:
    """Destroy what has been in the trash for ``grace`` seconds."""
    now = store.backend.now()
    for entry in store.backend.entries("trash"):
        if now - entry.changed >= grace:
            fault_point("gc destroy")
            store.backend.remove(entry.name)


@dataclass
class Repaired:
    """What ``repair`` did. ``lost`` are versions that can't be read whole, with the reason; ``packs_bad`` are packs of
    which blocks are lost, or that are none."""

    packs_found: int = 0
    packs_rescued: int = 0
    packs_bad: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


def repair(store: Store, progress: Progress) -> Repaired:
    """Make the index anew from the packs; then say which versions are not whole.

    Manifests are never removed, nor packs: what is damaged today may come back from a copy tomorrow. Every block is read: of
    a pack in which one is damaged, or whose table is lost, what can still be read is found by the headers of the blocks
    and copied to a new pack, and the index forgets the old one. So a put stores anew what was lost, and the versions that
    need it are whole again.
    """
    result = Repaired()
    with store.writing() as lock:
        progress.start("repair", None, unit="packs")
        old = [name for name, _rows in store.index.checked()]
        new: list[Rows] = []
        part: list[Rows] = []
        bad: dict[bytes, str] = {}
        for pack, _size in sorted(all_packs(store.backend)):
            try:
                part.append(_sound_table(store, pack).rows())
            except Damaged as error:
                bad[pack] = str(error)
                continue
            result.packs_found += 1
            progress.at(result.packs_found)
            if sum(map(len, part)) > 1 << 19:
                new, part = [*new, merged(part)], []
        if part:
            new = [*new, merged(part)]
        new += _rescue(store, bad, new, result)
        fault_point("repair index")
        store.index.replace(old, new, store.sync, lambda: store.settle(lock))
        store.versions.forget_cache()
        _find_lost(store, result)
        progress.finish()
    return result


def _sound_table(store: Store, pack: bytes) -> Table:
    """The table of a pack in which every block can be read. Raises Damaged."""
    reader: PackReader = store.reader
    table = reader.table(pack, check=True)
    places = zip(table.offset.tolist(), table.stored.tolist(), strict=True)
    jobs: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1), "repair") as pool:
        for number, (offset, stored) in enumerate(places):
            if len(jobs) >= QUEUE:
                jobs.popleft().result()
            digest = table.digests[number * DIGEST : (number + 1) * DIGEST]
            jobs.append(pool.submit(reader.read, digest, pack, offset, stored))
        for job in jobs:
            job.result()
    return table


def _rescue(store: Store, bad: dict[bytes, str], known: Sequence[Rows], result: Repaired) -> list[Rows]:
    """Copy what can still be read in damaged packs, and is in no other pack, to new ones, which are durable when
    this returns. A collection frees the old ones as soon as nothing is lost."""
    size, seed = store.config.page_size, store.aead.page_seed
    writer = PackWriter(store.backend, store.aead, store.sync)
    made: list[Rows | None] = []
    copied: set[bytes] = set()
    try:
        for pack, error in bad.items():
            readable = 0
            for block, pages in store.reader.scan(pack):
                readable += 1
                high, low = halves(block.digest)
                if block.digest in copied or any(rows.find(high, low)[0] >= 0 for rows in known):
                    continue
                copied.add(block.digest)
                digests = [xxhash.xxh3_128_digest(pages[at : at + size], seed) for at in range(0, len(pages), size)]
                made.append(writer.add(block, b"".join(digests)))
            result.packs_rescued += bool(readable)
            result.packs_bad.append(f"{error} {readable} blocks were found in it.")
        made.append(writer.finish())
    finally:
        writer.abandon()
    return [rows for rows in made if rows is not None]


def _find_lost(store: Store, result: Repaired) -> None:
    for image_id in store.ids():
        try:
            for _digests, located, first in store.open_image(image_id).blocks():
                missing = np.flatnonzero(located.pack < 0)
                if len(missing):
                    page_size = store.config.page_size
                    raise Damaged(
                        f"{len(missing)} blocks", "they are in no pack.", image=image_id,
                        extent=f"{int(first[missing].min()) * page_size:#x}",
                    )  # fmt: skip
        except (Damaged, NotFound) as error:
            result.lost[image_id] = str(error)
