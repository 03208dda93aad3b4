# SPDX-License-Identifier: GPL-3.0-or-later
"""The Backend protocol, implemented by ``posix`` and ``s3``, and the types it returns. Threads may share a backend.

Names are those of the layout (docs/format.md, "Files"), relative to the store, with slashes. Unless stated otherwise, a missing
file raises FileNotFoundError, a failing disk OSError, a failing server StoreError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from fuse_store.repository.backends.mapping import Mapped

MISSING = "missing"  # the stamp of a file that does not exist


@dataclass(frozen=True)
class Entry:
    """A file of a backend: its name, bytes, and when it was moved or written there (s since 1970, by ``Backend.now``)."""

    name: str
    size: int
    changed: float


class Lock(Protocol):
    """The writer lock, while it is held."""

    def check(self) -> None:
        """Raises Locked if another process took the lock over."""
        ...


class NewFile(Protocol):
    """A file that is being written; nothing of it is in the store before it is complete. A context manager that drops it, unless
    it was given a name. ``file`` is where to write; it can be read and sought too. For one thread."""

    file: BinaryIO

    def __enter__(self) -> NewFile: ...

    def __exit__(self, *error: object) -> None: ...

    def create(self, name: str, before: Callable[[], None] | None = None) -> None:
        """Let it appear under ``name``. ``before`` is called right before; it may raise. Raises FileExistsError if there is such a
        file."""
        ...

    def abandon(self) -> None:
        """Drop it, unless it was given a name."""
        ...


class Backend(Protocol):
    """``url``: the location, for messages. ``local_dir``: the store itself, or the local cache of a remote store. ``readers``: how
    many blocks are worth reading at once. ``needs_fsync``: whether written files must be synced. ``survives_fork``: whether a
    forked process can use the backend."""

    url: str
    local_dir: Path
    readers: int
    needs_fsync: bool
    survives_fork: bool

    def bind(self, store_id: str) -> None:
        """Set the id of the store (32 hex digits), once it is known; a remote store chooses its local cache by it."""
        ...

    def is_free(self) -> bool:
        """Whether a store can be created here: nothing exists yet."""
        ...

    def prepare(self) -> None:
        """Create the directories of the layout."""
        ...

    def probe(self, sync: bool) -> None:
        """Try whether everything that a store relies on works here, in an empty place after ``prepare``; nothing is left if it does
        not. ``sync``: files will be synced. Raises Refused."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        ...

    def read_range(self, name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        """``length`` bytes, fewer at the end of the file. ``trashed``: look in the trash too, for a reader that located the file
        before it was removed."""
        ...

    def read_into(self, name: str, offset: int, out: memoryview) -> int:
        """Have bytes of a pack, which may be in the trash, in ``out``; how many: fewer at the end of the file."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file; a file in the trash is a missing one."""
        ...

    def read_mmap(self, name: str, *, check: bool) -> Mapped:
        """The content of an immutable file. ``check``: as it is in the store now, not as it is in the local cache."""
        ...

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The immutable result of ``make``, from the local cache of a remote store."""
        ...

    def stream(self, name: str) -> BinaryIO:
        """A file to read and seek in."""
        ...

    def names(self, directory: str) -> list[str]:
        """The names in a directory, without the directory."""
        ...

    def directories(self, directory: str) -> list[str]:
        """The names of the directories in a directory, without it."""
        ...

    def has_directory(self, directory: str) -> bool:
        """Whether there is such a directory."""
        ...

    def remove_empty(self, directory: str) -> None:
        """Remove a directory if there is nothing in it. In a bucket there is no such directory."""
        ...

    def entries(self, directory: str) -> Iterator[Entry]:
        """Every file below a directory; "" is the whole store. Files that are removed meanwhile may be missing."""
        ...

    def changed(self, directory: str) -> tuple[int, bool]:
        """(a stamp in ns since 1970 that differs after a file of the directory was added or removed, whether it can be trusted: a
        directory that changes twice within one tick of its clock has the same stamp)."""
        ...

    def stamps(self, directory: str, names: Sequence[str] | None = None) -> Callable[[str], str]:
        """A function that tells a stamp of a file below a directory, by its name: another one after the file was replaced. Empty if
        the file may be replaced without another stamp; a missing file has one, too. ``names``: those that will be asked for, by
        default all."""
        ...

    def refresh(self, directory: str) -> None:
        """Forget what is known about a directory."""
        ...

    def now(self) -> float:
        """The current time by the clock of ``Entry.changed``, in s since 1970."""
        ...

    def write(
        self, name: str, content: bytes, sync: bool, before: Callable[[], None] | None = None, *, create: bool = False
    ) -> None:
        """Write a file atomically, or replace it. ``create``: raise FileExistsError if it exists. ``sync`` and ``before``: as of
        ``new``."""
        ...

    def new(self, directory: str, sync: bool) -> NewFile:
        """A large file to write, for a name below ``directory`` that may be chosen at the end. ``sync``: it is durable when it
        appears, and its name when ``create`` returns."""
        ...

    def remove(self, name: str) -> None:
        """Destroy a file, if it exists."""
        ...

    def to_trash(self, name: str) -> None:
        """Move a file to the trash. Readers that located it before find it there."""
        ...

    def sync(self, directory: str) -> None:
        """Make additions to and removals from a directory durable."""
        ...

    def sync_all(self) -> None:
        """Make everything that was written durable."""
        ...

    def remove_partials(self) -> None:
        """Remove the partial files of killed writers, and forget what was known before the writer lock was taken."""
        ...

    def forget(self, name: str) -> None:
        """Close a removed file."""
        ...

    def close_removed(self) -> bool:
        """Close the files that are no longer in their place, whose disk space would not be freed otherwise; whether there were any."""
        ...

    def close(self) -> None:
        """Close all files and drop what is cached in memory."""
        ...

    def lock(self) -> AbstractContextManager[Lock]:
        """The writer lock. Entering raises Locked, Refused, OSError, StoreError."""
        ...
