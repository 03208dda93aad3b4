# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents: runs of an image's pages, and which pages of which block they are.

They come in segments of bounded size, so that an image of any size is opened and read with bounded memory. All
operations are on whole columns. Pages that no extent covers are zeros. Pure functions and immutable columns, but for
``read_segment``, which reads through a Backend; threads may share them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import zstandard
from numpy.typing import NDArray

from fuse_store.columns import I64, starts
from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.block import MAX_BLOCK_SIZE
from fuse_store.repository.manifest import Head, Segment, image_name

MAX_EXTENTS = 1 << 16  # in a segment
MAX_SEGMENT_SIZE = 24 << 20  # bytes of a segment before compression
_HEAD = struct.Struct("<III")  # extents, blocks, how many of the blocks are computed
_EXTENT_SIZE = 18  # bytes of one extent: page step, count, block, slot

Rows = NDArray[np.uint8]  # parameters of computed blocks: one row each


def no_rows(row_size: int = 0) -> Rows:
    return np.zeros((0, row_size), np.uint8)


@dataclass(frozen=True)
class Extents:
    """Columns of equal length, ordered by ``page`` and not overlapping.

    ``page`` is the first page in the image, ``count`` how many, ``block`` an ordinal into ``digests``, ``slot`` the first
    page in that block. ``digests`` are 16 bytes for each block. The last of the blocks are in no pack: they are computed,
    each from its row of ``rows``.
    """

    page: I64
    count: I64
    block: I64
    slot: I64
    digests: bytes
    rows: Rows

    @property
    def stored(self) -> int:
        """How many of the blocks are in packs: those before the computed ones."""
        return len(self.digests) // DIGEST - len(self.rows)

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
        low = max(int(np.searchsorted(self.page, first, "right")) - 1, 0)
        high = int(np.searchsorted(self.page, last, "left"))
        count = self.count[low:high]
        within = np.arange(int(count.sum())) - np.repeat(starts(count), count)
        page = np.repeat(self.page[low:high], count) + within
        block = np.repeat(self.block[low:high], count)
        slot = np.repeat(self.slot[low:high], count) + within
        keep = (page >= first) & (page < last)
        return page[keep], block[keep], slot[keep]

    def first_pages(self) -> I64:
        """The first page of the image that each block is needed for."""
        first = np.zeros(len(self.digests) // DIGEST, np.int64)
        first[self.block[::-1]] = self.page[::-1]
        return first


def pack_extents(extents: Extents) -> bytes:
    """A segment as it is stored, before it is encrypted (docs/format.md, "Extent segment")."""
    step = np.diff(extents.page, prepend=0)
    columns = (step.astype("<u8"), extents.count.astype("<u4"), extents.block.astype("<u4"), extents.slot.astype("<u2"))
    raw = b"".join(
        (
            _HEAD.pack(len(extents.page), len(extents.digests) // DIGEST, len(extents.rows)),
            *(column.tobytes() for column in columns),
            extents.digests,
            extents.rows.tobytes(),
        )
    )
    return zstandard.ZstdCompressor(level=3).compress(raw)


def parse_extents(content: bytes, head: Head) -> Extents:
    """The Extents of a segment of a version. What the rows of computed blocks say is the transform's to check. Raises
    ValueError."""
    raw = _decompressed(content)
    if len(raw) < _HEAD.size:
        raise ValueError("extent segment truncated")
    count, blocks, computed = _HEAD.unpack_from(raw)
    row_size = head.computed.row_size if head.computed is not None else 0
    size = _HEAD.size + count * _EXTENT_SIZE + blocks * DIGEST + computed * row_size
    if count > MAX_EXTENTS or computed > blocks or (computed and head.computed is None) or len(raw) != size:
        raise ValueError("extent segment has a wrong length")
    at = _HEAD.size
    columns = []
    for kind in ("<u8", "<u4", "<u4", "<u2"):
        columns.append(np.frombuffer(raw, kind, count, at))
        at += columns[-1].nbytes
    digests = raw[at : at + blocks * DIGEST]
    rows = np.frombuffer(raw, np.uint8, offset=at + len(digests)).reshape(computed, row_size)
    step, length, block, slot = columns
    if count and int(step.max()) > head.pages:
        raise ValueError("an extent lies outside of the image")
    page = np.cumsum(step.astype(np.int64))
    extents = Extents(page, length.astype(np.int64), block.astype(np.int64), slot.astype(np.int64), digests, rows)
    _check(extents, head)
    return extents


def _decompressed(content: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(content)
        if not 0 <= size <= MAX_SEGMENT_SIZE:
            raise ValueError("extent segment gives an impossible length")
        return zstandard.ZstdDecompressor().decompress(content, max_output_size=MAX_SEGMENT_SIZE)
    except zstandard.ZstdError as error:
        raise ValueError(f"extent segment does not decompress ({error})") from None


def _check(extents: Extents, head: Head) -> None:
    page, end = extents.page, extents.page + extents.count
    wrong = (
        (extents.count < 1).any()
        or (page[1:] < end[:-1]).any()
        or (end > head.pages).any()
        or (extents.block * DIGEST >= len(extents.digests)).any()
        or (extents.slot + extents.count > MAX_BLOCK_SIZE // head.page_size)[extents.block < extents.stored].any()
    )
    if wrong:
        raise ValueError("extents contradict each other")
    if head.computed is not None and (end[extents.block >= extents.stored] > head.computed.first).any():
        raise ValueError("a computed block would be computed from itself")


def encrypt_segment(extents: Extents, offset: int, aead: Aead) -> tuple[Segment, bytes]:
    """A Segment, which will be at ``offset`` behind the head, and its encrypted bytes."""
    content = pack_extents(extents)
    digest = aead.digest(content)
    encrypted = aead.encrypt(b"segment" + digest, content)
    last = int(extents.page[-1] + extents.count[-1])
    return Segment(int(extents.page[0]), last, offset, len(encrypted), digest), encrypted


def by_offset(encrypted: Sequence[bytes]) -> dict[int, bytes]:
    """Encrypted segments by their ``Segment.offset``; a head has them in the order of their pages."""
    return dict(zip(accumulate(map(len, encrypted), initial=0), encrypted, strict=False))


def check_segment(head: Head, segment: Segment, encrypted: bytes, aead: Aead) -> None:
    """Read a segment that is still to be written as a reader will. Raises Refused."""
    try:
        parse_extents(aead.decrypt(b"segment" + segment.digest, encrypted), head)
    except ValueError as error:
        raise Refused(
            f"version of {head.machine}/{head.application}", f"cannot be stored: {error}.", "No version was created. Run it again.",
        ) from None  # fmt: skip


def read_segment(backend: Backend, image_id: str, head: Head, number: int, start: int, aead: Aead) -> Extents:
    """The Extents of segment ``number``; segments begin at ``start`` in the manifest. Raises NotFound, Damaged."""
    segment = head.segments[number]
    try:  # a reader that has the image open may finish if it was removed since
        encrypted = backend.read_range(image_name(image_id), start + segment.offset, segment.length, trashed=True)
        return parse_extents(aead.decrypt(b"segment" + segment.digest, encrypted), head)
    except FileNotFoundError:
        raise NotFound(f"image {image_id}", "removed meanwhile.", "Run 'fuse-store list' to see what is stored.") from None
    except (ValueError, OSError) as error:
        raise damaged_segment(image_id, head, segment, error) from None


def damaged_segment(image_id: str, head: Head, segment: Segment, error: Exception) -> Damaged:
    return Damaged(
        f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.",
        image=image_id, extent=f"{segment.first * head.page_size:#x}",
    )  # fmt: skip
