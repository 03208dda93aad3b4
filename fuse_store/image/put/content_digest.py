# SPDX-License-Identifier: GPL-3.0-or-later
"""By what versions with the same bytes are known."""

from __future__ import annotations

import numpy as np

from fuse_store.columns import I64, U64, halves
from fuse_store.repository.aead import DIGEST, Aead


class ContentDigest:
    """The digest of what an image holds, by which versions with the same bytes are known: over the number and the page digest of
    each page that is not zero, in order, however it is stored. What differs in images of one state of a machine does not count
    (``image.kind.Kind.neutral``)."""

    def __init__(self, aead: Aead) -> None:
        self._hasher = aead.hasher()
        self._hasher.update(b"content")
        self._known = np.empty((0, 3), np.uint64)  # rows of pages that ``add`` does not get

    def know(self, page: I64, digests: bytes) -> None:
        """Pages, ascending, that ``add`` will not get; before the first ``add``."""
        self._known = _content_rows(page, *halves(digests))

    def add(self, page: I64, high: U64, low: U64) -> None:
        """Pages that are not zero, ascending from one call to the next."""
        rows = _content_rows(page, high, low)
        before = int(np.searchsorted(self._known[:, 0], np.uint64(page[-1]))) if len(page) else 0
        if before:
            rows = np.concatenate((self._known[:before], rows))
            rows, self._known = rows[np.argsort(rows[:, 0])], self._known[before:]
        self._hasher.update(rows.tobytes())

    def digest(self) -> bytes:
        self._hasher.update(self._known.tobytes())
        return self._hasher.digest(DIGEST)


def _content_rows(page: I64, high: U64, low: U64) -> U64:
    rows = np.empty((len(page), 3), "<u8")
    rows[:, 0], rows[:, 1], rows[:, 2] = page, high, low
    return rows
