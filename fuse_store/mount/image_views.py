# SPDX-License-Identifier: GPL-3.0-or-later
"""Open images with all that the tree shows of them: their files and directories, derived files, checksums, metadata.

A list of versions needs none of this: an image is opened when something inside of it is requested, and the ones used last
stay open. Threads may share everything here.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.image import kind as kinds
from fuse_store.mount.content import Content, DerivedContent, ImageContent, WindowCache
from fuse_store.mount.prefetch import PrefetchProcesses
from fuse_store.repository.entries import DIRECTORY, FILE, LINK, ImageLink
from fuse_store.repository.manifest import ImageFile, Summary
from fuse_store.store import Store

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

log = logging.getLogger(__name__)

MAX_OPEN_IMAGES = 16  # images that stay open
CHECKSUM_READ_SIZE = 8 << 20  # bytes that are hashed at once
DIGEST_HEX_DIGITS = 64  # of a BLAKE3 digest in B3SUMS


class ImageView:
    """An open image. Its tree, by path: ``files`` (index in the image, and the file), ``links``, ``directories`` (the names in each,
    and what they are), and ``times`` of directories, in ns, as far as they were recorded."""

    def __init__(self, image: Image, windows: WindowCache) -> None:
        """Raises Damaged."""
        self.image = image
        self._windows = windows
        self._lock = threading.Lock()
        self._derived: dict[str, Content] | None = None
        self._allocated: list[int] | None = None
        self._checksums: bytes | None = None
        self._fields: dict[str, Any] | None = None
        self.single = not image.head.is_directory
        self.files: dict[tuple[str, ...], tuple[int, ImageFile]] = {}
        self.links: dict[tuple[str, ...], ImageLink] = {}
        self.times: dict[tuple[str, ...], int] = {}
        self.directories: dict[tuple[str, ...], dict[str, str]] = {(): {}}
        for index, file in enumerate(image.files):
            self.files[self._add(file.name, FILE)] = index, file
        for link in image.head.links:
            self.links[self._add(link.name, LINK)] = link
        for directory in image.head.directories:
            path = self._add(directory.name, DIRECTORY) if directory.name else ()
            self.directories.setdefault(path, {})
            self.times[path] = directory.mtime

    def _add(self, name: str, what: str) -> tuple[str, ...]:
        """Add a name and the directories above it; the path. Raises Damaged for a name that has no place in a tree."""
        path = tuple(name.split("/"))
        invalid = any(part in ("", ".", "..") or "\0" in part for part in path)
        if invalid or path in self.files or path in self.links or (what != DIRECTORY and path in self.directories):
            raise self._invalid_name(name)
        for depth in range(len(path), 0, -1):
            if path[: depth - 1] in self.files or path[: depth - 1] in self.links:
                raise self._invalid_name(name)
            self.directories.setdefault(path[: depth - 1], {})[path[depth - 1]] = what if depth == len(path) else DIRECTORY
        return path

    def _invalid_name(self, name: str) -> Damaged:
        remedy = "Restore the manifest from a copy of the store."
        return Damaged(f"image {self.image.id}", f"invalid file name {name!r}.", remedy, image=self.image.id)

    def content(self, file: ImageFile) -> Content:
        return ImageContent(self.image, file.offset, file.size, self._windows)

    def allocated(self, index: int) -> int:
        """Bytes of a file that are not in holes. Raises Damaged."""
        with self._lock:
            if self._allocated is None:
                self._allocated = [
                    sum(length for _start, length in self.image.data_ranges(file.offset, file.offset + file.size))
                    for file in self.image.files
                ]
            return self._allocated[index]

    def derived(self, failed: Callable[[str, Exception], None]) -> dict[str, Content]:
        """The derived files by name, without those that cannot be computed: ``failed`` is called with their name and why."""
        with self._lock:
            if self._derived is None:
                contents: dict[str, Content] = {}
                kind = self.image.summary.kind
                try:  # catch everything: an image is untrusted input, and need not be of the kind it was stored as
                    files = kinds.load(kind).views(self.image)
                except Exception as error:
                    files = ()
                    failed(f"files of kind {kind}", error)
                for file in files:
                    try:
                        contents[file.name] = DerivedContent(file, file.size())
                    except Exception as error:
                        failed(file.name, error)
                self._derived = contents
            return self._derived

    @property
    def checksums_size(self) -> int:
        return sum(len(_checksum_line("0" * DIGEST_HEX_DIGITS, self._path_in_version(file))) for file in self.image.files)

    def checksums(self) -> bytes:
        """The output of ``b3sum`` for the files of the image. Reads all of it the first time. Raises Damaged."""
        with self._lock:
            if self._checksums is None:
                lines = [_checksum_line(self._digest(file), self._path_in_version(file)) for file in self.image.files]
                self._checksums = b"".join(lines)
            return self._checksums

    def _path_in_version(self, file: ImageFile) -> str:
        return "image" if self.single else f"image/{file.name}"

    def _digest(self, file: ImageFile) -> str:
        digest = blake3(max_threads=blake3.AUTO)
        for at in range(0, file.size, CHECKSUM_READ_SIZE):
            end = min(at + CHECKSUM_READ_SIZE, file.size)
            self.image.prefetch(file.offset + end, min(CHECKSUM_READ_SIZE, file.size - end))
            digest.update(self.image.read_view(file.offset + at, end - at))
        return digest.hexdigest()

    def fields(self) -> dict[str, Any] | None:
        """``Kind.describe``; None if the image is not of its kind, or cannot be read at the moment."""
        with self._lock:
            if self._fields is None:
                self._fields = kinds.load(self.image.summary.kind).describe(self.image)
            return self._fields


class ImageViews:
    """The images of a store that were used last, open."""

    def __init__(self, store: Store, prefetch: PrefetchProcesses | None) -> None:
        self._store = store
        self._windows = WindowCache(prefetch)
        self._views: OrderedDict[str, ImageView] = OrderedDict()
        self._logged: set[tuple[str, str]] = set()  # (image, file) of the warnings that were logged
        self._lock = threading.Lock()

    def get(self, image_id: str) -> ImageView:
        """Raises NotFound, Damaged, StoreError."""
        with self._lock:
            view = self._views.get(image_id)
            if view is not None:
                self._views.move_to_end(image_id)
                return view
        opened = ImageView(self._store.open_image(image_id), self._windows)
        with self._lock:
            view = self._views.setdefault(image_id, opened)
            while len(self._views) > MAX_OPEN_IMAGES:
                self._views.popitem(last=False)
        return view

    def derived(self, summary: Summary) -> dict[str, Content]:
        """The derived files of a version, by name. A file that cannot be computed is left out, and logged once."""
        if not kinds.row_of(summary.kind).module:
            return {}

        def failed(name: str, error: Exception) -> None:
            if (summary.id, name) not in self._logged:
                self._logged.add((summary.id, name))
                log.warning("image %s: cannot provide %s: %s", summary.id, name, error)

        try:
            return self.get(summary.id).derived(failed)
        except StoreError as error:
            failed("derived files", error)
            return {}

    def description(self, summary: Summary) -> dict[str, Any] | None:
        """The short description of a version, with what the state log adds. None if the image is not of its kind, or cannot be
        read at the moment: that must not hide what the manifest says. Raises NotFound if the version was removed."""
        if not kinds.row_of(summary.kind).module:
            return None
        try:
            fields = self.get(summary.id).fields()
        except NotFound:
            raise
        except StoreError:
            return None
        entries = self._store.state_log.read(summary.content).entries_of(summary.id)
        return fields and kinds.load(summary.kind).shown(fields, entries, brief=True)

    def kill(self) -> None:
        self._windows.kill()

    def close(self) -> None:
        self._windows.close()


def _checksum_line(digest: str, name: str) -> bytes:
    """A line as b3sum prints it: backslashes and line feeds in a name are escaped, which a leading backslash announces."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n".encode(errors="surrogateescape")
