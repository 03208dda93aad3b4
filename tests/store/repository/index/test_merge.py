# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging: the order of all rows, what is dropped, and memory."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from fuse_store.repository.index import Rows, merge
from fuse_store.repository.index.merge import Merge
from tests.store.repository.index.conftest import COLUMNS, PACKS, ROWS, digest, listed, make_rows, many


def merged(sources: list[Rows], dropped: frozenset[bytes] = frozenset()) -> Rows:
    merge = Merge(sources, dropped)
    parts = list(merge.parts())
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}, packs=merge.packs)


@pytest.mark.parametrize("part_rows", [1, 2, 7, 100, 1 << 18])
def test_all_rows_come_in_the_order_of_their_digests(monkeypatch: pytest.MonkeyPatch, part_rows: int) -> None:
    """Whatever the sources are like: short, long, empty, of the same digests, all behind one another."""
    monkeypatch.setattr(merge, "PART_ROWS", part_rows)
    same = make_rows([(5, 5, 0)] * 30, first=500)
    sources = [ROWS, many(1, 300), make_rows([]), many(2, 3), same, make_rows([(number, 0, 0) for number in range(40)], first=900)]
    sources += [many(1, 300)]  # the second one again
    rows = listed(merged(sources))
    order = [(int.from_bytes(row[0][:8], "little"), int.from_bytes(row[0][8:], "little")) for row in rows]
    assert order == sorted(order)
    wanted = [row for source in sources for row in listed(source)]
    assert sorted(rows) == sorted(set(wanted)) and len(wanted) == len(rows) + 300


def test_no_digest_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PART_ROWS", 2)
    parts = list(Merge([make_rows([(1, 1, 0)] * 3 + [(2, 2, 0)] * 3), make_rows([(1, 1, 1), (2, 2, 1), (3, 3, 1)], first=50)]).parts())
    seen = [{part.digest(row) for row in range(len(part))} for part in parts]
    assert len(parts) > 1 and sum(map(len, seen)) == len(set.union(*seen)) == 3


def test_every_place_of_a_block_stays_and_the_newest_comes_first() -> None:
    """What reads a block tries one after the other; only a row that is equal in all is dropped."""
    new = make_rows([(1, 1, 0), (2, 2, 0), (3, 3, 0)], [PACKS[2]])
    middle = make_rows([(2, 2, 0)], [PACKS[0]], first=7)
    old = make_rows([(0, 0, 0), (2, 2, 0), (3, 3, 0)], [PACKS[2]])  # (2, 2) and (3, 3) as in ``new``
    elsewhere = make_rows([(2, 2, 0)], [PACKS[2]], first=9)
    rows = merged([new, middle, old, elsewhere])
    assert [row[0] for row in listed(rows)] == [digest(at, at) for at in (0, 1, 2, 2, 2, 3)]
    assert [rows.place(row) for row in (2, 3, 4)] == [new.place(1), middle.place(0), elsewhere.place(0)]
    assert merged([elsewhere, new]).place(1) == elsewhere.place(0)


def test_rows_of_dropped_packs_go_and_the_others_keep_their_places() -> None:
    both = [ROWS, make_rows([(1, 1, 0), (9, 9, 1)], [PACKS[2], PACKS[0]])]
    rows = merged(both, frozenset({PACKS[0]}))
    assert rows.packs == PACKS[1] + PACKS[2]
    assert sorted(listed(rows)) == sorted(row for rows in both for row in listed(rows) if row[1] != PACKS[0])
    assert list(Merge(both, set(PACKS)).parts()) == [] and Merge(both, set(PACKS)).packs == b""


def test_what_is_not_sorted_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged columns: they are not compared with their digests before the end."""
    monkeypatch.setattr(merge, "PART_ROWS", 3)
    random = np.random.default_rng(5)
    rows = many(3, 50)
    shuffled = Rows(random.permutation(rows.high), rows.low, rows.offset, rows.pack, rows.stored, rows.length, rows.packs)
    with contextlib.suppress(ValueError):
        assert sum(map(len, Merge([shuffled, many(4, 20)]).parts())) <= 70

