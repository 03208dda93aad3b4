# SPDX-License-Identifier: GPL-3.0-or-later
"""The chunks of a compressed hibernation image, as the pages they hold. Used by ``store`` (opens) and ``capture`` (stores).

One changed page changes its whole chunk, so versions of such an image share almost nothing as bytes, and most of it as
pages. Every chunk is decompressed and compressed again. If its bytes come out as they stand on the device, its pages can be
stored in their place; every other chunk stays as it is. One thread asks, others read, decompress and compare; memory is that
of the chunks in work, and of the tables, which have at most MOST_CHUNKS and MOST_RUNS elements.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.stream import ChunkStream
from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.hibernation.lzo_chunks.layout import (
    FARTHEST,
    HEAD,
    THREADS,
    compressed,
    first_page,
    left_behind,
    tail_page,
)
from fuse_store.image.inputs import Batch, SourceFile
from fuse_store.repository.block import CODECS, SIZE
from fuse_store.repository.extents import I64, ChunkRows, runs
from fuse_store.repository.manifest import CHUNK_GROUP, CHUNK_PAGES, MOST_CHUNKS, Chunks

SAMPLE = 16  # chunks that tell whether the others are worth the work
WORTH = 1.25  # so much may their pages take, in proportion to the chunks: the versions after this one share them
MOST_RUNS = 1 << 22  # runs of pages that chunks stand in, 32 bytes of memory each
BATCH = 8 << 20  # bytes of pages that are handed on at once

_Part = tuple[int, NDArray[np.uint8]]  # first page, content


@dataclass(frozen=True)
class _Chunk:
    """One that came out the same: its ``content`` on the device, up to the end of a page, of which ``used`` bytes are its own;
    the ``pages`` it holds, one row each; where on the device it stands, in pages of the store, and which of those are not zeros."""

    content: NDArray[np.uint8]
    used: int
    pages: NDArray[np.uint8]
    device: I64
    filled: I64
    digest: bytes


class ChunkSource:
    """Of one source. When ``batches`` has been read, ``head`` and the columns say what stands where."""

    def __init__(self, file: File, image: HibernationImage, stream: ChunkStream, page_size: int, digest: Callable[[bytes], bytes]):
        self._file, self._image, self._stream, self._page_size, self._digest = file, image, stream, page_size, digest
        units = -(-file.size // SIZE)  # so that the pages of a group are whole blocks
        self._head = Chunks("lzo", image.page_size, units * (SIZE // page_size), min(stream.chunks, MOST_CHUNKS), 0)
        self._rows = array("q")  # of ChunkRows, one after the other
        self._digests = bytearray()
        self._columns = tuple(array("q") for _column in range(4))  # of the extents, as they come

    @property
    def size(self) -> int:
        """Bytes of all pages in chunks."""
        return self._stream.count * self._image.page_size

    @property
    def head(self) -> Chunks | None:
        """None if no chunk came out the same."""
        return replace(self._head, stored=len(self._rows) // 4) if self._rows else None

    @property
    def digests(self) -> bytes:
        """16 bytes for each chunk that is stored: of all of its bytes on the device, to the end of the page."""
        return bytes(self._digests)

    def rows(self) -> ChunkRows:
        """The chunks that are stored, in their order in the image."""
        return ChunkRows(*np.frombuffer(self._rows, np.int64).reshape(-1, 4).T)

    def extents(self) -> tuple[I64, I64, I64, I64]:
        """(page, count, row of the chunk, page in the chunk), in pages of the store and ordered by ``page``: what the source
        need not be read for."""
        columns = [np.frombuffer(column, np.int64) for column in self._columns]
        order = np.argsort(columns[0])
        page, count, row, slot = (column[order] for column in columns)
        return page, count, row, slot

    def is_worth(self, codec: str, level: int) -> bool:
        """Whether most of the first chunks come out the same, and their pages take no more room than they do."""
        chunks = list(self._results(min(SAMPLE, self._head.room)))
        same = [chunk for chunk in chunks if chunk is not None]
        pages = sum(min(chunk.pages.nbytes, len(CODECS[codec].compress(chunk.pages.tobytes(), level))) for chunk in same)
        return len(same) * 2 >= len(chunks) > 0 and pages <= WORTH * sum(len(chunk.content) for chunk in same)

    def batches(self) -> Generator[Batch, None, None]:
        """The pages of the chunks, where they stand in the address space, then those tails that have to be stored, group by
        group. Raises StoreError if the source can't be read."""
        earlier: deque[bytes | None] = deque(maxlen=FARTHEST)
        results = self._results(self._head.room)
        for begin in range(0, self._head.room, CHUNK_GROUP):
            parts: list[_Part] = []
            tails: list[_Part] = []
            for number, chunk in enumerate(islice(results, CHUNK_GROUP), begin):
                if chunk is not None:
                    threads = _threads(chunk, earlier)
                    if not threads and chunk.content[chunk.used :].any():
                        tails.append((tail_page(self._head, self._page_size, number), self._tail(chunk)))
                    parts.append((first_page(self._head, self._page_size, number), chunk.pages.reshape(-1)))
                    self._note(number, chunk, threads)
                earlier.append(None if chunk is None else chunk.content[: chunk.used].tobytes())
                if len(parts) * self._image.page_size * CHUNK_PAGES >= BATCH:
                    yield self._batch(parts, number)
                    parts = []
            if parts or tails:
                yield self._batch(parts + tails, begin + CHUNK_GROUP)
            if len(self._columns[0]) > MOST_RUNS:
                return

    def close(self) -> None:
        self._image.close()
        self._file.close()

    def _results(self, count: int) -> Iterator[_Chunk | None]:
        """The first ``count`` chunks in order, None for one that does not come out the same; fewer if one gives a length that
        can't be: then nobody knows where the next begins."""
        workers = max(2, os.cpu_count() or 1)
        jobs: deque[Future[_Chunk | None]] = deque()
        with ThreadPoolExecutor(workers, "recompress") as pool:
            for number in range(count):
                try:
                    entry, length = self._stream.place(number)
                except Damaged:
                    break
                jobs.append(pool.submit(self._chunk, number, entry, length))
                if len(jobs) > 2 * workers:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()

    def _chunk(self, number: int, entry: int, length: int) -> _Chunk | None:
        """In a thread."""
        used = HEAD.size + length
        entries = -(-used // self._image.page_size)
        try:
            content = np.ascontiguousarray(self._image.map.read(entry, entries)).reshape(-1)
            pages = self._stream.unpack(number, content[HEAD.size : used].tobytes())
        except Damaged:
            return None
        if content[:used].tobytes() != compressed(pages):
            return None
        times = self._image.page_size // self._page_size
        parts = [np.arange(block * times, (block + here) * times) for block, here in self._image.map.runs(entry, entries)]
        filled = np.flatnonzero(content.reshape(-1, self._page_size).any(axis=1))
        return _Chunk(content, used, pages, np.concatenate(parts), filled, self._digest(content.tobytes()))

    def _batch(self, parts: list[_Part], number: int) -> Batch:
        pages = [np.arange(first, first + len(content) // self._page_size) for first, content in parts]
        done = min(number * CHUNK_PAGES * self._image.page_size, self.size)
        return Batch(np.concatenate(pages), np.concatenate([content for _first, content in parts]).data, done)

    def _tail(self, chunk: _Chunk) -> NDArray[np.uint8]:
        """The last page of a chunk on the device, without what is the chunk's own."""
        tail = chunk.content[-self._image.page_size :].copy()
        tail[: chunk.used - len(chunk.content) + self._image.page_size] = 0
        return tail

    def _note(self, number: int, chunk: _Chunk, threads: int) -> None:
        row = np.full(len(chunk.filled), len(self._rows) // 4)
        for column, more in zip(self._columns, runs(chunk.device[chunk.filled], row, chunk.filled), strict=True):
            column.frombytes(more.astype(np.int64).tobytes())
        self._rows.extend((number, chunk.used - HEAD.size, len(chunk.pages), threads))
        self._digests += chunk.digest


def _threads(chunk: _Chunk, earlier: deque[bytes | None]) -> int:
    """How many threads the kernel had, if what is behind a chunk is what those before it left there; else, and if nothing is
    there, 0. ``earlier`` are those, without their tails."""
    tail = chunk.content[chunk.used :].tobytes()
    if not any(tail):
        return 0

    def before(distance: int) -> bytes | None:
        return earlier[-distance] if distance <= len(earlier) else None

    found = (threads for threads in range(1, THREADS + 1) if left_behind(chunk.used, len(chunk.content), threads, before) == tail)
    return next(found, 0)


def open_chunks(
    file: SourceFile, resume_offset: str, page_size: int, digest: Callable[[bytes], bytes], codec: str, level: int
) -> ChunkSource | None:
    """The ChunkSource of a file or a device, if there is an image in it that is compressed with LZO and it is worth it; else
    None, and it is stored as it is. ``page_size``, ``codec`` and ``level`` are the store's. Raises NotFound, StoreError."""
    if file.path is None or not lzo.available() or not resume_offset.isdecimal():
        return None
    with ExitStack() as opened:
        device = opened.enter_context(File(file.path))
        try:
            image = opened.enter_context(HibernationImage(device, int(resume_offset)))
            if image.header.compression == "lzo" and isinstance(image.stream, ChunkStream) and not image.page_size % page_size:
                source = ChunkSource(device, image, image.stream, page_size, digest)
                if source.is_worth(codec, level):
                    opened.pop_all()  # the ChunkSource closes them
                    return source
        except (NotFound, Refused, Damaged):
            pass  # what is no image, or not one that is whole, is stored as it is
    return None
