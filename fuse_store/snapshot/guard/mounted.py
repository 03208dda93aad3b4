# SPDX-License-Identifier: GPL-3.0-or-later
"""Which filesystems a machine has mounted from block devices, and which of them matter to a snapshot of it. Reads /proc and /sys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fuse_store.hibernation.machine import Machine, Mounted, mounts_in
from fuse_store.snapshot.filesystems import namespaces

# Filesystems that are on devices or the like, though their number (0:…) names none; of other ones with such a number none is.
_WITHOUT_DEVICE_NUMBER = ("btrfs", "zfs", "bcachefs", "ubifs")
_IN_MEMORY = ("tmpfs", "ramfs", "rootfs", "devtmpfs")
# On layers that are mounted themselves: what is on it is on one of them, or in memory.
_LAYERED = ("overlay",)
# Every one of these that is mounted is listed here by the name of its device or its UUID, in whatever mount namespace it is.
_LISTED = ("ext4", "xfs", "f2fs", "erofs")
_LISTED_BY_UUID = "btrfs"
_LOOP, _RAM_DISK = 7, 1  # major numbers of Documentation/admin-guide/devices.txt
_ZRAM = "zram"


def on_devices(machine: Machine) -> Iterator[Mounted]:
    """Those that are on devices, also in other mount namespaces, once each."""
    seen: set[tuple[str, str]] = set()
    for _prefix, mounts in namespaces(machine):
        for one in mounts_in(mounts):
            has_device = not one.number.startswith("0:") or one.kind in _WITHOUT_DEVICE_NUMBER
            if has_device and (one.number, one.kind) not in seen:
                seen.add((one.number, one.kind))
                yield one


def device_of(machine: Machine, mounted: Mounted) -> Path | None:
    """The device; None if there is none that can be named."""
    if not mounted.number.startswith("0:"):
        return machine.device_of(mounted.number)
    return machine.root / mounted.source.lstrip("/") if mounted.source.startswith("/dev/") else None


def in_memory(machine: Machine, mounted: Mounted) -> bool:
    """Whether the device is memory, and so part of the image itself."""
    directory = machine.root / "sys/dev/block" / mounted.number
    return mounted.number.startswith(f"{_RAM_DISK}:") or os.path.realpath(directory).rpartition("/")[2].startswith(_ZRAM)


def backing_file(machine: Machine, mounted: Mounted) -> str | None:
    """The path of the file behind a loop device, or behind the device that a partition is of; None if it is on none."""
    directory = Path(os.path.realpath(machine.root / "sys/dev/block" / mounted.number))
    for place in (directory, directory.parent):
        path = machine.text(str(place.relative_to(machine.root) / "loop/backing_file"))
        if path is not None:
            return path
    return "an unknown file" if mounted.number.startswith(f"{_LOOP}:") else None


def kind_below(machine: Machine, path: str) -> str:
    """What a file is on: ``memory``, ``device`` (a filesystem of ``on_devices``), or the kind of another filesystem; empty if there is no
    such file."""
    if not path.startswith("/") or not os.path.lexists(path):
        return ""
    below = Mounted("", "", "", frozenset(), "")
    for one in mounts_in(machine.text("proc/self/mountinfo") or ""):  # the last one hides those before
        if (path + "/").startswith(one.point.rstrip("/") + "/") and len(one.point) >= len(below.point):
            below = one
    if below.kind in _IN_MEMORY:
        return "memory"
    has_device = below.number and (not below.number.startswith("0:") or below.kind in (*_WITHOUT_DEVICE_NUMBER, *_LAYERED))
    return "device" if has_device else below.kind


def hidden(machine: Machine, known: list[Mounted], uuids: set[str]) -> Iterator[str]:
    """Names of what is mounted where no mount point can be seen, as a root filesystem from which the system has moved away."""
    numbers = {one.number for one in known}
    for kind in _LISTED:
        for name in _names(machine.root / "sys/fs" / kind):
            number = machine.text(f"sys/class/block/{name}/dev")
            if number is not None and number not in numbers:
                yield f"{kind} on {name}"
    for name in _names(machine.root / "sys/fs" / _LISTED_BY_UUID):
        if len(name) == 36 and name not in uuids:
            yield f"{_LISTED_BY_UUID} {name}"


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
