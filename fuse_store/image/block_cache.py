# SPDX-License-Identifier: GPL-3.0-or-later
"""Opened blocks: those used last, and those that are being opened in the background. One cache for all images of a store.

Threads may share it. Blocks are named by their digests; a computed block (``image.kind.Transform``) has a name of its own, so
that it is never taken for a block of a pack.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import repeat
from typing import NamedTuple, Protocol, TypeVar

from fuse_store.columns import I64
from fuse_store.errors import Damaged
from fuse_store.processes.crew import Crew
from fuse_store.repository.block import MAX_STORED, Pages
from fuse_store.repository.index import Index, Located
from fuse_store.repository.pack import PackReader

CACHE_SIZE = 16 << 20  # bytes of opened blocks
NEIGHBOURS_SIZE = 1 << 20  # bytes of a pack that are read at once
MAX_NEIGHBOURS = 32  # blocks in them: those of repetitive pages are tiny
MAX_GAP = 32 << 10  # bytes that are read for nothing, because that is quicker than another read
_COMPUTED = b"computed"  # before the digest of a computed block

BlockPlace = tuple[bytes, int, int]  # pack id, offset, length stored
T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """Does ``work`` with every item, several at a time; what it returns, in any order. When this has ended, however it does, no work goes
    on. Raises what ``work`` raises."""

    def __call__(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]: ...


class Opened(NamedTuple):
    """The pages of a block, where they were read, and the encrypted header of the block if that was read too."""

    pages: Pages
    place: BlockPlace
    header: memoryview | None = None


class BlockCache:
    """Opens blocks and keeps them. ``index`` and ``reader`` are those of the store."""

    def __init__(self, index: Index, reader: PackReader, threads: int) -> None:
        self.index, self.reader = index, reader
        self._blocks: OrderedDict[bytes, Pages] = OrderedDict()
        self._size = 0
        self._opening: dict[bytes, Future[Pages]] = {}
        self._lock = threading.Lock()
        self._pool, self._threads = ThreadPoolExecutor(threads, "open"), threads
        self._compute_pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "compute")  # its jobs wait for blocks

    def has(self, digest: bytes, computed: bool = False) -> bool:
        """Whether a block is open."""
        name = _name(digest, computed)
        with self._lock:
            if name not in self._blocks:
                return False
            self._blocks.move_to_end(name)
            return True

    def begin(self, digest: bytes, located: Located, row: int) -> Future[Pages]:
        """Have a block opened in a thread; row ``row`` of ``located`` says where it is. The result may raise Damaged."""
        return self._begin(self._pool, digest, lambda: self._read(digest, located, row))

    def begin_computed(self, digest: bytes, compute: Callable[[], bytes]) -> Future[Pages]:
        """Have a block computed in a thread. The result may raise what ``compute`` does."""
        return self._begin(self._compute_pool, _name(digest, True), compute)

    def _begin(self, pool: ThreadPoolExecutor, name: bytes, make: Callable[[], Pages]) -> Future[Pages]:
        with self._lock:
            job = self._opening.get(name)
            if job is None:
                job = self._opening[name] = pool.submit(self._make, name, make)
            return job

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """``Each`` in threads, with what it returns in order."""
        jobs: deque[Future[R]] = deque()
        try:
            for item in items:
                jobs.append(self._pool.submit(work, item))
                if len(jobs) > 2 * self._threads:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()
            wait(jobs)

    def each_with(self, crew: Crew | None = None) -> Each:
        """The ``Each`` of a crew of processes, or in threads if there are no others."""
        return self.each if crew is None or crew.is_alone else crew.each

    def computed(self, digest: bytes, compute: Callable[[], bytes]) -> Pages:
        """A computed block: from the cache, from a thread that is at it, or computed in this thread. Raises what ``compute``
        does."""
        name = _name(digest, True)
        with self._lock:
            block = self._blocks.get(name)
            if block is not None:
                self._blocks.move_to_end(name)
                return block
            job = self._opening.get(name)
            if job is None:
                own: Future[Pages] = Future()
                self._opening[name] = own
        if job is not None:
            return job.result()
        try:
            block = self._make(name, compute)
        except BaseException as error:
            own.set_exception(error)
            raise
        own.set_result(block)
        return block

    def open_one(self, digest: bytes, located: Located, row: int) -> Pages:
        """The pages of a block; row ``row`` of ``located`` says where it is. Opened in this thread unless it is open, or was begun. Raises
        Damaged."""
        with self._lock:
            block = self._blocks.get(digest)
            if block is not None:
                self._blocks.move_to_end(digest)
                return block
            job = self._opening.get(digest)
        if job is not None:
            return job.result()
        block = self.read(digest, located, row)[0]
        self._keep([(digest, block)])
        return block

    def open(self, wanted: Sequence[tuple[bytes, int, bool]], located: Located) -> Iterator[Pages | Damaged]:
        """The pages of blocks, one after the other, or what is wrong with one. ``wanted``: (digest, row of ``located``, whether to keep
        it) of each; those of a pack next to each other and in its order are read at once. They are opened in this thread unless they
        are open, or were begun. Two threads that want the same block at once may both open it."""
        with self._lock:
            known = [self._blocks.get(digest) or self._opening.get(digest) for digest, _row, _keep in wanted]
            for digest, _row, _keep in wanted:
                if digest in self._blocks:
                    self._blocks.move_to_end(digest)
        unknown = [one for one, block in zip(wanted, known, strict=True) if block is None]
        missing = self._open([digest for digest, _row, _keep in unknown], [row for _digest, row, _keep in unknown], located)
        opened: list[tuple[bytes, Pages]] = []
        try:
            for (digest, _row, keep), block in zip(wanted, known, strict=True):
                try:
                    pages = next(missing) if block is None else block.result() if isinstance(block, Future) else block
                except Damaged as error:
                    pages = error.with_traceback(None)  # else it would keep this frame, which keeps it, and all that was read
                if keep and block is None and not isinstance(pages, Damaged):
                    opened.append((digest, bytes(pages)))  # no copy of what is bytes already
                yield pages
        finally:
            self._keep(opened)

    def _open(self, digests: Sequence[bytes], rows: Sequence[int], located: Located) -> Iterator[Pages | Damaged]:
        for part in neighbours(located, rows):
            for opened in self.neighbours(digests[part], located, rows[part]):
                yield opened if isinstance(opened, Damaged) else opened.pages

    def neighbours(self, digests: Sequence[bytes], located: Located, rows: Sequence[int]) -> Iterator[Opened | Damaged]:
        """Blocks that ``neighbours`` gave, opened in this thread one after the other, or what is wrong with one. They are not kept,
        and valid until the next one."""
        number = int(located.pack[rows[0]])
        places = list(zip(digests, located.offset[rows].tolist(), located.stored[rows].tolist(), strict=True))
        pack = located.packs[number] if number >= 0 and places[0][2] <= MAX_STORED else None
        found = self.reader.read_neighbours(pack, places) if pack else repeat(None)
        for row, (digest, offset, stored), block in zip(rows, places, found, strict=False):
            try:
                yield Opened(block[1], (pack, offset, stored), block[0]) if pack and block else Opened(*self.read(digest, located, row))
            except Damaged as error:
                yield error.with_traceback(None)  # else it would keep this frame, which keeps it, and all that was read

    def close(self) -> None:
        self._compute_pool.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _make(self, name: bytes, make: Callable[[], Pages]) -> Pages:
        try:
            block = make()
        finally:
            with self._lock:
                self._opening.pop(name, None)
        self._keep([(name, block)])
        return block

    def _keep(self, opened: Sequence[tuple[bytes, Pages]]) -> None:
        with self._lock:
            for name, block in opened:
                if name not in self._blocks:
                    self._blocks[name] = block
                    self._size += len(block)
            while self._size > CACHE_SIZE:
                self._size -= len(self._blocks.popitem(last=False)[1])

    def _read(self, digest: bytes, located: Located, row: int) -> Pages:
        return self.read(digest, located, row)[0]

    def read(self, digest: bytes, located: Located, row: int) -> tuple[Pages, BlockPlace]:
        """The pages of a block, read from where they can be read, in this thread, and where that is. Raises Damaged."""
        thing, remedy = f"block {digest.hex()}", "Run 'fuse-store repair'."
        error = Damaged(thing, "in no pack that the index knows.", remedy)
        if located.pack[row] >= 0:
            pack = located.packs[int(located.pack[row])]
            place = pack, int(located.offset[row]), int(located.stored[row])
            try:
                return self.reader.read(digest, *place), place
            except FileNotFoundError:
                error = Damaged(thing, "its pack is missing.", remedy, pack=pack.hex())
            except Damaged as damaged:
                error = damaged
        self.index.refresh()
        for place in self.index.places(digest):  # it was moved since, or is whole in another pack
            try:
                return self.reader.read(digest, *place), place
            except (FileNotFoundError, Damaged):
                continue
        raise error


def neighbours(located: Located, rows: I64 | Sequence[int]) -> list[slice]:
    """Parts of ``rows``, which are in the order of the packs: the blocks of each stand near each other and are read at once."""
    pack, offset, stored = (column[rows].tolist() for column in (located.pack, located.offset, located.stored))
    begins = [0]
    for at in range(1, len(rows)):
        near = pack[at] == pack[at - 1] and 0 <= offset[at] - offset[at - 1] - stored[at - 1] <= MAX_GAP
        size = offset[at] + stored[at] - offset[begins[-1]]
        if not near or size > NEIGHBOURS_SIZE or at - begins[-1] == MAX_NEIGHBOURS:
            begins.append(at)
    return list(map(slice, begins, [*begins[1:], len(rows)])) if len(rows) else []


def _name(digest: bytes, computed: bool) -> bytes:
    return _COMPUTED + digest if computed else digest
