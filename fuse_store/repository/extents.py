# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents: runs of an image's pages, and which pages of which block they are. Used by ``manifest``, ``capture``, ``image``.

They come in segments of bounded size, so that an image of any size is opened and read with bounded memory. All
operations are on whole columns. Pages that no extent covers are zeros.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import zstandard
from numpy.typing import NDArray

from fuse_store.errors import Damaged, NotFound
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.block import LARGEST
from fuse_store.repository.manifest import Head, Segment, image_name

MOST = 1 << 16  # extents in a segment
MAX_SEGMENT_SIZE = 8 << 20  # bytes of a segment, as it is before compression
_HEAD = struct.Struct("<II")  # extents, blocks
_CHUNKS = struct.Struct("<I")  # how many of the blocks are chunks; only in a version that has some

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class ChunkRows:
    """Chunks of a compressed hibernation image that are stored as the pages they hold: columns of equal length.

    ``number`` is which chunk of the image it is, ``length`` the bytes that it has compressed, ``pages`` how many pages of the
    image it holds. ``tail`` tells where the bytes behind it in its last page come from: 0 if they are stored, else every
    ``tail``-th chunk before it was in the same buffer, and left them there (``chunks.left_behind``).
    """

    number: I64
    length: I64
    pages: I64
    tail: I64

    def __len__(self) -> int:
        return len(self.number)

    def select(self, rows: I64) -> ChunkRows:
        return ChunkRows(self.number[rows], self.length[rows], self.pages[rows], self.tail[rows])


NO_CHUNKS = ChunkRows(*(np.zeros(0, np.int64) for _column in range(4)))
_CHUNK_COLUMNS = (("number", "<u4"), ("length", "<u4"), ("pages", "u1"), ("tail", "u1"))
_CHUNK_BYTES = 10


@dataclass(frozen=True)
class Extents:
    """Columns of equal length, ordered by ``page`` and not overlapping.

    ``page`` is the first page in the image, ``count`` how many, ``block`` an ordinal into ``digests``, ``slot`` the first
    page in that block. ``digests`` are 16 bytes for each block. The last of the blocks are in no pack but made from
    ``chunks``, one row each.
    """

    page: I64
    count: I64
    block: I64
    slot: I64
    digests: bytes
    chunks: ChunkRows = field(default=NO_CHUNKS)

    @property
    def blocks(self) -> int:
        """How many of the blocks are in packs."""
        return len(self.digests) // DIGEST - len(self.chunks)

    def digest(self, block: int) -> bytes:
        return self.digests[block * DIGEST : (block + 1) * DIGEST]

    def at(self, page: int) -> tuple[int, int] | None:
        """(block, slot) of one page; None if it is zeros."""
        row = int(self.page.searchsorted(page, "right")) - 1
        within = page - int(self.page[row]) if row >= 0 else 0
        if row < 0 or within >= int(self.count[row]):
            return None
        return int(self.block[row]), int(self.slot[row]) + within

    def between(self, first: int, last: int) -> tuple[I64, I64, I64]:
        """(page, block, slot) of every page in first..last (exclusive) that is covered, one element for each page."""
        low = int(np.searchsorted(self.page, first, "right")) - 1
        low = max(low, 0)
        high = int(np.searchsorted(self.page, last, "left"))
        count = self.count[low:high]
        total = int(count.sum())
        within = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
        page = np.repeat(self.page[low:high], count) + within
        block = np.repeat(self.block[low:high], count)
        slot = np.repeat(self.slot[low:high], count) + within
        keep = (page >= first) & (page < last)
        return page[keep], block[keep], slot[keep]


def runs(page: I64, block: I64, slot: I64) -> tuple[I64, I64, I64, I64]:
    """(page, count, block, slot) of the runs in which all three go on as in one extent. ``page`` must be ascending."""
    if not len(page):
        return page, page, page, page
    new = np.empty(len(page), bool)
    new[0] = True
    new[1:] = (np.diff(page) != 1) | (np.diff(block) != 0) | (np.diff(slot) != 1)
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(page)))
    return page[first], count, block[first], slot[first]


