# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: which versions are kept and which are removed. Pure functions of summaries.

Versions are grouped by machine and application, and the rules apply to each group separately, newest version first, in the order in
which they were stored: a clock that was wrong changes the day that a version counts for, and nothing else. As in
restic, every rule counts alone, so one version may be kept by several, and a rule that finds fewer periods than it may keep
also keeps the oldest version: a history that is still short is not cut. All times are UTC, weeks are those of ISO 8601.
Always kept: the newest version of a group in which a bootable image was recognised (its kind is only what someone called it), a
version that is staged or armed on a device, and the base of a kept version of another group, because it was chosen
explicitly. The previous version of the same group is the default base, and is removed like any other: no version needs
another one to be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate, groupby
from types import MappingProxyType
from typing import TYPE_CHECKING

from fuse_store.image.kind import row_of
from fuse_store.policy.names import normal

if TYPE_CHECKING:
    from fuse_store.repository.manifest import Summary

ALL = -1  # as a count: every period
NEVER = datetime.max.replace(tzinfo=UTC)

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
        """Raises ValueError if ``text`` is not a duration, is zero, or names a unit twice."""
        parts = {unit: int(count) for count, unit in re.findall(r"(\d+)(\D)", text)} if _DURATION.match(text) else {}
        if len(parts) != len(re.findall(r"\D", text)) or not any(parts.values()):
            raise ValueError(f"{text!r} is not a duration like 2y5m7d3h (years, months, days, hours)")
        return cls(*(parts.get(unit, 0) for unit in _UNITS))

    def before(self, moment: datetime) -> datetime:
        """``moment`` minus this duration. A day that the month does not have becomes its last day: 31 March minus 1m is 28 February."""
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        try:
            first = moment.replace(year=months // 12, month=months % 12 + 1, day=1)
            last_day = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
            return first.replace(day=min(moment.day, last_day.day)) - timedelta(days=self.days, hours=self.hours)
        except (ValueError, OverflowError):  # before the year 1
            return datetime.min.replace(tzinfo=UTC)

    def __str__(self) -> str:
        parts = zip((self.years, self.months, self.days, self.hours), _UNITS, strict=True)
        return "".join(f"{count}{unit}" for count, unit in parts if count)


@dataclass(frozen=True)
class Policy:
    """``counts``: for each rule of COUNTED how many to keep (ALL, or 0 for none). ``within``: before the newest version of the
    group. ``tags``: any of these pairs keeps a version."""

    counts: Mapping[str, int] = field(default_factory=dict)
    within: Duration | None = None
    tags: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple((normal(key), normal(value)) for key, value in self.tags))

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return any(self.counts.values()) or self.within is not None or bool(self.tags)


@dataclass(frozen=True)
class Decision:
    """A version, and the reasons to keep it; without any it is removed."""

    version: Summary
    reasons: tuple[str, ...]


def decide(
    versions: Iterable[Summary], policy: Policy, others: Iterable[Summary] = (), now: datetime = NEVER,
    staged: Mapping[str, str] = MappingProxyType({}),
) -> list[Decision]:
    """A Decision on each version, by group, newest first. ``others``: versions that are not decided on, but keep their bases.
    ``now``: no version counts as taken later. ``staged``: the reason, by id, to keep versions that are on a device."""
    others = list(others)
    decisions = []
    for _group, members in groupby(sorted(versions, key=_group_of), key=_group_of):
        newest_first = sorted(members, key=lambda version: version.order, reverse=True)
        reasons = _reasons(newest_first, policy, now, staged)
        decisions += [Decision(version, tuple(why)) for version, why in zip(newest_first, reasons, strict=True)]
    based_on: dict[str, list[Summary]] = {}  # base to the versions that name it
    for version in [*(decision.version for decision in decisions if decision.reasons), *others]:
        for base in version.bases:
            based_on.setdefault(base, []).append(version)
    return [
        decision if decision.reasons else Decision(decision.version, _base_reason(decision.version, based_on))
        for decision in decisions
    ]


def emptied(decisions: Iterable[Decision]) -> list[tuple[str, str]]:
    """(machine, application) of the groups of which nothing is kept."""
    groups = groupby(decisions, key=lambda decision: _group_of(decision.version))
    return [group for group, members in groups if not any(decision.reasons for decision in members)]


def _base_reason(version: Summary, based_on: Mapping[str, list[Summary]]) -> tuple[str, ...]:
    """The reason to keep a base of another group, if there is one."""
    others = [other for other in based_on.get(version.id, ()) if _group_of(other) != _group_of(version)]
    return (f"base of {others[0].id[:12]}",) if others else ()


def _group_of(version: Summary) -> tuple[str, str]:
    return version.machine, version.application


def _reasons(newest_first: list[Summary], policy: Policy, now: datetime, staged: Mapping[str, str]) -> list[list[str]]:
    reasons: list[list[str]] = [[] for _version in newest_first]
    for rule in COUNTED:
        for row, oldest in _by_count(rule, newest_first, policy.counts.get(rule, 0)):
            reasons[row].append(f"oldest {rule}" if oldest else rule)
    if policy.within is not None:
        start = policy.within.before(min(newest_first[0].taken, now))
        times = list(accumulate((version.taken for version in reversed(newest_first)), max))[::-1]
        for row, latest in enumerate(times):  # no version is older than those that were stored before it
            if latest > start:
                reasons[row].append(f"within {policy.within}")
    for row, version in enumerate(newest_first):
        reasons[row] += [f"tag {key}={value}" for key, value in policy.tags if version.tags.get(key) == value]
    bootable = next((row for row, version in enumerate(newest_first) if row_of(version.recognised).bootable), None)
    if bootable is not None:
        reasons[bootable].append("newest bootable")
    for row, version in enumerate(newest_first):
        reasons[row] += [staged[version.id]] if version.id in staged else []
    return reasons


def _by_count(rule: str, newest_first: list[Summary], count: int) -> Iterable[tuple[int, bool]]:
    """(row, whether it is kept only because it is the oldest) of each version that a rule keeps."""
    period: object = None
    for row, version in enumerate(newest_first):
        if count == 0:
            return
        current = row if rule == "last" else PERIODS[rule](version.taken)
        oldest = current == period
        if not oldest or row == len(newest_first) - 1:
            yield row, oldest
            count -= count > 0
        period = current
