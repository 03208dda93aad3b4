# SPDX-License-Identifier: GPL-3.0-or-later
"""Computes LZO chunks of a stored hibernation image from the pages they hold (``image.kind.Transform``). Threads may share it."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64
from fuse_store.hibernation.lzo_chunks.layout import (
    CHUNK_PAGES,
    LENGTH,
    Layout,
    columns,
    compressed,
    left_behind,
    parse,
)
from fuse_store.image.kind import ReadPages
from fuse_store.repository.manifest import Computed, Head

MAX_KEPT = 32  # chunks that were compressed last, without their tails: a tail is in those before


def open_transform(computed: Computed, head: Head) -> LzoTransform:
    """Raises ValueError."""
    return LzoTransform(parse(computed, head))


class LzoTransform:
    """The chunks of one version."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # by number
        self._lock = threading.Lock()

    def check(self, rows: NDArray[np.uint8], slots: I64) -> None:
        self._layout.check(rows, slots)

    def order(self, rows: NDArray[np.uint8]) -> I64:
        return columns(rows)["number"].astype(np.int64)

    def compute(self, row: NDArray[np.uint8], read_pages: ReadPages) -> bytes:
        layout = self._layout
        number, _length, pages, threads = columns(row)[0].tolist()
        own = self._compressed(number, pages, read_pages)
        missing = -len(own) % layout.image_page_size
        if threads:
            before = functools.partial(self._before, number, read_pages)
            tail = left_behind(len(own), len(own) + missing, threads, before) or b""
        else:
            stored = read_pages(layout.tail_page(number), layout.scale)
            tail = stored.tobytes()[layout.image_page_size - missing :] if missing else b""
        return own + tail

    def explain(self, row: NDArray[np.uint8], content: bytes) -> tuple[str, str, str]:
        number, length, pages, _threads = columns(row)[0].tolist()
        return (
            f"LZO chunk {number} of the hibernation image",
            f"its {pages} pages compress to other bytes ({len(content)}) than were captured ({LENGTH.size + length} and a tail): "
            "this liblzo2 differs from the one used by 'put', or the manifest is damaged.",
            "Read it on a machine with Debian's liblzo2 (2.10).",
        )

    def chunk(self, row: NDArray[np.uint8], read_pages: ReadPages) -> tuple[int, Callable[[], NDArray[np.uint8]]]:
        number, length, pages, _threads = columns(row)[0].tolist()
        return length, functools.partial(self._pages, number, pages, read_pages)

    def _before(self, number: int, read_pages: ReadPages, distance: int) -> bytes | None:
        return self._compressed(number - distance, CHUNK_PAGES, read_pages) if distance <= number else None

    def _compressed(self, number: int, pages: int, read_pages: ReadPages) -> bytes:
        """A chunk of ``pages`` pages without its tail; not compared with anything yet. Raises Damaged, StoreError."""
        with self._lock:
            kept = self._kept.get(number)
        if kept is not None:
            return kept
        content = compressed(self._pages(number, pages, read_pages))
        with self._lock:
            self._kept[number] = content
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return content

    def _pages(self, number: int, pages: int, read_pages: ReadPages) -> NDArray[np.uint8]:
        """The pages of the image that a chunk holds, as rows of pages of the store. Raises Damaged."""
        return read_pages(self._layout.first_page(number), pages * self._layout.scale)
