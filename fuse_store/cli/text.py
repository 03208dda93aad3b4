# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, times, names and tables as text for people. Pure functions."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice

TABLE_PART = 10_000  # rows of a table that are aligned with each other
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(length: int) -> str:
    """Bytes in IEC units, with about three digits: ``0 B``, ``1.5 GiB``, ``512 MiB``."""
    unit = min(max(length.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    value = length / (1 << 10 * unit)
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def count(number: int, noun: str) -> str:
    """``1 version``, ``2 versions``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def one_of(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def when(moment: datetime) -> str:
    """Date and time to the second. ``isoformat`` takes a fifth of the time of ``strftime``."""
    return moment.isoformat(" ", "seconds")[:19]


def tags(pairs: dict[str, str]) -> str:
    """``key=value`` of all, sorted."""
    return " ".join([f"{key}={value}" for key, value in sorted(pairs.items())])


def printable(text: str) -> str:
    """``text`` on one line, control characters escaped: names in stored images may contain terminal escape sequences."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as their widest cell; those in ``right`` are right-aligned."""
    return "\n".join(table_parts(header, rows, right))


def table_parts(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset(), most: int = TABLE_PART
) -> Iterator[str]:
    """``table`` in parts of so many rows, each with columns at least as wide as before. Fast for ten thousand rows: a row of plain
    ASCII, as nearly all are, is formatted in one call."""
    widths = [0] * len(header)
    following = chain([header], rows)
    while part := list(islice(following, most)):
        cells, plain = [], []
        for row in part:
            joined = "".join(row)
            plain.append(joined.isascii())
            cells.append(tuple(row) if joined.isprintable() else tuple(map(printable, row)))
        widths = [max(before, *map(width, column)) for before, column in zip(widths, zip(*cells, strict=True), strict=True)]
        line = "  ".join(f"{{:{'>' if column in right else '<'}{wide}}}" for column, wide in enumerate(widths)).format
        yield "\n".join(
            (line(*row) if ascii_only else _line(row, widths, right)).rstrip()
            for row, ascii_only in zip(cells, plain, strict=True)
        )


def _line(row: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> str:
    """Like ``str.format``, which counts characters, but by the columns that a terminal gives them."""
    spaces = (" " * (most - width(cell)) for cell, most in zip(row, widths, strict=True))
    return "  ".join(
        space + cell if column in right else cell + space
        for column, (cell, space) in enumerate(zip(row, spaces, strict=True))
    )


def width(text: str) -> int:
    """Terminal columns that ``text`` takes (Unicode Standard Annex #11)."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) != 0 for letter in text)
