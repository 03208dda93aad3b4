# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a version. Used by ``targets``, ``upkeep`` and whoever shows an image; threads may share one Image.

Whatever is read was verified, or Damaged is raised, which names the image, the extent and the pack. Scattered pages make
many small extents of few blocks; so the pages of a range are gathered block by block, and the blocks used last are kept.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fuse_store.blocks import LARGEST
from fuse_store.crypto import Sealer
from fuse_store.errors import Damaged
from fuse_store.extents import Extents
from fuse_store.manifest import Head, ImageFile, read_head, read_segment, summary
from fuse_store.packs import PackReader

CACHE = 64 << 20  # bytes of opened blocks
SEGMENTS = 4  # kept in memory, about 2 MB each


class BlockCache:
    """Opened blocks, the ones used last, and those that are being opened. One for all images of a store."""

    def __init__(self, reader: PackReader) -> None:
        self._reader = reader
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._opening: dict[bytes, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "open")

    def get(self, digest: bytes, hint: bytes) -> bytes:
        """The pages of a block. Raises Damaged."""
        return self.begin(digest, hint).result()

    def begin(self, digest: bytes, hint: bytes) -> Future[bytes]:
        """Have a block opened in a thread, unless it is at hand."""
        with self._lock:
            block = self._blocks.get(digest)
            if block is not None:
                self._blocks.move_to_end(digest)
                done: Future[bytes] = Future()
                done.set_result(block)
                return done
            job = self._opening.get(digest)
            if job is None:
                job = self._opening[digest] = self._pool.submit(self._open, digest, hint)
            return job

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _open(self, digest: bytes, hint: bytes) -> bytes:
        try:
            block = self._reader.read(digest, hint)
        except BaseException:
            with self._lock:
                self._opening.pop(digest, None)
            raise
        with self._lock:
            self._opening.pop(digest, None)
            self._blocks[digest] = block
            self._size += len(block)
            while self._size > CACHE:
                self._size -= len(self._blocks.popitem(last=False)[1])
        return block


class Image:
    """An open version. Offsets are those of its address space, in which its files follow each other at page boundaries."""

    def __init__(self, root: Path, image_id: str, sealer: Sealer, blocks: BlockCache) -> None:
        self._root, self._sealer, self._blocks = root, sealer, blocks
        self.id = image_id
        self.head: Head
        self.head, self._start = read_head(root, image_id, sealer)
        self.summary = summary(image_id, self.head)
        self.files: tuple[ImageFile, ...] = self.head.files
        self.size = max((file.offset + file.size for file in self.files), default=0)
        self._firsts = np.array([segment.first for segment in self.head.segments], np.int64)
        self._segments: OrderedDict[int, Extents] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, fewer at the end of the image. Raises Damaged."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        page_size = self.head.page_size
        first, last = offset // page_size, -(-(offset + length) // page_size)
        out = np.zeros((last - first, page_size), np.uint8)
        for extents, page, block, slot in self._parts(first, last):
            order = np.argsort(block, kind="stable")
            page, block, slot = page[order], block[order], slot[order]
            starts = np.flatnonzero(np.diff(block, prepend=-1))
            jobs = [
                self._blocks.begin(extents.digest(one), extents.pack(one)) for one in (int(block[start]) for start in starts)
            ]
            for start, end, job in zip(starts, np.append(starts[1:], len(block)), jobs, strict=True):
                rows = page[start:end] - first
                try:
                    pages = np.frombuffer(job.result(), np.uint8)
                    whole = len(pages) // page_size
                    out[rows] = pages[: whole * page_size].reshape(whole, page_size)[slot[start:end]]
                except Damaged as error:
                    error.image, error.extent = self.id, f"{int(page[start]) * page_size:#x}"
                    raise
                except IndexError:
                    raise Damaged(
                        f"image {self.id}", "an extent goes past the end of its block.", image=self.id,
                        extent=f"{int(page[start]) * page_size:#x}",
                    ) from None  # fmt: skip
        start_in = offset - first * page_size
        return out.reshape(-1)[start_in : start_in + length].tobytes()

    def prefetch(self, offset: int, length: int) -> None:
        """Have the blocks of a range opened in the background."""
        page_size = self.head.page_size
        for extents, _page, block, _slot in self._parts(offset // page_size, -(-(offset + length) // page_size)):
            for one in np.unique(block):
                self._blocks.begin(extents.digest(int(one)), extents.pack(int(one)))

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is stored between two offsets, in order; the rest is zeros. Raises Damaged."""
        page_size = self.head.page_size
        for _extents, page, _block, _slot in self._parts(start // page_size, -(-end // page_size)):
            breaks = np.flatnonzero(np.diff(page, prepend=-2) != 1)
            for low, high in zip(breaks, np.append(breaks[1:], len(page)), strict=True):
                begin = max(start, int(page[low]) * page_size)
                stop = min(end, (int(page[high - 1]) + 1) * page_size, self.size)
                if begin < stop:
                    yield begin, stop - begin

    def blocks(self) -> Iterator[tuple[bytes, bytes, int]]:
        """(digest, pack at capture, offset of its first use) of every block that the image needs; some more than once."""
        for number in range(len(self.head.segments)):
            extents = self._segment(number)
            used, where = np.unique(extents.block, return_index=True)
            for one, row in zip(used, where, strict=True):
                yield extents.digest(int(one)), extents.pack(int(one)), int(extents.page[row]) * self.head.page_size

    def packs(self) -> set[bytes]:
        """The packs that the image was captured into or from."""
        found: set[bytes] = set()
        for number in range(len(self.head.segments)):
            packs = self._segment(number).packs
            found.update(packs[at : at + 16] for at in range(0, len(packs), 16))
        return found

    def _parts(
        self, first: int, last: int
    ) -> Iterator[tuple[Extents, np.typing.NDArray[np.int64], np.typing.NDArray[np.int64], np.typing.NDArray[np.int64]]]:
        number = max(0, int(np.searchsorted(self._firsts, first, "right")) - 1)
        while number < len(self._firsts) and self._firsts[number] < last:
            extents = self._segment(number)
            page, block, slot = extents.between(first, last)
            if len(page):
                yield extents, page, block, slot
            number += 1

    def _segment(self, number: int) -> Extents:
        with self._lock:
            if number in self._segments:
                self._segments.move_to_end(number)
                return self._segments[number]
        extents = read_segment(self._root, self.id, self.head, number, self._start, self._sealer)
        if extents.page.size and (extents.slot + extents.count).max() > LARGEST // self.head.page_size:
            raise Damaged(f"image {self.id}", "an extent goes past the end of its block.", image=self.id)
        with self._lock:
            self._segments[number] = extents
            while len(self._segments) > SEGMENTS:
                self._segments.popitem(last=False)
        return extents
