# SPDX-License-Identifier: GPL-3.0-or-later
"""Chunks of compressed hibernation images that are stored as the pages they hold: where those stand, and what bytes they make.

Used by ``recompress``, which stores them, by ``segments``, which checks what a manifest says of them, and by ``image``, which
makes them again. Pure functions; threads may call them at once. docs/format.md, "Chunks", describes what is stored.

A chunk on a device is its length (8 bytes), its pages compressed, and whatever the kernel's buffer held behind that, up to
the end of a page: the tail. The kernel uses one buffer for each of its threads, in turn: so the tail is what the chunks
before it left there, and mostly need not be stored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.repository.extents import Extents
from fuse_store.repository.manifest import CHUNK_GROUP, CHUNK_PAGES, Chunks

HEAD = struct.Struct("<Q")  # the length of what follows
THREADS = 8  # of the kernel, whose buffers may be told apart
FARTHEST = 32  # chunks before, in which part of a tail may stand


def largest(length: int) -> int:
    """The most bytes that the kernel's buffer has for ``length`` compressed."""
    return lzo.largest(length) + 2


def first_page(chunks: Chunks, page_size: int, number: int) -> int:
    """The page of the address space at which the pages of chunk ``number`` begin."""
    group, rank = divmod(number, CHUNK_GROUP)
    within = group * CHUNK_GROUP * (CHUNK_PAGES + 1) + rank * CHUNK_PAGES
    return chunks.first + within * (chunks.page_size // page_size)


def tail_page(chunks: Chunks, page_size: int, number: int) -> int:
    """The page of the address space at which the last page of chunk ``number`` begins, with what is behind the chunk alone.
    Those of a group stand behind all of its pages, so that what can be shared is not mixed with what can't."""
    group, rank = divmod(number, CHUNK_GROUP)
    within = group * CHUNK_GROUP * (CHUNK_PAGES + 1) + CHUNK_GROUP * CHUNK_PAGES + rank
    return chunks.first + within * (chunks.page_size // page_size)


def compressed(pages: NDArray[np.uint8]) -> bytes:
    """A chunk without its tail. Raises StoreError without the library."""
    packed = lzo.compress(pages)
    return HEAD.pack(len(packed)) + packed


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


def check(extents: Extents, chunks: Chunks, page_size: int) -> None:
    """Raises ValueError if what a segment says of chunks can't be."""
    rows = extents.chunks
    wrong = (
        (rows.number >= chunks.room)
        | (rows.pages < 1)
        | (rows.pages > CHUNK_PAGES)
        | (rows.length < 1)
        | (rows.length > rows.pages * chunks.page_size * 17 // 16 + largest(0))
        | (rows.tail > np.minimum(rows.number, THREADS))
    )
    if wrong.any():
        raise ValueError("its chunks have impossible values")
    made = extents.block >= extents.blocks
    if ((extents.page + extents.count)[made] > chunks.first).any():  # else a chunk could be made of itself
        raise ValueError("a chunk stands where its pages are")
    entries = -(-(HEAD.size + rows.length) // chunks.page_size) * (chunks.page_size // page_size)
    if ((extents.slot + extents.count)[made] > entries[extents.block[made] - extents.blocks]).any():
        raise ValueError("an extent goes past the end of its chunk")
