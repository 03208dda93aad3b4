# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a version. Used by ``targets``, ``upkeep`` and whoever shows an image; threads may share one Image.

Whatever is read was verified, or Damaged is raised, which names the image, the extent and the pack. Scattered pages make
many small extents of few blocks; so the pages of a range are gathered block by block, and the blocks used last are kept.
A chunk of a hibernation image that is stored as the pages it holds (docs/format.md, "Chunks") is a block that is compressed
from these, and compared with its digest; all that works on blocks works on it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from fuse_store.errors import Damaged
from fuse_store.hibernation.lzo_chunks.layout import HEAD, compressed, first_page, left_behind, tail_page
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.block import LARGEST
from fuse_store.repository.extents import I64, Extents, read_segment
from fuse_store.repository.index import U64, Index, Located
from fuse_store.repository.manifest import CHUNK_PAGES, Head, ImageFile, read_head, summary
from fuse_store.repository.pack import PackReader

CACHE = 16 << 20  # bytes of opened blocks
GROUP = 8  # blocks that a thread opens and copies from in one go
SEGMENTS = 4  # kept in memory, about 4 MB each
PACKED = 32  # chunks that were compressed last: what is behind one stands in those before


T = TypeVar("T")
_CHUNK = b"chunk"  # before the digest of one, so that it is never taken for a block


@functools.lru_cache(maxsize=4)
def _zeros(length: int) -> memoryview:
    """So many zero bytes: readers ask for the same lengths again and again."""
    return memoryview(bytes(length))


