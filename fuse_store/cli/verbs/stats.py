# SPDX-License-Identifier: GPL-3.0-or-later
"""``stats``: how much there is, and how much room it takes."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import Verb

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.repository.backends import Backend
    from fuse_store.repository.manifest import Summary

COLUMNS = ("MACHINE", "APPLICATION", "VERSIONS", "LOGICAL", "ALLOCATED", "NEW", "STORED", "NEWEST (UTC)")


def run(context: Context) -> int:
    with context.open_store() as store:
        versions = context.summaries(store)
        packs, stored = _on_disk(store.backend)
    allocated = sum(one.allocated for one in versions)
    record = {
        "store": store.url, "versions": len(versions), "logical": sum(one.size for one in versions), "allocated": allocated,
        "stored": stored, "packs": packs, "ratio": round(allocated / stored, 3) if stored and versions else None,
        "groups": [
            {"machine": machine, "application": application, **_sums([*members])}
            for (machine, application), members in groupby(versions, key=lambda one: (one.machine, one.application))
        ],
    }  # fmt: skip
    context.emit(record, "" if context.json else _human(record))
    return 0


def _sums(members: list[Summary]) -> dict[str, object]:
    return {
        "versions": len(members), "logical": sum(one.size for one in members), "allocated": sum(one.allocated for one in members),
        "new": sum(one.new for one in members), "stored": sum(one.stored for one in members),
        "newest": max(one.taken for one in members).isoformat(timespec="milliseconds"),
    }  # fmt: skip


def _on_disk(backend: Backend) -> tuple[int, int]:
    """(packs, bytes of everything in the store)."""
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
            one["machine"], one["application"], str(one["versions"]), text.size(one["logical"]), text.size(one["allocated"]),
            text.size(one["new"]), text.size(one["stored"]), one["newest"][:19].replace("T", " "),
        )
        for one in record["groups"]  # type: ignore[attr-defined]
    ]  # fmt: skip
    return (
        "\n".join((*lines, "", text.table(COLUMNS, rows, right=frozenset(range(2, 7))))) if rows else "\n".join(lines)
    )


VERB = Verb(
    name="stats",
    summary="show how much is stored, and how much room it takes",
    run=run,
    keys={
        "store": "its folder or URL",
        "versions": "how many there are",
        "logical": "bytes of all versions",
        "allocated": "bytes of all their pages that are not zero",
        "stored": "bytes of everything in the store, the trash included",
        "packs": "how many packs there are",
        "ratio": "allocated by stored; null if there is nothing",
        "groups": "one object for each machine and application:",
        "  machine, application": "whose they are",
        "  versions, logical, allocated": "as above, of these",
        "  new": "bytes of pages that their bases did not have",
        "  stored": "bytes that were written for them; blocks that others share as well count for who brought them",
        "  newest": "when the newest was taken, in UTC",
    },
    examples=(("fuse-store stats", "totals, and a line for each machine and application"),),
)
