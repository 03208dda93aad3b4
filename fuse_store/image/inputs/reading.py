# SPDX-License-Identifier: GPL-3.0-or-later
"""From runs of pages in open files to batches. Holes are looked up, not read: reading them would fill the page cache with zeros.

One thread reads, and many small files come in one batch: a thread or a batch for each would take longer than all of the rest.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import expand
from fuse_store.image.inputs.input import Batch, Doubts, InputFile

BATCH_SIZE = 8 << 20  # bytes that are read at once; a multiple of every page size
MIN_HOLE = 16 << 10  # a hole that is smaller than this is read
SKIP_RUNS = 1 << 16  # of what is skipped, looked at at once

Spans = Iterator[tuple[int, int]]  # (start, end) in a file, in bytes of whole pages
ReadInto = Callable[[memoryview, int], int]  # (buffer, offset) → bytes that were read, 0 at the end


@dataclass(frozen=True)
class Run:
    """Bytes ``start`` to ``end``, in whole pages, of a file of ``size`` bytes; they begin at ``page`` of the image."""

    read_into: ReadInto
    start: int
    end: int
    size: int
    page: int
    path: str


def batches(
    runs: Generator[Run, None, None], total: int, page_size: int, doubts: Doubts, buffers: Sequence[memoryview]
) -> Iterator[Batch]:
    """The batches of ``runs``, the next one read ahead while one is used. A run is asked for after the one before it was read.
    ``total``: the bytes of the image. ``buffers``: as of ``Input.batches``."""
    source = _batches(runs, total, page_size, doubts, buffers or new_buffers())
    try:
        with ThreadPoolExecutor(1, "read") as pool:
            job = pool.submit(next, source, None)
            while (batch := job.result()) is not None:
                job = pool.submit(next, source, None)
                yield batch
    finally:
        source.close()
        runs.close()


def new_buffers() -> list[memoryview]:
    """For ``Input.batches``, if the caller has none."""
    return [np.empty(BATCH_SIZE, np.uint8).data for _ in range(2)]  # in huge pages, unlike a bytearray


def in_order(
    read_into: Callable[[memoryview], int], page_size: int, buffers: Sequence[memoryview]
) -> Generator[Batch, None, None]:  # fmt: skip
    """The batches of what has no holes, and is read from its start to its end. ``read_into`` has the next bytes in a buffer: how many, 0 at
    the end."""
    end, got = 0, -1
    for number, buffer in itertools.cycle(enumerate(buffers or new_buffers())):
        filled = 0
        while filled < len(buffer) and (got := read_into(buffer[filled:])):
            filled += got
        if filled:
            whole = -(-filled // page_size) * page_size
            buffer[filled:whole] = bytes(whole - filled)
            yield Batch(end // page_size + np.arange(whole // page_size), buffer[:whole], end + filled, number)
        if not got:
            return
        end += filled


def _batches(
    runs: Iterator[Run], total: int, page_size: int, doubts: Doubts, buffers: Sequence[memoryview]
) -> Generator[Batch, None, None]:  # fmt: skip
    room = min(len(buffers[0]), -(-total // page_size) * page_size)
    turn = itertools.cycle(enumerate(buffers))
    number, buffer = next(turn)
    filled, end = 0, 0
    parts: list[tuple[int, int]] = []  # first page, number of pages
    for run in runs:
        start, page = run.start, run.page
        while start < run.end:
            length = min(run.end - start, room - filled)
            _fill(run, buffer[filled : filled + length], start, min(length, run.size - start), doubts)
            parts.append((page, length // page_size))
            filled, start, page = filled + length, start + length, page + length // page_size
            end = min(page * page_size, total)
            if filled == room:
                yield Batch(_pages(parts), buffer[:filled], end, number)
                filled, parts = 0, []
                number, buffer = next(turn)
    if filled:
        yield Batch(_pages(parts), buffer[:filled], end, number)


def _pages(parts: list[tuple[int, int]]) -> NDArray[np.int64]:
    first, count = (np.array(column, np.int64) for column in zip(*parts, strict=True))
    return expand(first, count)


def _fill(run: Run, buffer: memoryview, offset: int, wanted: int, doubts: Doubts) -> None:
    """``wanted`` bytes at ``offset`` of the file, zeros after them."""
    got = 0
    while got < wanted:
        number = run.read_into(buffer[got:wanted], offset + got)
        if number == 0:
            doubts.differs(run.path, "became shorter while being read")
            break
        got += number
    if got < len(buffer):
        buffer[got:] = bytes(len(buffer) - got)


def runs_of(descriptor: int, file: InputFile, page: int, page_size: int, path: str, check: Callable[[], None]) -> Iterator[Run]:
    """The runs of an open file whose first page is ``page`` of the image. ``check`` is called after each."""
    assert file.size is not None

    def read_into(buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

    for start, end in _without(_data(descriptor, file.size, page_size), file.skip, page_size):
        for begin in range(start, end, BATCH_SIZE):
            yield Run(read_into, begin, min(begin + BATCH_SIZE, end), file.size, page + begin // page_size, path)
            check()


def _data(descriptor: int, size: int, page_size: int) -> Spans:
    """What is no hole; the last end may lie past the end of the file."""
    if size < MIN_HOLE:
        if size:
            yield 0, -(-size // page_size) * page_size
        return
    start = end = at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # only a hole is left
            begin, at = at, size  # whatever it is, it knows no holes
        begin, stop = begin // page_size * page_size, -(-min(at, size) // page_size) * page_size
        if begin - end < MIN_HOLE and end:
            end = max(end, stop)
            continue
        if end:
            yield start, end
        start, end = begin, stop
    if end > start:
        yield start, end


def _without(data: Spans, skip: tuple[NDArray[np.int64], NDArray[np.int64]] | None, page_size: int) -> Spans:
    """The same without the runs of pages in ``skip``, which are in order."""
    if skip is None:
        yield from data
        return
    begin, stop = skip[0] * page_size, (skip[0] + skip[1]) * page_size
    for start, end in data:
        low, high = int(np.searchsorted(stop, start, "right")), int(np.searchsorted(begin, end, "left"))
        for at in range(low, high, SKIP_RUNS):
            part = slice(at, min(at + SKIP_RUNS, high))
            for gap, after in zip(begin[part].tolist(), stop[part].tolist(), strict=True):
                if start < gap:
                    yield start, gap
                start = max(start, after)
        if start < end:
            yield start, end
