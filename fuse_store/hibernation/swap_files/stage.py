# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages a version in a swap file, not armed: the header page stops leading to an image, the swap map and the stream are written and read
back from the device, the header comes last. The header page stays that of the file's own swap area, but for where the image is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused, failed
from fuse_store.formats.swsusp import HibernationImage, layout, leading_to
from fuse_store.formats.swsusp.placement import Placement, blocks_needed
from fuse_store.hibernation import filesystem_state
from fuse_store.hibernation.slots.swap_use import SwapUse, swap_use
from fuse_store.hibernation.slots.writer import SlotWriter, stream_of
from fuse_store.hibernation.stage import bootable_header
from fuse_store.hibernation.swap_device import swap_uuid
from fuse_store.hibernation.swap_files.file import PAGE, SwapFile
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress

_BY_UUID = Path("/dev/disk/by-uuid")
_FSTAB = Path("/etc/fstab")


@dataclass(frozen=True)
class StagedFile:
    """``name``: what state logs call the file, its path without links. ``device``: the stable path of its block device. ``offset``: for
    ``resume_offset=``. ``written``: bytes. ``uuid``: of the swap area, which stays. ``held``: the former contents, for messages."""

    name: str
    device: str
    offset: int
    written: int
    uuid: str | None
    held: str


def stage(version: Image, path: Path | str, *, force: bool = False, progress: Progress = SILENT) -> StagedFile:
    """``force``: also over an armed image, and if it is not known whether pages were swapped out.

    Raises NotFound if the version is no hibernation image, Refused, Locked, StoreError, Damaged.
    """
    header = bootable_header(version)
    with HibernationImage(version) as image, SwapFile(path) as target:
        if header.page_size != PAGE:
            cause = f"the image has pages of {header.page_size} bytes, and this system of {PAGE}."
            raise Refused(f"swap file {path}", cause, "Stage it on a machine with such pages.")
        empty, armed = target.empty_page(), target.page[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE
        if armed and not force:
            raise Refused(f"swap file {path}", "contains an armed hibernation image.", "Resume or disarm it first, or use --force.")
        need = blocks_needed(image.map.count, PAGE)
        if target.blocks < need:
            cause = f"too small: {target.blocks * PAGE} bytes, and the image needs {need * PAGE}."
            raise Refused(f"swap file {path}", cause, "Enlarge it, or choose another one.")
        _check_machine(version, image, target, swap_use(version, image), force)
        place = placement(target, image)
        try:
            _write(image, target, place, own_header(target, image), empty, progress)
        except OSError as error:
            raise failed(f"swap file {path}", error, "It is not armed. Stage the image again.") from None
        held = "an armed hibernation image" if armed else "a swap area"
        return StagedFile(target.name, target.device, target.offset, place.blocks * PAGE, swap_uuid(empty), held)


def placement(target: SwapFile, image: HibernationImage) -> Placement:
    return Placement(target.extents, image.map.count, PAGE)


def own_header(target: SwapFile, image: HibernationImage) -> bytes:
    """The header page that leads to the image, not armed: of the file's own swap area."""
    own = target.page[: -layout.TAIL.size] + image.header.block[-layout.TAIL.size :]
    return leading_to(own, placement(target, image).first_map)


def named_in_fstab(path: Path | str) -> bool:
    """Whether a file is a swap file of this system, by its configuration."""
    try:
        lines = _FSTAB.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    fields = [line.split() for line in lines if not line.startswith("#")]
    named = [each[0] for each in fields if len(each) > 2 and each[2] == "swap" and each[0].startswith("/")]
    return os.path.realpath(path) in {os.path.realpath(name) for name in named}


def _check_machine(version: Image, image: HibernationImage, target: SwapFile, swap: SwapUse, force: bool) -> None:
    """Raises Refused if the image needs what is not in it, or if its machine has the filesystem of the file in use."""
    name = f"image {version.id[:12]}"
    if swap.used:
        raise Refused(
            name, f"{swap.used} pages of the machine were swapped out; they are not part of the image, so not of the swap file.",
            "Run 'swapoff -a' on the machine before the image is made, or stage the version on a device of its own.",
        )  # fmt: skip
    if swap.state != "inactive" and image.header.swap.uuid == swap_uuid(target.page):
        raise Refused(
            name, "the machine used this swap file, and has its filesystem mounted, which is changed by staging.",
            "Have the machine run 'swapoff -a' and unmount the filesystem before the image is made.",
        )  # fmt: skip
    states = filesystem_state.recorded_states(version.head.tags)
    if any(states.get(uuid, "").endswith(filesystem_state.IN_USE) for uuid in _uuids_of(target)):
        raise Refused(
            name, "the machine has the filesystem of the swap file mounted, which is changed by staging.",
            "Have the machine unmount it before the image is made, or choose a swap file on another filesystem.",
        )  # fmt: skip
    swap.check_known(name, force)


def _uuids_of(target: SwapFile) -> list[str]:
    device = os.path.realpath(target.device)
    return [link.name for link in _BY_UUID.glob("*") if os.path.realpath(link) == device]


def _write(
    image: HibernationImage, target: SwapFile, place: Placement, header: bytes, empty: bytes, progress: Progress
) -> None:
    writer = SlotWriter(target, place, header, empty)
    progress.start("stage", place.blocks * PAGE)
    writer.begin()
    done = 0
    for part in stream_of(image):
        writer.add(part)
        done += len(part)
        progress.at(done)
    target.sync()
    target.check_place()
    writer.finish()
    progress.finish()