class BlockCache:
    """Opened blocks, the ones used last, and those that are being opened. One for all images of a store."""

    def __init__(self, index: Index, reader: PackReader, threads: int) -> None:
        self.index, self._reader = index, reader
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._opening: dict[bytes, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "open")
        self._chunks = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "compress")  # their own: they wait for blocks

    def at_hand(self, digest: bytes) -> bytes | None:
        """The pages of a block, if it is open."""
        with self._lock:
            block = self._blocks.get(digest)
            if block is not None:
                self._blocks.move_to_end(digest)
            return block

    def begin(self, digest: bytes, located: Located, number: int) -> Future[bytes]:
        """Have a block opened in a thread; ``located`` says in row ``number`` where it is. The result may raise Damaged."""
        return self._begin(self._pool, digest, lambda: self._read(digest, located, number))

    def begin_chunk(self, digest: bytes, make: Callable[[], bytes]) -> Future[bytes]:
        """Have a chunk made in a thread. The result may raise what ``make`` does."""
        return self._begin(self._chunks, _CHUNK + digest, make)

    def _begin(self, pool: ThreadPoolExecutor, name: bytes, read: Callable[[], bytes]) -> Future[bytes]:
        with self._lock:
            job = self._opening.get(name)
            if job is None:
                job = self._opening[name] = pool.submit(self._open, name, read)
            return job

    def page_digests(self, digests: bytes, located: Located, page_size: int) -> tuple[I64, U64]:
        """(where the pages of each block begin, the digests of all pages as two halves). ``digests`` are those of the blocks,
        16 bytes each: the index is not believed. Raises Damaged."""
        wanted = np.frombuffer(digests, "<u8").reshape(-1, 2)
        first = np.zeros(len(located.pack), np.int64)
        parts = [np.zeros((LARGEST // page_size, 2), np.uint64)]  # of blocks that are nowhere: nothing is like that
        length = len(parts[0])
        for number, pack in enumerate(located.packs):
            try:
                table = self._reader.table(pack)
            except FileNotFoundError:
                raise Damaged(f"pack {pack.hex()}", "it is gone.", "Run it again.", pack=pack.hex()) from None
            rows = np.flatnonzero(located.pack == number)
            at = np.searchsorted(table.offset, located.offset[rows].astype(np.uint64))
            at[at == len(table.offset)] = 0
            have = np.frombuffer(table.digests, "<u8").reshape(-1, 2)
            right = (have[at] == wanted[rows]).all(axis=1) if len(have) else np.zeros(len(rows), bool)
            rows, at = rows[right], at[right]
            count = table.counts(page_size)
            begin = np.cumsum(count) - count
            used = np.repeat(begin[at] - np.cumsum(count[at]) + count[at], count[at]) + np.arange(int(count[at].sum()))
            first[rows] = length + np.cumsum(count[at]) - count[at]
            if len(used) and int(used.max()) >= len(table.pages):
                raise Damaged(f"pack {pack.hex()}", "its table contradicts itself.", "Run fuse-store repair.", pack=pack.hex())
            parts.append(table.pages[used])
            length += len(used)
        return first, np.concatenate(parts + [np.zeros((LARGEST // page_size, 2), np.uint64)])

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do ``work``, which opens blocks, with every item, in threads. Raises what it raises."""
        for _done in self._pool.map(work, items):
            pass

    def chunk(self, digest: bytes, make: Callable[[], bytes]) -> bytes:
        """The bytes of a chunk, which ``make`` compresses in this thread unless they are at hand, or another one is at it. Raises
        what ``make`` does."""
        name = _CHUNK + digest
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
            block = self._open(name, make)
        except BaseException as error:
            own.set_exception(error)
            raise
        own.set_result(block)
        return block

    def open(self, wanted: Sequence[tuple[bytes, int]], located: Located) -> list[bytes | Damaged]:
        """The pages of blocks, each (digest, row of ``located``), or what is wrong with one. They are opened in this thread unless
        they are open, or were begun. Two threads that want the same block at once may both open it."""
        with self._lock:
            at_hand = [self._blocks.get(digest) or self._opening.get(digest) for digest, _number in wanted]
            for digest, _number in wanted:
                if digest in self._blocks:
                    self._blocks.move_to_end(digest)
        found: list[bytes | Damaged] = []
        opened = []
        for (digest, number), block in zip(wanted, at_hand, strict=True):
            try:
                if block is None:
                    block = self._read(digest, located, number)
                    opened.append((digest, block))
                found.append(block if isinstance(block, bytes) else block.result())
            except Damaged as error:
                found.append(error.with_traceback(None))  # else it would keep this frame, which keeps it, and all that was read
        self._keep(opened)
        return found

    def close(self) -> None:
        self._chunks.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _open(self, name: bytes, read: Callable[[], bytes]) -> bytes:
        try:
            block = read()
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
            while self._size > CACHE:
                self._size -= len(self._blocks.popitem(last=False)[1])

    def _read(self, digest: bytes, located: Located, number: int) -> bytes:
        error = Damaged(f"block {digest.hex()}", "it is in no pack that the index knows.", "Run fuse-store repair.")
        if located.pack[number] >= 0:
            pack = located.packs[int(located.pack[number])]
            try:
                return self._reader.read(digest, pack, int(located.offset[number]), int(located.stored[number]))
            except FileNotFoundError:
                error = Damaged(f"block {digest.hex()}", "its pack is gone.", "Run fuse-store repair.", pack=pack.hex())
            except Damaged as damaged:
                error = damaged
        self.index.refresh()
        for place in self.index.places(digest):  # it was moved since, or is whole in another pack
            try:
                return self._reader.read(digest, *place)
            except (FileNotFoundError, Damaged):
                continue
        raise error


@dataclass(frozen=True)
class _Segment:
    """``located`` has a row for each block; ``order`` for each block and then each chunk, the order in which they are read
    quickest."""

    extents: Extents
    located: Located
    order: I64

    def is_chunk(self, number: int) -> bool:
        return number >= self.extents.blocks


@dataclass(frozen=True)
class Place:
    """Some pages of an image, and where their content is: columns of equal length, ascending by ``page``; ``number`` is the
    block's row in ``segment``, ``slot`` the page in the block."""

    page: I64
    number: I64
    slot: I64
    segment: _Segment

    def select(self, rows: NDArray[np.bool_] | I64) -> Place:
        return Place(self.page[rows], self.number[rows], self.slot[rows], self.segment)


class Image:
    """An open version. Offsets are those of its address space, in which its files follow each other at page boundaries."""

    def __init__(self, backend: Backend, image_id: str, aead: Aead, blocks: BlockCache) -> None:
        self._backend, self._aead, self._blocks = backend, aead, blocks
        self.id = image_id
        self.head: Head
        self.head, self._start = read_head(backend, image_id, aead)
        self.summary = summary(image_id, self.head)
        self.page_seed = aead.page_seed
        self.files: tuple[ImageFile, ...] = self.head.files
        self.size = max((file.offset + file.size for file in self.files), default=0)
        self._firsts = np.array([segment.first for segment in self.head.segments], np.int64)
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._page_digests: tuple[_Segment, I64, U64] | None = None
        self._packed: OrderedDict[int, bytes] = OrderedDict()  # chunks without their tails, by number
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, fewer at the end of the image. Raises Damaged."""
        return bytes(self.view(offset, length))

    def view(self, offset: int, length: int) -> memoryview:
        """The same without a last copy; not to be written to. Raises Damaged."""
        length = max(0, min(length, self.size - offset))
        page_size = self.head.page_size
        first, last = offset // page_size, -(-(offset + length) // page_size)
        out = self._pages(first, last) if length else None
        if out is None:
            return _zeros(length)
        start_in = offset - first * page_size
        return out.reshape(-1).data[start_in : start_in + length]

    def _pages(self, first: int, last: int) -> NDArray[np.uint8] | None:
        """The pages first..last (exclusive) of the address space, a row each; None if all are zeros. Raises Damaged."""
        if last - first == 1:
            return self._page(first)
        out = np.empty((last - first, self.head.page_size), np.uint8)
        return out if self.fill(first * self.head.page_size, out) else None

    def _page(self, page: int) -> NDArray[np.uint8] | None:
        """The same for one page, which is what random reads ask for: columns of one element cost more than opening its block."""
        number = int(self._firsts.searchsorted(page, "right")) - 1
        if number < 0:
            return None
        segment = self._segment(number)
        found = segment.extents.at(page)
        if found is None:
            return None
        block, slot = found
        (content,) = self._contents(segment, [(block, slot, page)])
        return content[slot : slot + 1]

    def fill(self, offset: int, out: NDArray[np.uint8]) -> bool:
        """Have the bytes from ``offset`` in ``out``, both of whole pages, and zeros after the end of the image. False if all are
        zeros: ``out`` is as it was then. Raises Damaged."""
        first, rows = offset // self.head.page_size, out.reshape(-1, self.head.page_size)
        places = list(self.places(first, first + len(rows)))
        if not places:
            return False
        hole = np.ones(len(rows), bool)
        for place in places:
            hole[place.page - first] = False
        rows[hole] = 0
        for place in places:
            self.gather(place, rows, place.page - first, threads=False)
        return True

    def gather(self, place: Place, out: NDArray[np.uint8], rows: I64, *, threads: bool) -> None:
        """Copy the pages of ``place`` into ``rows`` of ``out``: each block once, in the order of the packs. ``threads``: in
        several, which is for who reads much; readers of a mount are many already. Raises Damaged."""
        order = np.argsort(place.number, kind="stable")
        number, slot, rows = place.number[order], place.slot[order], rows[order]
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        ends = np.append(starts[1:], len(order))
        in_order = np.append((np.diff(slot) == 1) & (np.diff(rows) == 1), True)
        in_order[ends - 1] = True  # what follows is of the next block
        in_packs = np.argsort(place.segment.order[number[starts]])
        wanted, runs = (
            list(zip(*(column[in_packs].tolist() for column in columns), strict=True))
            for columns in (
                (number[starts], np.maximum.reduceat(slot, starts), place.page[order[starts]]),
                (starts, ends, np.logical_and.reduceat(in_order, starts)),
            )
        )

        def copy(part: slice) -> None:
            contents = self._contents(place.segment, wanted[part])
            for (start, end, as_one), content in zip(runs[part], contents, strict=True):
                if as_one:
                    out[rows[start] : rows[start] + end - start] = content[slot[start] : slot[start] + end - start]
                else:
                    out[rows[start:end]] = content[slot[start:end]]

        parts = [slice(at, at + GROUP) for at in range(0, len(runs), GROUP)]
        if threads:
            self._blocks.each(copy, parts)
        else:
            for part in parts:
                copy(part)

    def prefetch(self, offset: int, length: int) -> None:
        """Have the blocks of a range opened in the background. Raises Damaged."""
        page_size = self.head.page_size
        for place in self.places(offset // page_size, -(-(offset + length) // page_size)):
            for number in np.unique(place.number).tolist():
                segment, digest = place.segment, place.segment.extents.digest(number)
                if self._blocks.at_hand(_CHUNK + digest if segment.is_chunk(number) else digest) is not None:
                    continue
                if segment.is_chunk(number):
                    self._blocks.begin_chunk(digest, functools.partial(self._make_chunk, segment, number))
                else:
                    self._blocks.begin(digest, segment.located, number)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is stored between two offsets, in order; the rest is zeros. Raises Damaged."""
        page_size = self.head.page_size
        for place in self.places(start // page_size, -(-end // page_size)):
            page = place.page
            breaks = np.flatnonzero(np.diff(page, prepend=-2) != 1)
            begins = np.maximum(page[breaks] * page_size, start)
            stops = np.minimum((page[np.append(breaks[1:], len(page)) - 1] + 1) * page_size, min(end, self.size))
            for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
                if begin < stop:
                    yield begin, stop - begin

    def blocks(self) -> Iterator[tuple[bytes, Located, I64]]:
        """For each segment: the digests of its blocks, where these are, and the first page that each is needed for."""
        for number in range(len(self.head.segments)):
            segment = self._segment(number)
            blocks = segment.extents.blocks
            yield segment.extents.digests[: blocks * DIGEST], segment.located, _first_pages(segment.extents)[:blocks]

    def chunk_at(self, offset: int) -> tuple[int, Callable[[], NDArray[np.uint8]]] | None:
        """(bytes that it has compressed, what gives its pages, a row each) of the chunk that begins at ``offset``, if it is stored
        as its pages. Raises Damaged."""
        head, page_size = self.head.chunks, self.head.page_size
        if head is None or offset % page_size:
            return None
        place = next(self.places(offset // page_size, offset // page_size + 1), None)
        if place is None or place.slot[0] or not place.segment.is_chunk(int(place.number[0])):
            return None
        rows, row = place.segment.extents.chunks, int(place.number[0]) - place.segment.extents.blocks
        return int(rows.length[row]), functools.partial(self._pages_of, int(rows.number[row]), int(rows.pages[row]))

    def chunks(self) -> Iterator[Callable[[], Future[bytes]]]:
        """For each chunk that is stored as the pages it holds, what has it made in a thread. The results may raise Damaged,
        StoreError."""
        for number in range(len(self.head.segments)):
            segment = self._segment(number)
            first = _first_pages(segment.extents).tolist()
            for row in range(segment.extents.blocks, len(first)):
                digest, page = segment.extents.digest(row), first[row]
                yield functools.partial(self._blocks.begin_chunk, digest, functools.partial(self._chunk, segment, row, page))

    def _chunk(self, segment: _Segment, number: int, page: int) -> bytes:
        """A chunk, which is first needed for ``page``."""
        try:
            return self._make_chunk(segment, number)
        except Damaged as error:
            raise self.damaged(error, page) from None

    def packs(self) -> list[bytes]:
        """The packs that the image's blocks are in, those with most of them first. Raises Damaged."""
        found: dict[bytes, int] = {}
        for _extents, located, _first in self.blocks():
            count = np.bincount(located.pack[located.pack >= 0], minlength=len(located.packs)).tolist()
            for pack, blocks in zip(located.packs, count, strict=True):
                found[pack] = found.get(pack, 0) + blocks
        return sorted(found, key=lambda pack: -found[pack])

    def _contents(self, segment: _Segment, wanted: Sequence[tuple[int, int, int]]) -> list[NDArray[np.uint8]]:
        """The pages of blocks, for each of them rows of bytes. Each is (its number, the highest of its pages that is needed, the
        first page of the image that needs one). Raises Damaged."""
        page_size = self.head.page_size
        stored = [(segment.extents.digest(number), number) for number, _last, _page in wanted if not segment.is_chunk(number)]
        opened = iter(self._blocks.open(stored, segment.located))
        contents = []
        for number, last, page in wanted:
            try:
                if segment.is_chunk(number):
                    make = functools.partial(self._make_chunk, segment, number)
                    pages: bytes | Damaged = self._blocks.chunk(segment.extents.digest(number), make)
                else:
                    pages = next(opened)
            except Damaged as error:
                pages = error.with_traceback(None)
            if isinstance(pages, Damaged):
                raise self.damaged(pages, page)
            whole = len(pages) // page_size
            if last >= whole:
                raise self.damaged(Damaged(f"image {self.id}", "an extent goes past the end of its block."), page)
            contents.append(np.frombuffer(pages, np.uint8, whole * page_size).reshape(whole, page_size))
        return contents

    def _make_chunk(self, segment: _Segment, number: int) -> bytes:
        """The bytes of a chunk as they stood on the device, to the end of their last page. Raises Damaged, StoreError."""
        head, rows, row = self.head.chunks, segment.extents.chunks, number - segment.extents.blocks
        assert head is not None
        chunk, length, count, threads = (int(column[row]) for column in (rows.number, rows.length, rows.pages, rows.tail))
        own = self._compressed(chunk, count)
        missing = -len(own) % head.page_size
        if threads:
            tail = left_behind(
                len(own), len(own) + missing, threads,
                lambda distance: self._compressed(chunk - distance, CHUNK_PAGES) if distance <= chunk else None,
            )  # fmt: skip
        else:
            first = tail_page(head, self.head.page_size, chunk)
            stored = self._pages(first, first + head.page_size // self.head.page_size)
            tail = bytes(missing) if stored is None else stored.tobytes()[head.page_size - missing :]
        content = own + (tail or b"")
        if self._aead.digest(content) != segment.extents.digest(number):
            raise Damaged(
                f"chunk {chunk} of a compressed hibernation image",
                f"its pages compress to other bytes ({len(own)} instead of {HEAD.size + length}) than stood there: this liblzo2 "
                "compresses otherwise than the one it was stored with, or the manifest contradicts itself.",
                "Read it where the one of Debian (2.10) is installed.", image=self.id,
            )  # fmt: skip
        return content

    def _compressed(self, chunk: int, count: int) -> bytes:
        """A chunk of ``count`` pages without what is behind it; not compared with anything yet. Raises Damaged, StoreError."""
        with self._lock:
            known = self._packed.get(chunk)
        if known is not None:
            return known
        packed = compressed(self._pages_of(chunk, count))
        with self._lock:
            self._packed[chunk] = packed
            if len(self._packed) > PACKED:
                self._packed.popitem(last=False)
        return packed

    def _pages_of(self, chunk: int, count: int) -> NDArray[np.uint8]:
        """The pages of the image that a chunk holds, as rows of pages of the store. Raises Damaged."""
        head, page_size = self.head.chunks, self.head.page_size
        assert head is not None
        first, stored = first_page(head, page_size, chunk), count * head.page_size // page_size
        pages = self._pages(first, first + stored)
        return np.zeros((stored, page_size), np.uint8) if pages is None else pages

    def damaged(self, error: Damaged, page: int) -> Damaged:
        """The error with what only the image knows. A new one: threads may wait for the same block."""
        extent = f"{page * self.head.page_size:#x}"
        return Damaged(error.thing, error.cause, error.remedy, image=self.id, extent=extent, pack=error.pack)

    def places(self, first: int, last: int) -> Iterator[Place]:
        """The pages in first..last (exclusive) that are not zeros, in order, a segment at a time. Raises Damaged."""
        number = max(0, int(np.searchsorted(self._firsts, first, "right")) - 1)
        while number < len(self._firsts) and self._firsts[number] < last:
            segment = self._segment(number)
            page, block, slot = segment.extents.between(first, last)
            if len(page):
                yield Place(page, block, slot, segment)
            number += 1

    def page_digests(self, place: Place) -> U64:
        """The digest of each page, two halves each, as the tables of the packs say; no block is opened. Chunks are made for it.
        Raises Damaged, StoreError."""
        known = self._page_digests
        if known is None or known[0] is not place.segment:
            extents, located = place.segment.extents, place.segment.located
            digests = extents.digests[: extents.blocks * DIGEST]
            known = self._page_digests = (place.segment, *self._blocks.page_digests(digests, located, self.head.page_size))
        _segment, first, pages = known
        made = place.number >= len(first)
        if not made.any():
            stored: U64 = pages[first[place.number] + place.slot]
            return stored
        wanted = np.empty((len(made), 2), np.uint64)
        wanted[~made] = pages[first[place.number[~made]] + place.slot[~made]]
        wanted[made] = self._digests_of(place.select(made))
        return wanted

    def _digests_of(self, place: Place) -> U64:
        """The digest of each page of chunks."""
        seed = self.page_seed
        found = np.empty((len(place.page), 2), np.uint64)
        starts = np.flatnonzero(np.diff(place.number, prepend=-1))
        parts = list(zip(starts.tolist(), np.append(starts[1:], len(found)).tolist(), strict=True))

        def digest(part: tuple[int, int]) -> None:
            rows = slice(*part)
            slot, number = place.slot[rows], int(place.number[part[0]])
            (content,) = self._contents(place.segment, [(number, int(slot.max()), int(place.page[part[0]]))])
            digests = b"".join([xxhash.xxh3_128_digest(content[one], seed) for one in slot.tolist()])
            found[rows] = np.frombuffer(digests, "<u8").reshape(-1, 2)

        self._blocks.each(digest, parts)
        return found

    def _segment(self, number: int) -> _Segment:
        with self._lock:
            if number in self._segments:
                self._segments.move_to_end(number)
                return self._segments[number]
        extents = read_segment(self._backend, self.id, self.head, number, self._start, self._aead)
        located = self._blocks.index.locate(extents.digests[: extents.blocks * DIGEST])
        order = np.empty(extents.blocks, np.int64)
        order[np.lexsort((located.offset, located.pack))] = np.arange(extents.blocks)
        segment = _Segment(extents, located, np.append(order, extents.blocks + extents.chunks.number))
        with self._lock:
            self._segments[number] = segment
            while len(self._segments) > SEGMENTS:
                self._segments.popitem(last=False)
        return segment


def _first_pages(extents: Extents) -> I64:
    """The first page that each block, and each chunk, is needed for."""
    first = np.zeros(len(extents.digests) // DIGEST, np.int64)
    first[extents.block[::-1]] = extents.page[::-1]
    return first
