# SPDX-License-Identifier: GPL-3.0-or-later
"""The files and directories of a mounted store; their names and layout are defined here and nowhere else.

The tree knows nothing of FUSE and can be walked in a test. Paths are tuples of names. It is always current: a version that
was removed raises FileNotFoundError. Threads may share a Tree.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fuse_store.errors import NotFound
from fuse_store.image.kind import by_kind
from fuse_store.mount.content import Content, GeneratedContent
from fuse_store.mount.image_views import ImageViews
from fuse_store.mount.prefetch import PrefetchProcesses
from fuse_store.mount.versions import VersionIndex
from fuse_store.policy import names
from fuse_store.repository import entries
from fuse_store.repository.manifest import ImageFile, Summary
from fuse_store.store import Store
from fuse_store.versions import LINKS

Path: TypeAlias = tuple[str, ...]

NAMES_DEPTH = 4  # parts of a path that are the store's names; what is below them are names of files in images, any bytes
ATTRIBUTE_PREFIX = "user.fuse_store."  # of the extended attributes


@dataclass(frozen=True)
class Access:
    """What a mount permits: ``writable`` adds ``incoming/``; ``allow_other``: access by other users; ``exec``: to run programs of an image,
    and to map files so, as worlds of Lisp are."""

    writable: bool = False
    allow_other: bool = False
    exec: bool = False


@dataclass(frozen=True, slots=True)
class Directory:
    """``names`` yields name and type (Directory, File, Link) of each entry. ``changed``: ns since 1970."""

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
    """``allocated``: bytes that are not in holes. ``fixed``: its bytes never change. ``program``: it may be run."""

    size: int
    allocated: int
    changed: int
    open: Callable[[], Content]
    fixed: bool = True
    summary: Summary | None = None
    program: bool = False


Node: TypeAlias = Directory | Link | File

_TYPES: dict[str, type] = {entries.FILE: File, entries.DIRECTORY: Directory, entries.LINK: Link}


def attributes(node: Node) -> dict[str, bytes]:
    """The extended attributes of a node that belongs to a version; other nodes have none."""
    summary = node.summary
    if summary is None or isinstance(node, Link):
        return {}
    values = {
        "id": summary.id, "digest": summary.id, "kind": summary.kind, "event": summary.event,
        "base": ",".join(summary.bases), "state": summary.state,
    }  # fmt: skip
    return {ATTRIBUTE_PREFIX + name: value.encode() for name, value in values.items()}


def normal_path(path: Path) -> Path:
    """``path`` with the store's names in their normal form: other systems look for them in others."""
    return (*map(names.normal, path[:NAMES_DEPTH]), *path[NAMES_DEPTH:])


def taken_ns(summary: Summary) -> int:
    """When the version was taken, in ns since 1970; exact to the microsecond, which a float would not be."""
    seconds = summary.taken.replace(microsecond=0)
    return int(seconds.timestamp()) * 1_000_000_000 + summary.taken.microsecond * 1000


