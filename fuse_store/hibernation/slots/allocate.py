# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds space for a slot on a device: free runs of blocks, and which images go when there are too few. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from fuse_store.hibernation.slots.layout import GOOD, MAX_EXTENTS, MAX_SLOTS, Extents, Slot, Table


def free_runs(table: Table) -> list[tuple[int, int]]:
    """(first block, number) of the runs that no slot has, ascending."""
    runs, at = [], table.first
    for first, count in sorted(extent for slot in table.slots for extent in slot.extents):
        if first > at:
            runs.append((at, first - at))
        at = first + count
    if table.end > at:
        runs.append((at, table.end - at))
    return runs


def allocate(table: Table, blocks: int) -> Extents | None:
    """Extents of so many free blocks: the first run that has all of them, else the fewest runs that have, the largest first, so that
    the slot has few extents; None if there are not enough."""
    if len(table.slots) >= MAX_SLOTS:
        return None
    runs = free_runs(table)
    for first, count in runs:
        if count >= blocks:
            return ((first, blocks),)
    chosen = []
    for first, count in sorted(runs, key=lambda run: -run[1])[:MAX_EXTENTS]:
        chosen.append((first, min(count, blocks)))
        blocks -= chosen[-1][1]
        if not blocks:
            return tuple(sorted(chosen))
    return None


def victims(table: Table, blocks: int, application: tuple[str, str]) -> list[Slot] | None:
    """The slots to drop so that ``allocate`` finds space, fewest first: interrupted ones, then those whose image is not whole or failed,
    then those that are in a store, then the others, the oldest first; none that is golden or armed, and not the last good one of a
    machine's application. Empty if there is space already; None if there is not enough. ``application``: machine and application of the
    new one, whose images go before those of others of the same age."""
    dropped = [slot for slot in table.slots if slot.state == "writing"]
    left = table.without(*(slot.number for slot in dropped))
    while allocate(left, blocks) is None:
        candidates = [slot for slot in left.slots if _may_go(slot, left.slots)]
        if not candidates:
            return None
        gone = min(candidates, key=lambda slot: _rank(slot, application))
        dropped.append(gone)
        left = left.without(gone.number)
    return dropped


def _rank(slot: Slot, application: tuple[str, str]) -> tuple[bool, bool, int, bool]:
    """The lowest one goes first. What is in a store is not lost."""
    return slot.state in GOOD, not slot.content, slot.staged, (slot.machine, slot.application) != application


def _may_go(slot: Slot, slots: Iterable[Slot]) -> bool:
    if slot.kept == "golden" or slot.state == "armed":
        return False
    others = (other for other in slots if other.number != slot.number and other.state in GOOD)
    same = any((other.machine, other.application) == (slot.machine, slot.application) for other in others)
    return slot.state not in GOOD or same
