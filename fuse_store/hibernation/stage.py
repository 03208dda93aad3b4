# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage: writes a stored hibernation image back to a swap device, not armed.

The order of the writes survives a power cut. First the header page on the device stops pointing to an image; then the pages
that differ are written and read back; last comes the header page of the new image. So the device holds at any moment its
former contents, an empty swap area, or the whole image, and is never armed unless it was before. Runs in one thread, and
opens the device exclusively.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuse_store.columns import runs
from fuse_store.errors import NotFound, Refused, failed
from fuse_store.formats.swsusp import Header, disarmed, find, without_image
from fuse_store.hibernation.swap_device import SwapDevice, contents_of, swap_uuid
from fuse_store.image import page_io
from fuse_store.image.kind import row_of
from fuse_store.image.reader import Image
from fuse_store.image.segments import Place
from fuse_store.processes.forking import shared
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.block import split

SYNC_INTERVAL = 256 << 20  # bytes of the device that are compared before what was written in them is synced and read back

# What differs in one window of the device: its end in bytes, the pages to write, and (start, end) in bytes of what to zero.
Difference = tuple[int, list[Place], list[tuple[int, int]]]


@dataclass(frozen=True)
class StageResult:
    """``device``: its stable path. ``differed``: bytes that differed and were written. ``uuid`` and ``uuid_before``: of the
    swap area; None if there was none. ``held``: the former contents, for messages."""

    device: str
    differed: int
    uuid_before: str | None
    uuid: str
    held: str


def stage(image: Image, device: Path | str, *, force: bool = False, progress: Progress = SILENT) -> StageResult:
    """Write a version to a device. ``force`` overwrites existing data.

    Raises NotFound if the version is no hibernation image, Refused, Locked, StoreError, and Damaged: if the store is damaged,
    the device then holds an empty swap area; or if the device does not keep what is written to it.
    """
    header = bootable_header(image)
    with SwapDevice(device) as target:
        if target.size < image.size:
            raise Refused(
                f"device {device}", f"too small: {target.size} bytes, and the image has {image.size}.", "Choose a larger device."
            )
        contents = contents_of(target)
        if not contents.replaceable and not force:
            first = "Resume or disarm the image first" if contents.armed else "Choose another device"
            raise Refused(f"device {device}", f"contains {contents.description}.", f"{first}, or overwrite the data with --force.")
        before = contents.swap_page
        empty = without_image(before if before is not None and len(before) >= header.page_size else header.block)
        try:
            differed = _write(image, header, target, empty, progress)
        except OSError as error:
            raise failed(f"device {device}", error, "The device is not armed. Stage the image again.") from None
        uuid_before = contents.header.swap.uuid if contents.header else swap_uuid(before)
        return StageResult(target.name, differed, uuid_before, header.swap.uuid, contents.description)


def bootable_header(image: Image) -> Header:
    """The header of a version with a whole image. Raises NotFound if it is none, Refused, Damaged."""
    header = header_of(image)
    if not row_of(image.head.recognised).bootable:
        raise NotFound(f"image {image.id}", "no whole hibernation image was in it when it was stored.", "Choose another version.")
    return header


def header_of(image: Image) -> Header:
    """The header of a version. Raises NotFound if it is no hibernation image, Refused, Damaged."""
    if image.head.is_directory:
        raise NotFound(f"image {image.id}", "that of a directory; a hibernation image is one file.", "Choose another version.")
    try:
        return find(image)
    except NotFound as error:
        raise NotFound(f"image {image.id}", f"not a hibernation image: {error.cause}", "Choose another version.") from None


