# SPDX-License-Identifier: GPL-3.0-or-later
"""Open images with what the tree shows of them: files as folders, derived files, checksums, what it is. Used by ``tree``.

A list of versions needs none of this: an image is opened when something inside it is asked for, and the ones used last
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
from fuse_store.mount.content import Content, DerivedContent, ImageContent, Windows
from fuse_store.mount.prefetch import Readers
from fuse_store.repository.manifest import ImageFile, Summary
from fuse_store.store import Store

if TYPE_CHECKING:
    from fuse_store.image.reader import Image

log = logging.getLogger(__name__)

OPEN = 16  # images
PIECE = 8 << 20  # bytes that are hashed at once
DIGEST_LETTERS = 64


class OpenImage:
    """An image, and what is made from it."""

    def __init__(self, image: Image, windows: Windows) -> None:
        """Raises Damaged."""
        self.image = image
        self._windows = windows
        self._lock = threading.Lock()
        self._derived: dict[str, Content] | None = None
        self._allocated: list[int] | None = None
        self._checksums: bytes | None = None
        self._fields: dict[str, Any] | None = None
        self.single = len(image.files) == 1
        self.files: dict[tuple[str, ...], tuple[int, ImageFile]] = {}
        self.folders: dict[tuple[str, ...], dict[str, bool]] = {(): {}}  # the names in each, and whether they are folders
        for number, file in enumerate(image.files):
            parts = tuple(file.name.split("/"))
            if any(part in ("", ".", "..") or "\0" in part for part in parts) or parts in self.files or parts in self.folders:
                raise Damaged(f"image {image.id}", f"the file name {file.name!r} leads nowhere.", image=image.id)
            self.files[parts] = number, file
            for depth in range(len(parts), 0, -1):
                if parts[: depth - 1] in self.files:
                    raise Damaged(f"image {image.id}", f"the file name {file.name!r} leads nowhere.", image=image.id)
                self.folders.setdefault(parts[: depth - 1], {})[parts[depth - 1]] = depth < len(parts)

    def content(self, file: ImageFile) -> Content:
        return ImageContent(self.image, file.offset, file.size, self._windows)

    def allocated(self, number: int) -> int:
        """Bytes of a file that are stored. Raises Damaged."""
        with self._lock:
            if self._allocated is None:
                self._allocated = [
                    sum(length for _start, length in self.image.data_ranges(file.offset, file.offset + file.size))
                    for file in self.image.files
                ]
            return self._allocated[number]

    def derived(self, missing: Callable[[str, Exception], None]) -> dict[str, Content]:
        """The derived files that could be made, by name; ``missing`` is told which could not, and why."""
        with self._lock:
            if self._derived is None:
                found: dict[str, Content] = {}
                kind = self.image.summary.kind
                try:  # whatever goes wrong: an image is what somebody stored, and need not be what its kind says
                    files = kinds.load(kind).views(self.image)
                except Exception as error:
                    files = ()
                    missing(f"files of the kind {kind}", error)
                for file in files:
                    try:
                        found[file.name] = DerivedContent(file, file.size())
                    except Exception as error:
                        missing(file.name, error)
                self._derived = found
            return self._derived

    def fields(self) -> dict[str, Any] | None:
        """``Kind.describe``; None if the image is not of its kind, or cannot be read now."""
        with self._lock:
            if self._fields is None:
                self._fields = kinds.load(self.image.summary.kind).describe(self.image)
            return self._fields

    @property
    def checksums_size(self) -> int:
        return sum(len(_line("0" * DIGEST_LETTERS, self._shown(file))) for file in self.image.files)

    def checksums(self) -> bytes:
        """What ``b3sum`` would print for the files of the image. Reads all of it the first time. Raises Damaged."""
        with self._lock:
            if self._checksums is None:
                self._checksums = b"".join(_line(self._digest(file), self._shown(file)) for file in self.image.files)
            return self._checksums

    def _shown(self, file: ImageFile) -> str:
        return "image" if self.single else f"image/{file.name}"

    def _digest(self, file: ImageFile) -> str:
        digest = blake3(max_threads=blake3.AUTO)
        for at in range(0, file.size, PIECE):
            end = min(at + PIECE, file.size)
            self.image.prefetch(file.offset + end, min(PIECE, file.size - end))
            digest.update(self.image.read_view(file.offset + at, end - at))
        return digest.hexdigest()


class OpenImages:
    """The images of a store that were used last."""

    def __init__(self, store: Store, readers: Readers | None) -> None:
        self._store = store
        self._windows = Windows(readers)
        self._images: OrderedDict[str, OpenImage] = OrderedDict()
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def get(self, image_id: str) -> OpenImage:
        """Raises NotFound, Damaged, StoreError."""
        with self._lock:
            found = self._images.get(image_id)
            if found is not None:
                self._images.move_to_end(image_id)
                return found
        opened = OpenImage(self._store.open_image(image_id), self._windows)
        with self._lock:
            found = self._images.setdefault(image_id, opened)
            while len(self._images) > OPEN:
                self._images.popitem(last=False)
        return found

    def derived(self, one: Summary) -> dict[str, Content]:
        """The derived files of a version, by name. What can't be made is left out, and logged once."""
        if not kinds.row_of(one.kind).module:
            return {}

        def missing(what: str, error: Exception) -> None:
            if (one.id, what) not in self._told:
                self._told.add((one.id, what))
                log.warning("image %s: no %s: %s", one.id, what, error)

        try:
            return self.get(one.id).derived(missing)
        except StoreError as error:
            missing("derived files", error)
            return {}

    def description(self, one: Summary) -> dict[str, Any] | None:
        """What a version is, in short, with what the state log adds now; None if it is not of its kind, or cannot be read here
        and now, which must not hide what the manifest says. Raises NotFound if the version was removed."""
        kind = kinds.row_of(one.kind)
        if not kind.module:
            return None
        try:
            told = self.get(one.id).fields()
        except NotFound:
            raise
        except StoreError:
            return None
        return told and kinds.load(one.kind).shown(told, self._store.state_log.entries(one.id), brief=True)

    def close(self) -> None:
        self._windows.close()


def _line(digest: str, name: str) -> bytes:
    """A line as b3sum prints it: a name with a backslash or a line feed in it is escaped, which a backslash before tells."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n".encode(errors="surrogateescape")
