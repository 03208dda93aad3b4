# SPDX-License-Identifier: GPL-3.0-or-later
"""Values on the command line. Pure functions: each parses text, or raises ArgumentTypeError with the problem."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from datetime import datetime

from fuse_store.policy.names import normal
from fuse_store.policy.retention import ALL, Duration
from fuse_store.times import period

FOREVER = "forever"
_SIZES = {suffix: 1 << 10 * power for power, letter in enumerate("kmgt", 1) for suffix in (letter, f"{letter}ib")} | {"": 1}


def name(text: str) -> str:
    """A name, or a reference to a version, as the store has it."""
    return normal(text)


def tag(text: str) -> tuple[str, str]:
    key, equals, value = normal(text).partition("=")
    if not equals or not key:
        raise ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def percent(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text, re.ASCII)
    if not match or not 0 < float(match[1]) <= 100:
        raise ArgumentTypeError(f"{text!r} is not a percentage greater than 0 and at most 100")
    return float(match[1])


def moment(text: str) -> datetime:
    """UTC unless it has an offset. A date alone means its first moment."""
    try:
        return period(text)[0]
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    if text == "unlimited":
        return ALL
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} is neither a number nor 'unlimited'")
    return int(text)


def number(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def seconds(text: str) -> float:
    if text == FOREVER:
        return math.inf
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def duration(text: str) -> Duration:
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def page_size(text: str) -> int:
    """Bytes, or KiB with a suffix. The store checks which sizes it supports."""
    return _bytes(text, "a page size such as 4096 or 16KiB")


def size(text: str) -> int:
    """Bytes, or KiB, MiB, GiB, TiB with a suffix."""
    return _bytes(text, "a size such as 1073741824 or 1GiB")


def _bytes(text: str, what: str) -> int:
    match = re.fullmatch(r"(\d{1,19}) ?([kmgt]|[kmgt]ib|)", text.lower(), re.ASCII)
    if not match:
        raise ArgumentTypeError(f"{text!r} is not {what}")
    return int(match[1]) * _SIZES[match[2]]
