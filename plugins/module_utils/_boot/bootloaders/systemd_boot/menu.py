# SPDX-License-Identifier: GPL-3.0-or-later
"""The menu of systemd-boot: which of its entries comes first (src/boot/boot.c, boot_entry_compare() and config_select_default_entry())."""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import dataclass

TRIES = re.compile(r"\+(\d+)(?:-(\d+))?(?=\.(?:conf|efi)$)")
INVALID = re.compile(r"^[^A-Za-z0-9~^.-]+")
NUMERALS = "0123456789"
OTHER = {True: r"[^0-9]", False: r"[^A-Za-z]"}


@dataclass(frozen=True)
class Item:
    """An entry of the menu: C(identifier) is its file name without the counter of tries, C(entry) what it starts, or None for another
    system; C(left) are the tries that are left, or None without a counter."""

    identifier: str
    title: str
    version: str
    machine: str
    sort_key: str
    left: int | None
    done: int
    entry: object


def named(name):
    """C((identifier, tries left, tries done)) of the file C(name)."""
    match = TRIES.search(name)
    if match is None:
        return name, None, 0
    return TRIES.sub("", name), int(match.group(1)), int(match.group(2) or 0)


def ordered(items):
    """The Items in the order of the menu."""
    return sorted(items, key=functools.cmp_to_key(_compare))


def matching(items, pattern):
    """The first of the Items that C(pattern), of loader.conf or of a variable, means; or None."""
    return next((item for item in items if fnmatch.fnmatchcase(item.identifier.lower(), pattern.lower())), None)


def _compare(one, other):
    steps = [_order(one.left == 0, other.left == 0), _order(not one.sort_key, not other.sort_key)]
    if one.sort_key and other.sort_key:
        steps += [_order(one.sort_key, other.sort_key), _order(one.machine, other.machine), -versions(one.version, other.version)]
    steps.append(-versions(one.identifier.lower(), other.identifier.lower()))
    if one.left is not None and other.left is not None:
        steps += [-_order(one.left, other.left), _order(one.done, other.done)]
    return next((step for step in steps if step), 0)


def _order(one, other):
    return (one > other) - (one < other)


def versions(one, other):
    """-1, 0 or 1: how two versions compare (UAPI.10; src/fundamental/string-util-fundamental.c, strverscmp_improved())."""
    while True:
        one, other = (INVALID.sub("", text) for text in (one, other))
        if not one.startswith("~") and not other.startswith("~") and not (one and other):
            return _order(bool(one), bool(other))
        mark = next((mark for mark in "~-^." if one.startswith(mark) or other.startswith(mark)), None)
        if mark:
            if one[:1] != other[:1]:
                return -1 if one.startswith(mark) else 1
            one, other = one[1:], other[1:]
            continue
        digits = one[0] in NUMERALS or other[0] in NUMERALS
        parts = [re.split(OTHER[digits], text, maxsplit=1)[0] for text in (one, other)]
        step = _order(*(_number(part) if digits else part for part in parts))
        if step:
            return step
        one, other = one[len(parts[0]):], other[len(parts[1]):]


def _number(part):
    """As int(), for any length; lower than all if there is none."""
    digits = part.lstrip("0")
    return bool(part), len(digits), digits
