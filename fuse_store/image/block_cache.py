# SPDX-License-Identifier: GPL-3.0-or-later
"""Opened blocks: those used last, and those that are being opened in the background. One cache for all images of a store.

Threads may share it. Blocks are named by their digests; a computed block (``image.kind.Transform``) has a name of its own, so
that it is never taken for a block of a pack.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fuse_store.errors import Damaged
from fuse_store.repository.index import Index, Located
from fuse_store.repository.pack import PackReader

CACHE_SIZE = 16 << 20  # bytes of opened blocks
_COMPUTED = b"computed"  # before the digest of a computed block

BlockPlace = tuple[bytes, int, int]  # pack id, offset, length stored
T = TypeVar("T")


class BlockCache:
    """Opens blocks and keeps them. ``index`` and ``reader`` are those of the store."""

    def __init__(self, index: Index, reader: PackReader, threads: int) -> None:
        self.index, self.reader = index, reader
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._opening: dict[bytes, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "open")
        self._compute_pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "compute")  # its jobs wait for blocks

    def has(self, digest: bytes, computed: bool = False) -> bool:
        """Whether a block is open."""
        name = _name(digest, computed)
        with self._lock:
            if name not in self._blocks:
                return False
            self._blocks.move_to_end(name)
            return True

    def begin(self, digest: bytes, located: Located, row: int) -> Future[bytes]:
        """Have a block opened in a thread; row ``row`` of ``located`` says where it is. The result may raise Damaged."""
        return self._begin(self._pool, digest, lambda: self._read(digest, located, row))

    def begin_computed(self, digest: bytes, compute: Callable[[], bytes]) -> Future[bytes]:
        """Have a block computed in a thread. The result may raise what ``compute`` does."""
        return self._begin(self._compute_pool, _name(digest, True), compute)

    def _begin(self, pool: ThreadPoolExecutor, name: bytes, make: Callable[[], bytes]) -> Future[bytes]:
        with self._lock:
            job = self._opening.get(name)
            if job is None:
                job = self._opening[name] = pool.submit(self._make, name, make)
            return job

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Do ``work``, which opens blocks, with every item, in threads. Raises what it raises."""
        for _done in self._pool.map(work, items):
            pass

    def computed(self, digest: bytes, compute: Callable[[], bytes]) -> bytes:
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
                own: Future[bytes] = Future()
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

    def open(self, wanted: Sequence[tuple[bytes, int]], located: Located) -> list[bytes | Damaged]:
        """The pages of blocks, each (digest, row of ``located``), or what is wrong with one. They are opened in this thread unless
        they are open, or were begun. Two threads that want the same block at once may both open it."""
        with self._lock:
            known = [self._blocks.get(digest) or self._opening.get(digest) for digest, _row in wanted]
            for digest, _row in wanted:
                if digest in self._blocks:
                    self._blocks.move_to_end(digest)
        results: list[bytes | Damaged] = []
        opened = []
        for (digest, row), block in zip(wanted, known, strict=True):
            try:
                if block is None:
                    block = self._read(digest, located, row)
                    opened.append((digest, block))
                results.append(block if isinstance(block, bytes) else block.result())
            except Damaged as error:
                results.append(error.with_traceback(None))  # else it would keep this frame, which keeps it, and all that was read
        self._keep(opened)
        return results

    def close(self) -> None:
        self._compute_pool.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _make(self, name: bytes, make: Callable[[], bytes]) -> bytes:
        try:
            block = make()
        finally:
            with self._lock:
                self._opening.pop(name, None)
        self._keep([(name, block)])
        return block

    def _keep(self, opened: Sequence[tuple[bytes, bytes]]) -> None:
        with self._lock:
            for name, block in opened:
                if name not in self._blocks:
                    self._blocks[name] = block
                    self._size += len(block)
            while self._size > CACHE_SIZE:
                self._size -= len(self._blocks.popitem(last=False)[1])

    def _read(self, digest: bytes, located: Located, row: int) -> bytes:
        return self.read(digest, located, row)[0]

    def read(self, digest: bytes, located: Located, row: int) -> tuple[bytes, BlockPlace]:
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


def _name(digest: bytes, computed: bool) -> bytes:
    return _COMPUTED + digest if computed else digest
