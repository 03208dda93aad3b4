# SPDX-License-Identifier: GPL-3.0-or-later
"""The data pages of an image, by their position in the stream; page 0 is the first after swsusp_info.

They are stored as they are, or compressed in chunks of 32 pages. The length of a chunk is in its first eight bytes, so the
place of chunk N is known only once the lengths of all before it were read; that is done on demand, 8 bytes at a time, and
the places are kept (16 bytes of memory for each chunk). Threads may share a stream.
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
from fuse_store.formats.swsusp.header import Header
from fuse_store.formats.swsusp.info import OVERWRITTEN, Info
from fuse_store.formats.swsusp.layout import CHUNK_HEAD, CHUNK_PAGES, IMAGE, largest_compressed
from fuse_store.formats.swsusp.swap_map import INTERRUPTED, SwapMap
from fuse_store.progress import SILENT, Progress

CHUNK_CACHE_SIZE = 16 << 20  # bytes of decompressed chunks that are kept
CHUNKS_AHEAD = 2  # chunks per processor that are decompressed before a sequential reader needs them
SEQUENTIAL_READ_SIZE = 4 << 20  # bytes that are read at once, and prefetched, when all of a stream is read

Pages = NDArray[np.uint8]


class Stream(Protocol):
    """``count`` pages. ``read`` returns a row for each. Raises Damaged."""

    count: int

    def read(self, first: int, count: int) -> Pages: ...

    def close(self) -> None: ...


class PlainStream:
    """Pages that are not compressed. While they are read in order, the next ones are prefetched."""

    def __init__(self, swap_map: SwapMap, count: int, page_size: int) -> None:
        if swap_map.count <= count:
            list(swap_map.runs(count, 1))  # raises Damaged, which names the missing page
        self._map, self.count = swap_map, count
        self._ahead = SEQUENTIAL_READ_SIZE // page_size
        self._next = self._prefetched = 0  # where a sequential reader continues, and the end of what was prefetched; hints only

    def read(self, first: int, count: int) -> Pages:
        end = first + count
        if first == self._next and end + self._ahead // 2 > self._prefetched:
            begin, self._prefetched = max(end, self._prefetched), min(end + self._ahead, self.count)
            self._map.prefetch(begin + 1, self._prefetched - begin)
        elif first != self._next:
            self._prefetched = end
        self._next = end
        return self._map.read(first + 1, count)

    def close(self) -> None:
        pass


def _lzo(content: bytes, length: int) -> bytes:
    return bytes(LZOCompressor.decompress(content, length))


def _lz4(content: bytes, length: int) -> bytes:
    return bytes(lz4.block.decompress(content, uncompressed_size=length))


DECOMPRESSORS: dict[str, tuple[Callable[[bytes, int], bytes], type[Exception]]] = {
    "lzo": (_lzo, LZOError),
    "lz4": (_lz4, lz4.block.LZ4BlockError),
}


class ChunkStream:
    """Pages in compressed chunks. Those used last are kept; while they are read in order, the next ones are decompressed ahead."""

    def __init__(self, swap_map: SwapMap, count: int, page_size: int, compression: str) -> None:
        self._map, self.count, self._page_size = swap_map, count, page_size
        self._decompress, self._error = DECOMPRESSORS[compression]
        self.chunks = -(-count // CHUNK_PAGES)
        self._begins = array("q", [1])  # entry in the map of each chunk whose place is known, and of the next one
        self._lengths = array("q")  # bytes of their compressed data
        self._index_lock = threading.Lock()
        self._decompressed: OrderedDict[int, Future[Pages]] = OrderedDict()
        self._max_kept = max(4, CHUNK_CACHE_SIZE // (CHUNK_PAGES * page_size))
        self._next = 0
        self._lock = threading.Lock()
        workers = max(2, os.cpu_count() or 1)
        self._ahead = min(CHUNKS_AHEAD * workers, self._max_kept // 2)
        self._pool = ThreadPoolExecutor(workers, "decompress")

    def read(self, first: int, count: int) -> Pages:
        out = np.empty((count, self._page_size), np.uint8)
        chunk, last = first // CHUNK_PAGES, (first + count - 1) // CHUNK_PAGES
        while chunk <= last:
            begin, end = max(first, chunk * CHUNK_PAGES), min(first + count, (chunk + 1) * CHUNK_PAGES)
            pages = self._request(chunk).result()
            out[begin - first : end - first] = pages[begin - chunk * CHUNK_PAGES : end - chunk * CHUNK_PAGES]
            chunk += 1
        return out

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _request(self, chunk: int) -> Future[Pages]:
        with self._lock:
            sequential = chunk in (self._next - 1, self._next)
            job = self._begin(chunk)
            if sequential:
                for later in range(chunk + 1, min(chunk + 1 + self._ahead, self.chunks)):
                    self._begin(later)
            self._next = chunk + 1
            return job

    def _begin(self, chunk: int) -> Future[Pages]:
        job = self._decompressed.get(chunk)
        if job is None:
            job = self._decompressed[chunk] = self._pool.submit(self._read_chunk, chunk)
            while len(self._decompressed) > self._max_kept:
                self._decompressed.popitem(last=False)
        else:
            self._decompressed.move_to_end(chunk)
        return job

    def _read_chunk(self, chunk: int) -> Pages:
        """In a thread: the pages of a chunk. Raises Damaged."""
        begin, length = self.place(chunk)
        stored = self._map.chunk(begin)
        if stored is not None:
            pages = stored[1]()
            self._check_size(chunk, pages.nbytes)
            return pages.reshape(-1, self._page_size)
        entries = -(-(CHUNK_HEAD.size + length) // self._page_size)
        return self.unpack(chunk, self._map.read(begin, entries).reshape(-1)[CHUNK_HEAD.size : CHUNK_HEAD.size + length].tobytes())

    def unpack(self, chunk: int, packed: bytes) -> Pages:
        """The pages of a chunk, a row each, from its compressed data. Raises Damaged."""
        try:
            content = self._decompress(packed, self._unpacked_size(chunk))
        except self._error:
            cause = f"chunk {chunk}, at page {self._begins[chunk]} of the swap map, does not decompress."
            raise Damaged(IMAGE, cause, OVERWRITTEN) from None
        self._check_size(chunk, len(content))
        return np.frombuffer(content, np.uint8).reshape(-1, self._page_size)

    def _check_size(self, chunk: int, size: int) -> None:
        if size != self._unpacked_size(chunk):
            raise Damaged(IMAGE, f"chunk {chunk} decompresses to {size} bytes instead of {self._unpacked_size(chunk)}.", OVERWRITTEN)

    def _unpacked_size(self, chunk: int) -> int:
        return min(CHUNK_PAGES, self.count - chunk * CHUNK_PAGES) * self._page_size

    def place(self, chunk: int) -> tuple[int, int]:
        """(entry in the map, length of the compressed data) of a chunk. Raises Damaged if that length, or that of a chunk before
        it, is impossible."""
        with self._index_lock:
            while len(self._lengths) <= chunk:
                known = len(self._lengths)
                begin = self._begins[known]
                stored = self._map.chunk(begin)
                (length,) = (stored[0],) if stored else CHUNK_HEAD.unpack(self._map.read_start(begin, CHUNK_HEAD.size))
                if not 0 < length <= largest_compressed(self._unpacked_size(known)):
                    cause = f"chunk {known}, at page {begin} of the swap map, has an impossible length of {length} bytes."
                    raise Damaged(IMAGE, cause, OVERWRITTEN)
                self._lengths.append(length)
                self._begins.append(begin + -(-(CHUNK_HEAD.size + length) // self._page_size))
            return self._begins[chunk], self._lengths[chunk]


def open_stream(swap_map: SwapMap, header: Header, info: Info) -> Stream:
    """The Stream of an image. Raises Damaged if the map is too short for it."""
    if header.compression == "none":
        return PlainStream(swap_map, info.data, header.page_size)
    if info.data > (swap_map.count - 1) * CHUNK_PAGES:
        raise Damaged(IMAGE, f"{info.data} pages do not fit into the {swap_map.count} that the swap map lists.", INTERRUPTED)
    return ChunkStream(swap_map, info.data, header.page_size, header.compression)


def checksum(stream: Stream, page_size: int, progress: Progress = SILENT) -> int:
    """The kernel's checksum of all pages of a stream: CRC-32 without the usual inversions. Raises Damaged."""
    crc, step = 0, max(1, SEQUENTIAL_READ_SIZE // page_size)
    progress.start("checksum", stream.count * page_size)
    for first in range(0, stream.count, step):
        pages = stream.read(first, min(step, stream.count - first))
        crc = zlib.crc32(np.ascontiguousarray(pages).data, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        progress.at(min(first + step, stream.count) * page_size)
    progress.finish()
    return crc
