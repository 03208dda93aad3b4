# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: against a model that looks at all versions at once, and against what restic and borg were seen to keep."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_store.policy.retention import ALL, COUNTED, Duration, Policy, decide, emptied
from fuse_store.repository.manifest import Summary


def version(
    taken: datetime, number: int = 0, *, kind: str = "file", application: str = "system", bases: tuple[str, ...] = (),
    tags: dict[str, str] | None = None, recognised: str = "",
) -> Summary:  # fmt: skip
    return Summary(f"{number:032x}", "m", application, kind, "", tags or {}, taken, 0, 1, 1, 1, 1, 1, bases, recognised=recognised)


def kept(versions: list[Summary], policy: Policy) -> set[str]:
    return {decision.version.id for decision in decide(versions, policy) if decision.reasons}


# a model ------------------------------------------------------------------------------------------------------------------

LABELS = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G week %V", "monthly": "%Y-%m", "yearly": "%Y"}


def model(versions: list[Summary], policy: Policy) -> set[str]:
    """The newest of each of the last n periods, and the oldest version if there are fewer periods."""
    ordered = sorted(versions, key=lambda one: (one.taken, one.id))
    stays: set[str] = set()
    for rule, count in policy.counts.items():
        newest_of = {one.id if rule == "last" else f"{one.taken:{LABELS[rule]}}": one.id for one in ordered}
        periods = list(newest_of.values())
        if count == ALL or len(periods) < count:
            stays |= {ordered[0].id, *periods}
        elif count:
            stays |= set(periods[-count:])
    if policy.within is not None:
        end = ordered[-1].taken
        years, month = divmod(end.year * 12 + end.month - 1 - policy.within.years * 12 - policy.within.months, 12)
        day = min(end.day, calendar.monthrange(years, month + 1)[1])
        start = end.replace(year=years, month=month + 1, day=day)
        start -= timedelta(days=policy.within.days, hours=policy.within.hours)
        stays |= {one.id for one in ordered if one.taken > start}
    stays |= {one.id for one in ordered if any(one.tags.get(key) == value for key, value in policy.tags)}
    return stays


EDGES = [  # ends of hours, days, ISO weeks and years; leap days; the hour that summer time repeats in many zones
    "2024-02-29 23:59:59", "2024-03-01 00:00:00", "2024-12-29 23:59:59", "2024-12-30 00:00:00", "2024-12-31 23:59:59",
    "2025-01-01 00:00:00", "2026-10-25 00:30:00", "2026-10-25 01:30:00", "2026-12-31 23:59:59", "2027-01-03 23:59:59",
    "2027-01-04 00:00:00", "2021-01-03 12:00:00", "2021-01-04 00:00:00",
]  # fmt: skip
moments = st.one_of(
    st.sampled_from(EDGES).map(lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC)),
    st.datetimes(datetime(2020, 12, 1), datetime(2027, 2, 1), timezones=st.just(UTC)),
    st.integers(0, 400).map(lambda hours: datetime(2026, 12, 20, tzinfo=UTC) + timedelta(hours=hours)),
)
counts = st.one_of(st.integers(0, 6), st.just(ALL), st.integers(20, 40))
durations = st.builds(Duration, st.integers(0, 3), st.integers(0, 20), st.integers(0, 60), st.integers(0, 50))
policies = st.builds(
    Policy,
    st.fixed_dictionaries({}, optional=dict.fromkeys(COUNTED, counts)),
    st.none() | durations,
    st.sampled_from([(), (("keep", "yes"),), (("keep", "yes"), ("why", "release"))]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(moments, st.sampled_from([{}, {"keep": "yes"}, {"why": "release"}, {"keep": "no"}])), min_size=1
    ),
    policies,
)
def test_keeps_what_the_model_keeps(taken: list[tuple[datetime, dict[str, str]]], policy: Policy) -> None:
    versions = [version(moment, number, tags=tags) for number, (moment, tags) in enumerate(taken)]
    assert kept(versions, policy) == model(versions, policy)


