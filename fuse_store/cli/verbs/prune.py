# SPDX-License-Identifier: GPL-3.0-or-later
"""``prune``: remove the versions that no rule keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text, values
from fuse_store.cli.context import GC_HINT
from fuse_store.cli.output import NAME_KEYS, name_record, print_json, print_result
from fuse_store.cli.parser import DRY_RUN, OF_APPLICATION, OF_MACHINE, PROGRAM, Verb, argument, see_help
from fuse_store.errors import NotFound, Refused, UsageError
from fuse_store.policy.retention import COUNTED, Decision, Policy, decide, emptied
from fuse_store.repository.state_log import ON_A_DEVICE

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from fuse_store.cli.context import Context
    from fuse_store.errors import Damaged
    from fuse_store.repository.manifest import Summary
    from fuse_store.store import Store

MAX_GROUPS_SHOWN = 4


def run(context: Context) -> int:
    options = context.options
    policy = _policy(options)
    if not policy:
        raise UsageError("prune", "no rule given.", f"Use at least one --keep option. {see_help('prune')}")
    import tempfile

    unreadable: dict[str, Damaged] = {}
    with context.open_store() as store, tempfile.TemporaryFile("w+", encoding="utf-8") as result:  # shown once it is true
        plan = _Plan(store, policy, options.machine, options.application, unreadable)
        kept, removed, met = 0, [], False
        empty: list[tuple[str, str]] = []
        for decisions in plan.decisions():
            empty += emptied(decisions)
            met = met or bool(decisions)
            kept += sum(bool(decision.reasons) for decision in decisions)
            removed += [decision.version.id for decision in decisions if not decision.reasons]
            if decisions and not context.json:
                print(("\n" if result.tell() else "") + _human(decisions), file=result)
        if not met and (options.machine or options.application):
            context.warn_of_unreadable(unreadable)
            what = [f"{name} {value}" for name, value in (("machine", options.machine), ("application", options.application)) if value]
            raise NotFound(", ".join(what), "no versions.", f"Run '{PROGRAM} list' to see all versions.")
        if empty and not options.allow_empty:
            groups = ", ".join("/".join(group) for group in empty[:MAX_GROUPS_SHOWN]) + (", …" if len(empty) > MAX_GROUPS_SHOWN else "")
            raise Refused(
                "prune", f"no rule keeps a version of {text.count(len(empty), 'group')}: {groups}.",
                "Nothing was removed. Correct the rules, name the groups with --machine and --application, or use --allow-empty.",
            )  # fmt: skip
        if context.json:
            print_json({"dry_run": options.dry_run, "kept": plan.kept(), "removed": plan.removed()}, result)
        if removed and not options.dry_run:
            store.remove(removed)
            context.done = f"Removed: {text.count(len(removed), 'version')}."
        result.seek(0)
        for part in iter(lambda: result.read(1 << 20), ""):
            print_result(part, end="")
    context.warn_of_unreadable(unreadable)
    counts = f"{text.count(kept, 'version')} kept, {len(removed)} removed"
    context.remark(f"Dry run: {counts}" if options.dry_run else counts)
    if removed and not options.dry_run:
        context.remark(GC_HINT)
    return 0


class _Plan:
    """The decisions on the versions of a store, which are computed machine by machine, each time that they are asked for: so many may
    not fit into memory."""

    def __init__(
        self, store: Store, policy: Policy, machine: str | None, application: str | None, unreadable: dict[str, Damaged]
    ) -> None:
        from fuse_store.repository.manifest import machine_tag_of  # not at the top: help needs no store

        self._store, self._policy, self._machine, self._application = store, policy, machine, application
        self._now = datetime.now(UTC)
        on_device = (version.content for version in store.versions.each() if version.state in (*ON_A_DEVICE, "unknown"))
        self._staged = store.staged(on_device)
        self._based: dict[str, list[Summary]] = {}  # base to the versions of other machines that name it, and stay
        for versions in store.versions.by_machine(unreadable=unreadable, states=True):
            candidates, others = self._divided(versions)
            decisions = decide(candidates, policy, others, self._now, self._staged)
            staying = [decision.version for decision in decisions if decision.reasons] + others
            for version in staying:
                for base in set(version.bases).difference(other.id for other in versions):
                    if machine_tag_of(base) != machine_tag_of(version.id) or store.versions.exists(base):
                        self._based.setdefault(base, []).append(version)

    def decisions(self) -> Iterator[list[Decision]]:
        """Those of one machine after the other."""
        for versions in self._store.versions.by_machine(self._machine, states=True):
            candidates, others = self._divided(versions)
            based = [other for version in candidates for other in self._based.get(version.id, ())]
            yield decide(candidates, self._policy, [*others, *based], self._now, self._staged)

    def kept(self) -> Iterator[dict[str, Any]]:
        for decision in chain.from_iterable(self.decisions()):
            if decision.reasons:
                yield {**name_record(decision.version), "reasons": list(decision.reasons)}

    def removed(self) -> Iterator[dict[str, Any]]:
        for decision in chain.from_iterable(self.decisions()):
            if not decision.reasons:
                yield name_record(decision.version)

    def _divided(self, versions: list[Summary]) -> tuple[list[Summary], list[Summary]]:
        """(the versions to decide on, the others), of one machine."""
        candidates: list[Summary] = []
        others: list[Summary] = []
        for version in versions:
            matches = self._machine in (None, version.machine) and self._application in (None, version.application)
            (candidates if matches else others).append(version)
        return candidates, others


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
    description="Applies the rules to each machine and application separately, newest version first; periods are in UTC. A version is "
    "kept if at least one rule keeps it. Always kept are the newest version of each machine and application in which a hibernation image "
    "was recognised, versions that are staged or armed on a device, and bases of kept versions of another machine or application. "
    "Refuses rules that keep nothing of a machine and application. Run gc afterwards to reclaim disk space.",
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
        argument("--allow-empty", action="store_true", help="allow rules that keep no version of a machine and application"),
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
