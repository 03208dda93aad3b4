# SPDX-License-Identifier: GPL-3.0-or-later
"""``prune``: remove the versions that no rule keeps."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text, values
from fuse_store.cli.context import GC_HINT
from fuse_store.cli.output import NAME_KEYS, name_record
from fuse_store.cli.parser import DRY_RUN, OF_APPLICATION, OF_MACHINE, Verb, argument, see_help
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
        raise UsageError("prune", "no rule given.", f"Use at least one --keep option. {see_help('prune')}")
    with context.open_store() as store:
        candidates: list[Summary] = []
        others: list[Summary] = []
        for version in context.summaries(store):
            matches = options.machine in (None, version.machine) and options.application in (None, version.application)
            (candidates if matches else others).append(version)
        decisions = decide(candidates, policy, others)
        removed = [decision.version.id for decision in decisions if not decision.reasons]
        if removed and not options.dry_run:
            store.remove(removed)
    record: dict[str, Any] = {
        "dry_run": options.dry_run,
        "kept": [
            {**name_record(decision.version), "reasons": list(decision.reasons)} for decision in decisions if decision.reasons
        ],
        "removed": [name_record(decision.version) for decision in decisions if not decision.reasons],
    }
    context.emit(record, "" if context.json else _human(decisions))
    counts = f"{text.count(len(decisions) - len(removed), 'version')} kept, {len(removed)} removed"
    context.remark(f"Dry run: {counts}" if options.dry_run else counts)
    if removed and not options.dry_run:
        context.remark(GC_HINT)
    return 0


def _policy(options: Namespace) -> Policy:
    counts = {rule: getattr(options, f"keep_{rule}") for rule in COUNTED}
    return Policy(counts, options.keep_within, tuple(options.keep_tag))


def _human(decisions: list[Decision]) -> str:
    """One table for each machine and application."""
    tables = []
    for (machine, application), group in groupby(
        decisions, key=lambda decision: (decision.version.machine, decision.version.application)
    ):
        rows = [
            (
                "keep" if decision.reasons else "remove",
                decision.version.id[:12],
                text.when(decision.version.taken),
                ", ".join(decision.reasons),
            )
            for decision in group
        ]
        table = text.table(("", "ID", "TAKEN (UTC)", "REASONS"), rows)
        tables.append(f"{text.printable(f'{machine}/{application}')}\n{table}")
    return "\n\n".join(tables)


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
    description="Applies the rules to each machine and application separately, newest version first, in UTC. A version is kept if "
    "at least one rule keeps it. The newest version of kind hibernation of each machine and application is always kept, as are bases "
    "of kept versions of another machine or application. Run gc afterwards to reclaim disk space.",
    run=run,
    arguments=(
        argument("--keep-last", metavar="N", type=values.count, default=0, help="keep the newest N versions; N may be 'unlimited'"),
        *(
            argument(
                f"--keep-{rule}", metavar="N", type=values.count, default=0,
                help=f"keep the newest version of each of the last N {periods} that have one",
            )
            for rule, periods in _PERIODS.items()
        ),
        argument(
            "--keep-within", metavar="DURATION", type=values.duration, default=None,
            help="keep versions taken within DURATION before the newest one; 2y5m7d3h is 2 years, 5 months, 7 days and 3 hours",
        ),
        argument(
            "--keep-tag", metavar="KEY=VALUE", type=values.tag, action="append", default=[],
            help="keep versions with this tag; may be repeated",
        ),
        OF_MACHINE,
        OF_APPLICATION,
        DRY_RUN,
    ),
    keys={
        "dry_run": "true if nothing was changed",
        "kept": "one object for each version kept:",
        **{f"  {key}": meaning for key, meaning in NAME_KEYS.items()},
        "  reasons": "rules that keep the version",
        "removed": "one object for each version removed, with the same keys except reasons",
    },
    examples=(
        ("fuse-store prune --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run", "show what would be removed"),
        ("fuse-store prune --keep-last 3 --machine web01 && fuse-store gc", "keep three versions of each application of a machine"),
        ("fuse-store prune --keep-within 1m --keep-tag keep=yes", "keep a month, and tagged versions"),
    ),
    interrupted="Some versions may have been removed, each of them completely. Run it again.",
)  # fmt: skip
