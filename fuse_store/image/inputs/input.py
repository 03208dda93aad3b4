# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of an input, and what is not certain about one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import Refused, StoreError
from fuse_store.repository.entries import MAX_TIME, ImageDirectory, ImageLink

CONSISTENT = "consistent"  # tag of a version that may not be what its source was at one moment
UNKNOWN, NO = "unknown", "no"  # its values
NOTHING_STORED = "Nothing was stored."
STANDARD_INPUT = "standard input"


@dataclass(frozen=True)
class Batch:
    """Some pages of an image: their numbers, ascending, and their content, one after the other. ``end`` is how far in the
    image, in bytes, the source has been read. ``buffer``: at the start of which of the caller's the content is; -1 if in none."""

    page: NDArray[np.int64]
    data: memoryview
    end: int
    buffer: int = -1


@dataclass
class InputFile:
    """One file of an input. ``path``: where it can be read while the input is open; None for one of several, and for a stream.
    ``size`` is None for a stream, until it has been read."""

    name: str
    path: Path | None
    size: int | None
    mode: int = 0o600
    mtime: int = 0
    skip: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # first page and number of pages of what is not read
    far: bool = field(default=False, init=False)  # its time is one that a manifest cannot hold; ``mtime`` is the nearest that it can

    def __post_init__(self) -> None:
        nearest = nearest_time(self.mtime)
        self.far, self.mtime = nearest != self.mtime, nearest


def nearest_time(mtime: int) -> int:
    """The nearest time, in ns since 1970, that a manifest can hold."""
    return max(-MAX_TIME, min(mtime, MAX_TIME))


@dataclass
class Doubts:
    """Why a version may not be what its source was at one moment. Without ``allow``, a source that is in use or changes is an
    error, and what is left are reasons why it cannot be known."""

    allow: bool = False
    reasons: Counter[str] = field(default_factory=Counter)  # how many files each holds for
    examples: dict[str, str] = field(default_factory=dict)
    changed: bool = False

    def unsure(self, path: Path | str, reason: str) -> None:
        self.examples.setdefault(reason, str(path))
        self.reasons[reason] += 1

    def in_use(self, what: str, path: Path | str, cause: str, remedy: str) -> None:
        """Raises Refused, unless that is allowed."""
        if not self.allow:
            raise Refused(f"{what} {path}", f"{cause}.", f"{remedy}, put a snapshot, or use --allow-changing.")
        self.unsure(path, cause)

    def differs(self, path: Path | str, cause: str = "changed while being read") -> None:
        """Raises StoreError, unless that is allowed."""
        if not self.allow:
            raise StoreError(f"source {path}", f"{cause}.", f"{NOTHING_STORED} Stop the program that writes to it, or put a snapshot.")
        self.changed = True
        self.unsure(path, cause)

    @property
    def tags(self) -> Mapping[str, str]:
        if self.changed:
            return {CONSISTENT: NO}
        return {CONSISTENT: UNKNOWN} if self.reasons else {}

    @property
    def warnings(self) -> list[str]:
        texts = []
        for reason, count in self.reasons.items():
            others = f" and {count - 1} more" if count > 1 else ""
            texts.append(f"{self.examples[reason]}{others}: {reason}. The version has the tag {CONSISTENT}={self.tags[CONSISTENT]}.")
        return texts


class Input:
    """What is stored: ``files``, one after the other in the address space of the image, each beginning at a page; of a directory also
    its ``directories``, itself included, and ``links``. ``name``: what messages call it. ``doubts``: what is not certain of it.
    ``complete``: its end is known to be the end of what was meant, unlike that of a pipe. A context manager, for one put and one thread."""

    files: Sequence[InputFile]
    directories: Sequence[ImageDirectory] = ()
    links: Sequence[ImageLink] = ()
    complete = True

    def __init__(self, name: str, doubts: Doubts | None = None) -> None:
        self.name, self.doubts = name, doubts or Doubts()

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        """The data in ascending order; a last page of a file that is not full ends in zeros. It is read into ``buffers`` in turn: two or
        more, of whole pages. A batch is valid until as many more are asked for as there are buffers but one. Raises StoreError, before the
        end, if the source cannot be stored after all."""
        raise NotImplementedError

    def offsets(self, page_size: int) -> list[int]:
        """Where each file begins; those of a stream are known after it has been read."""
        offsets, at = [], 0
        for file in self.files:
            offsets.append(at)
            at += -(-(file.size or 0) // page_size) * page_size
        return offsets

    def placed(self, page_size: int) -> list[tuple[InputFile, int]]:
        """The files, and where each begins."""
        return list(zip(self.files, self.offsets(page_size), strict=True))

    def end(self, page_size: int) -> int | None:
        """The bytes of the address space; None for a stream that has not been read."""
        size = self.files[-1].size
        return None if size is None else self.offsets(page_size)[-1] + size

    @property
    def tags(self) -> Mapping[str, str]:
        """Complete after the last batch."""
        return self.doubts.tags

    def tags_with(self, given: Mapping[str, str]) -> dict[str, str]:
        """``tags`` and those that were given; a user may know better what cannot be told from the source."""
        own = self.tags
        return {**given, **own} if own.get(CONSISTENT) == NO else {**own, **given}

    @property
    def warnings(self) -> Sequence[str]:
        """Complete after the last batch."""
        far = [self.name if len(self.files) == 1 else f"{self.name}/{file.name}" for file in self.files if file.far]
        if not far:
            return self.doubts.warnings
        others = f" and {len(far) - 1} more" if len(far) > 1 else ""
        text = f"{far[0]}{others}: modified before the year 1677 or after 2262, which cannot be stored. The version has the nearest time."
        return [f"{text} Use 'touch' if that matters.", *self.doubts.warnings]

    def close(self) -> None:
        pass

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
