# SPDX-License-Identifier: GPL-3.0-or-later
"""``show``: everything about one version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text
from fuse_store.cli.output import VERSION_KEYS, version_record
from fuse_store.cli.parser import IMAGE, Verb
from fuse_store.cli.verbs.inspect import human as hibernation_text
from fuse_store.image import kind as kinds

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.repository.manifest import ImageFile


def run(context: Context) -> int:
    with context.open_store() as store:
        version = store.find(context.options.image)
        image = store.open_image(version.id)
        head = image.head
        kind = kinds.load(version.kind)
        description = kind.describe(image)
        if description is not None:
            description = kind.shown(description, store.state_log.entries(version.id), brief=False)
    record = {
        **version_record(version), "page_size": head.page_size, "pages": head.pages, "segments": len(head.segments),
        "contents": [_file(one) for one in head.files],
        **kinds.by_kind(version.kind, description),
    }  # fmt: skip
    context.emit(record, "" if context.json else _human(record))
    return 0


def _file(file: ImageFile) -> dict[str, Any]:
    mtime = datetime.fromtimestamp(file.mtime / 1e9, UTC).isoformat(timespec="milliseconds") if file.mtime else None
    return {"name": file.name, "size": file.size, "offset": file.offset, "mode": f"{file.mode:04o}", "mtime": mtime}


def _human(record: dict[str, Any]) -> str:
    shown = {
        **record,
        **{key: f"{text.size(record[key])} ({record[key]} bytes)" for key in ("size", "allocated", "new", "stored")},
        "tags": text.tags(record["tags"]) or "none",
        "event": record["event"] or "not given",
        "bases": ", ".join(one[:12] for one in record["bases"]) or "none",
        "page_size": text.size(record["page_size"]),
    }
    contents, hibernation = shown.pop("contents"), shown.pop("hibernation")
    lines = [f"{key.replace('_', ' '):12} {text.printable(str(value))}" for key, value in shown.items()]
    rows = [
        (one["name"], text.size(one["size"]), one["mode"], (one["mtime"] or "")[:19].replace("T", " "))
        for one in contents
    ]
    if hibernation:
        lines += ["", hibernation_text(hibernation)]
    return "\n".join((*lines, "", text.table(("FILE", "SIZE", "MODE", "MODIFIED (UTC)"), rows, right=frozenset((1,)))))


VERB = Verb(
    name="show",
    summary="show everything about one version",
    run=run,
    arguments=(IMAGE,),
    keys={
        **VERSION_KEYS,
        "page_size": "in bytes",
        "pages": "how many pages its address space has, holes included",
        "segments": "in how many parts its extents are stored",
        "contents": "one object for each file:",
        "  name": "relative to what was captured; image if that was one file",
        "  size": "in bytes",
        "  offset": "where it begins in the image's address space",
        "  mode": "permissions, octal",
        "  mtime": "when it was modified, in UTC; null if nobody knows",
        "hibernation": "what inspect prints; null if it is no hibernation image",
    },
    examples=(
        ("fuse-store show web01/system/latest", "the newest version of a machine"),
        ("fuse-store show 4f1c9a", "a version by the start of its id"),
    ),
)
