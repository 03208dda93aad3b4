# SPDX-License-Identifier: GPL-3.0-or-later
"""Selection: the newest version that fits, and why the others do not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fuse_store.policy.selection import CHECKS, Selection, Wanted, select
from fuse_store.repository.manifest import Summary


def version(number: int, **values: object) -> Summary:
    taken = datetime(2026, 11, 20, 2, 0, tzinfo=UTC) + timedelta(days=number)
    made = Summary(
        f"{number:032x}", "web01", "system", "hibernation", "nightly", {"kernel": "6.12.9"}, taken, number, 1, 1, 1, 1, 1, (),
        recognised="hibernation",
    )  # fmt: skip
    return replace(made, **values)  # type: ignore[arg-type]


VERSIONS = [
    version(1, state="verified"),
    version(2, application="db"),
    version(3, event="update"),
    version(4, kind="disk", recognised="", state="failed"),
    version(5, tags={}),
    version(6, tags={"kernel": "6.1.0"}),
    version(7, machine="web02"),
]


def numbers(selection: Selection) -> tuple[int | None, dict[int, list[str]]]:
    chosen = int(selection.chosen.id, 16) if selection.chosen else None
    return chosen, {int(passed.version.id, 16): [reason.code for reason in passed.reasons] for passed in selection.passed_over}


@pytest.mark.parametrize(
    ("wanted", "chosen", "passed"),
    [
        (Wanted("web01"), 6, {key: ["older"] for key in (5, 4, 3, 2, 1)}),
        (
            Wanted("web01", application="db"),
            2,
            {key: ["other_application"] for key in (6, 5, 4, 3, 1)},
        ),
        (Wanted("web01", event="update"), 3, {key: ["other_event"] for key in (6, 5, 4, 2, 1)}),
        (Wanted("web01", kind="disk"), 4, {key: ["other_kind"] for key in (6, 5, 3, 2, 1)}),
        (Wanted("web01", state="verified"), 1, {key: ["other_state"] for key in (6, 5, 4, 3, 2)}),
        (
            Wanted("web01", before=datetime(2026, 11, 23, 2, tzinfo=UTC)),  # when number 3 was taken
            2,
            {6: ["too_new"], 5: ["too_new"], 4: ["too_new"], 3: ["too_new"], 1: ["older"]},
        ),
        (
            Wanted("web01", profile={"kernel": "6.12.9"}),
            3,
            {6: ["fact_differs"], 5: ["fact_unknown"], 4: ["not_bootable"], 2: ["older"], 1: ["older"]},
        ),
        (
            Wanted("web01", application="system", event="update", state="verified", kind="hibernation"),
            None,
            {
                6: ["other_event", "other_state"],
                5: ["other_event", "other_state"],
                4: ["other_kind", "other_event", "other_state"],
                3: ["other_state"],
                2: ["other_application", "other_event", "other_state"],
                1: ["other_event"],
            },
        ),
        (Wanted("web02"), 7, {}),
        (Wanted("web03"), None, {}),
    ],
)
def test_select(wanted: Wanted, chosen: int | None, passed: dict[int, list[str]]) -> None:
    assert numbers(select(VERSIONS, wanted)) == (chosen, passed)
    assert numbers(select(reversed(VERSIONS), wanted)) == (chosen, passed)  # in whatever order they come


def test_reasons_say_what_differs() -> None:
    found = select(VERSIONS, Wanted("web01", event="reboot", profile={"kernel": "6.12.10", "memory": "1"}))
    messages = {int(passed.version.id, 16): [reason.message for reason in passed.reasons] for passed in found.passed_over}
    assert messages[1] == [
        "event is nightly, not reboot",
        "tag kernel is 6.12.9, not 6.12.10 as in the profile",
        "has no tag memory",
    ]
    assert messages[4][1] == "no hibernation image was recognised in it"


def test_an_empty_profile_asks_for_a_bootable_kind_only() -> None:
    assert numbers(select(VERSIONS, Wanted("web01", profile={})))[0] == 6
    assert numbers(select(VERSIONS[3:4], Wanted("web01", profile={}))) == (None, {4: ["not_bootable"]})


def test_bootable_is_what_was_recognised_whatever_it_was_called() -> None:
    """A blank swap area that was put as a hibernation image is none; one that was put as a file is one."""
    blank, called_a_file = version(1, recognised=""), version(0, kind="file")
    assert numbers(select([blank, called_a_file], Wanted("web01", profile={}))) == (0, {1: ["not_bootable"]})


def test_every_check_is_known_here() -> None:
    assert len(CHECKS) == 6
