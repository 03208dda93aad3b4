# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes when an image comes: never a golden or armed one, nor the last good one of an application."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_store.errors import Refused
from fuse_store.formats.swsusp.placement import Placement, blocks_needed, capacity, first_blocks
from fuse_store.hibernation.slots.layout import GOOD, Slot, Table
from fuse_store.hibernation.slots.manage import Slots
from fuse_store.hibernation.slots.reserve import complete, keep, replaced, reserve

PAGE = 4096
WANTED = Slot(0, "writing", "m", "a", "e", "0" * 32, "", 5, 0, 7, ())


def slots_on(blocks: int) -> Slots:
    """A table that is in memory alone: the device is not what these tests are about."""

    def save(table: Table) -> None:
        slots.table = replace(table, generation=slots.table.generation + 1)

    slots: Any = SimpleNamespace(table=Table("0" * 32, PAGE, blocks + 512), device=SimpleNamespace(path="device"), save=save)
    return cast(Slots, slots)


def untouchable(table: Table) -> set[tuple[int, int]]:
    """(number, staged) of those that may not go: golden, armed, and the last good one of each application."""
    never = [slot for slot in table.slots if slot.state == "armed" or (slot.kept == "golden" and slot.state != "writing")]
    for application in {slot.application for slot in table.slots}:
        good = [slot for slot in table.slots if slot.application == application and slot.state in GOOD]
        never += good if len(good) == 1 else []
    return {(slot.number, slot.staged) for slot in never}


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from("abc"), st.sampled_from("ef"), st.integers(1, 60), st.booleans(),
                st.sampled_from(["left", "complete", "complete", "complete", "keep", "replace", "armed", "failed", "used"]),
                st.integers(1, 3),
            ),
            max_size=25,
        )
    )  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(histories(), st.integers(60, 200))
def test_what_must_not_go_stays(history: list[tuple[Any, ...]], blocks: int) -> None:
    slots = slots_on(blocks)
    for application, event, pages, golden, then, most in history:
        before = slots.table
        wanted = replace(WANTED, application=application, event=event, pages=pages, kept="golden" if golden else "replaceable")
        try:
            slot, dropped = reserve(slots, wanted)
        except Refused:
            assert slots.table == before, "changed although it was refused"
            continue
        assert not untouchable(before) & {(gone.number, gone.staged) for gone in dropped}
        assert untouchable(before) <= {(left.number, left.staged) for left in slots.table.slots}
        if then == "left":
            continue
        done = complete(slots, slot, "f" * 64, pages=max(1, pages - most))
        assert done.blocks == blocks_needed(done.pages, PAGE) <= slot.blocks and slots.table.slot(done.number) == done
        whole = slots.table
        if then == "keep":
            keep(slots, done, most)
            kept = [left for left in slots.table.slots if (left.application, left.kept) == (application, "replaceable")]
            assert sum(left.state in ("complete", "used") for left in kept) <= most + 1
        elif then == "replace":
            replaced(slots, done)
            same = [left for left in slots.table.slots if (left.application, left.event, left.kept) == (application, event, "replaceable")]
            assert all(left.number == done.number or left.state == "armed" for left in same)
        elif then in ("armed", "failed", "used"):
            slots.save(slots.table.with_slot(replace(done, state=then)))
        assert untouchable(whole) - {(done.number, done.staged)} <= {(left.number, left.staged) for left in slots.table.slots}
        assert slots.table.slot(done.number) is not None


def test_what_is_in_a_store_goes_first() -> None:
    """It is not lost. Then the oldest one goes."""
    slots = slots_on(40)
    for number in range(5):
        slot = complete(slots, reserve(slots, replace(WANTED, pages=6))[0], "f" * 64)
        slots.save(slots.table.with_slot(replace(slot, content="1" * 32 if number == 2 else "")))
    assert [slot.number for slot in reserve(slots, replace(WANTED, pages=30))[1]] == [3, 1, 2, 4]


@given(st.integers(1, 3000))
def test_capacity_is_the_inverse_of_what_is_needed(blocks: int) -> None:
    pages = capacity(blocks, PAGE)
    assert pages < 1 or blocks_needed(pages, PAGE) <= blocks < blocks_needed(pages + 1, PAGE)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6), st.data())
def test_runs_are_the_blocks_of_the_extents(gaps: list[tuple[int, int]], data: st.DataObject) -> None:
    at, extents = 0, []
    for gap, count in gaps:
        extents.append((at + gap, count))
        at += gap + count
    every = [block for first, count in extents for block in range(first, first + count)]
    begin = data.draw(st.integers(0, len(every)))
    count = data.draw(st.integers(0, len(every) - begin))
    runs = list(Placement(extents, 0, PAGE).runs(begin, count))
    assert [block for first, number in runs for block in range(first, first + number)] == every[begin : begin + count]
    kept = [block for first, number in first_blocks(extents, count) for block in range(first, first + number)]
    assert kept == every[:count]


def test_without_numpy(tmp_path: Path) -> None:
    """What runs on the machine itself needs the standard library alone; a program in an initramfs or a service has no more."""
    code = """
import sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numpy", "cryptography", "blake3", "msgpack", "zstandard", "lz4", "obstore", "rich", "mfusepy"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuses())
import fuse_store.hibernation.slots.reserve, fuse_store.hibernation.slots.manage, fuse_store.hibernation.slots.allocate
import fuse_store.snapshot.taking, fuse_store.snapshot.service.server, fuse_store.snapshot.targets.slot, fuse_store.snapshot.targets.device
from fuse_store.hibernation.slots.manage import create, listing
create(sys.argv[1])
assert not listing(sys.argv[1]).table.slots
assert "numpy" not in sys.modules
"""
    (tmp_path / "device").write_bytes(bytes(4 << 20))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "device")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
