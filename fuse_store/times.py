# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as people and programs write them: every form that this program prints, and those of ISO 8601. Pure functions; all in UTC.

A text means a period, by its precision: a day, an hour, a second.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EXAMPLE = "2026-11-22 or 2026-11-22T02:10:33Z"
_TEXT = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d)(?:(?P<between>[:-])(?P<minute>\d\d)(?:(?P=between)(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r" ?(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.ASCII,
)
_LAST = 253402300799  # 9999-12-31 23:59:59
_PARTS = ("year", "month", "day", "hour", "minute", "second")
_LENGTHS = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1), "second": timedelta(seconds=1)}


def at(seconds: int) -> datetime:
    """That many seconds since 1970, which may be untrusted input: what is after the last year that can be written is the end of it."""
    return datetime.fromtimestamp(max(0, min(seconds, _LAST)), UTC)


def period(text: str) -> tuple[datetime, datetime]:
    """The period that ``text`` means, [start, end): ``2026``, ``2026-11``, ``2026-11-22``, ``2026-11-22T02``, and so on to the
    microsecond; with a space for the T, hyphens for the colons as in names of the mount, and a zone, by default UTC. Raises ValueError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time such as {EXAMPLE}")
    given = [name for name in _PARTS if match[name]]
    fraction = (match["fraction"] or "")[:6]
    try:
        year, month, day = (int(match[name] or 1) for name in _PARTS[:3])
        hour, minute, second = (int(match[name] or 0) for name in _PARTS[3:])
        start = datetime(year, month, day, hour, minute, second, int(f"{fraction:0<6}"), UTC) - _offset(match["zone"] or "")
        return start, _end(start, given[-1], len(fraction))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time such as {EXAMPLE}") from None


def _end(start: datetime, precision: str, digits: int) -> datetime:
    if digits:
        return start + timedelta(microseconds=10 ** (6 - digits))
    if precision in _LENGTHS:
        return start + _LENGTHS[precision]
    months = {"year": 12, "month": 1}[precision]
    following = start.year * 12 + start.month - 1 + months
    return start.replace(year=following // 12, month=following % 12 + 1)


def _offset(zone: str) -> timedelta:
    """Of ``+02:00``, ``+0200`` or ``+02``."""
    if not zone.startswith(("+", "-")):
        return timedelta()
    digits = zone[1:].replace(":", "")
    hours, minutes = int(digits[:2]), int(digits[2:] or 0)
    if hours > 23 or minutes > 59:
        raise ValueError(zone)
    return timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)
