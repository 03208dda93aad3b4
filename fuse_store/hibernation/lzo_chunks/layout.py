# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the pages of LZO chunks stand in a version's address space, and which bytes a chunk is made of.

A chunk on a device is its length (8 bytes), its pages compressed, and whatever the kernel's buffer held behind that, up to
the end of a page: the tail. The kernel uses one buffer for each of its threads, in turn: so the tail is what the chunks
before it left there, and mostly need not be stored. Pure functions; threads may call them at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64
from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.repository.manifest import PAGE_SIZES, Computed, Head

TRANSFORM = "lzo"  # in the manifest
CHUNK_PAGES = 32  # of a hibernation image in a chunk, the last excepted (UNC_PAGES, kernel/power/swap.c)
CHUNK_GROUP = 32  # chunks whose pages stand together
MAX_CHUNKS = 1 << 20  # 128 GiB of pages of 4 KiB
LENGTH = struct.Struct("<Q")  # at the start of a chunk: bytes that follow
MAX_THREADS = 8  # of the kernel, whose buffers may be told apart
FARTHEST = 32  # chunks before, in which part of a tail may stand

# Parameters of a chunk: which one of the image it is, the bytes that it has compressed, the pages of the image that it holds, and
# where its tail comes from: 0 if the tail is stored, else every ``tail``-th chunk before it used the same buffer.
ROW = np.dtype([("number", "<u4"), ("length", "<u4"), ("pages", "u1"), ("tail", "u1")])


def columns(rows: NDArray[np.uint8]) -> NDArray[np.void]:
    """Rows of parameters, as their fields."""
    return np.ascontiguousarray(rows).reshape(-1).view(ROW)


@dataclass(frozen=True)
class Layout:
    """``page_size`` is that of the store, ``image_page_size`` that of the image, both in bytes; ``first`` the page of the address
    space at which the pages of the chunks begin; ``chunks`` for how many of them there is space."""

    page_size: int
    image_page_size: int
    first: int
    chunks: int

    @property
    def scale(self) -> int:
        """Pages of the store in one of the image."""
        return self.image_page_size // self.page_size

    @property
    def pages(self) -> int:
        """How many pages of the store they take in the address space."""
        return -(-self.chunks // CHUNK_GROUP) * CHUNK_GROUP * (CHUNK_PAGES + 1) * self.scale

    def first_page(self, number: int) -> int:
        """The page of the address space at which the pages of chunk ``number`` begin."""
        group, rank = divmod(number, CHUNK_GROUP)
        return self.first + (group * CHUNK_GROUP * (CHUNK_PAGES + 1) + rank * CHUNK_PAGES) * self.scale

    def tail_page(self, number: int) -> int:
        """The page of the address space at which the last page of chunk ``number`` begins, with the tail alone. Those of a group
        stand behind all of its pages, so that what can be shared is not mixed with what cannot."""
        group, rank = divmod(number, CHUNK_GROUP)
        return self.first + (group * CHUNK_GROUP * (CHUNK_PAGES + 1) + CHUNK_GROUP * CHUNK_PAGES + rank) * self.scale

    def computed(self, count: int) -> Computed:
        """For the manifest of a version that has ``count`` chunks stored as pages."""
        parameters = {"page_size": self.image_page_size, "chunks": self.chunks}
        return Computed(TRANSFORM, self.first, self.pages, count, ROW.itemsize, parameters)

    def check(self, rows: NDArray[np.uint8], slots: I64) -> None:
        """``image.kind.Transform.check``."""
        row = columns(rows)
        number, length, pages, tail = (row[name].astype(np.int64) for name in ("number", "length", "pages", "tail"))
        wrong = (
            (number >= self.chunks)
            | (pages < 1)
            | (pages > CHUNK_PAGES)
            | (length < 1)
            | (length > pages * self.image_page_size * 17 // 16 + largest(0))
            | (tail > np.minimum(number, MAX_THREADS))
        )
        if wrong.any():
            raise ValueError("LZO chunks have impossible values")
        entries = -(-(LENGTH.size + length) // self.image_page_size) * self.scale
        if (slots > entries).any():
            raise ValueError("an extent goes past the end of its LZO chunk")


def parse(computed: Computed, head: Head) -> Layout:
    """The Layout in a manifest. Raises ValueError."""
    image_page_size, chunks = computed.parameters.get("page_size", 0), computed.parameters.get("chunks", 0)
    if image_page_size not in PAGE_SIZES or image_page_size % head.page_size or len(head.files) != 1 or head.files[0].offset:
        raise ValueError("LZO chunks have impossible values")
    layout = Layout(head.page_size, image_page_size, computed.first, chunks)
    if not 0 < computed.count <= chunks <= MAX_CHUNKS or layout.computed(computed.count) != computed:
        raise ValueError("LZO chunks have impossible values")
    return layout


def largest(length: int) -> int:
    """The most bytes that the kernel's buffer has for ``length`` compressed."""
    return lzo.largest(length) + 2


def compressed(pages: NDArray[np.uint8]) -> bytes:
    """A chunk without its tail. Raises StoreError without the library."""
    content = lzo.compress(pages)
    return LENGTH.pack(len(content)) + content


def left_behind(begin: int, end: int, threads: int, before: Callable[[int], bytes | None]) -> bytes | None:
    """What the chunks before one left in its buffer between two offsets, if every ``threads``-th used it; None if that is not
    known. ``before`` gives a chunk without its tail, by how many chunks before it is; None where that is not known."""
    parts = []
    for distance in range(threads, FARTHEST + 1, threads):
        earlier = before(distance)
        if earlier is None:
            return None
        if len(earlier) > begin:
            parts.append(earlier[begin:end])
            begin += len(parts[-1])
        if begin == end:
            return b"".join(parts)
    return None
