# SPDX-License-Identifier: GPL-3.0-or-later
"""What changed between two versions: pages added, changed and gone, by range. Used by the verb ``diff``.

Files are paired by name. Only windows in which one of the two has data are read, so holes of any size cost nothing, and
memory is a few windows whatever the sizes. A page is *added* if it has become other than zero, *gone* if it is all zeros
now or lies beyond the new end, *changed* if both have data there and they differ. Both must have one page size.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import UsageError
from fuse_store.progress import Progress

if TYPE_CHECKING:
    from fuse_store.image import Image
    from fuse_store.manifest import ImageFile

WINDOW = 8 << 20  # bytes of each version that are compared at once; a multiple of every page size
CHANGES = ("added", "changed", "gone")


@dataclass(frozen=True)
class Range:
    """A run of pages with the same ``change``, in bytes from the start of ``file``; the last page may be cut off by the end
    of the file."""

    file: str
    change: str
    offset: int
    length: int


def diff(a: Image, b: Image, progress: Progress) -> Iterator[Range]:
    """The ranges in which ``b`` differs from ``a``: by file name, then by offset. Raises UsageError, Damaged."""
    if a.head.page_size != b.head.page_size:
        raise UsageError(
            f"images {a.id[:12]} and {b.id[:12]}", f"their pages have {a.head.page_size} and {b.head.page_size} bytes.",
            "Only versions with pages of one size can be compared.",
        )  # fmt: skip
    of_a, of_b = ({file.name: file for file in image.files} for image in (a, b))
    progress.start("diff", sum(max(file.size for file in pair) for pair in _pairs(of_a, of_b)))
    done = 0
    try:
        for name in sorted(of_a.keys() | of_b.keys()):
            old, new = of_a.get(name), of_b.get(name)
            size = max(file.size for file in (old, new) if file is not None)
            step = a.head.page_size
            for one in _joined(_of_file(a, old, b, new, name, size, progress, done), step):
                yield Range(one.file, one.change, one.offset, min(one.length, size - one.offset))
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
    for start in _windows(a, old, b, new):
        length = min(WINDOW, size - start)
        before, after = _pages(a, old, start, length), _pages(b, new, start, length)
        differs = (before != after).any(axis=1)
        empty_before, empty_after = (~pages.any(axis=1) for pages in (before, after))
        # 0: the same, else one more than the ordinal in CHANGES
        change = np.where(differs, np.where(empty_before, 1, np.where(empty_after, 3, 2)), 0)
        breaks = np.flatnonzero(np.diff(change, prepend=-1))
        for low, high in zip(breaks.tolist(), np.append(breaks[1:], len(change)).tolist(), strict=True):
            if change[low]:
                yield Range(name, CHANGES[change[low] - 1], start + low * page_size, (high - low) * page_size)
        progress.at(done + start + length)


def _windows(a: Image, old: ImageFile | None, b: Image, new: ImageFile | None) -> Iterator[int]:
    """Offsets of the windows in which one of the two has data, ascending."""
    last = -1
    for number in heapq.merge(_with_data(a, old), _with_data(b, new)):
        if number != last:
            yield number * WINDOW
            last = number


def _with_data(image: Image, file: ImageFile | None) -> Iterator[int]:
    if file is None:
        return
    last = -1
    for offset, length in image.data_ranges(file.offset, file.offset + file.size):
        first, end = (offset - file.offset) // WINDOW, (offset - file.offset + length - 1) // WINDOW
        yield from range(max(first, last + 1), end + 1)
        last = end


def _pages(image: Image, file: ImageFile | None, start: int, length: int) -> NDArray[np.uint64]:
    """``length`` bytes of a file as rows of one page; zeros beyond its end."""
    page_size = image.head.page_size
    room = -(-length // page_size) * page_size
    wanted = max(0, min(length, file.size - start)) if file is not None else 0
    data = image.read(file.offset + start, wanted) if file is not None and wanted else b""
    if len(data) < room:
        data = data + bytes(room - len(data))
    return np.frombuffer(data, np.uint64).reshape(-1, page_size // 8)


def _joined(ranges: Iterable[Range], page_size: int) -> Iterator[Range]:
    """Runs that go on in the next window become one."""
    held: Range | None = None
    for one in ranges:
        if held is not None and held.change == one.change and held.offset + held.length == one.offset:
            held = Range(held.file, held.change, held.offset, held.length + one.length)
            continue
        if held is not None:
            yield held
        held = one
    if held is not None:
        yield held
