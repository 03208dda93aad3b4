# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores the LZO chunks of a hibernation image as the pages they hold (``image.kind.StoredAs``).

Every chunk is decompressed and compressed again. If its bytes come out as they stand on the device, its pages can be
stored in its place; every other chunk stays as it is. One thread asks, others read, decompress and compare; memory is that
of the chunks in work, and of the tables, which have at most MAX_CHUNKS and MAX_CHUNK_RUNS elements.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, expand, joint_runs
from fuse_store.errors import Damaged
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.stream import ChunkStream
from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.hibernation.lzo_chunks.layout import (
    CHUNK_GROUP,
    CHUNK_PAGES,
    FARTHEST,
    LENGTH,
    MAX_CHUNKS,
    MAX_THREADS,
    ROW,
    Layout,
    compressed,
    left_behind,
)
from fuse_store.image.inputs import Batch
from fuse_store.image.kind import Settings
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.block import BLOCK_SIZE, CODECS
from fuse_store.repository.manifest import Computed

SAMPLE = 16  # chunks that tell whether the others are worth the work
MAX_GROWTH = 1.25  # of the sample, if its pages are stored in place of its chunks: the versions after this one share them
MAX_CHUNK_RUNS = 1 << 22  # runs of pages that chunks stand in, 32 bytes of memory each
BATCH_SIZE = 8 << 20  # bytes of pages that are handed on at once

_Part = tuple[int, NDArray[np.uint8]]  # first page, content


@dataclass(frozen=True)
class _Chunk:
    """One that came out the same: its ``content`` on the device, up to the end of a page, of which ``used`` bytes are its own;
    the ``pages`` it holds, one row each; where on the device it stands, in pages of the store, which of those are not zeros
    (``filled``), and ``page_digests`` of these."""

    content: NDArray[np.uint8]
    used: int
    pages: NDArray[np.uint8]
    device: I64
    filled: I64
    digest: bytes
    page_digests: bytes


