# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the outcomes of single tests go: one JSON line each in the file that $CHECK_RESULTS names.

Written by run_ansible_test.py and, in every pytest run below test_lanes.py, by this module as a pytest plugin; read by
test_lanes.py. Without $CHECK_RESULTS nothing is written. Lines are appended as tests end, so that a run that is killed
has reported what it did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

VARIABLE = "CHECK_RESULTS"


@dataclass(frozen=True)
class Outcome:
    """One test: its name, C(passed), C(failed) or C(skipped), why it was skipped or failed, and how long it took with its set-up, or 0."""

    test: str
    outcome: str
    reason: str = ""
    seconds: float = 0


_set_up: dict[str, float] = {}  # seconds, of tests of this process


def record(test: str, outcome: str, reason: str = "", seconds: float = 0) -> None:
    """Append one outcome."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(asdict(Outcome(test, outcome, reason, round(seconds, 1)))) + "\n")


def read(path: Path) -> Iterator[Outcome]:
    """The outcomes in a file, none when there is no file."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield Outcome(**json.loads(line))


def _reason(longrepr: object) -> str:
    """Why a test was skipped, or the first line of the exception with which it failed."""
    crash = getattr(longrepr, "reprcrash", None)
    return str(longrepr[2] if isinstance(longrepr, tuple) else crash.message.partition("\n")[0] if crash else longrepr)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A phase of a test: its call, or a set-up or tear-down that did not pass. Of several processes the first is told all."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "setup":
        _set_up[report.nodeid] = report.duration
    seconds = report.duration + (_set_up.get(report.nodeid, 0) if report.when == "call" else 0)
    if report.failed:
        record(report.nodeid, "failed", _reason(report.longrepr), seconds)
    elif report.skipped:
        record(report.nodeid, "skipped", getattr(report, "wasxfail", None) or _reason(report.longrepr))
    elif report.when == "call":
        record(report.nodeid, "passed", seconds=seconds)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that could not be collected, or that skipped itself as a whole."""
    if report.failed:
        record(report.nodeid, "failed")
    elif report.skipped:
        record(report.nodeid, "skipped", _reason(report.longrepr))
