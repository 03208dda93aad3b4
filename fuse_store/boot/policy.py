# SPDX-License-Identifier: GPL-3.0-or-later
"""``[boot]`` of /etc/fuse-store/snapshots.toml: which images are resumed after what. Read, checked, and compiled for the initramfs. Pure
functions, but for the modules of the running kernel that ``compiled`` is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fuse_store import times
from fuse_store.hibernation.slots.layout import MAX_NUMBER
from fuse_store.hibernation.slots.text import TEXT

EVENTS = ("power_loss", "panic", "watchdog", "shutdown", "unknown")
KINDS = ("any", "golden", "cold")  # of candidates that name no application
OWN = "system"  # the application of snapshots that no other one asked for
# Setting → (default, least, greatest).
NUMBERS = {"attempts": (2, 1, 1000), "wait": (10, 0, 600), "ask": (30, 1, 3600)}
GRAMMAR = "APPLICATION, APPLICATION/EVENT, any or golden, each also with 'before TIME', or cold"


@dataclass(frozen=True)
class Candidate:
    """The slots that may be resumed, the newest first: ``kind`` is one of KINDS, or ``application``, with its name and perhaps the event;
    ``before``: only what was captured before that time, seconds since 1970. ``cold`` is a normal boot."""

    kind: str
    application: str = ""
    event: str = ""
    before: int | None = None


@dataclass(frozen=True)
class Boot:
    """``attempts``: how often an image is tried; ``check``: compare its checksum first; ``wait``: seconds for the device to appear;
    ``ask``: seconds for an answer; ``candidates``: for each event, in order."""

    attempts: int = 2
    check: bool = True
    wait: int = 10
    ask: int = 30
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=lambda: dict.fromkeys(EVENTS, (Candidate("cold"),)))


def parse(content: object, applications: Collection[str]) -> Boot:
    """``[boot]`` as tomllib gives it; ``applications``: the names that candidates may have, beside ``system``. Raises ValueError with the
    setting and the value that is wrong."""
    if not isinstance(content, dict):
        raise ValueError(f"boot: {_shown(content)} is not a table")
    for name in content:
        if name not in (*NUMBERS, "check", *EVENTS):
            raise ValueError(f"boot.{name}: no such setting; there are {', '.join((*NUMBERS, 'check', *EVENTS))}")
    numbers = {name: _number(name, content.get(name, default), least, most) for name, (default, least, most) in NUMBERS.items()}
    check = content.get("check", True)
    if not isinstance(check, bool):
        raise ValueError(f"boot.check: {_shown(check)} is not true or false")
    return Boot(
        **numbers, check=check,
        candidates={event: _candidates(event, content.get(event, ["cold"]), applications) for event in EVENTS},
    )  # fmt: skip


def _number(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"boot.{name}: {_shown(value)} is not a number from {least} to {most}")
    return value


def _candidates(event: str, value: object, applications: Collection[str]) -> tuple[Candidate, ...]:
    if not isinstance(value, list):
        raise ValueError(f"boot.{event}: {_shown(value)} is not a list")
    found = tuple(_candidate(event, item, applications) for item in value)
    if Candidate("cold") in found[:-1]:
        raise ValueError(f"boot.{event}: {_shown(value)} goes on after cold, which is a normal boot")
    return found


def _candidate(event: str, value: object, applications: Collection[str]) -> Candidate:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"boot.{event}: {_shown(value)} is not {GRAMMAR}")
    what, separator, when = value.partition(" before ")
    before = None
    if separator:
        try:
            start, _end = times.period(when.strip())
        except ValueError as error:
            raise ValueError(f"boot.{event}: {_shown(value)}: {error}") from None
        before = int((start - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
        if not 0 <= before < MAX_NUMBER:
            raise ValueError(f"boot.{event}: {_shown(value)}: no image is from before 1970")
    what = what.strip()
    if what == "cold" and separator:
        raise ValueError(f"boot.{event}: {_shown(value)}: cold is a normal boot, and has no time")
    if what in KINDS:
        return Candidate(what, before=before)
    application, slash, name = what.partition("/")
    if slash and not name:
        raise ValueError(f"boot.{event}: {_shown(value)}: the event after / is missing")
    if application not in (*applications, OWN):
        known = ", ".join((*sorted(applications), OWN, *KINDS))
        raise ValueError(f"boot.{event}: {_shown(value)}: no such application; there are {known}")
    return Candidate("application", application, name, before)


def _shown(value: object) -> str:
    return repr(value)[:100]


def compiled(boot: Boot, devices: Sequence[str], modules: Sequence[str] = ()) -> str:
    """What the scripts of the initramfs read: lines of ``KEY VALUE``; candidates are ``EVENT KIND|APPLICATION|EVENT|BEFORE``, with names as
    in a table of slots. ``devices``: paths of the one with the slots, of which the first that appears is taken; ``modules``: of the
    kernel, to be loaded first. Raises ValueError for a path with a line feed."""
    if any("\n" in device for device in devices):
        raise ValueError(f"device: {devices[0]!r} has a line feed")
    lines = [f"device {device}" for device in devices]
    lines += [f"attempts {boot.attempts}", f"check {int(boot.check)}", f"wait {boot.wait}", f"ask {boot.ask}"]
    lines += [f"module {module}" for module in modules]
    for event, candidates in boot.candidates.items():
        for one in candidates:
            before = "" if one.before is None else one.before
            lines.append(f"{event} {one.kind}|{TEXT.write(one.application)}|{TEXT.write(one.event)}|{before}")
    return "".join(f"{line}\n" for line in lines)


def described(candidate: Candidate) -> str:
    """As in the file."""
    what = candidate.kind if candidate.kind in KINDS else "/".join(filter(None, (candidate.application, candidate.event)))
    return what if candidate.before is None else f"{what} before {datetime.fromtimestamp(candidate.before, UTC):%Y-%m-%dT%H:%M:%SZ}"


def summary(boot: Boot) -> dict[str, Any]:
    """For ``--json``."""
    return {
        **{name: getattr(boot, name) for name in (*NUMBERS, "check")},
        **{event: [described(one) for one in candidates] for event, candidates in boot.candidates.items()},
    }
