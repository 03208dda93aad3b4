# SPDX-License-Identifier: GPL-3.0-or-later
"""``stats``: print the number of versions and their sizes."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text
from fuse_store.cli.parser import Verb

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.errors import Damaged
    from fuse_store.repository.backends import Backend
    from fuse_store.repository.manifest import Summary

COLUMNS = ("MACHINE", "APPLICATION", "VERSIONS", "LOGICAL", "ALLOCATED", "NEW", "STORED", "NEWEST (UTC)")


def run(context: Context) -> int:
    unreadable: dict[str, Damaged] = {}
    groups: list[dict[str, Any]] = []
    with context.open_store() as store:
        for versions in store.versions.by_machine(unreadable=unreadable):
            for application, members in groupby(versions, key=lambda version: version.application):
                groups.append({"machine": versions[0].machine, "application": application, **_sums([*members])})
        packs, stored = _on_disk(store.backend)
    context.warn_of_unreadable(unreadable)
    count, logical, allocated = (sum(group[key] for group in groups) for key in ("versions", "logical", "allocated"))
    record = {
        "store": store.url, "versions": count, "logical": logical, "allocated": allocated, "stored": stored, "packs": packs,
        "ratio": round(allocated / stored, 3) if stored and count else None, "groups": groups,
    }  # fmt: skip
    context.emit(record, "" if context.json else _human(record))
    return 0


def _sums(members: list[Summary]) -> dict[str, object]:
    return {
        "versions": len(members), "logical": sum(version.size for version in members),
        "allocated": sum(version.allocated for version in members), "new": sum(version.new for version in members),
        "stored": sum(version.stored for version in members),
        "newest": members[-1].taken.isoformat(timespec="milliseconds"),
    }  # fmt: skip


def _on_disk(backend: Backend) -> tuple[int, int]:
    """(number of packs, bytes of all files in the store)."""
    packs = stored = 0
    for entry in backend.entries(""):
        packs += entry.name.endswith(".pack")
        stored += entry.size
    return packs, stored


def _human(record: dict[str, object]) -> str:
    lines = [
        f"{'versions':10} {record['versions']}",
        *(f"{key:10} {text.size(record[key])} ({record[key]} bytes)" for key in ("logical", "allocated", "stored")),  # type: ignore[arg-type]
        f"{'packs':10} {record['packs']}",
        f"{'ratio':10} {record['ratio'] or '–'}",
    ]
    rows = [
        (
            group["machine"], group["application"], str(group["versions"]), text.size(group["logical"]), text.size(group["allocated"]),
            text.size(group["new"]), text.size(group["stored"]), group["newest"][:19].replace("T", " "),
        )
        for group in record["groups"]  # type: ignore[attr-defined]
    ]  # fmt: skip
    return (
        "\n".join((*lines, "", text.table(COLUMNS, rows, right=frozenset(range(2, 7))))) if rows else "\n".join(lines)
    )


VERB = Verb(
    name="stats",
    summary="show the number of versions and how much disk space they use",
    run=run,
    keys={
        "store": "directory or URL of the store",
        "versions": "number of versions",
        "logical": "bytes of all versions, holes included",
        "allocated": "bytes of pages that are not all zero",
        "stored": "bytes of all files in the store, trash included",
        "packs": "number of packs",
        "ratio": "allocated divided by stored; null if the store has no versions",
        "groups": "one object for each machine and application:",
        "  machine, application": "names",
        "  versions, logical, allocated": "as above, of this group",
        "  new": "bytes of pages that no base has",
        "  stored": "bytes written for the versions of this group; shared blocks count for the version that was stored first",
        "  newest": "time of the newest version, in UTC",
    },
    examples=(("fuse-store stats", "totals, and one line for each machine and application"),),
)
