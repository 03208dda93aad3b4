# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages a version into a slot, not armed: the table says ``writing``, the slot is filled, synced and read back, and then the table says
``complete``. At any moment, also after a power cut, every other slot is as it was, but for those that went to make space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused, failed
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.placement import Placement
from fuse_store.hibernation.filesystem_state import PREFIX
from fuse_store.hibernation.slots.layout import Slot
from fuse_store.hibernation.slots.manage import Slots
from fuse_store.hibernation.slots.reserve import complete, replaced, reserve
from fuse_store.hibernation.slots.swap_use import swap_use
from fuse_store.hibernation.slots.writer import SlotWriter, stream_of
from fuse_store.hibernation.stage import bootable_header
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.versions import GOLDEN, SNAPSHOT

KERNEL = "kernel_build"  # tag of a version: the tag ``kernel`` of its slot; in a version, ``kernel`` is what the image tells
KEPT_TAGS = (PREFIX, "guard.", "unsafe")  # how the tags begin that a slot has of its version


@dataclass(frozen=True)
class Wishes:
    """``golden``: never dropped for another image; a version of a golden slot is so without it. ``replace``: when the image is complete,
    drop older replaceable ones of the same machine, application and event. ``force``: also if it is not known whether pages were
    swapped out."""

    golden: bool = False
    replace: bool = False
    force: bool = False


@dataclass(frozen=True)
class SlotResult:
    """``device``: its stable path. ``name``: what state logs call the slot. ``written``: bytes. ``dropped``: the slots that went."""

    device: str
    name: str
    slot: Slot
    written: int
    dropped: tuple[Slot, ...]


def stage(version: Image, device: Path | str, wishes: Wishes | None = None, progress: Progress = SILENT) -> SlotResult:
    """Raises NotFound if the version is no hibernation image or the device has no slots, Refused, Locked, StoreError, Damaged."""
    wishes = wishes or Wishes()
    header = bootable_header(version)
    with HibernationImage(version) as image, Slots(device) as slots:
        swap = _checked_swap(version, image, slots, wishes.force)
        if header.page_size != slots.table.page_size:
            cause = f"has blocks of {slots.table.page_size} bytes, and the image has pages of {header.page_size}."
            raise Refused(f"device {device}", cause, "Choose another device, or create its slots again with --page-size.")
        slot, dropped = reserve(slots, _slot_of(version, image, swap, wishes))
        try:
            done, written = _write(image, slots, slot, progress)
        except OSError as error:
            raise failed(f"device {device}", error, "The slot is not complete. Stage the image again.") from None
        if wishes.replace:
            dropped += replaced(slots, done)
        return SlotResult(slots.device.name, slots.name(done.number), done, written, dropped)


def _slot_of(version: Image, image: HibernationImage, swap: str, wishes: Wishes) -> Slot:
    head = version.head
    return Slot(
        number=0, state="writing", machine=head.machine, application=head.application, event=head.event,
        image=head.tags.get(SNAPSHOT, version.id),
        content=head.content.hex(), taken=max(0, head.taken // 10**9), staged=0, pages=image.map.count, extents=(), swap=swap,
        kept="golden" if wishes.golden or head.tags.get(GOLDEN) == "yes" else "replaceable",
        tags=slot_tags(head.tags),
    )  # fmt: skip


def slot_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """What a slot has of the tags of its version: whether it may be resumed depends on them."""
    kept = {key: value for key, value in tags.items() if key.startswith(KEPT_TAGS)}
    return {**kept, **({"kernel": tags[KERNEL]} if KERNEL in tags else {})}


def _checked_swap(version: Image, image: HibernationImage, slots: Slots, force: bool) -> str:
    """What is known of the machine's swap areas. Raises Refused if the image needs what a slot has not."""
    name = f"image {version.id[:12]}"
    swap = swap_use(version, image)
    if swap.used:
        raise Refused(
            name, f"{swap.used} pages of the machine were swapped out; they are not part of the image, so not of a slot.",
            "Run 'swapoff -a' on the machine before it makes an image for a slot, or stage the version on a device of its own.",
        )  # fmt: skip
    if swap.state != "inactive" and image.header.swap.uuid == slots.table.replaced:
        raise Refused(
            name, "the machine used this device as its swap area; resumed, it would swap into the slots.",
            "Have the machine use another device for swap, or none, when it makes the image.",
        )  # fmt: skip
    swap.check_known(name, force)
    return swap.state


def _write(image: HibernationImage, slots: Slots, slot: Slot, progress: Progress) -> tuple[Slot, int]:
    place = Placement(slot.extents, slot.pages, slots.table.page_size)
    writer = SlotWriter(slots.device, place, image.header.block)
    progress.start("stage", place.blocks * place.page_size)
    writer.begin()
    done = 0
    for part in stream_of(image):
        writer.add(part)
        done += len(part)
        progress.at(done)
    sums = writer.finish()
    progress.finish()
    return complete(slots, slot, sums.sha256, tags={**slot.tags, **sums.tags}), place.blocks * place.page_size
