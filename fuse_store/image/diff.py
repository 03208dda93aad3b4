# SPDX-License-Identifier: GPL-3.0-or-later
"""The difference between two versions: pages added, changed and gone, by range; names added, changed and gone.

Files are paired by name. Pages are compared by their digests in the tables of the packs: no block is opened, and memory is
that of a window of pages and of two extent segments, whatever the sizes. A page is *added* if only the new version has data
there, *gone* if only the old one has, *changed* if both have and it differs. Both must have one page size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import group_starts
from fuse_store.errors import Damaged, UsageError
from fuse_store.progress import Progress
from fuse_store.repository.entries import DIRECTORY, FILE, LINK

if TYPE_CHECKING:
    from fuse_store.image.reader import Image
    from fuse_store.repository.manifest import ImageFile

DIFF_WINDOW = 1 << 16  # pages of each version that are compared at once
CHANGES = ("added", "changed", "gone")


@dataclass(frozen=True)
class Range:
    """A run of pages with the same ``change``, in bytes from the start of ``file``; the last page may be cut off by the end
    of the file."""

    file: str
    change: str
    offset: int
    length: int


@dataclass(frozen=True)
class Name:
    """A file, directory or link that only one version has, or that is not the same in both, whatever the pages: a link leads elsewhere, a
    file has another size, permissions differ. ``type``: that of the newer one, if it has it."""

    name: str
    type: str
    change: str


def names(a: Image, b: Image) -> list[Name]:
    """What differs between ``a`` and ``b`` in names, in the order of the names. Times do not count. Of an image that is no directory, or
    was stored before directories were recorded, only files and their sizes are known."""
    known = not any(image.head.is_directory and not image.head.directories for image in (a, b))
    modes = bool(a.head.directories and b.head.directories)
    old, new = _named(a, known, modes), _named(b, known, modes)
    found = []
    for name in sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
        change = "added" if name not in old else "gone" if name not in new else "changed"
        found.append(Name(name, (new.get(name) or old[name])[0], change))
    return found


def _named(image: Image, known: bool, modes: bool) -> dict[str, tuple[str, int | str, int]]:
    """By name: type, size of a file or target of a link, permissions with ``modes``. Without ``known``, files alone."""
    found: dict[str, tuple[str, int | str, int]] = {one.name: (FILE, one.size, one.mode * modes) for one in image.files}
    if known:
        found |= {one.name: (DIRECTORY, 0, one.mode * modes) for one in image.head.directories}
        found |= {one.name: (LINK, one.target, 0) for one in image.head.links}
    return found


def diff(a: Image, b: Image, progress: Progress) -> Iterator[Range]:
    """The ranges in which ``b`` differs from ``a``: by file name, then by offset. Raises UsageError, Damaged."""
    if a.head.page_size != b.head.page_size:
        raise UsageError(
            f"images {a.id[:12]} and {b.id[:12]}", f"page sizes differ: {a.head.page_size} and {b.head.page_size} bytes.",
            "Compare versions of one page size.",
        )  # fmt: skip
    of_a, of_b = ({file.name: file for file in image.files} for image in (a, b))
    progress.start("diff", sum(max(file.size for file in pair) for pair in _pairs(of_a, of_b)))
    done = 0
    try:
        for name in sorted(of_a.keys() | of_b.keys()):
            old, new = of_a.get(name), of_b.get(name)
            size = max(file.size for file in (old, new) if file is not None)
            for part in _joined(_of_file(a, old, b, new, name, size, progress, done)):
                yield Range(part.file, part.change, part.offset, min(part.length, size - part.offset))
            done += size
    finally:
        progress.finish()


def _pairs(of_a: dict[str, ImageFile], of_b: dict[str, ImageFile]) -> Iterator[list[ImageFile]]:
    for name in of_a.keys() | of_b.keys():
        yield [files[name] for files in (of_a, of_b) if name in files]


def _of_file(
    a: Image,
    old: ImageFile | None,
    b: Image,
    new: ImageFile | None,
    name: str,
    size: int,
    progress: Progress,
    done: int,
) -> Iterator[Range]:
    page_size = a.head.page_size
    pages = -(-size // page_size)
    for start in range(0, pages, DIFF_WINDOW):
        end = min(start + DIFF_WINDOW, pages)
        (there, before), (here, after) = _window(a, old, start, end), _window(b, new, start, end)
        both = np.flatnonzero(there & here)
        change = np.where(here & ~there, 1, np.where(there & ~here, 3, 0))  # one more than the ordinal in CHANGES
        change[both[(before[both] != after[both]).any(axis=1)]] = 2
        breaks = group_starts(change)
        kinds = change[breaks].tolist()
        for kind, low, high in zip(kinds, breaks.tolist(), np.append(breaks[1:], end - start).tolist(), strict=True):
            if kind:
                yield Range(name, CHANGES[kind - 1], (start + low) * page_size, (high - low) * page_size)
        progress.at(done + min(end * page_size, size))


def _window(image: Image, file: ImageFile | None, start: int, end: int) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """(whether it is other than zero, the two halves of its digest) of each page in start..end of a file."""
    there, digests = np.zeros(end - start, bool), np.zeros((end - start, 2), np.uint64)
    if file is None:
        return there, digests
    first = file.offset // image.head.page_size + start
    last = min(first + end - start, -(-(file.offset + file.size) // image.head.page_size))
    for place in image.places(first, last):
        digest = image.page_digests(place)
        unknown = np.flatnonzero(~digest.any(axis=1))
        if len(unknown):
            error = Damaged(
                f"image {image.id}", "a block is in no pack that the index knows.", "Run 'fuse-store repair'."
            )
            raise image.damaged(error, int(place.page[unknown[0]]))
        there[place.page - first] = True
        digests[place.page - first] = digest
    return there, digests


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges that continue in the next window become one."""
    held: Range | None = None
    for part in ranges:
        if held is not None and held.change == part.change and held.offset + held.length == part.offset:
            held = Range(held.file, held.change, held.offset, held.length + part.length)
            continue
        if held is not None:
            yield held
        held = part
    if held is not None:
        yield held
