# SPDX-License-Identifier: GPL-3.0-or-later
"""Selection: the newest version that matches, by machine, application, kind, event, time, state, and the target hardware.

Pure functions of summaries: the newest version that meets every condition, and for each other version of that machine the reasons
why it was passed over, as codes for programs and sentences for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fuse_store.image.kind import row_of
from fuse_store.policy.names import normal

if TYPE_CHECKING:
    from fuse_store.repository.manifest import Summary


@dataclass(frozen=True)
class Wanted:
    """The conditions; None: any. ``before`` is exclusive. ``profile``: facts of the target machine, such as kernel and memory, each
    of which must be in the version's tags with the same value."""

    machine: str
    application: str | None = None
    kind: str | None = None
    event: str | None = None
    state: str | None = None
    before: datetime | None = None
    profile: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("machine", "application", "event"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else normal(value))
        if self.profile is not None:
            object.__setattr__(self, "profile", {normal(fact): normal(value) for fact, value in self.profile.items()})


@dataclass(frozen=True)
class Reason:
    """``code`` is one of: other_application, other_kind, other_event, other_state, too_new, not_bootable, fact_unknown,
    fact_differs, older."""

    code: str
    message: str


@dataclass(frozen=True)
class PassedOver:
    version: Summary
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Selection:
    """``chosen``: None if no version matches. ``passed_over``: the machine's other versions, newest first."""

    chosen: Summary | None
    passed_over: tuple[PassedOver, ...]


def select(versions: Iterable[Summary], wanted: Wanted) -> Selection:
    """The newest version that matches, and why the others of its machine were passed over."""
    of_machine = [version for version in versions if version.machine == wanted.machine]
    chosen: Summary | None = None
    passed = []
    for version in sorted(of_machine, key=lambda version: version.order, reverse=True):
        reasons = tuple(reason for check in CHECKS for reason in check(version, wanted))
        if not reasons and chosen is None:
            chosen = version
            continue
        if not reasons and chosen is not None:
            reasons = (Reason("older", f"matches, but {chosen.id[:12]} is newer"),)
        passed.append(PassedOver(version, reasons))
    return Selection(chosen, tuple(passed))


def _same(what: str, value_of: Callable[[Summary], str]) -> Callable[[Summary, Wanted], Iterable[Reason]]:
    def check(version: Summary, wanted: Wanted) -> Iterable[Reason]:
        value, asked = value_of(version), getattr(wanted, what)
        if asked is not None and value != asked:
            yield Reason(f"other_{what}", f"{what} is {value or 'not set'}, not {asked}")

    return check


def _before(version: Summary, wanted: Wanted) -> Iterable[Reason]:
    if wanted.before is not None and version.taken >= wanted.before:
        yield Reason("too_new", f"captured at {version.taken:%Y-%m-%d %H:%M:%S} UTC")


def _profile(version: Summary, wanted: Wanted) -> Iterable[Reason]:
    if wanted.profile is None:
        return
    if not row_of(version.recognised).bootable:
        yield Reason("not_bootable", "no hibernation image was recognised in it")
    for fact, value in wanted.profile.items():
        if fact not in version.tags:
            yield Reason("fact_unknown", f"has no tag {fact}")
        elif version.tags[fact] != value:
            yield Reason("fact_differs", f"tag {fact} is {version.tags[fact]}, not {value} as in the profile")


CHECKS = (
    _same("application", lambda version: version.application),
    _same("kind", lambda version: version.kind),
    _same("event", lambda version: version.event),
    _same("state", lambda version: version.state),
    _before,
    _profile,
)
