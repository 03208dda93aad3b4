# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a snapshot: the system stands still while its memory is copied to a device, and goes on.

The order of it; ``standstill`` is the part in which the system stands still. Every way out takes the swap areas into use again, also by
another process if this one is killed. For the main thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fuse_store.formats.swsusp.placement import Extents
from fuse_store.hibernation.machine import Machine
from fuse_store.repository.atomic import fault_point
from fuse_store.snapshot import filesystems, memory, restored, swap
from fuse_store.snapshot.filesystems import Filesystems
from fuse_store.snapshot.guard import Guard
from fuse_store.snapshot.guardian import Guardian
from fuse_store.snapshot.memory import Memory
from fuse_store.snapshot.recorder import Recorder, TooLarge
from fuse_store.snapshot.standstill import Image, check_kernel, make_image
from fuse_store.snapshot.targets import Target, Wishes, direct, open_target

__all__ = ["Snapshot", "Wishes", "take"]


@dataclass(frozen=True)
class Snapshot:
    """``restored``: the system has just been resumed from the image, in place of having made it, as fork(2) returns twice.

    ``id``: of the image, the same both times; ``device``: its stable path; ``slot``: the number of its slot, None on a device without;
    ``armed``: whether the kernel resumes the image at the next boot; ``warnings``: what could not be undone or noted. ``size``: bytes of
    the image; ``memory`` and ``swapped``: bytes of memory that had to be in it, and of those what was in swap before; ``pause``: seconds
    for which the system stood still. A restored system has the sizes of 0, and no pause.
    """

    restored: bool
    id: str
    device: str
    armed: bool
    warnings: tuple[str, ...] = ()
    size: int = 0
    memory: int = 0
    swapped: int = 0
    pause: float = 0.0
    slot: int | None = None


def take(device: Path | str, wishes: Wishes | None = None, guard: Guard | None = None) -> Snapshot:
    """Make an image of the running system on a block device that is not in use: in a slot, if it has slots. ``guard`` notes the state
    of the filesystems.

    Raises NotFound, UsageError, Refused, StoreError, and Damaged if the device does not keep what is written to it; then the image is not
    there, and the system goes on.
    """
    machine, wishes = Machine(), wishes or Wishes()
    with open_target(device, wishes) as target, direct(target.device) as descriptor:
        image_id = _new_id(machine, target.device.name)
        context = restored.Context(
            target.device.name, None, image_id, wishes.application, wishes.event, wishes.golden, wishes.hook_limit
        )
        check_kernel()  # before anything on the device goes for the image
        restored.before_snapshot(context)
        try:
            taken = _taken(machine, target, descriptor, wishes, guard or Guard(), image_id)
        except BaseException as error:
            context.slot = target.slot
            for message in restored.after_failed(context):
                error.add_note(message)
            raise
        context.slot = target.slot
        after = restored.after_restored if taken.restored else restored.after_created
        return replace(taken, warnings=(*taken.warnings, *after(context)))


def _taken(machine: Machine, target: Target, descriptor: int, wishes: Wishes, guard: Guard, image_id: str) -> Snapshot:
    """See ``take``. ``descriptor``: of the device, for writes past the cache."""
    points = filesystems.writable(machine)
    target.check(points)
    page_size = machine.page_size or os.sysconf("SC_PAGE_SIZE")
    areas = swap.in_use(machine)
    sizes = Memory.of(machine, sum(area.used for area in areas))
    sizes.check_half()
    swap.check_space(areas, machine)
    extents = target.prepare(image_id, sizes, page_size)
    kernel, present = f"{os.uname().release} {os.uname().version}", machine.memory_tag
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(Filesystems(points))
        stack.callback(guard.close)
        guard.prepare()
        size = memory.preferred_size()
        undo = (quiet.thaw_all, lambda: memory.prefer_again(size), lambda: swap.put_back(areas))
        stack.enter_context(Guardian(undo, quiet.descriptors))
        stack.callback(memory.prefer_again, size)
        warnings = stack.enter_context(swap.out_of_use(areas, machine))
        fault_point("snapshot swap out of use")

        def image_in(extents: Extents) -> tuple[Recorder, Image]:
            recorder = Recorder(descriptor, page_size, extents)
            preferred = sizes.preferred(recorder.capacity * page_size)
            memory.free_caches(machine, preferred)
            return recorder, make_image(recorder, quiet, guard, preferred, page_size, wishes.limit)

        try:
            recorder, image = image_in(extents)
        except TooLarge as error:  # sizes are known when the system stands still
            larger = target.enlarge(error.pages)
            if larger is None:
                raise
            recorder, image = image_in(larger)
    target.device.drop_cache()
    if image.restored:
        problems = target.restored(recorder)
        return Snapshot(
            True, image_id, target.device.name, wishes.rearm and not problems, (*warnings, *problems), slot=target.slot
        )  # fmt: skip
    fault_point("snapshot pages")
    tags = {"kernel": kernel, **({"memory": present} if present else {}), **image.tags}
    target.complete(recorder, tags)
    armed = wishes.arm or wishes.rearm
    return Snapshot(
        False, image_id, target.device.name, armed, tuple(warnings), image.size, sizes.used, sizes.swapped, image.pause, target.slot
    )


def _new_id(machine: Machine, device: str) -> str:
    """32 hexadecimal digits. Of times, not at random: a restored system repeats its random numbers, and no time comes twice."""
    times = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    parts = (machine.text("etc/machine-id"), machine.text("proc/sys/kernel/random/boot_id"), device, *times)
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).hexdigest()
