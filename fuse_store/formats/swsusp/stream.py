# SPDX-License-Identifier: GPL-3.0-or-later
"""The data pages of an image, by their number in the stream; page 0 is the first after swsusp_info. Used by ``image``.

Stored as they are, or 32 at a time in chunks that are compressed. A chunk's length stands in its first eight bytes, so
where chunk N begins is known once those before it have been looked at; that is done when it is needed, 8 bytes at a time,
and remembered (8 bytes of memory for each 128 KiB). Threads may share a stream.
"""

from __future__ import annotations

import os
import threading
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import lz4.block
import numpy as np
from lzallright import LZOCompressor, LZOError
from numpy.typing import NDArray

from fuse_store.errors import Damaged
from fuse_store.formats.swsusp.header import THING, Header
from fuse_store.formats.swsusp.info import Info
from fuse_store.formats.swsusp.layout import CHUNK_HEAD, CHUNK_PAGES, largest_compressed
from fuse_store.formats.swsusp.swapmap import CUT_OFF, SwapMap
from fuse_store.progress import SILENT, Progress

CACHE = 16 << 20  # bytes of opened chunks
AHEAD = 2  # chunks for each processor that are opened before a sequential reader asks for them
STEP = 4 << 20  # bytes that are read at once by what reads all

Pages = NDArray[np.uint8]


class Stream(Protocol):
    """``count`` pages. ``read`` gives a row for each. Raises Damaged."""

    count: int

    def read(self, first: int, count: int) -> Pages: ...

    def close(self) -> None: ...


class PlainStream:
    """Pages as they are. While reading is sequential, what comes next is fetched ahead."""

    def __init__(self, swap_map: SwapMap, count: int, page_size: int) -> None:
        if swap_map.count <= count:
            list(swap_map.runs(count, 1))  # says what is missing
        self._map, self.count = swap_map, count
        self._ahead = STEP // page_size
        self._next = self._asked = 0  # where sequential reading goes on, and what has been asked for; a wrong one costs little

    def read(self, first: int, count: int) -> Pages:
        end = first + count
        if first == self._next and end + self._ahead // 2 > self._asked:
            begin, self._asked = max(end, self._asked), min(end + self._ahead, self.count)
            self._map.prefetch(begin + 1, self._asked - begin)
        elif first != self._next:
            self._asked = end
        self._next = end
        return self._map.read(first + 1, count)

    def close(self) -> None:
        pass


def _lzo(content: bytes, length: int) -> bytes:
    return bytes(LZOCompressor.decompress(content, length))


def _lz4(content: bytes, length: int) -> bytes:
    return bytes(lz4.block.decompress(content, uncompressed_size=length))


CODECS: dict[str, tuple[Callable[[bytes, int], bytes], type[Exception]]] = {
    "lzo": (_lzo, LZOError),
    "lz4": (_lz4, lz4.block.LZ4BlockError),
}


