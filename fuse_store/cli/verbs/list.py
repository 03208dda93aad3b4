# SPDX-License-Identifier: GPL-3.0-or-later
"""``list``: print the versions of a store."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import VERSION_KEYS, version_record
from fuse_store.cli.parser import OF_APPLICATION, OF_MACHINE, Verb

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.repository.manifest import Summary

COLUMNS = ("ID", "TAKEN (UTC)", "MACHINE", "APPLICATION", "KIND", "STATE", "SIZE", "NEW", "EVENT", "TAGS")


def run(context: Context) -> int:
    with context.open_store() as store:
        versions = context.versions(store, context.options.machine, context.options.application)
        first = list(islice(versions, 1))  # a store that cannot be read prints nothing
        versions = chain(first, versions)
        if context.json:
            context.emit({"versions": map(version_record, versions)}, "")
        elif first:
            for part in text.table_parts(COLUMNS, map(_row, versions), right=frozenset((6, 7))):
                context.emit({}, part)
        else:
            context.remark("No versions.")
    return 0


def _row(version: Summary) -> tuple[str, ...]:
    return (
        version.id[:12], text.when(version.taken), version.machine, version.application, version.kind, version.state,
        text.size(version.size), text.size(version.new), version.event, text.tags(version.tags),
    )  # fmt: skip


VERB = Verb(
    name="list",
    summary="list versions by machine, application and order",
    run=run,
    arguments=(OF_MACHINE, OF_APPLICATION),
    keys={"versions": "one object for each version:", **{f"  {key}": meaning for key, meaning in VERSION_KEYS.items()}},
    examples=(
        ("fuse-store list", "list all versions"),
        ("fuse-store list --machine web01", "list the versions of one machine"),
        ("fuse-store list --json | jq -r '.versions[] | select(.state == \"verified\") | .id'", "print the ids of verified versions"),
    ),
)
