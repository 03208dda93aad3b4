# SPDX-License-Identifier: GPL-3.0-or-later
"""``prune``: remove versions that no rule keeps."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text, values
from fuse_store.cli.output import NAME_KEYS, name_record
from fuse_store.cli.parser import DRY_RUN, OF_APPLICATION, OF_MACHINE, Verb, argument
from fuse_store.errors import UsageError
from fuse_store.policy.retention import COUNTED, Decision, Policy, decide

if TYPE_CHECKING:
    from argparse import Namespace

    from fuse_store.cli.context import Context
    from fuse_store.repository.manifest import Summary


def run(context: Context) -> int:
    options = context.options
    policy = _policy(options)
    if not policy:
        raise UsageError(
            "prune", "no rule says what to keep.", "Say at least one --keep-…; see fuse-store prune --help."
        )
    with context.open_store() as store:
        wanted: list[Summary] = []
        others: list[Summary] = []
        for one in context.summaries(store):
            mine = options.machine in (None, one.machine) and options.application in (None, one.application)
            (wanted if mine else others).append(one)
        decisions = decide(wanted, policy, others)
        gone = [one.version.id for one in decisions if not one.reasons]
        if gone and not options.dry_run:
            store.remove(gone)
    record: dict[str, Any] = {
        "dry_run": options.dry_run,
        "kept": [{**name_record(one.version), "reasons": list(one.reasons)} for one in decisions if one.reasons],
        "removed": [name_record(one.version) for one in decisions if not one.reasons],
    }
    context.emit(record, "" if context.json else _human(decisions))
    would = "would be " if options.dry_run else ""
    context.remark(f"{len(decisions) - len(gone)} versions {would}kept, {len(gone)} {would}removed")
    if gone and not options.dry_run:
        context.remark("fuse-store gc frees the room that only they took.")
    return 0


def _policy(options: Namespace) -> Policy:
    counts = {rule: getattr(options, f"keep_{rule}") for rule in COUNTED}
    return Policy(counts, options.keep_within, tuple(options.keep_tag))


def _human(decisions: list[Decision]) -> str:
    parts = []
    for (machine, application), members in groupby(
        decisions, key=lambda one: (one.version.machine, one.version.application)
    ):
        rows = [
            (
                "keep" if one.reasons else "remove",
                one.version.id[:12],
                text.when(one.version.taken),
                ", ".join(one.reasons),
            )
            for one in members
        ]
        parts.append(
            text.printable(f"{machine}/{application}") + "\n" + text.table(("", "ID", "TAKEN (UTC)", "WHY"), rows)
        )
    return "\n\n".join(parts)


_PERIODS = {
    "hourly": "hours",
    "daily": "days",
    "weekly": "weeks (Monday to Sunday)",
    "monthly": "months",
    "yearly": "years",
}

VERB = Verb(
    name="prune",
    summary="remove versions that no rule keeps",
    description="The rules look at the versions of each machine and application by themselves, newest first, in UTC; each rule "
    "counts alone. The newest version of kind hibernation of a group is never removed, nor one that was named as the base of "
    "another group's version that stays. gc frees the room.",
    run=run,
    arguments=(
        argument("--keep-last", metavar="N", type=values.count, default=0, help="keep the newest N versions, or unlimited"),
        *(
            argument(
                f"--keep-{rule}", metavar="N", type=values.count, default=0, help=f"keep the newest version of each of the last N {what}"
            )
            for rule, what in _PERIODS.items()
        ),
        argument(
            "--keep-within", metavar="DURATION", type=values.duration, default=None,
            help="keep what is less than DURATION older than the newest version: 2y5m7d3h is years, months, days, hours",
        ),
        argument(
            "--keep-tag", metavar="KEY=VALUE", type=values.tag, action="append", default=[],
            help="keep what has this tag; may be repeated",
        ),
        OF_MACHINE,
        OF_APPLICATION,
        DRY_RUN,
    ),
    keys={
        "dry_run": "whether nothing was done",
        "kept": "one object for each version that stays:",
        **{f"  {key}": what for key, what in NAME_KEYS.items()},
        "  reasons": "which rules keep it",
        "removed": "one object for each version that goes, with the same keys but reasons",
    },
    examples=(
        ("fuse-store prune --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run", "see first what would go"),
        ("fuse-store prune --keep-last 3 --machine web01 && fuse-store gc", "three versions of each application of one machine"),
        ("fuse-store prune --keep-within 1m --keep-tag keep=yes", "a month, and what is tagged"),
    ),
    interrupted="What had been removed is gone, what had not is there. Run it again.",
)  # fmt: skip
