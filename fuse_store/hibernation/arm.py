# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets and takes back the signature that makes the kernel resume a staged image. Used by ``cli``.

Before it is set, what stands on the device is compared with the store, page by page: so the kernel never sees a copy that
has changed since. One block is written, in which ten bytes differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Damaged, NotFound, Refused, StoreError
from fuse_store.formats.swsusp import Header, armed, disarmed, layout
from fuse_store.hibernation import history
from fuse_store.hibernation.preflight import Report, Situation, preflight
from fuse_store.hibernation.stage import head_size, header_of, parts
from fuse_store.hibernation.swap_device import Target, holding
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point
from fuse_store.store import Store


@dataclass(frozen=True)
class Armed:
    """``changed`` is False if it was armed already; ``forced`` are the codes that would have refused it."""

    device: str
    id: str
    changed: bool
    forced: tuple[str, ...] = ()


def arm(
    store: Store, device: Path | str, situation: Situation, *, reference: str = "", force: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Armed:  # fmt: skip
    """Arm what was staged on a device; by default the version that was staged there last.

    Raises NotFound if nothing is staged there, Refused with the codes of ``preflight``, Damaged if the copy on the device is
    not what the store has, Locked, StoreError. The state_log says ``armed`` before the device does.
    """
    with Target(device) as target:
        held = holding(target)
        if held.header is None:
            raise NotFound(f"device {device}", f"it holds {held.what}, and no image to arm.", "Stage one first.")
        image = store.open_image(store.find(reference).id if reference else history.staged_on(store, target.name))
        header = header_of(image)
        if disarmed(held.header.block) != disarmed(header.block):
            remedy = "Stage it again, or name the right version with --image."
            raise Refused(f"device {device}", f"it holds another image than version {image.id[:12]}.", remedy)
        if held.armed:
            _compare(image, header, target, progress)
            return Armed(target.name, image.id, False)
        report = preflight(store, image, situation.of(target), progress)
        refuse(report, force)
        _compare(image, header, target, progress)
        store.record([image.id], "armed", device=target.name)
        fault_point("arm recorded")
        try:
            target.write_checked(0, armed(header.block))
        except StoreError:
            target.write_checked(0, disarmed(header.block))
            store.record([image.id], "failed", "the signature could not be written", device=target.name)
            raise
        fault_point("arm written")
        return Armed(target.name, image.id, True, tuple(one.code for one in report.refusals))


def refuse(report: Report, force: tuple[str, ...]) -> None:
    """Raises Refused if something speaks against it whose code is not in ``force``."""
    left = [one for one in report.refusals if one.code not in force]
    if left:
        reasons = " ".join(f"{one.code}: {one.message} {one.remedy}".strip() for one in left)
        codes = " ".join(f"--force {one.code}" for one in left)
        raise Refused(f"image {report.id[:12]}", f"it would not be safe to resume it. {reasons}", f"To do it nevertheless: {codes}.")


def _compare(image: Image, header: Header, target: Target, progress: Progress) -> None:
    """Compare the copy on the device, but for the signature, with the store. Raises Damaged."""
    head = head_size(image, header)
    progress.start("compare", image.size)
    target.forget()
    there, wanted = target.read(0, head), disarmed(header.block) + image.read(header.page_size, head - header.page_size)
    size = header.page_size
    if disarmed(there[:size]) + there[size:] != wanted:
        raise _changed(target, 0)
    for at, places, holes in parts(image, target, head):
        if places or holes:
            raise _changed(target, int(places[0].page[0]) * image.head.page_size if places else holes[0][0])
        progress.at(at)
    progress.finish()


def _changed(target: Target, where: int) -> Damaged:
    return Damaged(
        f"device {target.path}", f"what stands at {where:#x} is not what was staged: it was overwritten, or does not keep it.",
        "Nothing was armed. Stage the version again.",
    )  # fmt: skip


@dataclass(frozen=True)
class Disarmed:
    """``changed`` is False if nothing was armed; ``held`` says what stood there."""

    device: str
    changed: bool
    held: str


def disarm(device: Path | str) -> Disarmed:
    """Put the swap area's signature back; nothing else changes. Raises Refused, Damaged, StoreError."""
    with Target(device) as target:
        held = holding(target)
        if held.swap is None:
            if held.armed:
                raise Refused(f"device {device}", f"it holds {held.what}, whose signature is not known.", "Make it anew with mkswap.")
            return Disarmed(target.name, False, held.what)
        there = target.read(0, len(held.swap))
        if there == held.swap:
            return Disarmed(target.name, False, held.what)
        fault_point("disarm")
        target.write_checked(0, held.swap)
        return Disarmed(target.name, there[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE, held.what)
