# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as they are printed and typed, after @ and for --before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_store.cli import text
from fuse_store.times import period


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("typed", "start", "end"),
    [
        ("2026", at(2026, 1, 1), at(2027, 1, 1)), ("2026-12", at(2026, 12, 1), at(2027, 1, 1)),
        ("2024-02", at(2024, 2, 1), at(2024, 3, 1)), ("2026-11-25", at(2026, 11, 25), at(2026, 11, 26)),
        ("2026-11-25T07", at(2026, 11, 25, 7), at(2026, 11, 25, 8)), ("2026-11-25 07:33", at(2026, 11, 25, 7, 33), at(2026, 11, 25, 7, 34)),
        ("2026-11-25T07-33-49Z", at(2026, 11, 25, 7, 33, 49), at(2026, 11, 25, 7, 33, 50)),
        ("2026-11-25 07:33:49 UTC", at(2026, 11, 25, 7, 33, 49), at(2026, 11, 25, 7, 33, 50)),
        ("2026-11-25T07:33:49.123+00:00", at(2026, 11, 25, 7, 33, 49, 123000), at(2026, 11, 25, 7, 33, 49, 124000)),
        ("2026-11-25T07:33:49.123456+02:00", at(2026, 11, 25, 5, 33, 49, 123456), at(2026, 11, 25, 5, 33, 49, 123457)),
        ("2026-11-25T07:33:49,5-0130", at(2026, 11, 25, 9, 3, 49, 500000), at(2026, 11, 25, 9, 3, 49, 600000)),
        ("2026-11-25T23+02", at(2026, 11, 25, 21), at(2026, 11, 25, 22)),
    ],
)  # fmt: skip
def test_periods(typed: str, start: datetime, end: datetime) -> None:
    assert period(typed) == (start, end)


@pytest.mark.parametrize(
    "typed",
    [
        "", "20", "202", "2026-1", "2026-11-2", "2026-11-25T", "2026-11-25T7", "2026-11-25T07:3", "2026-11-25T07:33:4", "2026-13",
        "2026-02-30", "2026-11-25T24", "2026-11-25T07:60", "0000", "9999", "2026-11-25T07:33:49.", "2026-11-25T07+99", "latest", " 2026",
        "2026\n", "२०२६", "2026-11-25x", "2026-11-25T07:33:49ZZ",
    ],
)  # fmt: skip
def test_what_is_no_time(typed: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as"):
        period(typed)


@settings(max_examples=300, deadline=None)
@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))
def test_every_form_that_is_printed(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    for printed, precision in (
        (text.when(moment), timedelta(seconds=1)), (f"{text.when(moment)} UTC", timedelta(seconds=1)),
        (moment.isoformat(timespec="milliseconds"), timedelta(milliseconds=1)), (moment.isoformat(), None),
        (f"{moment:%Y-%m-%dT%H-%M-%SZ}", timedelta(seconds=1)), (moment.isoformat(timespec="hours")[:13], timedelta(hours=1)),
    ):  # fmt: skip
        start, end = period(printed)
        assert start <= moment < end and (precision is None or end - start == precision)
