# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store looks like as files and folders; it is said here and nowhere else (design.md, "The mount").

``adapter`` shows this tree through FUSE; the tree itself knows nothing of that and can be walked in a test. Paths are
tuples of names. It is always current: what is not there (any more) raises FileNotFoundError. Threads may share a Tree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fuse_store.errors import NotFound
from fuse_store.image.kind import by_kind
from fuse_store.mount.content import Content, MadeContent
from fuse_store.mount.image_views import OpenImages
from fuse_store.mount.prefetch import Readers
from fuse_store.mount.versions import Catalogue, Versions
from fuse_store.repository.manifest import Summary
from fuse_store.store import Store

Path: TypeAlias = tuple[str, ...]

LATEST = ("latest", "latest-verified")
ATTRIBUTES = "user.fuse_store."


@dataclass(frozen=True, slots=True)
class Folder:
    """``names`` gives the name and the type (Folder, File, Link) of what is in it. ``changed``: ns since 1970."""

    names: Callable[[], Iterable[tuple[str, type]]]
    changed: int
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Link:
    target: str
    changed: int
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class File:
    """``allocated``: bytes that are not in holes. ``fixed``: its bytes never change."""

    size: int
    allocated: int
    changed: int
    open: Callable[[], Content]
    fixed: bool = True
    summary: Summary | None = None


Node: TypeAlias = Folder | Link | File


def attributes(node: Node) -> dict[str, bytes]:
    """The extended attributes of a node: none, unless it belongs to a version."""
    one = node.summary
    if one is None or isinstance(node, Link):
        return {}
    values = {
        "id": one.id, "digest": one.id, "kind": one.kind, "event": one.event, "base": ",".join(one.bases), "state": one.state,
    }  # fmt: skip
    return {ATTRIBUTES + name: value.encode() for name, value in values.items()}


def taken_ns(summary: Summary) -> int:
    whole = summary.taken.replace(microsecond=0)
    return int(whole.timestamp()) * 1_000_000_000 + summary.taken.microsecond * 1000


class Tree:
    """The tree of a store. ``readers`` read ahead for it, and end when it is closed."""

    def __init__(self, store: Store, readers: Readers | None = None) -> None:
        self._catalogue = Catalogue(store)
        self._images = OpenImages(store, readers)
        self._tops: dict[str, Callable[[Versions, Path], Node]] = {
            "ids": self._ids, "kinds": self._kinds, "machines": self._machines,
        }  # fmt: skip

    def node(self, path: Path) -> Node:
        """Raises FileNotFoundError, NotADirectoryError, Damaged, StoreError."""
        versions = self._catalogue.current()
        if not path:
            return Folder(lambda: ((name, Folder) for name in self._tops), versions.changed)
        try:
            return self._tops[path[0]](versions, path[1:])
        except (KeyError, NotFound):
            raise FileNotFoundError from None

    def add(self, name: str, top: Callable[[Versions, Path], Node]) -> None:
        """Have another folder in the root. ``top`` gives what is at a path in it, or raises FileNotFoundError."""
        self._tops[name] = top

    def image(self, image_id: str) -> Content:
        """The bytes of an image of one file. Raises NotFound, Damaged."""
        opened = self._images.get(image_id)
        return opened.content(opened.image.files[0])

    def close(self) -> None:
        self._images.close()

    # one function for each folder below the root; what is not there is a KeyError ------------------------------------

    def _machines(self, versions: Versions, path: Path) -> Node:
        if len(path) == 0:
            return Folder(lambda: ((name, Folder) for name in versions.machines), versions.changed)
        applications = versions.machines[path[0]]
        if len(path) == 1:
            return Folder(lambda: ((name, Folder) for name in applications), versions.changed)
        own = applications[path[1]]
        if len(path) == 2:
            return Folder(lambda: self._versions(versions, path[0], path[1]), _newest(own))
        if path[2] in LATEST:
            one = versions.links[path[0], path[1]][path[2]]
            return _end(Link(one.version, taken_ns(one), one), path[3:])
        return self._version(own[path[2]], path[3:])

    def _versions(self, versions: Versions, machine: str, application: str) -> Iterable[tuple[str, type]]:
        for name in versions.machines[machine][application]:
            yield name, Folder
        for name in versions.links[machine, application]:
            yield name, Link

    def _ids(self, versions: Versions, path: Path) -> Node:
        if not path:
            return Folder(lambda: ((name, Link) for name in versions.ids), versions.changed)
        return _end(_link(versions.ids[path[0]], ".."), path[1:])

    def _kinds(self, versions: Versions, path: Path) -> Node:
        if len(path) == 0:
            return Folder(lambda: ((name, Folder) for name in versions.kinds), versions.changed)
        own = versions.kinds[path[0]]
        if len(path) == 1:
            return Folder(lambda: ((name, Link) for name in own), _newest(own))
        return _end(_link(own[path[1]], "../.."), path[2:])

    # what is in the folder of a version ------------------------------------------------------------------------------

    def _version(self, one: Summary, path: Path) -> Node:
        taken = taken_ns(one)
        if not path:
            return Folder(lambda: self._files(one), taken, one)
        name, rest = path[0], path[1:]
        if name == "image":
            if one.files > 1:
                return self._several(one, rest)
            return _end(File(one.size, one.allocated, taken, lambda: self.image(one.id), summary=one), rest)
        if name == "info.json":
            content = information(one, self._images.description(one))
            made = MadeContent(len(content), lambda: content)
            return _end(File(made.size, made.size, taken, lambda: made, fixed=False, summary=one), rest)
        if name == "B3SUMS":
            opened = self._images.get(one.id)
            size = opened.checksums_size
            return _end(File(size, size, taken, lambda: MadeContent(size, opened.checksums), summary=one), rest)
        derived = self._images.derived(one)[name]
        return _end(File(derived.size, derived.size, taken, lambda: derived, summary=one), rest)

    def _files(self, one: Summary) -> Iterable[tuple[str, type]]:
        yield "image", Folder if one.files > 1 else File
        yield "info.json", File
        yield "B3SUMS", File
        for name in self._images.derived(one):
            yield name, File

    def _several(self, one: Summary, path: Path) -> Node:
        opened = self._images.get(one.id)
        if path in opened.folders:
            inside = opened.folders[path]
            return Folder(lambda: ((name, Folder if down else File) for name, down in inside.items()), taken_ns(one), one)
        for depth in range(1, len(path)):
            if path[:depth] in opened.files:
                raise NotADirectoryError
        number, file = opened.files[path]
        return File(file.size, opened.allocated(number), file.mtime, lambda: opened.content(file), summary=one)


def information(one: Summary, description: dict[str, Any] | None) -> bytes:
    """``info.json``: the version for people. ``description`` is what an image of its kind is, in short."""
    values = {**one.as_dict(), "digest": one.id, **by_kind(one.kind, description)}
    if "kernel" in one.tags:
        values["kernel"] = one.tags["kernel"]
    return (json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n").encode(errors="surrogateescape")


def _newest(own: dict[str, Summary]) -> int:
    return taken_ns(next(reversed(own.values())))


def _link(one: Summary, up: str) -> Link:
    return Link(f"{up}/machines/{one.machine}/{one.application}/{one.version}", taken_ns(one), one)


def _end(node: Link | File, rest: Path) -> Node:
    if rest:
        raise NotADirectoryError
    return node
