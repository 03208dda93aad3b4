# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version fits: by machine, application, kind, event, time, state, and the hardware it shall run on.

Used by the verb ``select``. A pure function of summaries: the newest version that every condition lets pass, and of each
other one of that machine why it was passed over, as a code for programs and a sentence for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fuse_store.image.kind import row_of

if TYPE_CHECKING:
    from fuse_store.repository.manifest import Summary


@dataclass(frozen=True)
class Wanted:
    """What is asked for; None: anything. ``before`` is exclusive. ``profile`` are facts of the machine it shall run on, such
    as kernel and memory; each must stand in the version's tags with the same value."""

    machine: str
    application: str | None = None
    kind: str | None = None
    event: str | None = None
    state: str | None = None
    before: datetime | None = None
    profile: Mapping[str, str] | None = None


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
    """``chosen`` is None if no version fits. ``passed_over`` are the machine's other versions, newest first."""

    chosen: Summary | None
    passed_over: tuple[PassedOver, ...]


def select(versions: Iterable[Summary], wanted: Wanted) -> Selection:
    """The newest version that fits, and why the others of its machine were passed over."""
    own = sorted(
        (one for one in versions if one.machine == wanted.machine), key=lambda one: (one.taken, one.id), reverse=True
    )
    chosen: Summary | None = None
    passed = []
    for one in own:
        reasons = tuple(reason for check in CHECKS for reason in check(one, wanted))
        if not reasons and chosen is None:
            chosen = one
            continue
        if not reasons and chosen is not None:
            reasons = (Reason("older", f"it fits, and {chosen.id[:12]} is newer"),)
        passed.append(PassedOver(one, reasons))
    return Selection(chosen, tuple(passed))


def _same(what: str, value_of: Callable[[Summary], str]) -> Callable[[Summary, Wanted], Iterable[Reason]]:
    def check(version: Summary, wanted: Wanted) -> Iterable[Reason]:
        value, asked = value_of(version), getattr(wanted, what)
        if asked is not None and value != asked:
            yield Reason(f"other_{what}", f"its {what} is {value or 'not given'}, not {asked}")

    return check


def _before(version: Summary, wanted: Wanted) -> Iterable[Reason]:
    if wanted.before is not None and version.taken >= wanted.before:
        yield Reason("too_new", f"it was taken at {version.taken:%Y-%m-%d %H:%M:%S} UTC")


def _profile(version: Summary, wanted: Wanted) -> Iterable[Reason]:
    if wanted.profile is None:
        return
    if not row_of(version.kind).bootable:
        yield Reason("not_bootable", f"nothing can be booted from its kind, {version.kind}")
    for fact, value in wanted.profile.items():
        if fact not in version.tags:
            yield Reason("fact_unknown", f"it does not say for which {fact} it is")
        elif version.tags[fact] != value:
            yield Reason("fact_differs", f"its {fact} is {version.tags[fact]}, and the profile's is {value}")


CHECKS = (
    _same("application", lambda one: one.application),
    _same("kind", lambda one: one.kind),
    _same("event", lambda one: one.event),
    _same("state", lambda one: one.state),
    _before,
    _profile,
)
