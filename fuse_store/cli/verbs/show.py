# SPDX-License-Identifier: GPL-3.0-or-later
"""``show``: print everything about one version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text
from fuse_store.cli.output import VERSION_KEYS, version_record
from fuse_store.cli.parser import IMAGE, Verb
from fuse_store.cli.verbs.inspect import human as description_text
from fuse_store.image import kind as kinds

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.repository.manifest import ImageFile


def run(context: Context) -> int:
    with context.open_store() as store:
        version = context.find(store, context.options.image)
        image = store.open_image(version.id)
        head = image.head
        kind = kinds.load(version.kind)
        description = kind.describe(image)
        entries = store.state_log.read(version.content).entries_of(version.id)
        if description is not None:
            description = kind.shown(description, entries, brief=False)
    record = {
        **version_record(version), "page_size": head.page_size, "pages": head.pages, "segments": len(head.segments),
        "contents": [_file(file) for file in head.files],
        "directories": [{"name": one.name, "mode": f"{one.mode:04o}", "mtime": _iso(one.mtime)} for one in head.directories],
        "links": [{"name": one.name, "target": one.target, "mtime": _iso(one.mtime)} for one in head.links],
        "history": [{**entry, "time": _iso(entry["time"])} for entry in entries],
        **kinds.by_kind(version.kind, description),
    }  # fmt: skip
    context.emit(record, "" if context.json else _human(record))
    return 0


def _file(file: ImageFile) -> dict[str, Any]:
    mtime = _iso(file.mtime) if file.mtime else None
    return {"name": file.name, "size": file.size, "offset": file.offset, "mode": f"{file.mode:04o}", "mtime": mtime}


def _iso(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")


def _second(iso: str) -> str:
    """A time of ``_iso``, to the second."""
    return iso[:19].replace("T", " ")


def _human(record: dict[str, Any]) -> str:
    """The record as lines of text, a table of files, and one of the state log."""
    shown = {
        **record,
        **{key: f"{text.size(record[key])} ({record[key]} bytes)" for key in ("size", "allocated", "new", "stored")},
        "tags": text.tags(record["tags"]) or "none",
        "event": record["event"] or "none",
        "bases": ", ".join(base[:12] for base in record["bases"]) or "none",
        "page_size": text.size(record["page_size"]),
    }
    contents, history = shown.pop("contents"), shown.pop("history")
    described = [shown.pop(kind) for kind in kinds.by_kind("", None)]
    directories, links = shown.pop("directories"), shown.pop("links")
    lines = [f"{key.replace('_', ' '):12} {text.printable(str(value))}" for key, value in shown.items()]
    rows = [(file["name"], text.size(file["size"]), file["mode"], _second(file["mtime"] or "")) for file in contents]
    rows += [(f"{one['name'] or '.'}/", "", one["mode"], _second(one["mtime"])) for one in directories]
    rows += [(f"{one['name']} -> {one['target']}", "", "", _second(one["mtime"])) for one in links]
    rows = sorted(rows) if directories else rows
    for description in filter(None, described):
        lines += ["", description_text(description)]
    lines += ["", text.table(("FILE", "SIZE", "MODE", "MODIFIED (UTC)"), rows, right=frozenset((1,)))]
    if history:
        log = [(entry["state"], _second(entry["time"]), _details(entry)) for entry in history]
        lines += ["", text.table(("STATE", "RECORDED (UTC)", "DETAILS"), log)]
    return "\n".join(lines)


def _details(entry: dict[str, Any]) -> str:
    """The fields and the remark of an entry of the state log."""
    return ", ".join([*(f"{name} {value}" for name, value in entry["fields"].items()), *([entry["detail"]] if entry["detail"] else [])])


VERB = Verb(
    name="show",
    summary="show details of one version",
    run=run,
    arguments=(IMAGE,),
    keys={
        **VERSION_KEYS,
        "page_size": "bytes per page",
        "pages": "number of pages, holes included",
        "segments": "number of extent segments in the manifest",
        "contents": "one object for each file:",
        "  name": "path relative to the source; image for a single file",
        "  size": "bytes",
        "  offset": "start in the image's address space, in bytes",
        "  mode": "permissions, octal",
        "  mtime": "time of last modification in UTC; null if unknown",
        "directories": "one object for each directory of the image of a directory, itself with the name \"\":",
        "  name, mode, mtime": "as for files",
        "links": "one object for each symbolic link of the image of a directory:",
        "  name, mtime": "as for files",
        "  target": "what it leads to",
        "history": "one object for each entry of the state log, oldest first:",
        "  state": "as above",
        "  time": "time of the entry in UTC",
        "  image": "id of the version that it was recorded for; versions with the same content share all but captured and verified",
        "  detail": "remark given to report; may be empty",
        "  fields": "object of texts, such as device, where a version was staged or armed",
        "hibernation, core": "object as printed by inspect; null if it is no image of that kind",
    },
    examples=(
        ("fuse-store show web01/system/latest", "newest version of a machine"),
        ("fuse-store show 4f1c9a", "version by a prefix of its id"),
    ),
)