def _write(image: Image, header: Header, target: SwapDevice, empty: bytes, progress: Progress) -> int:
    """Make the device hold the image; ``empty`` is the header page in the meantime. Returns how many bytes differed."""
    head = head_size(image, header)
    written = synced = 0
    unsynced: list[Difference] = []
    scatter = page_io.Scatter(image, image.files[0], target.descriptor, shared(page_io.COMPARE_WINDOW), image.each_with())
    progress.start("stage", image.size)
    target.drop_cache()
    for difference in differences(image, target, head):
        end, places, holes = difference
        if places or holes:
            if not written:
                fault_point("stage begin")
                target.write_checked(0, empty)
                fault_point("stage header off")
            written += _write_difference(scatter, target, difference)
            unsynced.append(difference)
            fault_point("stage pages")
        if end - synced >= SYNC_INTERVAL and unsynced:
            _sync_and_check(image, target, unsynced)
            synced = end
        progress.at(end)
    _sync_and_check(image, target, unsynced)
    fault_point("stage synced")
    written += _write_head(image, header, target, head, bool(written))
    progress.finish()
    return written


def _write_difference(scatter: page_io.Scatter, target: SwapDevice, difference: Difference) -> int:
    """Returns how many bytes were written."""
    _end, places, holes = difference
    written = 0
    for start, end in holes:
        for at in range(start, end, page_io.COMPARE_WINDOW):
            target.write(at, bytes(page_io.ZEROS[: min(page_io.COMPARE_WINDOW, end - at)]))
        written += end - start
    for place in places:
        written += sum(wrote for wrote, _known in scatter.write(place))
    return written


def differences(image: Image, target: SwapDevice, head: int) -> Iterator[Difference]:
    """How the device differs from the image behind its first ``head`` bytes, window by window."""
    first = head // image.head.page_size
    for end, places, holes in page_io.differing(image, image.files[0], target.direct):
        if end - page_io.COMPARE_WINDOW < head:
            places = [kept for place in places if len((kept := place.select(place.page >= first)).page)]
            holes = [(max(start, head), stop) for start, stop in holes if stop > head]
        yield end, places, holes


def head_size(image: Image, header: Header) -> int:
    """Bytes at the beginning that are written last, at once: the header page, rounded up to whole pages of the store."""
    return min(max(header.page_size, image.head.page_size), image.size)


def _sync_and_check(image: Image, target: SwapDevice, unsynced: list[Difference]) -> None:
    """Sync what was written and read it back; empties ``unsynced``. Raises Damaged."""
    if not unsynced:
        return
    target.sync()
    fault_point("stage sync")
    for _end, places, holes in unsynced:
        for place in places:
            _check_pages(image, target, place)
        for start, end in holes:
            for at in range(start, end, page_io.COMPARE_WINDOW):
                if any(target.read(at, min(page_io.COMPARE_WINDOW, end - at))):
                    raise target.not_kept(at)
    unsynced.clear()


def _check_pages(image: Image, target: SwapDevice, place: Place) -> None:
    """Compare pages on the device with their digests. Raises Damaged."""
    size = image.head.page_size
    digests = b""
    for first, end in runs(place.page):
        content = target.read(first * size, (end - first) * size)
        content += bytes((end - first) * size - len(content))
        digests += image.aead.page_digests(split(content, size))
    on_device = np.frombuffer(digests, "<u8").reshape(-1, 2)
    wrong = np.flatnonzero((on_device != image.page_digests(place)).any(axis=1))
    if len(wrong):
        raise target.not_kept(int(place.page[wrong[0]]) * size)


def _write_head(image: Image, header: Header, target: SwapDevice, head: int, changed: bool) -> int:
    """Write the first ``head`` bytes, when everything else is on the device. Returns how many bytes were written."""
    wanted = disarmed(header.block) + image.read(header.page_size, head - header.page_size)
    if not changed and target.read(0, head) == wanted:
        return 0
    rest = wanted[header.page_size :]
    if rest and target.read(header.page_size, len(rest)) != rest:
        if not changed:  # otherwise the header page on the device points to no image any more
            target.write_checked(0, without_image(header.block))
        target.write_checked(header.page_size, rest)
    fault_point("stage header")
    target.write_checked(0, wanted[: header.page_size])
    fault_point("stage header written")
    return head
