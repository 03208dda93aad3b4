# SPDX-License-Identifier: GPL-3.0-or-later
"""Marks: which row of several, bits, and memory in which an index of any size is gone through."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from fuse_store.columns import halves
from fuse_store.repository.index import Index
from fuse_store.repository.index.marks import Marks
from tests.store.repository.index.conftest import PACKS, ROWS, digest, listed, make_rows, many

ROW = 36  # bytes of a row in memory


def test_rows_are_numbered_through_all_fragments_newest_first(own: Index) -> None:
    for rows in (ROWS, make_rows([(2, 3, 0), (3, 3, 0), (3, 3, 1), (9, 9, 0)], [PACKS[2], PACKS[0]], first=50)):
        own.separate()
        own.add([rows], sync=False)
    marks = Marks(own.fragments().values())
    asked = [(9, 9), (2, 3), (7, 7), (1, 5), (3, 3)]
    numbers, several = marks.find(*halves(b"".join(digest(*key) for key in asked)))
    assert numbers.tolist() == [3, 0, -1, 4, 1] and several.tolist() == [False, True, False, False, True]
    assert marks.places(digest(2, 3)) == [(0, (PACKS[2], 150, 250)), (6, ROWS.place(2))]
    assert [number for number, _place in marks.places(digest(3, 3))] == [1, 2] and marks.places(digest(7, 7)) == []
    marks.set(numbers[[0, 3]])
    assert marks.are_set(np.arange(10)).tolist() == [number in (3, 4) for number in range(10)]
    assert [row for _fragment, rows in marks.marked() for row in listed(rows)] == [(digest(9, 9), PACKS[2], 153, 253, 353), listed(ROWS)[0]]


def test_marks_are_of_the_fragments_that_there_were(own: Index) -> None:
    """A writer merges them meanwhile: a reader that goes through all blocks keeps its numbers."""
    for seed in range(3):
        own.separate()
        own.add([many(seed, 50)], sync=False)
    marks = Marks(own.fragments().values())
    before = [marks.find(many(seed, 50).high, many(seed, 50).low)[0].tolist() for seed in range(3)]
    own.compact(False, lambda: None)
    own.add([many(7, 10)], sync=False)
    own.close()
    assert before == [marks.find(many(seed, 50).high, many(seed, 50).low)[0].tolist() for seed in range(3)]
    assert sorted(number for numbers in before for number in numbers) == list(range(150))


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_rows(own: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty thousand rows and four times as many: those who mark, sum, check and merge take the same, but for a bit a row."""
    for module in ("marks", "merge"):
        monkeypatch.setattr(f"fuse_store.repository.index.{module}.PART_ROWS", 1 << 12)
    used = []
    for count in (1 << 15, 1 << 17):
        for part in range(2):
            own.separate()
            own.add([many(part, count // 2)], sync=False)
        marks = Marks(own.fragments().values())

        def mark(marks: Marks = marks) -> None:
            for fragment in marks.fragments:
                for begin in range(0, len(fragment), 4096):
                    marks.set(marks.find(fragment.high[begin : begin + 4096], fragment.low[begin : begin + 4096])[0])

        def count_marked(marks: Marks = marks, count: int = count) -> None:
            assert sum(len(rows) for _fragment, rows in marks.marked()) == count

        used.append([peak(work) for work in (mark, count_marked, own.check, lambda: own.compact(False, lambda: None))])
        own.drop(list(own.fragments()), False, lambda: None)
    small, large = used
    assert all(more < less + (1 << 17) for less, more in zip(small, large, strict=True)), used
    assert max(large) < (1 << 17) * ROW
