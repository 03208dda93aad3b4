# SPDX-License-Identifier: GPL-3.0-or-later
"""Arms the version that is staged in a swap file, after every check of ``hibernation.arm``. The state log says ``armed`` before the
signature does. ``hibernation.arm.disarm`` disarms it: ten bytes of the file's first page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fuse_store.errors import NotFound, Refused, StoreError
from fuse_store.formats.swsusp import HibernationImage, armed, disarmed, layout
from fuse_store.hibernation import history
from fuse_store.hibernation.arm import refuse
from fuse_store.hibernation.preflight import TargetMachine, preflight
from fuse_store.hibernation.slots import writer
from fuse_store.hibernation.slots.swap_use import swap_use
from fuse_store.hibernation.swap_files.file import PAGE, SwapFile
from fuse_store.hibernation.swap_files.stage import own_header, placement
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import fault_point
from fuse_store.store import Store


@dataclass(frozen=True)
class ArmedFile:
    """``name``: the path of the file without links. ``device``: the stable path of its block device. ``offset``: for
    ``resume_offset=``. ``changed`` is False if it was armed already; ``forced``: codes that were overridden."""

    name: str
    device: str
    offset: int
    id: str
    changed: bool
    forced: tuple[str, ...] = ()


def arm(
    store: Store, path: Path | str, machine: TargetMachine, *, reference: str = "", force: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> ArmedFile:  # fmt: skip
    """Arm the image staged in a swap file: version ``reference``, by default the one that was staged there last.

    Raises NotFound if no image is staged there, Refused with the codes of ``preflight`` that are not in ``force``, Damaged if the file
    differs from the store, Locked, StoreError.
    """
    with SwapFile(path) as target:
        target.empty_page()
        page = target.page
        version = store.open_image(store.find(reference).id if reference else history.staged_on(store, target.name))
        with HibernationImage(version) as image:
            header, was_armed = own_header(target, image), page[-layout.SIGNATURE_SIZE :] == layout.SIGNATURE
            if not layout.TAIL.unpack(page[-layout.TAIL.size :])[2]:
                raise NotFound(f"swap file {path}", "contains a swap area; no image to arm.", "Stage an image first.")
            if disarmed(page) != header:
                remedy = "Stage the version again, or name the staged one with --image."
                raise Refused(f"swap file {path}", f"contains another image than version {version.id[:12]}.", remedy)
            place = placement(target, image)
            if was_armed and target.name in store.state_log.read(version.head.content).usage.armed:
                writer.compare(target, place, image, progress, header)
                return ArmedFile(target.name, target.device, target.offset, version.id, False)
            here = replace(machine, device=Path(target.device), size=None, swap=swap_use(version, image).state)
            report = preflight(store, version, here, progress)
            refuse(report, force)
            writer.compare(target, place, image, progress, header)
        store.record([version.id], "armed", after=history.newest_on(store, target.name), device=target.name)
        fault_point("arm recorded")
        try:
            target.write_checked(target.offset * PAGE, armed(header))
        except StoreError:
            target.write_checked(target.offset * PAGE, header)
            store.record([version.id], "failed", "the signature could not be written", device=target.name)
            raise
        fault_point("arm written")
        codes = tuple(refusal.code for refusal in report.refusals)
        return ArmedFile(target.name, target.device, target.offset, version.id, not was_armed, codes)