class LzoEncoder:
    """The chunks of one input. ``size`` are the bytes of the device or file, for the place of the pages behind it."""

    def __init__(self, size: int, image: HibernationImage, stream: ChunkStream, settings: Settings) -> None:
        self._image, self._stream, self._settings, self._page_size = image, stream, settings, settings.page_size
        first = -(-size // BLOCK_SIZE) * (BLOCK_SIZE // settings.page_size)  # so that the pages of a group are whole blocks
        self._layout = Layout(settings.page_size, image.page_size, first, min(stream.chunks, MAX_CHUNKS))
        self._rows: list[tuple[int, int, int, int]] = []
        self._digests = bytearray()
        self._columns = tuple(array("q") for _column in range(4))  # of the extents, as they come
        self._page_digests = bytearray()  # of their pages, as they come

    @property
    def size(self) -> int:
        """Bytes of all pages in chunks."""
        return self._stream.count * self._image.page_size

    @property
    def computed(self) -> Computed | None:
        return self._layout.computed(len(self._rows)) if self._rows else None

    @property
    def digests(self) -> bytes:
        """16 bytes for each chunk that is stored as pages: of all of its bytes on the device, to the end of the page."""
        return bytes(self._digests)

    @property
    def rows(self) -> NDArray[np.uint8]:
        return np.array(self._rows, ROW).view(np.uint8).reshape(-1, ROW.itemsize)

    def extents(self) -> tuple[I64, I64, I64, I64]:
        columns = [np.frombuffer(column, np.int64) for column in self._columns]
        order = np.argsort(columns[0])
        page, count, row, slot = (column[order] for column in columns)
        return page, count, row, slot

    def page_digests(self) -> tuple[I64, bytes]:
        first, count = (np.frombuffer(column, np.int64) for column in self._columns[:2])
        page = expand(first, count)
        order = np.argsort(page)
        return page[order], np.frombuffer(self._page_digests, f"V{DIGEST}")[order].tobytes()

    def is_worth_it(self) -> bool:
        """Whether most of the first chunks come out the same, and storing their pages takes not much more space."""
        codec, level = CODECS[self._settings.codec], self._settings.level
        chunks = list(self._results(min(SAMPLE, self._layout.chunks)))
        same = [chunk for chunk in chunks if chunk is not None]
        pages = sum(min(chunk.pages.nbytes, len(codec.compress(chunk.pages.tobytes(), level))) for chunk in same)
        return len(same) * 2 >= len(chunks) > 0 and pages <= MAX_GROWTH * sum(len(chunk.content) for chunk in same)

    def batches(self) -> Generator[Batch, None, None]:
        """The pages of the chunks, where they stand in the address space, then those tails that have to be stored, group by
        group. Raises StoreError if the input cannot be read."""
        earlier: deque[bytes | None] = deque(maxlen=FARTHEST)
        results = self._results(self._layout.chunks)
        for begin in range(0, self._layout.chunks, CHUNK_GROUP):
            parts: list[_Part] = []
            tails: list[_Part] = []
            for number, chunk in enumerate(islice(results, CHUNK_GROUP), begin):
                if chunk is not None:
                    threads = _threads(chunk, earlier)
                    if not threads and chunk.content[chunk.used :].any():
                        tails.append((self._layout.tail_page(number), self._tail(chunk)))
                    parts.append((self._layout.first_page(number), chunk.pages.reshape(-1)))
                    self._note(number, chunk, threads)
                earlier.append(None if chunk is None else chunk.content[: chunk.used].tobytes())
                if len(parts) * self._image.page_size * CHUNK_PAGES >= BATCH_SIZE:
                    yield self._batch(parts, number)
                    parts = []
            if parts or tails:
                yield self._batch(parts + tails, begin + CHUNK_GROUP)
            if len(self._columns[0]) > MAX_CHUNK_RUNS:
                return

    def _results(self, count: int) -> Iterator[_Chunk | None]:
        """The first ``count`` chunks in order, None for one that does not come out the same; fewer if one gives a length that
        cannot be: the next one is not found then."""
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
        used = LENGTH.size + length
        entries = -(-used // self._image.page_size)
        try:
            content = np.ascontiguousarray(self._image.map.read(entry, entries)).reshape(-1)
            pages = self._stream.unpack(number, content[LENGTH.size : used].tobytes())
        except Damaged:
            return None
        if content[:used].tobytes() != compressed(pages):
            return None
        times = self._image.page_size // self._page_size
        parts = [np.arange(block * times, (block + here) * times) for block, here in self._image.map.runs(entry, entries)]
        rows = content.reshape(-1, self._page_size)
        filled = np.flatnonzero(rows.any(axis=1))
        digest, page_digests = self._settings.digest(content.tobytes()), self._settings.page_digests([rows[row].data for row in filled])
        return _Chunk(content, used, pages, np.concatenate(parts), filled, digest, page_digests)

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
        row = np.full(len(chunk.filled), len(self._rows))
        for column, more in zip(self._columns, joint_runs(chunk.device[chunk.filled], row, chunk.filled), strict=True):
            column.frombytes(more.astype(np.int64).tobytes())
        self._rows.append((number, chunk.used - LENGTH.size, len(chunk.pages), threads))
        self._digests += chunk.digest
        self._page_digests += chunk.page_digests


def _threads(chunk: _Chunk, earlier: deque[bytes | None]) -> int:
    """How many threads the kernel had, if what is behind a chunk is what those before it left there; else, and if nothing is
    there, 0. ``earlier`` are those, without their tails."""
    tail = chunk.content[chunk.used :].tobytes()
    if not any(tail):
        return 0

    def before(distance: int) -> bytes | None:
        return earlier[-distance] if distance <= len(earlier) else None

    matching = (threads for threads in range(1, MAX_THREADS + 1) if left_behind(chunk.used, len(chunk.content), threads, before) == tail)
    return next(matching, 0)


def open_encoder(size: int, image: HibernationImage, settings: Settings) -> LzoEncoder | None:
    """The LzoEncoder of an input, if its image is compressed with LZO and it is worth it; else None: stored as it is. Raises
    StoreError."""
    stream = image.stream
    if not lzo.available() or image.header.compression != "lzo" or not isinstance(stream, ChunkStream):
        return None
    if image.page_size % settings.page_size:
        return None
    try:
        encoder = LzoEncoder(size, image, stream, settings)
        return encoder if encoder.is_worth_it() else None
    except Damaged:
        return None  # an image that is not whole is stored as it is
