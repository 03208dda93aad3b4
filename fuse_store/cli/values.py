# SPDX-License-Identifier: GPL-3.0-or-later
"""Values on the command line: each function takes the text, and raises ArgumentTypeError that says what is wrong with it."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import UTC, datetime

from fuse_store.policy.retention import ALL, Duration

_SIZES = {"": 1, "k": 1 << 10, "kib": 1 << 10}


def tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ArgumentTypeError(f"{text!r} is no tag like key=value")
    return key, value


def percent(text: str) -> float:
    number = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text, re.ASCII)
    if not number or not 0 < float(number[1]) <= 100:
        raise ArgumentTypeError(f"{text!r} is no percentage above 0 and up to 100")
    return float(number[1])


def moment(text: str) -> datetime:
    """ISO 8601, UTC unless it says otherwise; a date alone is its first moment."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no time like 2026-11-22 or 2026-11-22T02:10:33Z") from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def count(text: str) -> int:
    if text == "unlimited":
        return ALL
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} is neither a number of versions nor unlimited")
    return int(text)


def duration(text: str) -> Duration:
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def page_size(text: str) -> int:
    """Bytes, or KiB with a suffix. Which sizes there are, the store knows."""
    found = re.fullmatch(r"(\d{1,9}) ?(k|kib|)", text.lower(), re.ASCII)
    if not found:
        raise ArgumentTypeError(f"{text!r} is no size of a page like 4096 or 16KiB")
    return int(found[1]) * _SIZES[found[2]]