class ChunkStream:
    """Pages in compressed chunks; those used last are kept, those to come are opened ahead when reading is sequential."""

    def __init__(self, swap_map: SwapMap, count: int, page_size: int, compression: str) -> None:
        self._map, self.count, self._page_size = swap_map, count, page_size
        self._decompress, self._error = CODECS[compression]
        self.chunks = -(-count // CHUNK_PAGES)
        self._begins = array("q", [1])  # entry in the map of each chunk known so far, and of the one after
        self._lengths = array("q")
        self._index_lock = threading.Lock()
        self._opened: OrderedDict[int, Future[Pages]] = OrderedDict()
        self._keep = max(4, CACHE // (CHUNK_PAGES * page_size))
        self._next = 0
        self._lock = threading.Lock()
        workers = max(2, os.cpu_count() or 1)
        self._ahead = min(AHEAD * workers, self._keep // 2)
        self._pool = ThreadPoolExecutor(workers, "decompress")

    def read(self, first: int, count: int) -> Pages:
        out = np.empty((count, self._page_size), np.uint8)
        chunk, last = first // CHUNK_PAGES, (first + count - 1) // CHUNK_PAGES
        while chunk <= last:
            begin, end = max(first, chunk * CHUNK_PAGES), min(first + count, (chunk + 1) * CHUNK_PAGES)
            pages = self._open(chunk).result()
            out[begin - first : end - first] = pages[begin - chunk * CHUNK_PAGES : end - chunk * CHUNK_PAGES]
            chunk += 1
        return out

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _open(self, chunk: int) -> Future[Pages]:
        with self._lock:
            sequential = chunk in (self._next - 1, self._next)
            job = self._begin(chunk)
            if sequential:
                for later in range(chunk + 1, min(chunk + 1 + self._ahead, self.chunks)):
                    self._begin(later)
            self._next = chunk + 1
            return job

    def _begin(self, chunk: int) -> Future[Pages]:
        job = self._opened.get(chunk)
        if job is None:
            job = self._opened[chunk] = self._pool.submit(self._chunk, chunk)
            while len(self._opened) > self._keep:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(chunk)
        return job

    def _chunk(self, chunk: int) -> Pages:
        begin, length = self.place(chunk)
        stored = self._map.chunk(begin)
        if stored is not None:
            pages = stored[1]()
            if pages.nbytes != self._unpacked(chunk):
                raise Damaged(THING, f"chunk {chunk} has {pages.nbytes} bytes, and {self._unpacked(chunk)} are due.")
            return pages.reshape(-1, self._page_size)
        entries = -(-(CHUNK_HEAD.size + length) // self._page_size)
        return self.unpack(chunk, self._map.read(begin, entries).reshape(-1)[CHUNK_HEAD.size : CHUNK_HEAD.size + length].tobytes())

    def unpack(self, chunk: int, packed: bytes) -> Pages:
        """The pages of a chunk, a row each, from what it has compressed. Raises Damaged."""
        size = self._unpacked(chunk)
        try:
            content = self._decompress(packed, size)
        except self._error:
            raise Damaged(THING, f"chunk {chunk}, at page {self._begins[chunk]} of its swap map, does not decompress.") from None
        if len(content) != size:
            raise Damaged(THING, f"chunk {chunk} has {len(content)} bytes, and {size} are due.")
        return np.frombuffer(content, np.uint8).reshape(-1, self._page_size)

    def _unpacked(self, chunk: int) -> int:
        return min(CHUNK_PAGES, self.count - chunk * CHUNK_PAGES) * self._page_size

    def place(self, chunk: int) -> tuple[int, int]:
        """(entry in the map, compressed length) of a chunk. Raises Damaged if its length can't be, or that of one before."""
        with self._index_lock:
            while len(self._lengths) <= chunk:
                known = len(self._lengths)
                begin = self._begins[known]
                stored = self._map.chunk(begin)
                (length,) = (stored[0],) if stored else CHUNK_HEAD.unpack(self._map.read_start(begin, CHUNK_HEAD.size))
                if not 0 < length <= largest_compressed(self._unpacked(known)):
                    raise Damaged(THING, f"chunk {known}, at page {begin} of its swap map, gives a length of {length} bytes.")
                self._lengths.append(length)
                self._begins.append(begin + -(-(CHUNK_HEAD.size + length) // self._page_size))
            return self._begins[chunk], self._lengths[chunk]


def open_stream(swap_map: SwapMap, header: Header, info: Info) -> Stream:
    """The Stream of an image. Raises Damaged if the map is too short for it."""
    if header.compression == "none":
        return PlainStream(swap_map, info.data, header.page_size)
    if info.data > (swap_map.count - 1) * CHUNK_PAGES:
        raise Damaged(THING, f"its {info.data} pages cannot be in the {swap_map.count} that its swap map lists.", CUT_OFF)
    return ChunkStream(swap_map, info.data, header.page_size, header.compression)


class Crc:
    """The kernel's checksum: CRC-32 without its inversions, over the data pages as they are before compression."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, pages: Pages) -> None:
        self.value = zlib.crc32(np.ascontiguousarray(pages).data, self.value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def crc_of(stream: Stream, page_size: int, progress: Progress = SILENT) -> int:
    """The checksum of all pages of a stream. Raises Damaged."""
    crc, step = Crc(), max(1, STEP // page_size)
    progress.start("checksum", stream.count * page_size)
    for first in range(0, stream.count, step):
        crc.add(stream.read(first, min(step, stream.count - first)))
        progress.at(min(first + step, stream.count) * page_size)
    progress.finish()
    return crc.value
