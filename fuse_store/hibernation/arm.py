# SPDX-License-Identifier: GPL-3.0-or-later
"""Arm and disarm: sets and removes the signature that makes the kernel resume a staged image.

Before the signature is set, every page on the device is compared with the store, so that the kernel never resumes a copy that
has changed since. One page is written; ten bytes of it differ. Runs in one thread, and opens the device exclusively.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Damaged, NotFound, Refused, StoreError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import Header, HibernationImage, armed, disarmed, layout
from fuse_store.hibernation import history
from fuse_store.hibernation.preflight import Report, TargetMachine, preflight
from fuse_store.hibernation.stage import differences, head_size, header_of
from fuse_store.hibernation.swap_device import SwapDevice, contents_of
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point
from fuse_store.store import Store

COMPARED_PAGES = 64  # of an image, to tell it from another one


@dataclass(frozen=True)
class ArmResult:
    """``device``: its stable path. ``changed`` is False if the device was armed already. ``forced``: codes that were overridden."""

    device: str
    id: str
    changed: bool
    forced: tuple[str, ...] = ()


def arm(
    store: Store, device: Path | str, machine: TargetMachine, *, reference: str = "", force: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> ArmResult:  # fmt: skip
    """Arm the image staged on a device: version ``reference``, by default the one that was staged there last.

    Raises NotFound if no image is staged there, Refused with the codes of ``preflight`` that are not in ``force``, Damaged if
    the copy on the device differs from the store, Locked, StoreError. The state log says ``armed`` before the device does. A
    device that is armed, but not by the log, may be a copy of one that was resumed: it is checked like any other.
    """
    with SwapDevice(device) as target:
        contents = contents_of(target)
        if contents.header is None:
            raise NotFound(f"device {device}", f"contains {contents.description}; no image to arm.", "Stage an image first.")
        image = store.open_image(store.find(reference).id if reference else history.staged_on(store, target.name))
        header = header_of(image)
        if disarmed(contents.header.block) != disarmed(header.block):
            remedy = "Stage the version again, or name the staged one with --image."
            raise Refused(f"device {device}", f"contains another image than version {image.id[:12]}.", remedy)
        if contents.armed and target.name in store.state_log.read(image.head.content).usage.armed:
            _compare(image, header, target, progress)
            return ArmResult(target.name, image.id, False)
        report = preflight(store, image, machine.with_device(target), progress)
        refuse(report, force)
        _compare(image, header, target, progress)
        store.record([image.id], "armed", after=history.newest_on(store, target.name), device=target.name)
        fault_point("arm recorded")
        try:
            target.write_checked(0, armed(header.block))
        except StoreError:
            target.write_checked(0, disarmed(header.block))
            store.record([image.id], "failed", "the signature could not be written", device=target.name)
            raise
        fault_point("arm written")
        return ArmResult(target.name, image.id, not contents.armed, tuple(refusal.code for refusal in report.refusals))


def refuse(report: Report, force: tuple[str, ...]) -> None:
    """Raises Refused if the report has refusals whose codes are not in ``force``."""
    left = [refusal for refusal in report.refusals if refusal.code not in force]
    if left:
        reasons = " ".join(f"{refusal.code}: {refusal.message} {refusal.remedy}".strip() for refusal in left)
        codes = " ".join(f"--force {refusal.code}" for refusal in left)
        raise Refused(f"image {report.id[:12]}", f"not safe to resume. {reasons}", f"To override: {codes}.")


def _compare(image: Image, header: Header, target: SwapDevice, progress: Progress) -> None:
    """Compare the device with the store, except for the signature. Raises Damaged."""
    size, head = header.page_size, head_size(image, header)
    progress.start("compare", image.size)
    target.drop_cache()
    on_device = target.read(0, head)
    if disarmed(on_device[:size]) + on_device[size:] != disarmed(header.block) + image.read(size, head - size):
        raise _changed(target, 0)
    for end, places, holes in differences(image, target, head):
        if places or holes:
            raise _changed(target, int(places[0].page[0]) * image.head.page_size if places else holes[0][0])
        progress.at(end)
    progress.finish()


def _changed(target: SwapDevice, offset: int) -> Damaged:
    return Damaged(
        f"device {target.path}", f"data at {offset:#x} differs from the staged version: overwritten since, or not kept by the device.",
        "The device was not armed. Stage the version again.",
    )  # fmt: skip


def holds(device: Path | str, image: Image) -> bool:
    """Whether the image on a device is that of a version, by its header, its counts and the first of its lists, which no two
    hibernations share. In doubt it is not."""
    try:
        with File(device) as file, HibernationImage(file) as there, HibernationImage(image) as stored:
            if disarmed(there.header.block) != disarmed(stored.header.block) or there.map.count != stored.map.count:
                return False
            count = min(there.map.count, COMPARED_PAGES)
            return bool((there.map.read(0, count) == stored.map.read(0, count)).all())
    except StoreError:
        return False


@dataclass(frozen=True)
class DisarmResult:
    """``changed`` is False if nothing was armed; ``held``: the contents before, for messages."""

    device: str
    changed: bool
    held: str


def disarm(device: Path | str) -> DisarmResult:
    """Restore the signature of the swap area; nothing else changes. Raises Refused, Damaged, StoreError."""
    with SwapDevice(device) as target:
        contents = contents_of(target)
        if contents.swap_page is None:
            if contents.armed:
                raise Refused(
                    f"device {device}", f"contains {contents.description}, and the signature of the swap area is not known.",
                    "Create the swap area again with mkswap.",
                )  # fmt: skip
            return DisarmResult(target.name, False, contents.description)
        page = target.read(0, len(contents.swap_page))
        if page == contents.swap_page:
            return DisarmResult(target.name, False, contents.description)
        fault_point("disarm")
        target.write_checked(0, contents.swap_page)
        return DisarmResult(target.name, page[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE, contents.description)