@settings(max_examples=60, deadline=None)
@given(st.lists(moments, min_size=1, max_size=30), policies, st.integers(0, 2))
def test_a_second_run_removes_nothing_more(taken: list[datetime], policy: Policy, hibernations: int) -> None:
    versions = [
        version(one, number, recognised="hibernation" if number < hibernations else "")
        for number, one in enumerate(taken)
    ]
    stays = kept(versions, policy)
    left = [candidate for candidate in versions if candidate.id in stays]
    assert kept(left, policy) == stays


# what others do ---------------------------------------------------------------------------------------------------------

TAKEN = [
    "2024-12-28 12:00:00", "2024-12-29 23:59:59", "2024-12-30 00:00:00", "2024-12-31 23:59:59", "2025-01-01 00:00:00",
    "2025-01-05 10:00:00", "2025-01-06 00:00:00", "2025-12-28 23:00:00", "2025-12-29 01:00:00", "2026-02-28 08:00:00",
    "2026-03-01 08:00:00", "2026-03-31 08:00:00", "2026-06-15 08:00:00", "2026-10-25 00:30:00", "2026-10-25 01:30:00",
    "2026-10-25 02:30:00", "2026-11-20 09:00:00", "2026-11-21 09:00:00", "2026-11-22 00:00:00", "2026-11-22 23:59:59",
    "2026-11-23 00:00:00", "2026-11-24 10:00:00", "2026-11-24 10:10:00", "2026-11-24 11:05:00",
]  # fmt: skip
RELEASES = (1, 9)  # tagged why=release
ROWS = range(len(TAKEN))

# What `restic forget --dry-run` of restic 0.14 kept of snapshots with these times, TZ=UTC. "+ oldest": later versions of
# restic keep the oldest as well where a rule finds fewer periods than it may keep, and so does this store.
RESTIC: list[tuple[Policy, list[int], str]] = [
    (Policy({"last": 1}), [23], ""),
    (Policy({"last": 3}), [21, 22, 23], ""),
    (Policy({"hourly": 4}), [19, 20, 22, 23], ""),
    (Policy({"daily": 3}), [19, 20, 23], ""),
    (Policy({"weekly": 3}), [15, 19, 23], ""),
    (Policy({"weekly": 20}), [1, 5, 6, 7, 8, 10, 11, 12, 15, 19, 23], "+ oldest"),
    (Policy({"monthly": 4}), [11, 12, 15, 23], ""),
    (Policy({"monthly": 30}), [3, 6, 8, 9, 11, 12, 15, 23], "+ oldest"),
    (Policy({"yearly": 1}), [23], ""),
    (Policy({"yearly": 5}), [3, 8, 23], "+ oldest"),
    (Policy({"daily": 2, "weekly": 2, "monthly": 3, "yearly": 2}), [8, 12, 15, 19, 20, 23], ""),
    (Policy({}, Duration.parse("2d")), [19, 20, 21, 22, 23], ""),
    (Policy({}, Duration.parse("1m")), list(ROWS[13:]), ""),
    (Policy({}, Duration.parse("1y")), list(ROWS[7:]), ""),
    (Policy({}, Duration.parse("1y5m7d3h")), list(ROWS[7:]), ""),
    (Policy({}, Duration.parse("8m24d")), list(ROWS[10:]), ""),
    (Policy({}, Duration.parse("47h")), [19, 20, 21, 22, 23], ""),
    (Policy({}, tags=(("why", "release"),)), [1, 9], ""),
    (Policy({"last": 2}, tags=(("why", "release"),)), [1, 9, 22, 23], ""),
    (Policy({"hourly": 100}), [row for row in ROWS if row != 21], "+ oldest"),
]

