# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes hibernation images that any kernel since 2.6 resumes: uncompressed, staged, not armed. Used by ``device``.

Out of another image, whatever its compression, or out of the stream that /dev/snapshot gives. The pages of the stream come
first, then the swap map; the header is not written but returned, because it has to be the last thing that reaches the
device. Until then the device must not have an armed header: what it leads to is overwritten here.

A swap area holds more than the image: the pages that were swapped out before, which the restored processes need. The kernel
takes free slots for the image, so what is safe to overwrite are the blocks that the image itself stands in, and what is
behind the swap area. Whoever knows that nothing was swapped out may say so, with ``Room.runs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import Damaged, Refused, StoreError, UsageError
from fuse_store.formats.swsusp import header as headers
from fuse_store.formats.swsusp import info as infos
from fuse_store.formats.swsusp import layout
from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.stream import STEP, Crc, Pages
from fuse_store.progress import SILENT, Progress

I64 = NDArray[np.int64]
KEPT_FLAGS = layout.PLATFORM | layout.HW_SIG  # what means something to a kernel that resumes another image


@dataclass(frozen=True)
class Staged:
    """``header`` is the page to write at byte ``offset`` when all else is durable; it is not armed. ``pages`` of the
    stream and ``map_pages`` were written."""

    header: bytes
    offset: int
    pages: int
    map_pages: int


@dataclass(frozen=True)
class Room:
    """Where an image may go: ``swap`` is the page with the header of the swap area, which stands at ``resume_offset``.

    ``blocks`` of ``page_size`` bytes are on the whole device. ``runs`` are (first block, how many) of those that may be
    overwritten; see ``stage_image`` and ``stage_stream`` for what None means.
    """

    page_size: int
    blocks: int
    swap: bytes
    resume_offset: int = 0
    runs: Sequence[tuple[int, int]] | None = None


def stage_image(
    image: HibernationImage, target: BinaryIO, room: Room, materialise_zeros: bool = False, progress: Progress = SILENT
) -> Staged:
    """Write ``image`` to ``target``, uncompressed. ``materialise_zeros`` stores the pages that it only lists as zeros,
    for kernels before 6.6. The kernel's checksum is compared on the way.

    ``target`` must hold what the image's own device holds in all other blocks, and not be what the image is read from.
    Without ``room.runs`` the blocks that the image itself stands in are taken, and those behind the swap area.
    Raises Refused if it does not fit or the swap area is none, Damaged, StoreError.
    """
    if room.page_size != image.page_size:
        raise Refused("image", f"its pages have {image.page_size} bytes, those of the device {room.page_size}.")
    header, info = image.header, image.info
    stored = image.pages.count if materialise_zeros else info.stored
    first = infos.patched(image.first_page, stored, 1 + info.lists + stored, image.page_size)
    batches = _with_zeros(image, first) if materialise_zeros else _as_stored(image, first)
    if room.runs is None:
        room = replace(room, runs=safe_runs(image, room))
    return _stage(batches, 1 + info.lists + stored, target, room, header.flags, header.hardware_signature or 0, progress)


def stage_stream(stream: BinaryIO, target: BinaryIO, room: Room, progress: Progress = SILENT) -> Staged:
    """Write the stream of /dev/snapshot to ``target``. Such a snapshot is taken without swap in use; so without
    ``room.runs`` a whole swap partition is taken. Raises Refused, Damaged if it ends early, StoreError."""
    batches = _from_stream(stream, room.page_size)
    first = next(batches)
    total = infos.parse(first.tobytes(), room.page_size).pages
    return _stage(_chain(first, batches), total, target, room, 0, 0, progress)


def safe_runs(image: HibernationImage, room: Room) -> list[tuple[int, int]]:
    """What is free for certain: the blocks of ``image``, and of a partition those behind the swap area."""
    own = image.map
    begin = np.concatenate((own.block, own.pages))
    count = np.concatenate((np.diff(own.first, append=own.count), np.ones(len(own.pages), np.int64)))
    order = np.argsort(begin)
    begin, count = begin[order], count[order]
    joined = np.flatnonzero(np.concatenate(([True], begin[1:] != (begin + count)[:-1])))
    runs = list(zip(begin[joined].tolist(), np.add.reduceat(count, joined).tolist(), strict=True))
    _version, last_page, *_rest = layout.SWAP.unpack_from(room.swap, layout.SWAP_AT)
    behind = room.blocks - last_page - 1
    return [*runs, (last_page + 1, behind)] if behind > 0 and not room.resume_offset else runs


