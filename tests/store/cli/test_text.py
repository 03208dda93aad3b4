# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and tables as text."""

from __future__ import annotations

import pytest

from fuse_store.cli import text


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (102348, "99.9 KiB"), (102400, "100 KiB"),
        ((1 << 20) - 1, "1024 KiB"), (1 << 20, "1.0 MiB"), (64 << 30, "64.0 GiB"), (16 << 40, "16.0 TiB"), (1 << 50, "1.0 PiB"),
        (1 << 73, "8192 EiB"),
    ],
)  # fmt: skip
def test_sizes(number: int, written: str) -> None:
    assert text.size(number) == written


def test_counts() -> None:
    assert [text.count(number, "version") for number in (0, 1, 2)] == ["0 versions", "1 version", "2 versions"]


def test_tables_with_wide_and_hostile_cells() -> None:
    made = text.table(
        ("A", "B"), [("机器", "1"), ("ab\x1b[31m", "22"), ("e\u0301", "3"), ("plain", "4")], right=frozenset((1,))
    )
    lines = made.splitlines()
    assert len(lines) == 5 and {text.width(line) for line in lines} == {text.width(lines[0])}
    assert "\x1b" not in made and "\\x1b[31m" in made