class Tree:
    """The tree of a store. ``prefetch`` reads ahead for it; ``close`` ends its processes. ``programs``: tell which files may be run."""

    def __init__(self, store: Store, prefetch: PrefetchProcesses | None = None, *, programs: bool = False) -> None:
        self._programs = programs
        self._versions = VersionIndex(store)
        self._images = ImageViews(store, prefetch)
        self._root: dict[str, Callable[[VersionIndex, Path], Node]] = {
            "ids": self._ids, "kinds": self._kinds, "machines": self._machines,
        }  # fmt: skip

    def node(self, path: Path) -> Node:
        """Raises FileNotFoundError, NotADirectoryError, Damaged, StoreError."""
        path = normal_path(path)
        if not path:
            return Directory(lambda: ((name, Directory) for name in self._root), self._versions.changed)
        try:
            return self._root[path[0]](self._versions, path[1:])
        except (KeyError, NotFound):
            raise FileNotFoundError from None

    def add_directory(self, name: str, node: Callable[[VersionIndex, Path], Node]) -> None:
        """Add a directory to the root. ``node`` returns the node at a path inside of it, or raises FileNotFoundError."""
        self._root[name] = node

    def image(self, image_id: str) -> Content:
        """The bytes of an image of one file. Raises NotFound, Damaged."""
        view = self._images.get(image_id)
        return view.content(view.image.files[0])

    def kill(self) -> None:
        """End the prefetch processes, without waiting for anything."""
        self._images.kill()

    def close(self) -> None:
        self._images.close()

    # one function for each directory in the root; a name that does not exist is a KeyError ----------------------------

    def _machines(self, versions: VersionIndex, path: Path) -> Node:
        if len(path) == 0:
            return Directory(lambda: ((name, Directory) for name in versions.machines()), versions.changed)
        if len(path) == 1:  # a look at all machines reads the versions of none
            if not versions.has(path[0]):
                raise FileNotFoundError
            return Directory(lambda: ((name, Directory) for name in versions.applications(path[0])), versions.changed)
        machine = versions.machine(path[0])
        own, links = machine.applications[path[1]], machine.links[path[1]]
        if len(path) == 2:
            shown = [*((name, Directory) for name in own), *((name, Link) for name in links)]
            return Directory(lambda: shown, taken_ns(links["latest"]))
        if path[2] in LINKS:
            summary = links[path[2]]
            return _leaf(Link(summary.version, taken_ns(summary), summary), path[3:])
        return self._version(own[path[2]], path[3:])

    def _ids(self, versions: VersionIndex, path: Path) -> Node:
        if not path:
            return Directory(lambda: ((name, Link) for name in versions.ids()), versions.changed)
        return _leaf(_link(versions.version(path[0]), ".."), path[1:])

    def _kinds(self, versions: VersionIndex, path: Path) -> Node:
        if len(path) == 0:
            return Directory(lambda: ((name, Directory) for name in versions.kinds()), versions.changed)
        kind = path[0]
        if len(path) == 1:
            if kind not in versions.kinds():
                raise FileNotFoundError
            return Directory(lambda: ((name, Link) for name in versions.of_kind(kind)), versions.changed)
        return _leaf(_link(versions.by_name_in_kinds(kind, path[1]), "../.."), path[2:])

    # the directory of a version ---------------------------------------------------------------------------------------

    def _version(self, summary: Summary, path: Path) -> Node:
        taken = taken_ns(summary)
        if not path:
            return Directory(lambda: self._version_files(summary), taken, summary)
        name, rest = path[0], path[1:]
        if name == "image":
            if _is_directory(summary):
                return self._image_directory(summary, rest)
            opened = self._images.get(summary.id).image.files[0] if self._programs else None
            program = opened is not None and self._is_program(opened)
            image = File(summary.size, summary.allocated, taken, lambda: self.image(summary.id), summary=summary, program=program)
            return _leaf(image, rest)
        if name == "info.json":
            content = info_json(summary, self._images.description(summary))
            info = GeneratedContent(len(content), lambda: content)
            return _leaf(File(info.size, info.size, taken, lambda: info, fixed=False, summary=summary), rest)
        if name == "B3SUMS":
            view = self._images.get(summary.id)
            size = view.checksums_size
            return _leaf(File(size, size, taken, lambda: GeneratedContent(size, view.checksums), summary=summary), rest)
        derived = self._images.derived(summary)[name]
        return _leaf(File(derived.size, derived.size, taken, lambda: derived, summary=summary), rest)

    def _version_files(self, summary: Summary) -> Iterable[tuple[str, type]]:
        yield "image", Directory if _is_directory(summary) else File
        yield "info.json", File
        yield "B3SUMS", File
        for name in self._images.derived(summary):
            yield name, File

    def _image_directory(self, summary: Summary, path: Path) -> Node:
        """A node in the directory ``image`` of the image of a directory."""
        view = self._images.get(summary.id)
        if path in view.directories:
            names = view.directories[path]
            return Directory(
                lambda: ((name, _TYPES[what]) for name, what in names.items()), view.times.get(path, taken_ns(summary)), summary
            )
        if path in view.links:
            return Link(view.links[path].target, view.links[path].mtime, summary)
        for depth in range(1, len(path)):
            if path[:depth] in view.files or path[:depth] in view.links:
                raise NotADirectoryError
        index, file = view.files[path]
        program = self._is_program(file)
        return File(file.size, view.allocated(index), file.mtime, lambda: view.content(file), summary=summary, program=program)

    def _is_program(self, file: ImageFile) -> bool:
        return self._programs and bool(file.mode & stat.S_IXUSR)


def info_json(summary: Summary, description: dict[str, Any] | None) -> bytes:
    """The bytes of ``info.json``. ``description``: the short one of the version's kind; None if there is none."""
    values = {**summary.as_dict(), "digest": summary.id, **by_kind(summary.kind, description)}
    if "kernel" in summary.tags:
        values["kernel"] = summary.tags["kernel"]
    return (json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n").encode(errors="surrogateescape")


def _is_directory(summary: Summary) -> bool:
    """Whether its image is shown as a directory. One that was stored before directories were recorded is told by its files."""
    return summary.directory or summary.files > 1


def _link(summary: Summary, up: str) -> Link:
    target = f"{up}/machines/{summary.machine}/{summary.application}/{summary.version}"
    return Link(target, taken_ns(summary), summary)


def _leaf(node: Link | File, rest: Path) -> Node:
    """``node``, which has nothing below it: raises NotADirectoryError if the path goes on with ``rest``."""
    if rest:
        raise NotADirectoryError
    return node
