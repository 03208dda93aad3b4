# SPDX-License-Identifier: GPL-3.0-or-later
"""How the command line writes sizes, times, names and tables for people. Used by every verb."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(number: int) -> str:
    """Bytes in IEC units, three digits or so: ``0 B``, ``1.5 GiB``, ``512 MiB``."""
    unit = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    value = number / (1 << 10 * unit)
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def when(moment: datetime) -> str:
    """To the second; ``isoformat`` takes a fifth of the time of ``strftime``."""
    return moment.isoformat(" ", "seconds")[:19]


def tags(pairs: dict[str, str]) -> str:
    return " ".join([f"{key}={value}" for key, value in sorted(pairs.items())])


def printable(text: str) -> str:
    """``text`` on one line, without anything a terminal would take for a command: names in stored images may be hostile."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as what is in them; those in ``right`` are aligned to the right. Made for ten thousand rows: those of
    plain ASCII, which are nearly all, are formatted as one."""
    cells = [tuple(header)]
    plain = [True]
    for row in rows:
        joined = "".join(row)
        plain.append(joined.isascii())
        cells.append(tuple(row) if joined.isprintable() else tuple(map(printable, row)))
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    line = "  ".join(f"{{:{'>' if number in right else '<'}{most}}}" for number, most in enumerate(widths)).format
    return "\n".join(
        (line(*row) if ascii_only else _line(row, widths, right)).rstrip()
        for row, ascii_only in zip(cells, plain, strict=True)
    )


def _line(row: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> str:
    """What ``str.format`` can't do: it counts letters, and not the columns they take."""
    spaces = (" " * (most - width(cell)) for cell, most in zip(row, widths, strict=True))
    return "  ".join(
        space + cell if number in right else cell + space
        for number, (cell, space) in enumerate(zip(row, spaces, strict=True))
    )


def width(text: str) -> int:
    """Columns that a terminal gives to ``text`` (Unicode Standard Annex #11)."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) != 0 for letter in text)