# What `borg prune --dry-run --list` of borg 1.2.4 kept of archives with these times, TZ=UTC, one rule at a time (several
# count on from each other in borg). It keeps the oldest as restic does now.
BORG: list[tuple[Policy, list[int]]] = [
    (Policy({"last": 3}), [21, 22, 23]),
    (Policy({"hourly": 4}), [19, 20, 22, 23]),
    (Policy({"daily": 3}), [19, 20, 23]),
    (Policy({"weekly": 3}), [15, 19, 23]),
    (Policy({"weekly": 20}), [0, 1, 5, 6, 7, 8, 10, 11, 12, 15, 19, 23]),
    (Policy({"monthly": 4}), [11, 12, 15, 23]),
    (Policy({"monthly": 30}), [0, 3, 6, 8, 9, 11, 12, 15, 23]),
    (Policy({"yearly": 1}), [23]),
    (Policy({"yearly": 5}), [0, 3, 8, 23]),
    (Policy({"hourly": 100}), [row for row in ROWS if row != 21]),
]


def samples() -> list[Summary]:
    return [
        version(
            datetime.fromisoformat(text).replace(tzinfo=UTC), row, tags={"why": "release"} if row in RELEASES else {}
        )
        for row, text in enumerate(TAKEN)
    ]


@pytest.mark.parametrize(
    ("policy", "rows", "more"), RESTIC, ids=lambda value: str(value)[:60] if isinstance(value, Policy) else ""
)
def test_keeps_what_restic_keeps(policy: Policy, rows: list[int], more: str) -> None:
    expected = set(rows) | ({0} if more else set())
    assert {int(one, 16) for one in kept(samples(), policy)} == expected


@pytest.mark.parametrize(
    ("policy", "rows"), BORG, ids=lambda value: str(value)[:60] if isinstance(value, Policy) else ""
)
def test_keeps_what_borg_keeps(policy: Policy, rows: list[int]) -> None:
    assert sorted(int(one, 16) for one in kept(samples(), policy)) == rows


# what no rule can take away -----------------------------------------------------------------------------------------------


def day(number: int) -> datetime:
    return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=number)


def test_the_newest_bootable_version_of_each_group_stays() -> None:
    versions = [
        version(day(0), 0, recognised="hibernation"),
        version(day(1), 1, recognised="hibernation"),
        version(day(2), 2, kind="disk"),
        version(day(0), 3, recognised="hibernation", application="db"),
        version(day(1), 4, application="db"),
    ]
    decisions = {int(decision.version.id, 16): decision.reasons for decision in decide(versions, Policy({"last": 1}))}
    assert decisions == {0: (), 1: ("newest bootable",), 2: ("last",), 3: ("newest bootable",), 4: ("last",)}


def test_a_blank_swap_area_that_was_called_a_hibernation_image_takes_no_place() -> None:
    versions = [version(day(0), 0, recognised="hibernation"), version(day(1), 1, kind="hibernation")]
    decisions = {int(decision.version.id, 16): decision.reasons for decision in decide(versions, Policy({"last": 1}))}
    assert decisions == {0: ("newest bootable",), 1: ("last",)}


def test_what_is_staged_or_armed_stays() -> None:
    versions = [version(day(number), number) for number in range(4)]
    staged = {versions[0].id: "armed", versions[2].id: "staged"}
    decisions = {int(decision.version.id, 16): decision.reasons for decision in decide(versions, Policy({"last": 1}), staged=staged)}
    assert decisions == {0: ("armed",), 1: (), 2: ("staged",), 3: ("last",)}


def test_groups_that_rules_empty_are_named() -> None:
    versions = [version(day(number), number, application="abc"[number % 3]) for number in range(6)]
    tagged = version(day(7), 7, application="b", tags={"keep": "yes"})
    decisions = decide([*versions, tagged], Policy({}, tags=(("keep", "yes"),)))
    assert emptied(decisions) == [("m", "a"), ("m", "c")]
    assert emptied(decide(versions, Policy({"last": 1}))) == []
    assert emptied(decide(versions[:1], Policy({}, tags=(("keep", "yse"),)), staged={versions[0].id: "staged"})) == []


def test_the_version_before_a_kept_one_goes_though_it_is_its_base() -> None:
    """Every version has the one before it as its base unless told otherwise: a chain kept whole would keep everything."""
    versions = [version(day(number), number, bases=(f"{number - 1:032x}",) if number else ()) for number in range(5)]
    decisions = {int(decision.version.id, 16): decision.reasons for decision in decide(versions, Policy({"last": 2}))}
    assert decisions == {4: ("last",), 3: ("last",), 2: (), 1: (), 0: ()}


