# SPDX-License-Identifier: GPL-3.0-or-later
"""``prune``: remove the versions that no rule keeps."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

from fuse_store.cli import text, values
from fuse_store.cli.context import GC_HINT
from fuse_store.cli.output import NAME_KEYS, name_record, print_json, print_result
from fuse_store.cli.parser import DRY_RUN, OF_APPLICATION, OF_MACHINE, PROGRAM, Verb, argument, see_help
from fuse_store.errors import NotFound, Refused, UsageError
from fuse_store.policy.retention import COUNTED, Policy, decide, emptied
from fuse_store.repository.state_log import ON_A_DEVICE, on_devices

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator, Mapping

    from fuse_store.cli.context import Context
    from fuse_store.errors import Damaged
    from fuse_store.repository.manifest import Summary
    from fuse_store.repository.state_log import Log, StateEntry
    from fuse_store.store import Store

MAX_GROUPS_SHOWN = 4


def run(context: Context) -> int:
    options = context.options
    policy = _policy(options)
    if not policy:
        raise UsageError("prune", "no rule given.", f"Use at least one --keep option. {see_help('prune')}")
    import tempfile

    unreadable: dict[str, Damaged] = {}
    with (
        context.open_store() as store,
        tempfile.TemporaryFile("w+", encoding="utf-8") as spool,
        tempfile.TemporaryFile("w+", encoding="utf-8") as result,  # shown once it is true
    ):
        plan = _Plan(store, policy, options.machine, options.application, unreadable, spool)
        kept, removed, met = 0, [], False
        empty: list[tuple[str, str]] = []
        for decided in plan.decided():
            empty += [(machine, application) for machine, application in decided["empty"]]
            met = True
            kept += sum(bool(row["reasons"]) for row in decided["rows"])
            removed += [row["name"]["id"] for row in decided["rows"] if not row["reasons"]]
            if not context.json:
                print(("\n" if result.tell() else "") + _human(decided["rows"]), file=result)
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


class Row(TypedDict):
    """What is printed of a version that was decided on. ``name``: as ``name_record``; ``when``: for people."""

    name: dict[str, Any]
    reasons: list[str]
    when: str


class Decided(TypedDict):
    """The versions of one machine. ``empty``: see ``emptied``."""

    machine: str
    empty: list[tuple[str, str]]
    rows: list[Row]


class _Plan:
    """The decisions on the versions of a store, in one pass through all of them, one machine in memory at a time: they may not fit into it.
    What is decided of a machine is in a line of ``spool``. Only a machine of which others turn out to say something is looked at again: a
    version of it is the base of one that they keep, or another one was staged on its device."""

    def __init__(
        self, store: Store, policy: Policy, machine: str | None, application: str | None, unreadable: dict[str, Damaged],
        spool: TextIO,
    ) -> None:  # fmt: skip
        self._store, self._policy, self._machine, self._application, self._spool = store, policy, machine, application, spool
        self._now = datetime.now(UTC)
        self._logs: dict[bytes, Log] = {}  # of contents that are or were on a device
        self._bases: dict[str, list[tuple[str, Summary]]] = {}  # by machine: bases of others, and the version that names it, and stays
        guessed: dict[str, tuple[str, str]] = {}  # by id, what the logs of the machine say of devices: (machine, state)
        for versions in store.versions.by_machine(unreadable=unreadable, states=True):
            if not versions:
                continue
            staged = on_devices(self._logs_of(versions))
            guessed |= {version.id: (version.machine, staged[version.id]) for version in versions if version.id in staged}
            decided = self._decide(versions, staged, {})
            if decided["rows"]:
                spool.write(json.dumps(decided) + "\n")
        self._staged = on_devices(self._logs.values())
        self._again = {machine for image_id, (machine, state) in guessed.items() if self._staged.get(image_id) != state}
        for name in self._again:
            self._decide(self._versions_of(name), self._staged, {})
        self._based: dict[str, list[Summary]] = {}
        for base, version in chain.from_iterable(self._bases.values()):
            self._based.setdefault(base, []).append(version)

    def decided(self) -> Iterator[Decided]:
        """One machine after the other, of those that there is something to decide on."""
        self._spool.seek(0)
        for line in self._spool:
            decided: Decided = json.loads(line)
            if decided["machine"] in self._again or any(row["name"]["id"] in self._based for row in decided["rows"]):
                decided = self._decide(self._versions_of(decided["machine"]), self._staged, self._based)
            if decided["rows"]:
                yield decided

    def kept(self) -> Iterator[dict[str, Any]]:
        for decided in self.decided():
            yield from ({**row["name"], "reasons": row["reasons"]} for row in decided["rows"] if row["reasons"])

    def removed(self) -> Iterator[dict[str, Any]]:
        for decided in self.decided():
            yield from (row["name"] for row in decided["rows"] if not row["reasons"])

    def _versions_of(self, machine: str) -> list[Summary]:
        return next(self._store.versions.by_machine(machine, states=True))

    def _logs_of(self, versions: Iterable[Summary]) -> list[Log]:
        """The logs of those that may be on a device."""
        contents = {version.content for version in versions if version.state in (*ON_A_DEVICE, "unknown")}
        logs = {content: self._store.state_log.read(content) for content in contents}
        self._logs |= {content: log for content, log in logs.items() if any(_is_of_a_device(entry) for entry in log.entries)}
        return list(logs.values())

    def _decide(self, versions: list[Summary], staged: Mapping[str, str], based: Mapping[str, list[Summary]]) -> Decided:
        """What is decided of the versions of a machine, noting which bases those that stay name of other machines."""
        from fuse_store.repository.manifest import machine_tag_of  # not at the top: help needs no store

        candidates, others = self._divided(versions)
        of_others = [other for version in candidates for other in based.get(version.id, ())]
        decisions = decide(candidates, self._policy, [*others, *of_others], self._now, staged)
        machine = versions[0].machine if versions else ""
        if not based:
            own = {version.id for version in versions}
            self._bases[machine] = [
                (base, version)
                for version in [*(decision.version for decision in decisions if decision.reasons), *others]
                for base in set(version.bases) - own
                if machine_tag_of(base) != machine_tag_of(version.id) or self._store.versions.exists(base)
            ]
        rows = [
            Row(name=name_record(decision.version), reasons=list(decision.reasons), when=text.when(decision.version.taken))
            for decision in decisions
        ]
        return Decided(machine=machine, empty=emptied(decisions), rows=rows)

    def _divided(self, versions: list[Summary]) -> tuple[list[Summary], list[Summary]]:
        """(the versions to decide on, the others), of one machine."""
        candidates: list[Summary] = []
        others: list[Summary] = []
        for version in versions:
            matches = self._machine in (None, version.machine) and self._application in (None, version.application)
            (candidates if matches else others).append(version)
        return candidates, others


def _is_of_a_device(entry: StateEntry) -> bool:
    return entry["state"] in ON_A_DEVICE or "device" in entry["fields"]


def _policy(options: Namespace) -> Policy:
    counts = {rule: getattr(options, f"keep_{rule}") for rule in COUNTED}
    return Policy(counts, options.keep_within, tuple(options.keep_tag))


def _human(rows: list[Row]) -> str:
    """One table for each machine and application."""
    tables = []
    for (machine, application), group in groupby(rows, key=lambda row: (row["name"]["machine"], row["name"]["application"])):
        lines = [
            ("keep" if row["reasons"] else "remove", row["name"]["id"][:12], row["when"], ", ".join(row["reasons"])) for row in group
        ]
        table = text.table(("", "ID", "TAKEN (UTC)", "REASONS"), lines)
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
