# SPDX-License-Identifier: GPL-3.0-or-later
"""Which versions stay and which go. Used by the verb ``prune``; a pure function of summaries, it touches no store.

Versions are grouped by machine and application, and the rules look at each group by itself, newest version first. As in
restic, every rule counts alone, so one version may be kept by several, and a rule that finds fewer periods than it may
keep also keeps the oldest version: a history that is still short is not cut. All times are UTC, weeks are those of
ISO 8601. Whatever the rules say, the newest version of a group that can be booted stays, and so does what a version that
stays names as its base in another group: somebody chose it. A version's own predecessor is its base by default, and goes
like any other; nobody needs it to read what follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING

from fuse_store.image.kind import row_of

if TYPE_CHECKING:
    from fuse_store.repository.manifest import Summary

ALL = -1  # as a count: every period

PERIODS: Mapping[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda taken: (taken.year, taken.month, taken.day, taken.hour),
    "daily": lambda taken: (taken.year, taken.month, taken.day),
    "weekly": lambda taken: tuple(taken.isocalendar()[:2]),
    "monthly": lambda taken: (taken.year, taken.month),
    "yearly": lambda taken: (taken.year,),
}
COUNTED = ("last", *PERIODS)

_UNITS = ("y", "m", "d", "h")
_DURATION = re.compile(r"(?:\d{1,6}[ymdh])+\Z", re.ASCII)


@dataclass(frozen=True)
class Duration:
    """Years, months, days and hours, written ``2y5m7d3h``."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Raises ValueError if it is none, is nothing, or names a unit twice."""
        parts = {unit: int(number) for number, unit in re.findall(r"(\d+)(\D)", text)} if _DURATION.match(text) else {}
        if len(parts) != len(re.findall(r"\D", text)) or not any(parts.values()):
            raise ValueError(f"{text!r} is no duration like 2y5m7d3h (years, months, days, hours)")
        return cls(*(parts.get(unit, 0) for unit in _UNITS))

    def before(self, moment: datetime) -> datetime:
        """``moment`` less this. A day that the month does not have becomes its last one: 31 March less 1m is 28 February."""
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        try:
            first = moment.replace(year=months // 12, month=months % 12 + 1, day=1)
            last_day = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
            return first.replace(day=min(moment.day, last_day.day)) - timedelta(days=self.days, hours=self.hours)
        except (ValueError, OverflowError):  # before the year 1
            return datetime.min.replace(tzinfo=UTC)

    def __str__(self) -> str:
        numbers = zip((self.years, self.months, self.days, self.hours), _UNITS, strict=True)
        return "".join(f"{number}{unit}" for number, unit in numbers if number)


@dataclass(frozen=True)
class Policy:
    """``counts``: rule of COUNTED to how many (ALL, or 0 for none). ``within``: of the newest version of the group.
    ``tags``: any of these pairs keeps a version."""

    counts: Mapping[str, int] = field(default_factory=dict)
    within: Duration | None = None
    tags: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any rule at all."""
        return any(self.counts.values()) or self.within is not None or bool(self.tags)


@dataclass(frozen=True)
class Decision:
    """A version, and why it stays; no reason: it goes."""

    version: Summary
    reasons: tuple[str, ...]


def decide(versions: Iterable[Summary], policy: Policy, others: Iterable[Summary] = ()) -> list[Decision]:
    """A Decision on each version, group by group, newest first. ``others`` are not up for it, and keep their bases."""
    others = list(others)
    decisions = []
    for _group, members in groupby(sorted(versions, key=_group_of), key=_group_of):
        newest_first = sorted(members, key=lambda one: (one.taken, one.id), reverse=True)
        decisions += [
            Decision(one, tuple(why)) for one, why in zip(newest_first, _reasons(newest_first, policy), strict=True)
        ]
    named: dict[str, list[Summary]] = {}  # base to the versions that name it
    for one in [*(decision.version for decision in decisions if decision.reasons), *others]:
        for base in one.bases:
            named.setdefault(base, []).append(one)
    return [decision if decision.reasons else Decision(decision.version, _chosen(decision.version, named)) for decision in decisions]


def _chosen(version: Summary, named: Mapping[str, list[Summary]]) -> tuple[str, ...]:
    """The reason why a base stays, if there is one."""
    of = [one for one in named.get(version.id, ()) if _group_of(one) != _group_of(version)]
    return (f"base of {of[0].id[:12]}",) if of else ()


def _group_of(version: Summary) -> tuple[str, str]:
    return version.machine, version.application


def _reasons(newest_first: list[Summary], policy: Policy) -> list[list[str]]:
    reasons: list[list[str]] = [[] for _one in newest_first]
    for rule in COUNTED:
        for row, oldest in _by_count(rule, newest_first, policy.counts.get(rule, 0)):
            reasons[row].append(f"oldest {rule}" if oldest else rule)
    if policy.within is not None:
        start = policy.within.before(newest_first[0].taken)
        for row, one in enumerate(newest_first):
            if one.taken > start:
                reasons[row].append(f"within {policy.within}")
    for row, one in enumerate(newest_first):
        reasons[row] += [f"tag {key}={value}" for key, value in policy.tags if one.tags.get(key) == value]
    bootable = next((row for row, one in enumerate(newest_first) if row_of(one.kind).bootable), None)
    if bootable is not None:
        reasons[bootable].append("newest bootable")
    return reasons


def _by_count(rule: str, newest_first: list[Summary], count: int) -> Iterable[tuple[int, bool]]:
    """(row, whether it stays only because it is the oldest) of what one rule keeps."""
    period: object = None
    for row, one in enumerate(newest_first):
        if count == 0:
            return
        own = row if rule == "last" else PERIODS[rule](one.taken)
        oldest = own == period
        if not oldest or row == len(newest_first) - 1:
            yield row, oldest
            count -= count > 0
        period = own
