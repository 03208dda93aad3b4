# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a stored hibernation image back onto a device, not armed. Used by ``cli``.

The order is what a power cut cannot hurt: first the header on the device stops leading to an image, then come the pages
that differ from what stands there, then, when all of them have been read back, the header of the new image. So the device
is at any moment as it was, an empty swap area, or the whole image; and never armed, if it was not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from fuse_store.columns import runs
from fuse_store.errors import Damaged, NotFound, Refused, StoreError
from fuse_store.formats.swsusp import Header, disarmed, find, layout
from fuse_store.hibernation.swap_device import Target, holding
from fuse_store.image import restore
from fuse_store.image.reader import Image
from fuse_store.image.segments import Place
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point

SYNCED = 256 << 20  # bytes of the device that are looked at before what was written in them is synced and read back

Part = tuple[int, list[Place], list[tuple[int, int]]]


@dataclass(frozen=True)
class Staged:
    """What was done: bytes that ``differed`` and were written, the UUID of the swap area before and now, what stood there."""

    device: str
    differed: int
    uuid_before: str | None
    uuid: str
    held: str


def stage(image: Image, device: Path | str, *, force: bool = False, progress: Progress = SILENT) -> Staged:
    """Write a version onto a device. ``force``: whatever stands there may be lost.

    Raises NotFound if the version is no hibernation image, Refused, Damaged (in the store: the device is then an empty swap
    area; on the device: it does not keep what is written), Locked, StoreError.
    """
    header = header_of(image)
    with Target(device) as target:
        if target.size < image.size:
            raise Refused(f"device {device}", f"it has {target.size} bytes, and the image {image.size}.", "Choose a larger one.")
        held = holding(target)
        if not held.ours and not force:
            remedy = "Resume or disarm it first, or say --force." if held.armed else "Say --force if that may be lost."
            raise Refused(f"device {device}", f"it holds {held.what}.", remedy)
        own = held.swap if held.swap is not None and len(held.swap) >= header.page_size else header.block
        try:
            differed = _write(image, header, target, _without_image(own), progress)
        except OSError as error:
            raise StoreError(f"device {device}", f"{error.strerror or error}.", "Nothing on it is armed. Run it again.") from None
        before = held.header.swap.uuid if held.header else _uuid(held.swap)
        return Staged(target.name, differed, before, header.swap.uuid, held.what)


def header_of(image: Image) -> Header:
    """The header of a version. Raises NotFound if it is no hibernation image, Refused, Damaged."""
    if len(image.files) != 1:
        raise NotFound(f"image {image.id}", "it has several files, and a hibernation image is one.")
    try:
        return find(image)
    except NotFound as error:
        raise NotFound(f"image {image.id}", f"it is no hibernation image: {error.cause}") from None


def _without_image(block: bytes) -> bytes:
    """The page of a swap header that leads to no image."""
    *_fields, signature = layout.TAIL.unpack(disarmed_or_plain(block)[-layout.TAIL.size :])
    return block[: -layout.TAIL.size] + layout.TAIL.pack(0, 0, 0, 0, bytes(layout.SIGNATURE_SIZE), signature)


def disarmed_or_plain(block: bytes) -> bytes:
    """The page, not armed: of an image, or of a swap area that never held one."""
    return block if block[-layout.SIGNATURE_SIZE :] in layout.SWAP_SIGNATURES else disarmed(block)


def _uuid(block: bytes | None) -> str | None:
    if block is None:
        return None
    digits = layout.SWAP.unpack_from(block, layout.SWAP_AT)[3].hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _write(image: Image, header: Header, target: Target, empty: bytes, progress: Progress) -> int:
    """Returns how many bytes differed."""
    head = head_size(image, header)
    written = 0
    waiting: list[Part] = []
    synced = 0
    progress.start("stage", image.size)
    target.forget()
    for part in parts(image, target, head):
        at, places, holes = part
        if places or holes:
            if not written:
                fault_point("stage begin")
                target.write_checked(0, empty)
                fault_point("stage header off")
            for start, end in holes:
                for begin in range(start, end, restore.WINDOW):
                    target.write(begin, restore.ZEROS[: min(restore.WINDOW, end - begin)])
                written += end - start
            for place in places:
                written += sum(restore.scatter(image, image.files[0], place, target.descriptor))
            waiting.append(part)
            fault_point("stage pages")
        if at - synced >= SYNCED and waiting:
            _settle(image, target, waiting)
            synced = at
        progress.at(at)
    _settle(image, target, waiting)
    fault_point("stage synced")
    written += _write_head(image, header, target, head, bool(written))
    progress.finish()
    return written


def parts(image: Image, target: Target, head: int) -> Iterator[Part]:
    """What differs on the device behind its first ``head`` bytes, as ``restore.differing`` tells it."""
    first = head // image.head.page_size
    for at, places, holes in restore.differing(image, image.files[0], target.direct):
        if at - restore.WINDOW < head:
            places = [kept for place in places if len((kept := place.select(place.page >= first)).page)]
            holes = [(max(start, head), end) for start, end in holes if end > head]
        yield at, places, holes


def head_size(image: Image, header: Header) -> int:
    """Bytes at the beginning that are written as one, last: the header's page, in whole pages of the store."""
    return min(max(header.page_size, image.head.page_size), image.size)


def _settle(image: Image, target: Target, waiting: list[Part]) -> None:
    """Sync what was written, and read it back. Raises Damaged."""
    if not waiting:
        return
    target.sync()
    fault_point("stage sync")
    size, seed, digest = image.head.page_size, image.page_seed, xxhash.xxh3_128_digest
    for _at, places, holes in waiting:
        for place in places:
            digests = []
            for first, end in runs(place.page):
                content = target.read(first * size, (end - first) * size)
                content += bytes((end - first) * size - len(content))
                digests += [digest(content[at : at + size], seed) for at in range(0, len(content), size)]
            have = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
            wrong = np.flatnonzero((have != image.page_digests(place)).any(axis=1))
            if len(wrong):
                raise not_kept(target, int(place.page[wrong[0]]) * size)
        for start, end in holes:
            for begin in range(start, end, restore.WINDOW):
                if any(target.read(begin, min(restore.WINDOW, end - begin))):
                    raise not_kept(target, begin)
    waiting.clear()


def not_kept(target: Target, where: int) -> Damaged:
    return Damaged(f"device {target.path}", f"what was written at {where:#x} reads back otherwise.", "Do not use it.")


def _write_head(image: Image, header: Header, target: Target, head: int, changed: bool) -> int:
    """The header's page, when all else is on the device. Returns how many bytes were written."""
    wanted = disarmed(header.block) + image.read(header.page_size, head - header.page_size)
    if not changed and target.read(0, head) == wanted:
        return 0
    rest = wanted[header.page_size :]
    if rest and target.read(header.page_size, len(rest)) != rest:
        if not changed:  # else the header that stands there leads to no image any more
            target.write_checked(0, _without_image(header.block))
        target.write_checked(header.page_size, rest)
    fault_point("stage header")
    target.write_checked(0, wanted[: header.page_size])
    fault_point("stage header written")
    return head
