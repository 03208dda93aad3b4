# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backend owes: the Protocol that ``posix`` and ``object`` keep, and what they give out. Used through ``backends``."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Entry:
    """Something in a backend: its name in the layout, bytes, and when it came to be where it is (s since 1970, ``now``)."""

    name: str
    size: int
    changed: float


class Lock(Protocol):
    """The writer's lock while it is held."""

    def check(self) -> None:
        """Raise Locked if it is no longer ours."""
        ...


class Backend(Protocol):
    """What the domain asks for. ``url`` names it for people; ``local_dir`` is a local folder: the store itself, or what is kept
    here of it; ``readers`` is how many blocks are worth being read at once; ``needs_fsync``: whether files have to be synced;
    ``survives_fork``: whether a process that is forked can go on with it."""

    url: str
    local_dir: Path
    readers: int
    needs_fsync: bool
    survives_fork: bool

    def bind(self, store_id: str) -> None:
        """Tell which store it is, once that is known."""
        ...

    def is_free(self) -> bool:
        """Whether a store can be made here: nothing is there yet."""
        ...

    def prepare(self) -> None:
        """Make the folders of the layout."""
        ...

    def read(self, name: str) -> bytes:
        """The whole of something small."""
        ...

    def read_range(self, name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        """``length`` bytes, fewer at the end. ``trashed``: from the trash as well, for who knew it a moment ago."""
        ...

    def size(self, name: str) -> int:
        """Bytes of something that is in its place; what is in the trash is not."""
        ...

    def read_mmap(self, name: str, *, check: bool) -> bytes | mmap.mmap:
        """The whole of something that never changes. ``check``: as it is in the store now, not as it is kept here."""
        ...

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What ``make`` gives, which never changes; it is kept here if the store is far away."""
        ...

    def stream(self, name: str) -> BinaryIO:
        """To read and seek in."""
        ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder, without the folder."""
        ...

    def entries(self, folder: str) -> Iterator[Entry]:
        """Everything in a folder and in those in it; "" is the whole store. What goes meanwhile may be missing."""
        ...

    def changed(self, folder: str) -> tuple[int, bool]:
        """(a number that is another one when something in a folder came or went: a time, ns since 1970; whether it can be
        trusted: a folder that changes twice within one tick of its clock looks unchanged the second time)."""
        ...

    def refresh(self, folder: str) -> None:
        """Believe nothing that was known of a folder."""
        ...

    def now(self) -> float:
        """The time by the clock of ``Entry.changed``."""
        ...

    def write(self, name: str, content: bytes, sync: bool, before: Callable[[], None] | None = None) -> None:
        """Have it there whole, or not at all, in the place of what was there; ``before``: ``durable.new_file``."""
        ...

    def new(self, name: str, sync: bool) -> AbstractContextManager[BinaryIO]:
        """A pack to write, which appears when the block ends, and not at all if it raises."""
        ...

    def remove(self, name: str) -> None:
        """Destroy it, if it is there."""
        ...

    def to_trash(self, name: str) -> None:
        """Out of its place at once; readers that knew it find it in the trash."""
        ...

    def sync(self, folder: str) -> None:
        """Make durable what came and went in a folder."""
        ...

    def sync_all(self) -> None:
        """Make durable everything that was written."""
        ...

    def remove_partials(self) -> None:
        """Remove what writers that were killed left behind."""
        ...

    def forget(self, name: str) -> None:
        """Let go of something that was removed."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...

    def lock(self) -> AbstractContextManager[Lock]:
        """The writer's lock. Raises Locked, Refused."""
        ...