def test_versions_that_are_not_up_for_it_keep_their_bases() -> None:
    one, two = version(day(0), 0), version(day(1), 1)
    other = version(day(0), 2, application="db", bases=(one.id,))
    assert [bool(decision.reasons) for decision in decide([one, two], Policy({"last": 1}), [other])] == [True, True]
    assert [bool(decision.reasons) for decision in decide([one, two], Policy({"last": 1}))] == [True, False]


def test_groups_do_not_count_for_each_other() -> None:
    versions = [version(day(number), number, application="ab"[number % 2]) for number in range(6)]
    assert {int(candidate, 16) for candidate in kept(versions, Policy({"last": 1}))} == {4, 5}


def test_reasons_name_every_rule() -> None:
    versions = [version(day(0), 0, tags={"keep": "yes"}), version(day(0) + timedelta(hours=1), 1)]
    policy = Policy({"last": 1, "daily": 3}, Duration.parse("2h"), (("keep", "yes"),))
    reasons = {int(decision.version.id, 16): decision.reasons for decision in decide(versions, policy)}
    assert reasons == {1: ("last", "daily", "within 2h"), 0: ("oldest daily", "within 2h", "tag keep=yes")}


@pytest.mark.parametrize(
    ("rule", "one", "other"),
    [
        ("hourly", "2026-11-24 10:00", "2026-11-23 10:30"),
        ("daily", "2026-11-24 10:00", "2026-10-24 10:00"),
        ("weekly", "2026-11-24 10:00", "2025-11-18 10:00"),  # both in week 48
        ("weekly", "2027-01-03 10:00", "2021-01-03 10:00"),  # both in week 53, of 2026 and of 2020
        ("monthly", "2026-11-24 10:00", "2025-11-24 10:00"),
        ("yearly", "2026-01-01 00:00", "2025-12-31 23:59"),
    ],
)
def test_periods_with_the_same_number_are_not_the_same(rule: str, one: str, other: str) -> None:
    versions = [
        version(datetime.fromisoformat(text).replace(tzinfo=UTC), number) for number, text in enumerate((one, other))
    ]
    older = version(datetime(2019, 1, 1, tzinfo=UTC), 2)
    assert {int(name, 16) for name in kept([*versions, older], Policy({rule: 2}))} == {0, 1}


def test_within_leaves_out_what_is_exactly_that_old() -> None:
    versions = [version(day(0), 0), version(day(0) + timedelta(seconds=1), 1), version(day(2), 2)]
    assert {int(candidate, 16) for candidate in kept(versions, Policy({}, Duration(days=2)))} == {1, 2}


# durations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "7", "d", "0d", "1x", "1d1d", "-1d", "1.5d", " 1d", "1d ", "٣d", "1d2", "9999999d"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "end", "start"),
    [
        ("1m", "2026-03-31 08:00", "2026-02-28 08:00"),
        ("1y", "2024-02-29 08:00", "2023-02-28 08:00"),
        ("1y1m", "2026-01-15 00:00", "2024-12-15 00:00"),
        ("3h1d", "2026-01-01 01:00", "2025-12-30 22:00"),
        ("1h", "2026-10-25 02:30", "2026-10-25 01:30"),
        ("9999y", "2026-01-01 00:00", "0001-01-01 00:00"),
        ("999999d", "2026-01-01 00:00", "0001-01-01 00:00"),
        ("999999m", "2026-01-01 00:00", "0001-01-01 00:00"),
    ],
)
def test_durations_go_back_by_the_calendar(text: str, end: str, start: str) -> None:
    moment, expected = (datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (end, start))
    assert Duration.parse(text).before(moment) == expected


def test_no_rule_is_no_policy() -> None:
    assert not Policy({"last": 0, "daily": 0})
    assert Policy({"last": ALL}) and Policy({}, Duration(days=1)) and Policy({}, tags=(("a", "b"),))
