# SPDX-License-Identifier: GPL-3.0-or-later
"""Fills a slot with an image: the swap map and the stream first, all of it synced and read back, the header last.

The stream comes page after page, from a stored version or from the kernel (``/dev/snapshot``). For one thread, which holds the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain

from fuse_store.errors import Damaged
from fuse_store.formats.checksums import Checksums
from fuse_store.formats.swsusp import HibernationImage, leading_to
from fuse_store.formats.swsusp.placement import Placement
from fuse_store.hibernation.swap_device import SwapDevice
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point

PART_SIZE = 4 << 20  # bytes of a stream that are read and written at once


class SlotWriter:
    """``header``: the header page of the image, with flags and checksum, whatever swap map it leads to. ``empty``: what is in its place
    until the image is complete; zeros by default."""

    def __init__(self, device: SwapDevice, place: Placement, header: bytes, empty: bytes = b"") -> None:
        """Raises Damaged if the header is not that of a swap area."""
        self._device, self._place, self._empty = device, place, empty or bytes(place.page_size)
        self._header, self._map = leading_to(header, place.first_map), place.map()
        self._sums = Checksums()
        self._sums.update(self._header + self._map)
        self._at = place.stream

    def begin(self) -> None:
        """Make sure that no header is there, and write the swap map. Raises StoreError, Damaged, Refused."""
        self._device.write_checked(self._place.header * self._place.page_size, self._empty)
        fault_point("slots header off")
        self._write(1, self._map)

    def add(self, pages: bytes) -> None:
        """The next pages of the stream. Raises StoreError."""
        self._sums.update(pages)
        self._write(self._at, pages)
        self._at += len(pages) // self._place.page_size

    def finish(self) -> Checksums:
        """Sync and read back all, then write the header; the checksums of the slot. Raises StoreError, Damaged, Refused."""
        if self._at != self._place.blocks:
            raise ValueError(f"{self._at} of {self._place.blocks} blocks")
        fault_point("slots pages")
        self._device.sync()
        if digest(self._device, self._place, self._header) != self._sums.sha256:
            raise self._device.not_kept(self._place.header * self._place.page_size)
        fault_point("slots header")
        self._device.write_checked(self._place.header * self._place.page_size, self._header)
        fault_point("slots header written")
        return self._sums

    def _write(self, at: int, pages: bytes) -> None:
        size, view = self._place.page_size, memoryview(pages)
        for first, count in self._place.runs(at, len(pages) // size):
            self._device.write(first * size, view[: count * size])
            view = view[count * size :]


def stream_of(image: HibernationImage) -> Iterator[bytes]:
    """The stream of an image, in parts. Raises Damaged."""
    step = max(1, PART_SIZE // image.page_size)
    for first in range(0, image.map.count, step):
        yield image.map.read(first, min(step, image.map.count - first)).tobytes()


def digest(device: SwapDevice, place: Placement, header: bytes, progress: Progress = SILENT) -> str:
    """The SHA-256 of what is in a slot, with this header page in place of what is there. Raises StoreError."""
    found = hashlib.sha256(header)
    for at, content in _parts(device, place):
        found.update(content)
        progress.at(at * place.page_size)
    return found.hexdigest()


def compare(device: SwapDevice, place: Placement, image: HibernationImage, progress: Progress, header: bytes = b"") -> str:
    """Compare a slot with the image, but for the signature; its SHA-256. ``header``: its header page, if it is not that of the image.
    Raises Damaged, StoreError."""
    size = place.page_size
    header, expected = leading_to(header or image.header.block, place.first_map), place.map()
    progress.start("compare", place.blocks * size)
    device.drop_cache()
    if leading_to(device.read(place.header * size, size), place.first_map) != header:
        raise _changed(device, place.header * size)
    found = hashlib.sha256(header)
    at = 1
    for part in chain([expected], stream_of(image)):
        found.update(part)
        view = memoryview(part)
        for first, count in place.runs(at, len(part) // size):
            if device.read(first * size, count * size) != view[: count * size]:
                raise _changed(device, first * size)
            view = view[count * size :]
            at += count
        progress.at(at * size)
    progress.finish()
    return found.hexdigest()


def _parts(device: SwapDevice, place: Placement) -> Iterator[tuple[int, bytes]]:
    """(place, content) of all of a slot behind its header."""
    step = max(1, PART_SIZE // place.page_size)
    for at in range(1, place.blocks, step):
        runs = place.runs(at, min(step, place.blocks - at))
        yield at, b"".join(device.read(first * place.page_size, count * place.page_size) for first, count in runs)


def _changed(device: SwapDevice, offset: int) -> Damaged:
    return Damaged(
        f"device {device.path}", f"data near {offset:#x} differs from the staged version: overwritten since, or not kept by the device.",
        "It was not armed. Stage the version again; a slot has to be removed first.",
    )  # fmt: skip
