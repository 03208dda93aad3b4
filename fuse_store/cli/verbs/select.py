# SPDX-License-Identifier: GPL-3.0-or-later
"""``select``: print the id of the newest version that matches."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import NAME_KEYS, label, name_record
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import NotFound, UsageError, failed
from fuse_store.image.kind import KINDS
from fuse_store.policy.selection import Selection, Wanted, select
from fuse_store.repository.state_log import STATES

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

MAX_PROFILE = 1 << 20  # bytes
MAX_SHOWN = 20  # versions listed when none matches; --json lists all


def run(context: Context) -> int:
    options = context.options
    profile = None if options.bootable_on is None else _profile(options.bootable_on)
    wanted = Wanted(
        options.machine, options.application, options.kind, options.event, options.state, options.before, profile
    )  # fmt: skip
    with context.open_store() as store:
        selection = select(context.versions(store, options.machine), wanted)
    chosen = selection.chosen
    record = {
        "id": chosen.id if chosen else None,
        "chosen": name_record(chosen) if chosen else None,
        "passed_over": [
            {**name_record(passed.version), "reasons": [vars(reason) for reason in passed.reasons]}
            for passed in selection.passed_over
        ],
    }
    context.emit(record, chosen.id if chosen else "")
    if chosen:
        context.remark(label(chosen))
        return 0
    _print_reasons(context, selection)
    if not selection.passed_over:
        raise NotFound(f"machine {options.machine}", "no versions.", "Run 'fuse-store list' to see all versions.")
    total = text.count(len(selection.passed_over), "version")
    raise NotFound(f"machine {options.machine}", f"no match among {total}.", "Use --json to see the reasons for each.")


def _print_reasons(context: Context, selection: Selection) -> None:
    for passed in selection.passed_over[:MAX_SHOWN]:
        reasons = "; ".join(reason.message for reason in passed.reasons)
        context.remark(f"{passed.version.id[:12]} {text.when(passed.version.taken)}: {reasons}")


def _profile(path: str) -> dict[str, str]:
    """Facts of a machine, from a JSON file or standard input (``-``). Raises StoreError."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_PROFILE + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_PROFILE + 1)
    except FileNotFoundError:
        raise NotFound(f"profile {path}", "does not exist.", "Check the path.") from None
    except OSError as error:
        raise failed(f"profile {path}", error) from None
    try:
        facts = json.loads(content) if len(content) <= MAX_PROFILE else None
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in facts.values()
    ):
        raise UsageError(
            f"profile {path}",
            "not a JSON object of strings and integers.",
            'Example: {"kernel": "6.12.9", "memory": 17179869184}',
        )
    return {key: str(value) for key, value in facts.items()}


VERB = Verb(
    name="select",
    summary="print the id of the newest version that matches",
    description="Exits with 3 if none matches, and prints the reasons for each version. --json prints the reasons in any case.",
    run=run,
    arguments=(
        argument("--machine", metavar="M", required=True, help="machine name"),
        argument("--application", metavar="A", help="application name (default: any)"),
        argument("--kind", metavar="K", choices=tuple(KINDS), help=f"{text.one_of(KINDS)} (default: any)"),
        argument("--event", metavar="E", help="reason for the capture (default: any)", empty=True),
        argument(
            "--before", metavar="TIME", type=values.moment,
            help="only versions taken before TIME: 2026-11-22 or 2026-11-22T02:10:33Z, in UTC by default",
        ),
        argument("--state", metavar="S", choices=STATES, help=f"{text.one_of(STATES)} (default: any)"),
        argument(
            "--bootable-on", metavar="PROFILE", complete="file",
            help="only hibernation images whose tags match all facts of a machine: a JSON file, or - for standard input, "
            'with an object such as {"kernel": "6.12.9", "memory": 17179869184}',
        ),
    ),
    keys={
        "id": "version id; null if none matches",
        "chosen": "object; null if none matches:",
        **{f"  {key}": meaning for key, meaning in NAME_KEYS.items()},
        "passed_over": "one object for each other version of the machine, with the same keys and:",
        "  reasons": "objects with code and message; codes are other_application, other_kind, other_event, other_state, too_new, "
        "not_bootable, fact_unknown, fact_differs, older",
    },
    examples=(
        ("fuse-store select --machine web01 --state verified", "newest verified version"),
        ("fuse-store select --machine web01 --event nightly --before 2026-11-22", "last nightly version before that day"),
        ("fuse-store select --machine web01 --json | jq .passed_over", "why other versions were not selected"),
    ),
)  # fmt: skip
