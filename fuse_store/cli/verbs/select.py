# SPDX-License-Identifier: GPL-3.0-or-later
"""``select``: which version fits?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import NAME_KEYS, label, name_record
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import NotFound, StoreError, UsageError
from fuse_store.policy.selection import Selection, Wanted, select

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

LARGEST_PROFILE = 1 << 20  # bytes
SHOWN = 20  # versions that were passed over, for people


def run(context: Context) -> int:
    options = context.options
    profile = None if options.bootable_on is None else _profile(options.bootable_on)
    wanted = Wanted(
        options.machine, options.application, options.kind, options.event, options.state, options.before, profile
    )  # fmt: skip
    with context.open_store() as store:
        found = select(context.summaries(store), wanted)
    record = {
        "id": found.chosen.id if found.chosen else None,
        "chosen": name_record(found.chosen) if found.chosen else None,
        "passed_over": [
            {**name_record(one.version), "reasons": [vars(reason) for reason in one.reasons]}
            for one in found.passed_over
        ],
    }
    context.emit(record, found.chosen.id if found.chosen else "")
    if found.chosen:
        context.remark(label(found.chosen))
        return 0
    _say_why_none(context, found)
    if not found.passed_over:
        raise NotFound(
            f"machine {options.machine}", "there is no version of it.", "fuse-store list shows what there is."
        )
    number = len(found.passed_over)
    raise NotFound(
        f"machine {options.machine}", f"none of its {number} versions fits.", "--json says why of each of them."
    )


def _say_why_none(context: Context, found: Selection) -> None:
    for one in found.passed_over[:SHOWN]:
        context.remark(
            f"{one.version.id[:12]} {text.when(one.version.taken)}: {'; '.join(why.message for why in one.reasons)}"
        )


def _profile(place: str) -> dict[str, str]:
    """Facts of a machine: an object of texts and numbers in a JSON file. Raises StoreError."""
    try:
        if place == "-":
            content = sys.stdin.buffer.read(LARGEST_PROFILE + 1)
        else:
            with open(place, "rb") as file:
                content = file.read(LARGEST_PROFILE + 1)
    except FileNotFoundError:
        raise NotFound(f"profile {place}", "it does not exist.") from None
    except OSError as error:
        raise StoreError(f"profile {place}", f"{error.strerror}.") from None
    try:
        facts = json.loads(content) if len(content) <= LARGEST_PROFILE else None
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in facts.values()
    ):
        raise UsageError(
            f"profile {place}",
            "it is no JSON object of texts and numbers.",
            'One looks like {"kernel": "6.12.9", "memory": 17179869184}.',
        )
    return {key: str(value) for key, value in facts.items()}


VERB = Verb(
    name="select",
    summary="print the id of the newest version that fits",
    description="Exit code 3 if none does; then it says why of each. --json says why of each other version in any case.",
    run=run,
    arguments=(
        argument("--machine", metavar="M", required=True, help="whose version"),
        argument("--application", metavar="A", help="what asked for it (default: whatever)"),
        argument("--kind", metavar="K", help="only of this kind"),
        argument("--event", metavar="E", help="only those taken for this reason"),
        argument("--before", metavar="TIME", type=values.moment, help="only those taken before: 2026-11-22 or 2026-11-22T02:10:33Z; UTC"),
        argument("--state", metavar="S", help="captured, verified, staged, armed, resumed or failed",
                 choices=("captured", "verified", "staged", "armed", "resumed", "failed")),
        argument(
            "--bootable-on", metavar="PROFILE", complete="file",
            help="only hibernation images whose tags have all facts of this machine: a JSON file, or -, "
            'like {"kernel": "6.12.9", "memory": 17179869184}',
        ),
    ),
    keys={
        "id": "the version; null if none fits",
        "chosen": "the same as an object:",
        **{f"  {key}": what for key, what in NAME_KEYS.items()},
        "passed_over": "one object for each other version of the machine, with the same keys and:",
        "  reasons": "objects with code and message; codes are other_application, other_kind, other_event, other_state, too_new, "
        "not_bootable, fact_unknown, fact_differs, older",
    },
    examples=(
        ("fuse-store select --machine web01 --state verified", "the newest that verified"),
        ("fuse-store select --machine web01 --event nightly --before 2026-11-22", "the last nightly one before that day"),
        ("fuse-store select --machine web01 --json | jq .passed_over", "why the others were not chosen"),
    ),
)  # fmt: skip
