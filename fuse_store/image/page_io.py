# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of an image, compared with a file or device and written to it.

Pages are read block by block, in the order of the packs, and written in large pieces. Pages that are there already, because a
``get`` was interrupted or an older version is on the device, are recognised by their digests without opening a block. For one
thread; it has others for reading and writing.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, joint_runs, run_starts, runs
from fuse_store.errors import Damaged
from fuse_store.image import devices
from fuse_store.image.block_cache import Each
from fuse_store.image.reader import Image, zeros
from fuse_store.image.segments import Place
from fuse_store.processes.forking import shared
from fuse_store.processes.workers import Result, Workers
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.block import split
from fuse_store.repository.manifest import ImageFile

COMPARE_WINDOW = 8 << 20  # bytes that are read and compared at once
DIRECT = 8  # pages that are worth a write of their own
MAX_GATHERED = 32 << 20  # bytes of other pages: half of them are gathered, while the other half is written
STREAM_WINDOW = 4 << 20  # bytes of an image that are read at once for a stream
STREAM_WINDOWS = 8  # that are read ahead
_GATHERED = 1 << 40  # a page of a file that no file has: those from here on are gathered
ZEROS = zeros(COMPARE_WINDOW)

_Piece = tuple[int, int, int]  # its first page in what is gathered, its first page in the file, how many pages
Stretch = tuple[int, list[Place], list[tuple[int, int]]]


def write(image: Image, file: ImageFile, descriptor: int, progress: Progress, *, compare: bool, zeros: bool) -> int:
    """Write a file of the image at the start of ``descriptor``. ``compare``: leave what is right already. ``zeros``: something
    else may stand where the image has zeros. Returns how many bytes were written."""
    written = 0
    progress.start("get", file.size)
    gathered = shared(MAX_GATHERED)
    try:
        with image.crew(0 if compare else min(file.size, image.summary.allocated)) as crew:
            each, shown = image.each_with(crew), SILENT if crew.number else progress
            scatter = Scatter(image, file, descriptor, gathered, each)
            handled = 0  # bytes, as far as this process can tell
            for at, places, holes in differing(image, file, descriptor) if compare else _everything(image, file, zeros):
                written += sum(each(functools.partial(_write_zeros, descriptor), _split(holes)))
                for place in places:
                    for wrote, known in scatter.write(place, crew.count):
                        written, handled = written + wrote, handled + known
                        if not compare:
                            shown.at(min(handled, at))
                shown.at(at)
    finally:
        progress.finish()
    return written