def _as_stored(image: HibernationImage, first: bytes) -> Iterator[Pages]:
    yield np.frombuffer(first, np.uint8).reshape(1, -1)
    crc, step = Crc(), max(1, STEP // image.page_size)
    for number in range(0, image.stream.count, step):
        content = image.stream.read(number, min(step, image.stream.count - number))
        _add(crc, image, content)
        yield content
    _compare(crc, image)


def _with_zeros(image: HibernationImage, first: bytes) -> Iterator[Pages]:
    yield np.frombuffer(first, np.uint8).reshape(1, -1)
    crc, step, pages = Crc(), max(1, STEP // image.page_size), image.pages
    for number in range(0, image.info.lists, step):
        lists = image.stream.read(number, min(step, image.info.lists - number))
        _add(crc, image, lists)
        words = lists.view("<u8").copy()
        zero = (words & np.uint64(layout.ZERO_FLAG) != 0) & (words != layout.END_OF_PFNS)
        words[zero] &= np.uint64(layout.ZERO_FLAG - 1)
        yield words.view(np.uint8)
    for number in range(0, pages.count, step):
        _pfn, place = pages.numbered(number, min(step, pages.count - number))
        kept = place >= 0
        content = np.zeros((len(place), image.page_size), np.uint8)
        if kept.any():
            stored = image.stored(int(place[kept][0]), int(np.count_nonzero(kept)))
            _add(crc, image, stored)
            content[kept] = stored
        yield content
    _compare(crc, image)


def _add(crc: Crc, image: HibernationImage, content: Pages) -> None:
    if image.header.crc32 is not None:
        crc.add(content)


def _compare(crc: Crc, image: HibernationImage) -> None:
    if image.header.crc32 not in (None, crc.value):
        raise Damaged(
            headers.THING, f"the kernel's checksum is {image.header.crc32:#010x}, that of its pages {crc.value:#010x}.",
            "Take another version.",
        )  # fmt: skip


def _from_stream(stream: BinaryIO, page_size: int) -> Iterator[Pages]:
    """Pages as they come. The device gives one at a time; the first is alone in its batch, because it tells the rest."""
    wanted = page_size
    while True:
        buffer = bytearray(wanted)
        got = 0
        try:
            while got < wanted:
                part = stream.read(wanted - got)
                if not part:
                    break
                buffer[got : got + len(part)] = part
                got += len(part)
        except OSError as error:
            raise StoreError("snapshot", f"reading it failed: {error.strerror}.") from None
        if got % page_size or (wanted == page_size and not got):
            raise Damaged("snapshot", f"it ends within a page of {page_size} bytes.", "Take it again.")
        if got:
            yield np.frombuffer(buffer, np.uint8)[:got].reshape(-1, page_size)
        if got < wanted:
            return
        wanted = max(page_size, STEP // page_size * page_size)


def _chain(first: Pages, rest: Iterator[Pages]) -> Iterator[Pages]:
    yield first
    yield from rest


def _stage(
    batches: Iterator[Pages], total: int, target: BinaryIO, room: Room, flags: int, hw_sig: int, progress: Progress
) -> Staged:
    entries = layout.map_entries(room.page_size)
    map_pages = -(-total // entries)
    places = _Places(room, total + map_pages)
    map_block = int(places.blocks(total, 1)[0])
    flags = flags & KEPT_FLAGS | layout.NOCOMPRESS
    header = headers.staged(room.swap, room.page_size, map_block, flags, hw_sig)
    written = 0
    progress.start("stage", (total + map_pages) * room.page_size)
    try:
        for content in batches:
            if written + len(content) > total:
                raise Damaged("snapshot", f"it goes on after the {total} pages that it says it has.", "Take it again.")
            _write(target, places, written, content)
            written += len(content)
            progress.at(written * room.page_size)
        if written != total:
            raise Damaged("snapshot", f"it ends after {written} of {total} pages.", "Take it again.")
        step = max(1, STEP // room.page_size)
        for number in range(0, map_pages, step):
            _write(target, places, total + number, _map(places, total, number, min(step, map_pages - number), entries))
    except OSError as error:
        raise StoreError("device", f"writing to it failed: {error.strerror}.") from None
    progress.finish()
    return Staged(header, room.resume_offset * room.page_size, total, map_pages)


def _map(places: _Places, total: int, first: int, count: int, entries: int) -> Pages:
    """``count`` pages of the swap map, from the ``first`` on. Pages 0 to ``total`` - 1 are the stream, then comes the map."""
    table = np.zeros((count, entries + 1), "<u8")
    listed = min(total, (first + count) * entries) - first * entries
    flat = np.zeros(count * entries, np.int64)
    flat[:listed] = places.blocks(first * entries, listed)
    table[:, :entries] = flat.reshape(count, entries)
    following = min(count, places.count - total - first - 1)
    table[:following, entries] = places.blocks(total + first + 1, following)
    return table.view(np.uint8)


class _Places:
    """The blocks that ``count`` pages go to, in the order of the room's runs."""

    def __init__(self, room: Room, count: int) -> None:
        self.count, self.page_size = count, room.page_size
        if len(room.swap) != room.page_size:
            raise UsageError("device", f"the header of its swap area has {len(room.swap)} bytes, a page {room.page_size}.")
        _version, last_page, bad_pages, _uuid, _label = layout.SWAP.unpack_from(room.swap, layout.SWAP_AT)
        if bad_pages:
            raise Refused("device", f"its swap area has {bad_pages} bad pages.", "Make one without them.")
        if room.runs is None and room.resume_offset:
            raise UsageError("device", "for a swap file its extents must be given.")
        runs = np.array([(1, min(room.blocks - 1, last_page))] if room.runs is None else room.runs, np.int64).reshape(-1, 2)
        runs = _without(runs, room.resume_offset)
        if (runs[:, 0] <= 0).any() or (runs.sum(axis=1) > room.blocks).any():
            raise UsageError("device", f"the runs of its swap area are not within its {room.blocks} blocks.")
        self._begin = runs[:, 0]
        self._ends = np.cumsum(runs[:, 1])
        free = int(self._ends[-1]) if len(runs) else 0
        if free < count:
            raise Refused(
                "device", f"the image takes {count} pages of {room.page_size} bytes, and there is room for {free}.",
                "Take a larger device: what is behind the swap area is free.",
            )  # fmt: skip

    def blocks(self, first: int, count: int) -> I64:
        """The block of each of ``count`` pages from ``first`` on."""
        place = np.arange(first, first + count)
        run = np.searchsorted(self._ends, place, "right")
        before = np.concatenate(([0], self._ends))[run]
        return np.asarray(self._begin[run] + place - before, np.int64)

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(block, how many) of the same pages."""
        run = int(np.searchsorted(self._ends, first, "right"))
        while count:
            before = int(self._ends[run - 1]) if run else 0
            here = min(count, int(self._ends[run]) - first)
            yield int(self._begin[run]) + first - before, here
            first, count, run = first + here, count - here, run + 1


def _without(runs: I64, block: int) -> I64:
    """The runs without one block, that of the header; and without empty ones."""
    parts = []
    for begin, count in runs.tolist():
        if begin <= block < begin + count:
            parts += [(begin, block - begin), (block + 1, begin + count - block - 1)]
        else:
            parts.append((begin, count))
    return np.array([part for part in parts if part[1] > 0], np.int64).reshape(-1, 2)


def _write(target: BinaryIO, places: _Places, first: int, content: Pages) -> None:
    row = 0
    for block, count in places.runs(first, len(content)):
        target.seek(block * places.page_size)
        view = np.ascontiguousarray(content[row : row + count]).data.cast("B")
        while view:
            done = target.write(view)
            view = view[done:]
        row += count
