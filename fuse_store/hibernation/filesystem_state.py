# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystem state: records the state of a machine's filesystems as tags of a version, and compares it later.

The tag ``fs.source`` tells where the state comes from: ``disks`` (the image was not resumed yet, and its disks were read) or
``machine`` (the machine went on after its image was captured, and its mounts were read). A tag ``fs.<UUID>`` is the state of
one filesystem: its kind, then either the text of ``filesystems``, or ``in-use`` if it was mounted writable while the machine
went on, or ``unreadable`` if its state cannot be determined. docs/staging.md describes the tags for other programs that write
them. Reads devices and runs blkid and sfdisk; keeps no state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fuse_store.errors import Refused, StoreError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.filesystems import Filesystem, Read, identify
from fuse_store.hibernation.machine import Machine, memory_map_sum, recorded_sum

T = TypeVar("T")
PREFIX = "fs."
SOURCE_TAG = "fs.source"
DISKS, MACHINE = "disks", "machine"  # values of the tag
IN_USE, UNREADABLE = "in-use", "unreadable"
GUARD, NO_GUARD, UNSAFE = "guard.", "guard.none", "unsafe"  # tags of snapshots: see docs/snapshots.md
MAX_GUARD_SIZE = 64 << 20  # bytes that a guard may have read
_GUARD = re.compile(r"([0-9A-Za-z-]{1,36}) ((?:[0-9]{1,15}\+[0-9]{1,15},?){1,64}) ([0-9a-f]{64})", re.ASCII)
MAX_TAGS = 48  # of a version, for filesystems
IGNORED_KINDS = ("swap", "swsuspend")


@dataclass(frozen=True)
class Volume:
    """A disk or partition with contents: ``kind`` and ``uuid`` as blkid reports them; no ``filesystem`` if not supported."""

    kind: str
    uuid: str
    filesystem: Filesystem | None

    def state(self) -> str:
        """The value of its tag."""
        text = self.filesystem.state() if self.filesystem else ""
        return f"{self.kind} {text or UNREADABLE}"


def tags_of_disks(disks: Sequence[Path]) -> dict[str, str]:
    """The tags, read from the disks of the machine that the image is of. Raises NotFound, StoreError, Refused."""
    with ExitStack() as stack:
        return _tags_of(volume for disk in disks for volume in disk_volumes(disk, stack))


def tags_of_machine(image: HibernationImage, source: Path, machine: Machine) -> dict[str, str]:
    """The tags, read from the machine that the device ``source`` belongs to; none if the image is of another machine.
    Raises Refused."""
    with ExitStack() as stack:
        if not source.is_block_device() or not _is_image_of(image, machine):
            return {}
        if image.header.state == "armed":  # captured before its resume: the disks are as the image left them
            return _tags_of(on_machine(machine, stack, disk_volumes))
        return _tags_of_mounts(machine, stack)


def _is_image_of(image: HibernationImage, machine: Machine) -> bool:
    """Whether the image was made on this machine, judged by its memory."""
    if image.info.memory != machine.present_pages:
        return False
    memory_map = machine.memory_map
    if image.info.architecture != "x86":
        return True
    return memory_map is not None and memory_map_sum(image.info, memory_map) == recorded_sum(image.info)


def _tags_of(volumes: Iterable[Volume]) -> dict[str, str]:
    tags: dict[str, str] = {SOURCE_TAG: DISKS}
    for volume in volumes:
        if PREFIX + volume.uuid not in tags:  # the disks of a mirror share a UUID
            tags[PREFIX + volume.uuid] = volume.state()
    if len(tags) > MAX_TAGS:
        raise Refused("filesystem state", f"{len(tags)} tags are needed, and a version has at most {MAX_TAGS}.", "Name fewer disks.")
    return tags


def _tags_of_mounts(machine: Machine, stack: ExitStack) -> dict[str, str]:
    """The tags of what is mounted on a machine that went on after it hibernated."""
    mounts = machine.mounts
    if mounts is None:
        return {}
    tags = {SOURCE_TAG: MACHINE}
    for device_number, kind, mount_source, writable in mounts:
        no_device = device_number.startswith("0:")  # btrfs, tmpfs, proc and the like
        device = machine.root / mount_source.lstrip("/") if no_device else machine.device_of(device_number)
        if device is None or (no_device and not mount_source.startswith("/dev/")):
            continue
        volume = next(disk_volumes(device, stack, partitioned=False), None)
        uuid = volume.uuid if volume else device_number
        tags[PREFIX + uuid] = f"{kind} {IN_USE}" if writable else (volume.state() if volume else f"{kind} {UNREADABLE}")
    return tags


# comparison ---------------------------------------------------------------------------------------------------------------


def recorded_states(tags: Mapping[str, str]) -> dict[str, str]:
    """UUID → state of each filesystem in the tags of a version."""
    return {key.removeprefix(PREFIX): state for key, state in tags.items() if key.startswith(PREFIX) and key != SOURCE_TAG}


