# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents of what is put, in segments for the manifest."""

from __future__ import annotations

import numpy as np

from fuse_store.columns import I64, joint_runs
from fuse_store.image.put.block_writer import BlockWriter
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.extents import MAX_EXTENTS, Extents, Rows, encrypt_segment, no_rows
from fuse_store.repository.manifest import Segment

_FIRST_COMPUTED = 1 << 40  # blocks with this ordinal or a higher one are computed, and in no pack

_Columns = tuple[I64, I64, I64, I64]  # (page, count, block, slot) of extents


class SegmentWriter:
    """Collects extents in the order of their pages, and makes segments of them."""

    def __init__(self, aead: Aead, blocks: BlockWriter) -> None:
        self._aead, self._blocks = aead, blocks
        self._columns: list[_Columns] = []
        self._count = self._length = 0
        self._computed: _Columns | None = None  # extents of computed blocks that are in no segment yet
        self._rows, self._row_digests = no_rows(), b""
        self.encrypted: list[bytes] = []

    def add(self, page: I64, block: I64, slot: I64) -> list[Segment]:
        """Take in pages; the segments that this made full."""
        self._columns.append(joint_runs(page, block, slot))
        self._count += len(self._columns[-1][0])
        return self.close() if self._count >= MAX_EXTENTS else []

    def add_computed(self, extents: _Columns, rows: Rows, digests: bytes) -> None:
        """Take in the extents of all computed blocks: each gets into a segment when the pages around it do."""
        self._computed, self._rows, self._row_digests = extents, rows, digests

    def close(self, final: bool = False) -> list[Segment]:
        """Make segments of what was taken in; ``final``: with all computed blocks that are left."""
        self._blocks.flush()  # a segment names its blocks by their digests
        computed = self._take_computed(final)
        if computed is not None:
            self._columns.append(computed)
        if not self._columns:
            return []
        page, count, block, slot = (np.concatenate(parts) for parts in zip(*self._columns, strict=True))
        if computed is not None:
            order = np.argsort(page)
            page, count, block, slot = page[order], count[order], block[order], slot[order]
        self._columns, self._count = [], 0
        parts = [slice(begin, begin + MAX_EXTENTS) for begin in range(0, len(page), MAX_EXTENTS)]
        return [self._segment(page[part], count[part], block[part], slot[part]) for part in parts]

    def _segment(self, page: I64, count: I64, block: I64, slot: I64) -> Segment:
        used, local = np.unique(block, return_inverse=True)
        stored, computed = used[used < _FIRST_COMPUTED], used[used >= _FIRST_COMPUTED] - _FIRST_COMPUTED
        digests = self._blocks.digests[stored].tobytes() + np.frombuffer(self._row_digests, f"V{DIGEST}")[computed].tobytes()
        extents = Extents(page, count, local.astype(np.int64), slot, digests, self._rows[computed])
        segment, encrypted = encrypt_segment(extents, self._length, self._aead)
        self._length += len(encrypted)
        self.encrypted.append(encrypted)
        return segment

    def _take_computed(self, final: bool) -> _Columns | None:
        """The extents of computed blocks before the end of what has been read, and in no segment yet; all if ``final``."""
        if self._computed is None:
            return None
        end = len(self._computed[0])
        if not final:
            end = int(np.searchsorted(self._computed[0], self._columns[-1][0][-1]))
        page, count, row, slot = (column[:end] for column in self._computed)
        rest_page, rest_count, rest_row, rest_slot = (column[end:] for column in self._computed)
        self._computed = rest_page, rest_count, rest_row, rest_slot
        return (page, count, row + _FIRST_COMPUTED, slot) if end else None
