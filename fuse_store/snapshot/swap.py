# SPDX-License-Identifier: GPL-3.0-or-later
"""Swap areas, out of use while an image is made.

An image refers to pages in swap by their place, and has not their content. A system that goes on uses these places for other pages, so
an image with pages in swap could not be resumed later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from fuse_store.errors import Refused, StoreError
from fuse_store.hibernation.machine import Machine, unescaped

_PREFER, _PRIORITY_MASK = 0x8000, 0x7FFF  # SWAP_FLAG_* of include/linux/swap.h


@dataclass(frozen=True)
class SwapArea:
    """A line of /proc/swaps; sizes in bytes."""

    path: str
    used: int
    priority: int


def in_use(machine: Machine) -> list[SwapArea]:
    """The swap areas, those with a high priority first."""
    areas = []
    for line in (machine.text("proc/swaps") or "").splitlines()[1:]:
        path, _kind, _size, used, priority = line.split()[:5]
        areas.append(SwapArea(unescaped(path), int(used) << 10, int(priority)))
    return sorted(areas, key=lambda area: -area.priority)


@contextlib.contextmanager
def out_of_use(areas: list[SwapArea], machine: Machine) -> Iterator[list[str]]:
    """The areas are not in use meanwhile. The list gets a message for each that could not be taken into use again. Raises Refused,
    StoreError."""
    problems: list[str] = []
    take_out(areas, machine)
    try:
        yield problems
    finally:
        problems += put_back(areas)


def check_space(areas: list[SwapArea], machine: Machine) -> None:
    """Raises Refused if the memory has no space for what is in the areas."""
    used, available = sum(area.used for area in areas), machine.memory.get("MemAvailable", 0)
    if used > available:
        raise Refused(
            "snapshot", f"{used >> 20} MiB are in swap, and {available >> 20} MiB of memory are available.",
            "Stop programs that need much memory.",
        )  # fmt: skip


def take_out(areas: list[SwapArea], machine: Machine) -> None:
    """Take all areas out of use. Raises what ``check_space`` does, and StoreError; then all are in use."""
    check_space(areas, machine)
    taken: list[SwapArea] = []
    for area in areas:
        if _libc("swapoff", os.fsencode(area.path)):
            reason = os.strerror(ctypes.get_errno())
            put_back(taken)
            raise StoreError(f"swap {area.path}", f"cannot be taken out of use: {reason}.", "Run swapoff, and try again.")
        taken.append(area)


def put_back(areas: list[SwapArea]) -> list[str]:
    """Take areas into use as they were; returns a message for each that could not be."""
    problems = []
    for area in areas:
        flags = _PREFER | area.priority & _PRIORITY_MASK if area.priority >= 0 else 0
        if _libc("swapon", os.fsencode(area.path), flags):
            problems.append(f"swap {area.path} cannot be taken into use again: {os.strerror(ctypes.get_errno())}")
    return problems


def _libc(name: str, *arguments: object) -> int:
    return int(getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments))
