# SPDX-License-Identifier: GPL-3.0-or-later
"""``incoming/MACHINE/APPLICATION/``: a file that is copied there becomes a version when it is closed.

The process that wrote the file gets the error of a failed put from ``close``; if another process is the last to close it,
the error is only logged. What is not complete becomes no version:

- a file under a name that tools give to one that is not complete (PARTIAL): it is stored when it is renamed, as rsync does;
- a file whose writer a signal ended, or that fails, or that has just caught a signal (``writers``): it disappears;
- a file that was removed before, or has no data: the program that created it will open it again.

A stored file stays visible under the name it was copied to, so that tools can compare it, set its times and rename it. If
it is opened and written to again, it becomes another version. Threads may share an Incoming.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path as LocalPath
from typing import TypeAlias

from fuse_store.errors import StoreError
from fuse_store.mount import writers
from fuse_store.mount.spool import Spool, SpoolInput
from fuse_store.mount.tree import Directory, File, Node, Path, Tree, taken_ns
from fuse_store.mount.versions import VersionIndex
from fuse_store.policy import names
from fuse_store.repository.manifest import Summary
from fuse_store.store import Label, Store

log = logging.getLogger(__name__)

DEPTH = 3  # components of a file's path: MACHINE/APPLICATION/FILE
MAX_VISIBLE_VERSIONS = 1000  # files that became versions and are still visible
MAX_WAITING = 100  # files that are closed and wait to be renamed or written to
COPY_SIZE = 4 << 20  # bytes that are copied at once
# Names of files that are not complete: of rsync (.NAME.XXXXXX), Ansible, NFS; of browsers, WinSCP, editors and others.
PARTIAL_PREFIXES = (".",)
PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", "~")


class Received:
    """A file that is being received. ``opener``: the thread that opened it first; ``opens``: how often it is open now. ``stored``:
    the version that it is, while nothing else is written."""

    def __init__(self, directory: LocalPath, path: Path, opener: int, stored: Summary | None = None) -> None:
        self.spool = Spool(directory)
        self.path, self.opener, self.stored = path, opener, stored
        self.opens = 1
        self.dirty = False  # there are written bytes that are in no version
        self.dropped = False  # and no version will be made of them
        self.handlers: int | None = None  # of the opener's process when it first wrote
        self.processes = {opener: writers.process_of(opener)}  # that opened it or wrote to it, by thread
        self.lock = threading.RLock()  # one change at a time; held while it is stored

    # It is Content, for those that opened it for writing.

    @property
    def size(self) -> int:
        return self.spool.size

    def read(self, offset: int, length: int) -> bytes:
        return self.spool.read(offset, length)

    def data(self, offset: int) -> int | None:
        return self.spool.data(offset)

    def hole(self, offset: int) -> int:
        return self.spool.hole(offset)

    def write(self, data: bytes, offset: int, writer: int) -> int:
        """Raises OSError."""
        with self.lock:
            if writer not in self.processes:
                self.processes[writer] = writers.process_of(writer)
            if self.handlers is None:
                self.handlers = writers.handlers(self.opener)
            self.dirty = True
            try:
                self.spool.write(data, offset)
            except OSError:
                self.dropped = True
                raise
        return len(data)

    def truncate(self, length: int) -> None:
        with self.lock:
            self.dirty = self.dirty or (self.size > 0 and self.size != length)
            self.spool.truncate(length)

    def check_writer(self, thread: int) -> None:
        """Drop the file if the process that closes or renames it will not complete it. Raises OSError if it goes on for now."""
        if writers.process_of(thread) in self.processes.values() and writers.fails(thread):
            self.dropped = True
        elif writers.same_process(self.opener, thread) and (self.handlers or 0) & ~writers.handlers(thread):
            self.dropped = True
            raise OSError(errno.ECANCELED, "the program that writes the file has been interrupted")


IncomingFile: TypeAlias = Received | Summary  # being received, or stored


class Incoming:
    """The directory ``incoming``: files that are being received, and those that became versions."""

    def __init__(self, store: Store, tree: Tree) -> None:
        self._store, self._tree = store, tree
        self._directories: set[Path] = set()
        self._files: dict[Path, IncomingFile] = {}
        self._lock = threading.Lock()
        self._putting = threading.Lock()
        self._started = time.time_ns()

    # names and attributes ---------------------------------------------------------------------------------------------

    def node(self, versions: VersionIndex, path: Path) -> Node:
        """Raises FileNotFoundError, NotADirectoryError."""
        if len(path) > DEPTH:
            raise NotADirectoryError
        if len(path) < DEPTH:
            if path and path not in self._directories and not _has(versions, path):
                raise FileNotFoundError
            return Directory(lambda: self._names(versions, path), self._started)
        file = self._file(path)
        if isinstance(file, Received):
            return File(file.size, file.spool.allocated, file.spool.changed, lambda: file.spool, fixed=False)
        return File(file.size, file.allocated, taken_ns(file), lambda: self._tree.image(file.id), fixed=False, summary=file)

    def _names(self, versions: VersionIndex, path: Path) -> Iterable[tuple[str, type]]:
        depth = len(path)
        with self._lock:
            directories = {other[depth] for other in self._directories if len(other) > depth and other[:depth] == path}
            files = [other[depth] for other in self._files if depth == DEPTH - 1 and other[:depth] == path]
        if depth == 0:
            directories.update(versions.machines())
        elif depth == 1:
            directories.update(versions.applications(path[0]))
        yield from ((name, Directory) for name in sorted(directories))
        yield from ((name, File) for name in files)

    # changes; paths are relative to incoming/ -------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        """Raises UsageError for a name that a machine or an application cannot have, OSError."""
        if not 0 < len(path) < DEPTH:
            raise PermissionError(errno.EPERM, "directories are for machines and applications only")
        names.checked(("the machine", "the application")[len(path) - 1], path[-1])
        with self._lock:
            self._directories.add(path)

    def remove_directory(self, path: Path) -> None:
        with self._lock:
            if path not in self._directories:
                raise PermissionError(errno.EPERM, "not a directory that was made in this mount")
            if any(other[: len(path)] == path and other != path for other in (*self._directories, *self._files)):
                raise OSError(errno.ENOTEMPTY, "not empty")
            self._directories.remove(path)

    def create(self, path: Path, opener: int) -> Received:
        """A new file to receive. ``opener``: the thread that opens it. Raises OSError."""
        if len(path) != DEPTH:
            raise PermissionError(errno.EPERM, "files belong in the directory of an application")
        return self._receive(Received(self._directory(), path, opener))

    def _directory(self) -> LocalPath:
        # TMPDIR only if it is set: /tmp is often in memory, and an image may not fit.
        return LocalPath(os.environ.get("TMPDIR") or self._store.path)

    def _receive(self, file: Received) -> Received:
        with self._lock:
            self._drop(file.path)
            self._files[file.path] = file
        return file

    def open(self, path: Path, opener: int, truncate: bool) -> Received:
        """An existing file, for writing. Raises OSError, StoreError."""
        file = self._file(path)
        if isinstance(file, Summary):
            return self.create(path, opener) if truncate else self._reopen(file, path, opener)
        with file.lock:
            if not file.opens:
                file.opener, file.handlers, file.processes = opener, None, {opener: writers.process_of(opener)}
            file.opens += 1
            if truncate:
                file.truncate(0)
        return file

    def _reopen(self, version: Summary, path: Path, opener: int) -> Received:
        """A version as a file that can be written to: the next one."""
        file = Received(self._directory(), path, opener, version)
        content, at = self._tree.image(version.id), 0
        file.spool.truncate(version.size)
        while at < version.size and (start := content.data(at)) is not None:
            at = content.hole(start)
            for begin in range(start, at, COPY_SIZE):
                file.spool.write(bytes(content.read(begin, min(COPY_SIZE, at - begin))), begin)
        return self._receive(file)

    def flush(self, file: Received, closer: int) -> None:
        """A process closes one of its descriptors of the file. Raises StoreError if the file could not be stored."""
        with file.lock:
            file.check_writer(closer)
            if writers.same_process(file.opener, closer):
                try:
                    self._put(file, file.path)
                except (StoreError, OSError):
                    file.dropped = True
                    raise

    def release(self, file: Received) -> None:
        """The last descriptor of an open file was closed."""
        with file.lock:
            file.opens -= 1
            if file.opens:
                return
            try:
                self._put(file, file.path)
            except (StoreError, OSError) as error:
                file.dropped = True
                log.error("%s was not stored: %s", "/".join(("incoming", *file.path)), error)
            self._settle(file)

    def _settle(self, file: Received) -> None:
        """A file that is not open any more: a version, one that waits, or gone. The caller holds its lock."""
        with self._lock:
            listed = self._files.get(file.path) is file
            if listed and not file.dropped and (file.dirty or not file.stored):
                self._files[file.path] = self._files.pop(file.path)  # the newest
                self._forget_oldest()
                return
            if listed:
                del self._files[file.path]
                if file.stored is not None:
                    self._files[file.path] = file.stored
                    self._forget_oldest()
        file.spool.close()

    def _forget_oldest(self) -> None:
        """Bound how many files are visible that are not open. The caller holds the lock."""
        stored = [path for path, file in self._files.items() if isinstance(file, Summary)]
        waiting = [path for path, file in self._files.items() if isinstance(file, Received) and not file.opens]
        for path in (*stored[: max(0, len(stored) - MAX_VISIBLE_VERSIONS)], *waiting[: max(0, len(waiting) - MAX_WAITING)]):
            self._drop(path)

    def truncate(self, path: Path, length: int, opener: int) -> None:
        file = self.open(path, opener, truncate=not length)
        try:
            file.truncate(length)
        finally:
            self.release(file)

    def touch(self, path: Path, changed: int | None) -> None:
        """Set a file's time, in ns since 1970; None for now. A version keeps the time when it was taken."""
        if len(path) == DEPTH and isinstance(file := self._file(path), Received):
            file.spool.changed = time.time_ns() if changed is None else changed

    def rename(self, old: Path, new: Path, caller: int) -> None:
        """Give a file another name; one that was waiting for that is stored first: if that fails, it keeps the old name, and waits.
        Raises StoreError, OSError."""
        if len(old) != DEPTH or old[:-1] != new[:-1]:
            raise OSError(errno.EXDEV, "a file cannot be moved to another application")
        file = self._file(old)
        if isinstance(file, Summary):
            self._move(file, old, new)
            return
        with file.lock:
            try:
                file.check_writer(caller)
            except OSError:
                if not file.opens:
                    self._settle(file)
                raise
            if not file.opens:
                self._put(file, new)
            self._move(file, old, new)
            if not file.opens:
                self._settle(file)

    def _move(self, file: IncomingFile, old: Path, new: Path) -> None:
        with self._lock:
            if old != new:
                self._drop(new)
                del self._files[old]
                self._files[new] = file
                if isinstance(file, Received):
                    file.path = new

    def remove(self, path: Path) -> None:
        """Hide a file. A stored version stays in the store; a file that is not stored yet will not be."""
        self._file(path)
        with self._lock:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        file = self._files.pop(path, None)
        if isinstance(file, Received):
            file.dropped = True
            if not file.opens:
                file.spool.close()

    def _file(self, path: Path) -> IncomingFile:
        with self._lock:
            if path not in self._files:
                raise FileNotFoundError
            return self._files[path]

    def _put(self, file: Received, path: Path) -> None:
        """Store what was written since the last put, if there is anything to store, as what ``path`` calls it. Raises StoreError,
        OSError: nothing was stored, and it can be tried again."""
        machine, application, name = path
        if not file.dirty or file.dropped or not file.size or _is_partial(name):
            return
        file.dirty = False
        with self._putting:
            try:
                file.stored = self._store.put(SpoolInput(file.spool), Label(machine, application=application))
            except (StoreError, OSError):
                file.dirty = True
                raise
        log.info("stored %s as image %s", "/".join(("incoming", *path)), file.stored.id)


def _is_partial(name: str) -> bool:
    return name.startswith(PARTIAL_PREFIXES) or name.endswith(PARTIAL_SUFFIXES)


def _has(versions: VersionIndex, path: Path) -> bool:
    """Whether there are versions of a machine, or of a machine and an application."""
    return versions.has(path[0]) if len(path) == 1 else path[1] in versions.applications(path[0])
