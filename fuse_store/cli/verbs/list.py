# SPDX-License-Identifier: GPL-3.0-or-later
"""``list``: what is in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import VERSION_KEYS, version_record
from fuse_store.cli.parser import OF_APPLICATION, OF_MACHINE, Verb

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

COLUMNS = ("ID", "TAKEN (UTC)", "MACHINE", "APPLICATION", "KIND", "STATE", "SIZE", "NEW", "EVENT", "TAGS")


def run(context: Context) -> int:
    with context.open_store() as store:
        versions = context.summaries(store)
    wanted = (context.options.machine, context.options.application)
    if any(wanted):
        machine, application = wanted
        versions = [
            one for one in versions if machine in (None, one.machine) and application in (None, one.application)
        ]
    if context.json:
        context.emit({"versions": [version_record(one) for one in versions]}, "")
        return 0
    if not versions:
        context.remark("No versions.")
        return 0
    rows = (
        (
            one.id[:12], text.when(one.taken), one.machine, one.application, one.kind, one.state,
            text.size(one.size), text.size(one.new), one.event, text.tags(one.tags),
        )
        for one in versions
    )  # fmt: skip
    context.emit({}, text.table(COLUMNS, rows, right=frozenset((6, 7))))
    return 0


VERB = Verb(
    name="list",
    summary="list the versions, by machine, application and time",
    run=run,
    arguments=(OF_MACHINE, OF_APPLICATION),
    keys={"versions": "one object for each version:", **{f"  {key}": what for key, what in VERSION_KEYS.items()}},
    examples=(
        ("fuse-store list", "everything"),
        ("fuse-store list --json | jq -r '.versions[] | select(.state == \"verified\") | .id'", "ids of what verified"),
    ),
)