def changes(recorded: Mapping[str, str], volumes: Iterable[Volume]) -> list[str]:
    """How volumes differ from the recorded states (UUID → state), for messages: one text for each filesystem that does."""
    present: dict[str, set[str]] = {uuid: set() for uuid in recorded}
    for volume in volumes:
        if volume.uuid in present:
            present[volume.uuid].add(volume.state())
    return [_change(uuid, state, present[uuid]) for uuid, state in sorted(recorded.items()) if present[uuid] != {state}]


def _change(uuid: str, recorded: str, present: set[str]) -> str:
    kind, *fields = recorded.split() or ["filesystem"]
    if not present:
        return f"{kind} {uuid} is missing"
    new_fields = sorted(present)[0].split()[1:]
    different = [
        f"{before} → {now}"
        for before, now in zip(fields, new_fields, strict=False)
        if before != now and "superblock" not in before
    ]
    return f"{kind} {uuid} has been written to since ({', '.join(different) or 'superblock'})"


# guards -------------------------------------------------------------------------------------------------------------------


def guards_of(tags: Mapping[str, str]) -> dict[str, str] | None:
    """The guards in the tags of a snapshot, empty if it needs none; None if it has none."""
    found = {key: value for key, value in tags.items() if key.startswith(GUARD)}
    if not found or UNSAFE in tags:
        return None
    return {key: value for key, value in found.items() if key != NO_GUARD}


def guard_holds(value: str, read: Read) -> bool:
    """Whether a device has what a guard says. False for one that cannot be understood. Raises what ``read`` raises."""
    match = _GUARD.fullmatch(value)
    if match is None:
        return False
    ranges = [(int(at), int(length)) for at, _plus, length in (pair.partition("+") for pair in match[2].strip(",").split(","))]
    if sum(length for _offset, length in ranges) > MAX_GUARD_SIZE:
        return False
    digest = hashlib.sha256()
    for offset, length in ranges:
        content = read(offset, length)
        if len(content) != length:
            return False
        digest.update(content)
    return digest.hexdigest() == match[3]


def guard_changes(guards: Mapping[str, str], reads: Iterable[Read]) -> list[str]:
    """Which guards hold on none of these devices, for messages: one text for each."""
    left = dict(guards)
    for read in reads:
        left = {key: value for key, value in left.items() if not guard_holds(value, read)}
    text = "filesystem {} has been written to since the snapshot, or is missing"
    return [text.format(value.partition(" ")[0]) for _key, value in sorted(left.items())]


def disk_reads(disk: Path, stack: ExitStack, partitioned: bool = True) -> Iterator[Read]:
    """How to read a disk, or its partitions. Raises NotFound, StoreError."""
    file = stack.enter_context(File(disk))
    file.drop_cache()  # which some filesystems pass by
    for begin, _length in (_partitions(disk, file) if partitioned else []) or [(0, file.size)]:
        yield _reader(file, begin)


# volumes ------------------------------------------------------------------------------------------------------------------


def on_machine(machine: Machine, stack: ExitStack, look: Callable[[Path, ExitStack, bool], Iterator[T]]) -> Iterator[T]:
    """What ``look``, which is ``disk_volumes`` or ``disk_reads``, gives of every block device of a machine. ``stack`` keeps them open."""
    for device in machine.block_devices():
        try:
            yield from look(device, stack, False)
        except StoreError:
            continue  # a drive without a medium


def disk_volumes(path: Path, stack: ExitStack, partitioned: bool = True) -> Iterator[Volume]:
    """The volume on a disk, or those on its partitions. ``partitioned``: look for partitions; on a machine they are devices of their own.
    Raises NotFound, StoreError."""
    file = stack.enter_context(File(path))
    partitions = _partitions(path, file) if partitioned else []
    for begin, length in partitions or [(0, file.size)]:
        filesystem = identify(_reader(file, begin), length)
        if filesystem:
            yield Volume(filesystem.kind, filesystem.uuid, filesystem)
            continue
        fields = _probe(path, begin, length)
        kind = fields.get("TYPE", "")
        if kind and kind not in IGNORED_KINDS:
            yield Volume(kind, fields.get("UUID") or f"{path.name}-{begin}", None)


def _reader(file: File, begin: int) -> Read:
    return lambda at, count: file.read(begin + at, count)


def _partitions(path: Path, file: File) -> list[tuple[int, int]]:
    """(begin, length) in bytes of the partitions on a disk; empty without a partition table. Raises StoreError."""
    if file.read(510, 2) != b"\x55\xaa" or identify(file.read, file.size):
        return []
    try:
        table = json.loads(_run("sfdisk", "--json", str(path)) or "{}").get("partitiontable", {})
        unit = int(table.get("sectorsize", 512))
        return [(int(entry["start"]) * unit, int(entry["size"]) * unit) for entry in table.get("partitions", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"disk {path}", "partition table cannot be read.", "Name its partitions one by one.") from None


def _probe(path: Path, begin: int, length: int) -> Mapping[str, str]:
    """The fields that blkid reports for a range of a disk."""
    output = _run("blkid", "-p", "-O", str(begin), "-S", str(length), "-o", "export", str(path))
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def _run(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False, env=environment
        ).stdout
    except FileNotFoundError:
        raise StoreError(command[0], "command not found.", "Install util-linux and fdisk.") from None