def _split(holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of holes of at most COMPARE_WINDOW bytes."""
    return [(begin, min(begin + COMPARE_WINDOW, end)) for start, end in holes for begin in range(start, end, COMPARE_WINDOW)]


def _write_zeros(descriptor: int, hole: tuple[int, int]) -> int:
    start, end = hole
    devices.write_at(descriptor, ZEROS[: end - start], start)
    return end - start


def _everything(image: Image, file: ImageFile, zeros: bool) -> Iterator[Stretch]:
    """(end, its pages, where it has zeros) of each segment of a file."""
    size = image.head.page_size
    first = done = file.offset // size
    last = -(-(file.offset + file.size) // size)
    for place in image.places(first, last):
        end = int(place.page[-1]) + 1
        yield min((end - first) * size, file.size), [place], _gaps(place.page, done, end, first, size, file.size) if zeros else []
        done = end
    if zeros and done < last:
        yield file.size, [], [((done - first) * size, file.size)]


def differing(image: Image, file: ImageFile, descriptor: int) -> Iterator[Stretch]:
    """The same, of what stands otherwise in ``descriptor``; in windows."""
    size = image.head.page_size
    first = file.offset // size
    last = -(-(file.offset + file.size) // size)
    step = COMPARE_WINDOW // size
    for low, there, got in _windows(descriptor, first, last, step, size, file.size):
        high = min(low + step, last)
        start = (low - first) * size
        length = min((high - low) * size, file.size - start)
        content, pages = np.frombuffer(there, np.uint8).reshape(-1, size), split(there, size)
        filled = np.zeros(len(content), bool) if not got else np.bitwise_or.reduce(content.view(np.uint64), axis=1) != 0
        stale = []
        for place in image.places(low, high):
            rows = place.page - low
            filled[rows] = False
            wanted = image.page_digests(place)
            have = np.frombuffer(image.aead.page_digests([pages[row] for row in rows.tolist()]), "<u8").reshape(-1, 2)
            same = (have == wanted).all(axis=1)
            if not same.all():
                stale.append(place.select(~same))
        holes = [
            (start + begin * size, min(start + end * size, file.size)) for begin, end in runs(np.flatnonzero(filled))
        ]
        yield start + length, stale, holes


def in_order(image: Image) -> Iterator[memoryview]:
    """The bytes of an image from its start to its end, in parts that are valid until the next one. What follows is read by others while one
    is in use. Raises Damaged, StoreError, behind all that comes before what is damaged."""
    windows = [np.frombuffer(shared(STREAM_WINDOW), np.uint8) for _window in range(STREAM_WINDOWS)]
    free, begun = deque(range(STREAM_WINDOWS)), deque[tuple[int, int, Result[bool]]]()
    workers = Workers(ahead=2)

    def read(at: int, number: int) -> bool:
        return image.read_into(at, windows[number])

    begin = workers.task(read, threads=True)
    with workers.running(forked=image.is_worth_processes(image.summary.allocated)):
        at = 0
        while at < image.size or begun:
            while free and at < image.size:
                number = free.popleft()
                begun.append((at, number, begin(at, number)))
                at += STREAM_WINDOW
            start, number, filled = begun.popleft()
            yield (windows[number].data if filled.result() else ZEROS)[: min(STREAM_WINDOW, image.size - start)]
            free.append(number)


def _windows(descriptor: int, first: int, last: int, step: int, size: int, most: int) -> Iterator[tuple[int, memoryview, int]]:
    """(first page, content, bytes that were read) of windows of ``step`` pages, valid until the next one; the rest is zeros,
    as it is behind ``most`` bytes. The next is read while this one is compared. Two buffers serve for all: a fresh one each
    time costs as much as the reading."""
    buffers = deque(memoryview(mmap.mmap(-1, COMPARE_WINDOW)) for _buffer in range(2))  # as aligned as O_DIRECT wants it

    def read(low: int) -> tuple[int, memoryview, int]:
        buffer = buffers[0]
        buffers.rotate()
        start = (low - first) * size
        there = buffer[: (min(low + step, last) - low) * size]
        got = min(_read_into(descriptor, start, there), most - start)
        if not got:
            return low, ZEROS[: len(there)], 0
        there[got:] = ZEROS[: len(there) - got]
        return low, there, got

    with ThreadPoolExecutor(1, "read") as pool:
        ahead = pool.submit(read, first) if first < last else None
        for low in range(first, last, step):
            assert ahead is not None
            window = ahead.result()
            if low + step < last:
                ahead = pool.submit(read, low + step)
            yield window


def _gaps(page: I64, low: int, high: int, first: int, size: int, most: int) -> list[tuple[int, int]]:
    """(start, end) in bytes of what ``page`` leaves out of low..high."""
    edges = np.concatenate(([low - 1], page, [high]))
    breaks = np.flatnonzero(np.diff(edges) > 1)
    begin, end = (edges[breaks] + 1 - first) * size, np.minimum((edges[breaks + 1] - first) * size, most)
    return list(zip(begin.tolist(), end.tolist(), strict=True))


class Scatter:
    """Writes pages where they belong in a file of an image. Pieces of DIRECT pages or more are written from the block that has them. A
    write for each of the smaller ones would take longer than copying them: they are gathered in ``gathered``, which the processes of
    ``each`` share. When a half of it is full, one process writes what is there, while the others fill the other half: a file system writes
    one thing at a time to a file, and others who want to write use a processor while they wait."""

    def __init__(self, image: Image, file: ImageFile, descriptor: int, gathered: memoryview, each: Each) -> None:
        self._image, self._file, self._descriptor, self._gathered, self._each = image, file, descriptor, gathered, each

    def write(self, place: Place, processes: int = 1) -> Iterator[tuple[int, int]]:
        """The bytes written each time, and for progress those that were probably written: other ``processes`` do as much as this one, and
        tell when all of a part is done. Nothing is written any more when this has ended."""
        size = self._image.head.page_size
        rows = place.page - self._file.offset // size
        small = np.flatnonzero(_in_small_pieces(place))
        most = len(self._gathered) // 2 // size
        parts = np.split(small, range(most, len(small), most))
        ends = [int(part[-1]) + 1 for part in parts[:-1]] + [len(rows)]
        gathered: list[_Piece] = []  # and not written
        for turn, (begin, end, part) in enumerate(zip([0, *ends], ends, parts, strict=False)):
            half = turn % 2 * most
            targets = rows[begin:end].copy()
            targets[part - begin] = _GATHERED + half + np.arange(len(part))
            meanwhile = functools.partial(self._write_gathered, gathered) if gathered else None
            pages = place.select(np.arange(begin, end))
            with closing(self._image.visit(pages, targets, self._write_pieces, self._each, meanwhile)) as visited:
                left = (end - begin) * size
                for wrote in visited:
                    known = min(wrote * processes, left)
                    left -= known
                    yield wrote, known
            gathered = _pieces(rows[part], half)
        for _none in self._each(self._write_gathered, [gathered] if gathered else []):
            pass
        yield min(0, self._file.size - (int(rows[-1]) + 1) * size), 0  # what the last page has beyond the end

    def _write_pieces(self, content: memoryview, targets: Sequence[slice], sources: Sequence[slice]) -> None:
        """A ``Handler``: write pieces of a block, or gather them."""
        beyond = _GATHERED * self._image.head.page_size
        for target, source in zip(targets, sources, strict=True):
            if target.start >= beyond:
                self._gathered[target.start - beyond : target.stop - beyond] = content[source]
            else:
                self._write_at(content[source], target.start)

    def _write_gathered(self, pieces: Sequence[_Piece]) -> None:
        size = self._image.head.page_size
        for at, page, count in pieces:
            self._write_at(self._gathered[at * size : (at + count) * size], page * size)

    def _write_at(self, content: memoryview, offset: int) -> None:
        devices.write_at(self._descriptor, content[: self._file.size - offset], offset)


def _pieces(rows: I64, first: int) -> list[_Piece]:
    """Of pages of a file that stand one after the other in ``gathered``, from page ``first`` there on."""
    begins = run_starts(rows)
    counts = np.diff(np.append(begins, len(rows)))
    return list(zip((first + begins).tolist(), rows[begins].tolist(), counts.tolist(), strict=True))


def _in_small_pieces(place: Place) -> NDArray[np.bool_]:
    """Whether each page stands, together with less than DIRECT - 1 others that follow each other in the image, in a block."""
    order = np.argsort(place.block, kind="stable")
    count = joint_runs(place.page[order], place.block[order], place.slot[order])[1]
    small = np.empty(len(order), bool)
    small[order] = np.repeat(count < DIRECT, count)
    return small


def read_back(image: Image, descriptor: int, path: Path, progress: Progress) -> None:
    """Compare a device with the image. Raises Damaged, which says where they differ."""
    progress.start("compare", image.size)
    for at, stale, holes in differing(image, image.files[0], descriptor):
        if stale or holes:
            where = int(stale[0].page[0]) * image.head.page_size if stale else holes[0][0]
            raise Damaged(f"device {path}", f"data written at {where:#x} reads back differently.", "Do not use the device.")
        progress.at(at)
    progress.finish()


def _read_into(descriptor: int, at: int, buffer: memoryview) -> int:
    """Fill the buffer; how many bytes there were, without zeros that are only a hole in a file."""
    try:
        if os.lseek(descriptor, at, os.SEEK_DATA) >= at + len(buffer):
            return 0
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data any more
            return 0
    got = 0
    while got < len(buffer) and (number := os.preadv(descriptor, [buffer[got:]], at + got)):
        got += number
        if got % 512:
            break  # the end of a file
    return got