def pack_extents(extents: Extents, chunked: bool = False) -> bytes:
    """A segment as it is stored, before it is encrypted (docs/format.md, "Manifest"). ``chunked``: of a version with chunks."""
    step = np.diff(extents.page, prepend=0)
    columns = (step.astype("<u8"), extents.count.astype("<u4"), extents.block.astype("<u4"), extents.slot.astype("<u2"))
    raw = b"".join(
        (
            _HEAD.pack(len(extents.page), len(extents.digests) // DIGEST),
            _CHUNKS.pack(len(extents.chunks)) if chunked else b"",
            *(column.tobytes() for column in columns),
            extents.digests,
            *(getattr(extents.chunks, name).astype(kind).tobytes() for name, kind in _CHUNK_COLUMNS),
        )
    )
    return zstandard.ZstdCompressor(level=3).compress(raw)


def parse_extents(content: bytes, pages: int, slots: int, chunked: bool = False) -> Extents:
    """The Extents of a segment of an image with ``pages`` pages, in blocks of at most ``slots``; what its chunks say is not
    looked at (``chunks.check``). Raises ValueError."""
    try:
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= MAX_SEGMENT_SIZE:
            raise ValueError("it gives an impossible length")
        raw = zstandard.ZstdDecompressor().decompress(content, max_output_size=MAX_SEGMENT_SIZE)
    except zstandard.ZstdError as error:
        raise ValueError(f"it does not decompress ({error})") from None
    if len(raw) < _HEAD.size:
        raise ValueError("it is cut off")
    count, blocks = _HEAD.unpack_from(raw)
    at, rows = _HEAD.size, 0
    if chunked and len(raw) >= at + _CHUNKS.size:
        (rows,) = _CHUNKS.unpack_from(raw, at)
        at += _CHUNKS.size
    if count > MOST or rows > blocks or len(raw) != at + count * 18 + blocks * DIGEST + rows * _CHUNK_BYTES:
        raise ValueError("its length is wrong")
    columns = []
    for kind in ("<u8", "<u4", "<u4", "<u2"):
        columns.append(np.frombuffer(raw, kind, count, at))
        at += columns[-1].nbytes
    step, length, block, slot = columns
    if count and int(step.max()) > pages:
        raise ValueError("an extent lies outside of the image")
    page = np.cumsum(step.astype(np.int64))
    length, block, slot = length.astype(np.int64), block.astype(np.int64), slot.astype(np.int64)
    wrong = (
        (length < 1).any()
        or (page[1:] < page[:-1] + length[:-1]).any()
        or (page + length > pages).any()
        or (block >= blocks).any()
        or (slot + length > slots)[block < blocks - rows].any()
    )
    if wrong:
        raise ValueError("its extents contradict each other")
    digests = raw[at : at + blocks * DIGEST]
    at += len(digests)
    chunks = []
    for _name, kind in _CHUNK_COLUMNS:
        chunks.append(np.frombuffer(raw, kind, rows, at))
        at += chunks[-1].nbytes
    return Extents(page, length, block, slot, digests, ChunkRows(*(column.astype(np.int64) for column in chunks)))


def encrypt_segment(extents: Extents, offset: int, aead: Aead, chunked: bool = False) -> tuple[Segment, bytes]:
    """A Segment, which will stand at ``offset``, and its encrypted bytes. ``chunked``: of a version with chunks."""
    content = pack_extents(extents, chunked)
    digest = aead.digest(content)
    encrypted = aead.encrypt(b"segment" + digest, content)
    last = int(extents.page[-1] + extents.count[-1])
    return Segment(int(extents.page[0]), last, offset, len(encrypted), digest), encrypted


def read_segment(backend: Backend, image_id: str, head: Head, number: int, start: int, aead: Aead) -> Extents:
    """The Extents of segment ``number``; segments begin at ``start`` in the manifest's file. Raises NotFound, Damaged."""
    segment = head.segments[number]
    try:  # who has the image open may finish if it was removed since
        encrypted = backend.read_range(image_name(image_id), start + segment.offset, segment.length, trashed=True)
        content = aead.decrypt(b"segment" + segment.digest, encrypted)
        extents = parse_extents(content, head.pages, LARGEST // head.page_size, head.chunks is not None)
        if head.chunks is not None:
            from fuse_store.hibernation.lzo_chunks.layout import check

            check(extents, head.chunks, head.page_size)
        return extents
    except FileNotFoundError:
        raise NotFound(f"image {image_id}", "it has been removed.") from None
    except (ValueError, OSError) as error:
        raise Damaged(
            f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.",
            image=image_id, extent=f"{segment.first * head.page_size:#x}",
        ) from None  # fmt: skip
