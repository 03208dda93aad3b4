# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence of what was on the disks when an image was captured, as tags of the version. Used by ``put`` and ``preflight``.

``fs.evidence`` tells where it comes from: ``disks`` (an image that nobody has resumed yet, with its disks named or at hand)
or ``machine`` (the machine went on after its image was captured, and told what was mounted). ``fs.<UUID>`` is the state of
one filesystem: its kind, then either what ``filesystems`` read, or ``in-use`` if it was writable while the machine went
on, or ``unreadable`` if its kind is not known. docs/staging.md has the format for those who make these tags elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused, StoreError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.filesystems import Filesystem, Read, identify
from fuse_store.hibernation.machine import Machine, memory_map_sum, recorded_sum

PREFIX = "fs."
ORIGIN = "fs.evidence"
DISKS, MACHINE = "disks", "machine"
IN_USE, UNREADABLE = "in-use", "unreadable"
ROOM = 48  # tags that may be taken for filesystems
PASSED_OVER = ("swap", "swsuspend")


@dataclass(frozen=True)
class Part:
    """What is on a disk or a partition: ``kind`` and ``uuid`` as blkid tells, ``state`` as the tag has it."""

    kind: str
    uuid: str
    filesystem: Filesystem | None

    def state(self) -> str:
        text = self.filesystem.state() if self.filesystem else ""
        return f"{self.kind} {text or UNREADABLE}"


def tags_of_disks(disks: Sequence[Path]) -> dict[str, str]:
    """The tags, from the disks of the machine that an image is of. Raises NotFound, StoreError, Refused."""
    with ExitStack() as stack:
        return _recorded(DISKS, (part for disk in disks for part in disk_parts(disk, stack)))


def tags_of_machine(image: HibernationImage, source: Path, machine: Machine) -> dict[str, str]:
    """The tags, from the machine whose own device ``source`` is; none if the image is of another one. Raises Refused."""
    with ExitStack() as stack:
        if not source.is_block_device() or not _is_of(image, machine):
            return {}
        if image.header.state == "armed":  # read before it resumes: whatever is on the disks is what it knows of them
            return _recorded(DISKS, machine_parts(machine, stack))
        return _mounted(machine, stack)


def _is_of(image: HibernationImage, machine: Machine) -> bool:
    """Whether the image is of this machine, as its memory tells."""
    if image.info.memory != machine.present_pages:
        return False
    table = machine.memory_map
    return image.info.architecture != "x86" or (table is not None and memory_map_sum(image.info, table) == recorded_sum(image.info))


def _recorded(origin: str, found: Iterator[Part]) -> dict[str, str]:
    tags: dict[str, str] = {ORIGIN: origin}
    for part in found:
        if PREFIX + part.uuid not in tags:  # the disks of a mirror have the same
            tags[PREFIX + part.uuid] = part.state()
    if len(tags) > ROOM:
        raise Refused("evidence", f"there are {len(tags)} filesystems, and a version has room for {ROOM}.", "Name fewer disks.")
    return tags


def _mounted(machine: Machine, stack: ExitStack) -> dict[str, str]:
    """What is mounted on a machine that has gone on since it hibernated."""
    mounts = machine.mounts
    if mounts is None:
        return {}
    tags = {ORIGIN: MACHINE}
    for number, kind, source, writable in mounts:
        device = machine.root / source.lstrip("/") if number.startswith("0:") else machine.device_of(number)
        if device is None or (number.startswith("0:") and not source.startswith("/dev/")):
            continue
        part = next(_file_parts(device, stack, whole=True), None)
        uuid = part.uuid if part else number
        tags[PREFIX + uuid] = f"{kind} {IN_USE}" if writable else (part.state() if part else f"{kind} {UNREADABLE}")
    return tags


# what is on disks ---------------------------------------------------------------------------------------------------------


def machine_parts(machine: Machine, stack: ExitStack) -> Iterator[Part]:
    """What is on every block device of a machine. ``stack`` keeps the devices open."""
    for device in machine.block_devices():
        try:
            yield from _file_parts(device, stack, whole=True)
        except StoreError:
            continue  # a drive without a medium


def disk_parts(disk: Path, stack: ExitStack) -> Iterator[Part]:
    """What is on a disk, or on its partitions. Raises NotFound, StoreError."""
    return _file_parts(disk, stack)


def _file_parts(path: Path, stack: ExitStack, whole: bool = False) -> Iterator[Part]:
    """``whole``: its partitions are devices of their own."""
    file = stack.enter_context(File(path))
    partitions = [] if whole else _partitions(path, file)
    for begin, length in partitions or [(0, file.size)]:
        found = identify(_reader(file, begin), length)
        if found:
            yield Part(found.kind, found.uuid, found)
            continue
        fields = _probe(path, begin, length)
        kind = fields.get("TYPE", "")
        if kind and kind not in PASSED_OVER:
            yield Part(kind, fields.get("UUID") or f"{path.name}-{begin}", None)


def _reader(file: File, begin: int) -> Read:
    return lambda at, count: file.read(begin + at, count)


def _partitions(path: Path, file: File) -> list[tuple[int, int]]:
    """(begin, length) in bytes of the partitions on a disk; none if it has no table of them."""
    if file.read(510, 2) != b"\x55\xaa" or identify(file.read, file.size):
        return []
    try:
        table = json.loads(_run("sfdisk", "--json", str(path)) or "{}").get("partitiontable", {})
        unit = int(table.get("sectorsize", 512))
        return [(int(one["start"]) * unit, int(one["size"]) * unit) for one in table.get("partitions", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"disk {path}", "its partitions can't be read.", "Name its partitions one by one.") from None


def _probe(path: Path, begin: int, length: int) -> Mapping[str, str]:
    found = _run("blkid", "-p", "-O", str(begin), "-S", str(length), "-o", "export", str(path))
    return dict(line.split("=", 1) for line in found.splitlines() if "=" in line)


def _run(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout
    except FileNotFoundError:
        raise StoreError(command[0], "it is not here to look at disks.", "Install util-linux and fdisk.") from None
