# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a snapshot goes: a device of its own, or a slot of a device with slots. ``open_target`` tells which."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fuse_store.errors import Refused, UsageError
from fuse_store.formats.swsusp.placement import Extents
from fuse_store.hibernation.slots.manage import has_slots
from fuse_store.hibernation.swap_device import SwapDevice
from fuse_store.snapshot.memory import Memory
from fuse_store.snapshot.recorder import Recorder

HOOK_TIME_LIMIT = 30  # seconds
MAX_NAME = 200  # bytes of the name of an application, or of an event


@dataclass(frozen=True)
class Wishes:
    """What a snapshot is to be. ``application`` and ``event``: who asked, and why. ``limit``: seconds after which it is given up;
    ``hook_limit``: for each program of the administrator.

    In a slot: ``golden``: never dropped for another image; ``replace``: when the image is complete, older replaceable ones of the same
    machine, application and event are dropped; ``keep``: all but the so many newest of the application are, 1 at least.

    On a device without slots: ``arm``: have the kernel resume it at the next boot; only where no filesystem on a block device is mounted
    writable, because what the system writes after the snapshot would be lost, and the filesystem destroyed. ``rearm``: the same, and
    again each time that it has been resumed. ``replace``: an armed image on the device may be replaced.
    """

    application: str = "system"
    event: str = ""
    golden: bool = False
    keep: int | None = None
    replace: bool = False
    arm: bool = False
    rearm: bool = False
    limit: float = 120
    hook_limit: float = HOOK_TIME_LIMIT


class Target(Protocol):
    """A device that is held exclusively, for one snapshot. ``slot``: its number once there is one; None on a device without slots."""

    device: SwapDevice

    @property
    def slot(self) -> int | None: ...

    def check(self, points: list[str]) -> None:
        """Raises Refused if the image is to be armed, and ``points``, where filesystems are mounted writable, forbid it."""

    def prepare(self, image: str, memory: Memory, page_size: int) -> Extents:
        """Have space for an image with this id, and no header there; the blocks for it. Raises Refused, StoreError, Damaged."""
        ...

    def enlarge(self, pages: int) -> Extents | None:
        """The blocks for an image that turned out to have so many pages; None if there are no more. Raises Refused, StoreError, Damaged."""
        ...

    def complete(self, recorder: Recorder, tags: Mapping[str, str]) -> None:
        """The image is written: read it back, and make it known. Raises Damaged, Refused, StoreError."""

    def restored(self, recorder: Recorder) -> list[str]:
        """The system was resumed from the image: messages of what could not be noted. Nothing is known here that happened since the image
        was made."""
        ...


def wrong_name(application: str, event: str) -> str:
    """Which of the two cannot be in a table of slots: ``application``, ``event``, or empty."""
    for name, value in (("application", application), ("event", event)):
        if not value.isprintable() or len(value.encode()) > MAX_NAME or (name == "application" and not value):
            return name
    return ""


@contextlib.contextmanager
def open_target(path: Path | str, wishes: Wishes) -> Iterator[Target]:
    """Raises NotFound, UsageError, Refused, Locked, StoreError, Damaged."""
    from fuse_store.snapshot.targets import device, slot

    name = wrong_name(wishes.application, wishes.event)
    if name:
        remedy = f"Use at most {MAX_NAME} bytes that can be printed."
        raise UsageError(f"{name} {getattr(wishes, name)[:40]!r}", "not possible as a name.", remedy)
    if wishes.keep is not None and wishes.keep < 1:
        raise UsageError(f"keep {wishes.keep}", "not even the new image would be kept.", "Keep 1 or more.")
    if has_slots(path):
        if wishes.arm or wishes.rearm:
            remedy = "Omit --arm and --rearm, and 'arm' in the policy: what selects at boot arms a slot."
            raise Refused(f"device {path}", "has slots, none of which is armed while the system runs.", remedy)
        with slot.opened(path, wishes) as in_slot:
            yield in_slot
        return
    with device.opened(path, wishes) as whole:
        if wishes.golden or wishes.keep is not None:
            remedy = "Run 'fuse-store slots init DEVICE' first, or omit --golden and --keep."
            raise Refused(f"device {path}", "has no slots, so it has space for one image, which nothing keeps.", remedy)
        yield whole


@contextlib.contextmanager
def direct(target: SwapDevice) -> Iterator[int]:
    """A descriptor of the device that passes the kernel's cache by. Raises UsageError for a file, Refused."""
    if target.is_file:  # to open it once more would break its lease
        raise UsageError(f"device {target.path}", "not a block device; files cannot be written while the system stands still.")
    try:
        descriptor = os.open(f"/proc/self/fd/{target.descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"device {target.path}", f"cannot be written past the cache: {error.strerror}.") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
