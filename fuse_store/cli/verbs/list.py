# SPDX-License-Identifier: GPL-3.0-or-later
"""``list``: print the versions of a store."""

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
    machine, application = context.options.machine, context.options.application
    if machine or application:
        versions = [
            version
            for version in versions
            if machine in (None, version.machine) and application in (None, version.application)
        ]
    if context.json:
        context.emit({"versions": [version_record(version) for version in versions]}, "")
        return 0
    if not versions:
        context.remark("No versions.")
        return 0
    rows = (
        (
            version.id[:12], text.when(version.taken), version.machine, version.application, version.kind, version.state,
            text.size(version.size), text.size(version.new), version.event, text.tags(version.tags),
        )
        for version in versions
    )  # fmt: skip
    context.emit({}, text.table(COLUMNS, rows, right=frozenset((6, 7))))
    return 0


VERB = Verb(
    name="list",
    summary="list versions by machine, application and time",
    run=run,
    arguments=(OF_MACHINE, OF_APPLICATION),
    keys={"versions": "one object for each version:", **{f"  {key}": meaning for key, meaning in VERSION_KEYS.items()}},
    examples=(
        ("fuse-store list", "list all versions"),
        ("fuse-store list --machine web01", "list the versions of one machine"),
        ("fuse-store list --json | jq -r '.versions[] | select(.state == \"verified\") | .id'", "print the ids of verified versions"),
    ),
)
