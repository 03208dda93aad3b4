# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks that a power cut could have left, made from what a ``recorder.Disk`` logged.

What was written before the last flush is on the disk. Of what was written after it, anything may be: all, nothing, some of it in
any order, and of a write only some sectors.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.store.power.recorder import Disk, Event


@dataclass(frozen=True)
class Cut:
    """``position`` in the log at which the power failed, and how what was not flushed was ``lost``."""

    position: int
    lost: str


LOSSES = ("nothing", "everything", "some writes", "some sectors")


def disks_after(disk: Disk, directory: Path, cuts: list[Cut], seed: int, sector: int) -> Iterator[tuple[Cut, Path]]:
    """A disk for each cut, in the order of their positions; the file is removed when the next one is asked for. ``sector``: bytes that
    are written whole or not at all."""
    chosen = random.Random(seed)
    events = iter(disk.events())
    durable, left = directory / "durable", directory / "left"
    with open(durable, "wb") as file:
        file.truncate(disk.size)
    pending: list[Event] = []
    position, event = next(events, (1 << 62, None))
    with open(durable, "r+b", buffering=0) as file:
        for cut in sorted(cuts, key=lambda each: each.position):
            while event is not None and position <= cut.position:
                if event.data is None:
                    _apply(file.fileno(), pending)
                    pending = []
                else:
                    pending.append(event)
                position, event = next(events, (1 << 62, None))
            subprocess.run(["cp", "--sparse=always", str(durable), str(left)], check=True)
            with open(left, "r+b", buffering=0) as out:
                _apply(out.fileno(), _kept(pending, cut.lost, chosen, sector))
            yield cut, left
            left.unlink()


def _kept(pending: list[Event], lost: str, chosen: random.Random, sector: int) -> list[Event]:
    """What of the writes that were not flushed is on the disk."""
    if lost == "everything":
        return []
    if lost == "nothing":
        return pending
    kept = [event for event in pending if chosen.random() < 0.5]
    if lost == "some sectors":
        kept = [torn for event in pending for torn in _sectors(event, chosen, sector)]
    return kept


def _sectors(event: Event, chosen: random.Random, sector: int) -> Iterator[Event]:
    """Some sectors of a write: from its start, up to its end, or scattered."""
    assert event.data is not None
    count = -(-len(event.data) // sector)
    first, last = sorted(chosen.randint(0, count) for _side in range(2))
    for start, end in chosen.choice([((0, last),), ((first, count),), ((0, first), (last, count))]):
        if start < end:
            yield Event(event.offset + start * sector, event.data[start * sector : end * sector])


def _apply(descriptor: int, events: list[Event]) -> None:
    for event in events:
        assert event.data is not None
        os.pwrite(descriptor, event.data, event.offset)
