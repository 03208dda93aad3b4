# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify: read versions, and compare blocks with the digests that name them, and with those of their pages in the pack tables. Only
reads; runs beside any writer.

Not thread-safe itself; blocks are read and compared by a crew of processes, or by threads.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fuse_store.columns import halves
from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.image.block_cache import Opened, neighbours
from fuse_store.processes.crew import Crew
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.index.marks import Marks
from fuse_store.store import Store

if TYPE_CHECKING:
    from fuse_store.image.reader import Image
    from fuse_store.repository.block import Pages
    from fuse_store.repository.index import Located

MAX_PENDING = 32  # computed blocks that are computed at once
MAX_TABLES = 8  # pack tables in memory, a few MiB each


@dataclass
class Verdict:
    """The result of ``verify`` for one version. ``state``: sound or damaged; ``blocks``: how many were read."""

    id: str
    state: str = "sound"
    blocks: int = 0
    problems: list[str] = field(default_factory=list)


def verify(store: Store, ids: Sequence[str], sample: float, progress: Progress) -> list[Verdict]:
    """Read ``sample`` percent (0 to 100) of the blocks of each version, and compare their pages with their digests.

    The digests of their pages are compared with the pack tables, and with 100 all pack tables with the ids of their packs. A sound block
    is read once, whatever versions share it. Memory is that of a bit for each block of the store. Raises StoreError if the server of
    an S3 store fails.
    """
    progress.start("verify", None)
    seed = time.time_ns()  # all processes draw the same sample
    try:
        with Crew.start(store.backend.survives_fork) as crew:
            verifier = _Verifier(store, sample, seed, SILENT if crew.number else progress, crew)
            return [verifier.verify(image_id) for image_id in ids]
    finally:
        progress.finish()


def _problem(error: Exception) -> str:
    """An error without its remedy, which may be to run this very command."""
    remedy = error.remedy if isinstance(error, StoreError) else ""
    return str(error).replace(f" {remedy}", "", 1) if remedy else str(error)


def index_problems(store: Store, complete: bool) -> list[str]:
    """What is wrong with the fragments of the index: problems of the store, not of versions, whose blocks may be found all the same.
    ``complete``: compare all columns with their digests; otherwise look at the headers."""
    damaged = store.index.check()[1] if complete else store.index.damaged()
    return [f"index {name}: {problem}. Run 'fuse-store repair'." for name, problem in sorted(damaged.items())]


class _Read(NamedTuple):
    """What came of blocks that stand near each other in a pack: their ``rows`` among those of a segment, how many bytes of pages were read,
    and what is wrong with which row."""

    rows: list[int]
    size: int
    problems: dict[int, str]


class _Verifier:
    def __init__(self, store: Store, sample: float, seed: int, progress: Progress, crew: Crew) -> None:
        self._store, self._sample, self._progress, self._crew = store, sample, progress, crew
        self._each = store.blocks.each_with(crew)
        self._table = lru_cache(MAX_TABLES)(lambda pack: store.reader.table(pack, check=sample >= 100))
        self._random = random.Random(seed)
        self._sound = Marks(store.index.fragments().values())  # the blocks that were read
        self._pack_problems: dict[bytes, str] = {}  # by pack id, of its table; empty if sound
        self._bytes_read = 0

    def verify(self, image_id: str) -> Verdict:
        verdict = Verdict(image_id)
        try:
            image = self._store.open_image(image_id)
            problem = self._store.state_log.read(image.head.content).problem_of(image_id)
            if problem:
                verdict.problems.append(f"state log of image {image_id}: it {problem}. Run 'fuse-store repair'.")
            self._check_blocks(verdict, image)
            self._check_computed_blocks(verdict, image)
        except (Damaged, NotFound) as error:
            verdict.problems.append(_problem(error))
        if verdict.problems:
            verdict.state = "damaged"
        return verdict

    def _check_blocks(self, verdict: Verdict, image: Image) -> None:
        """The blocks that are stored in packs."""
        for digests, located, first_pages in image.blocks():
            if self._sample >= 100:
                self._check_pack_tables(verdict, located.packs)
            numbers, _several = self._sound.find(*halves(digests))
            unread = numbers < 0
            unread[~unread] = ~self._sound.are_set(numbers[~unread])
            order = np.lexsort((located.offset, located.pack))  # so that a pack is read from its start to its end
            rows = np.array([row for row in order[unread[order]].tolist() if self._is_in_sample()], np.int64)
            verdict.blocks += len(rows)
            near = [rows[part].tolist() for part in neighbours(located, rows)]
            problems = []
            for read in self._each(partial(self._read, digests, located), near):
                self._count_read(read.size)
                for row, problem in read.problems.items():
                    offset = int(first_pages[row]) * image.head.page_size
                    problems.append((offset, f"{problem} (image {verdict.id}, extent {offset:#x})"))
                sound = numbers[[row for row in read.rows if row not in read.problems]]
                self._sound.set(sound[sound >= 0])
            verdict.problems += [text for _offset, text in sorted(problems)]

    def _read(self, digests: bytes, located: Located, rows: list[int]) -> _Read:
        """Read blocks, and compare each with all that its pack says of it."""
        size, problems = 0, {}
        wanted = [digests[row * DIGEST : (row + 1) * DIGEST] for row in rows]
        for row, digest, block in zip(rows, wanted, self._store.blocks.neighbours(wanted, located, rows), strict=True):
            try:
                if isinstance(block, Damaged):
                    raise block
                self._check(digest, block)
                size += len(block.pages)
            except Damaged as error:
                problems[row] = _problem(error)
        return _Read(rows, size, problems)

    def _check(self, digest: bytes, block: Opened) -> None:
        """Raises Damaged."""
        pack, offset, _stored = block.place
        if not self._pack_problems.get(pack):
            with suppress(FileNotFoundError):  # a collection has just moved the pack to the trash
                self._store.reader.check(
                    self._table(pack), offset, digest, block.pages, self._store.config.page_size, block.header
                )

    def _check_computed_blocks(self, verdict: Verdict, image: Image) -> None:
        """The blocks that are in no pack: whether they are computed as they were. By threads of the first process."""
        if self._crew.number:
            return
        pending: deque[Future[Pages]] = deque()
        for start in image.computed_blocks():
            if self._is_in_sample():
                pending.append(start())
            if len(pending) >= MAX_PENDING:
                self._finish_computed_block(verdict, pending.popleft())
        while pending:
            self._finish_computed_block(verdict, pending.popleft())

    def _check_pack_tables(self, verdict: Verdict, packs: Sequence[bytes]) -> None:
        for pack in packs:
            if pack not in self._pack_problems:
                try:
                    self._table(pack)
                    self._pack_problems[pack] = ""
                except FileNotFoundError:
                    self._pack_problems[pack] = ""  # its blocks are missing, unless they are in others
                except Damaged as error:
                    self._pack_problems[pack] = _problem(error)
            if self._pack_problems[pack] and self._pack_problems[pack] not in verdict.problems:
                verdict.problems.append(self._pack_problems[pack])

    def _finish_computed_block(self, verdict: Verdict, job: Future[Pages]) -> None:
        try:
            self._count_read(len(job.result()))
        except Damaged as error:
            verdict.problems.append(_problem(error))

    def _is_in_sample(self) -> bool:
        return self._random.random() * 100 < self._sample

    def _count_read(self, size: int) -> None:
        self._bytes_read += size
        self._progress.at(self._bytes_read)
