# SPDX-License-Identifier: GPL-3.0-or-later
"""``incoming/MACHINE/APPLICATION/``: a file that is copied there becomes a version when it is closed.

Until then its bytes are in a file without a name, which no other process can open and which disappears with this one. The
process that opened the file gets the error of a failed put from ``close``; if another process is the last to close it, the
error is only logged. No version is made of a file that is empty, that was removed before, or whose writer was killed. A
stored file stays visible under the name it was copied to, so that tools can compare it, set its times and rename it.
Threads may share an Incoming.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import BinaryIO, TypeAlias

from fuse_store.errors import StoreError
from fuse_store.mount.tree import Directory, File, Node, Path, Tree, taken_ns
from fuse_store.mount.versions import VersionIndex
from fuse_store.policy import names
from fuse_store.repository.manifest import Summary
from fuse_store.store import Label, Store

log = logging.getLogger(__name__)

DEPTH = 3  # components of a file's path: MACHINE/APPLICATION/FILE
MAX_VISIBLE_VERSIONS = 1000  # files that became versions and are still visible
PF_SIGNALED = 0x400  # in the flags of /proc/PID/stat (include/linux/sched.h): a signal ended this process
READ_ONLY = "versions are read-only"


class Spool:
    """A file that is being received. ``opener``: the thread that opened it first; ``opens``: how often it is open now."""

    def __init__(self, storage: BinaryIO, path: Path, opener: int) -> None:
        self.storage, self.path, self.opener = storage, path, opener
        self.opens = 1
        self.dirty = False  # there are written bytes that are in no version
        self.dropped = False  # and no version will be made of them
        self.changed = time.time_ns()
        self.stored: Summary | None = None
        self.lock = threading.Lock()

    @property
    def size(self) -> int:
        return os.fstat(self.storage.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.storage.fileno(), length, offset)

    def data(self, offset: int) -> int | None:
        return offset

    def hole(self, offset: int) -> int:
        return self.size

    def write(self, data: bytes, offset: int) -> int:
        """Raises OSError."""
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(self.storage.fileno(), memoryview(data)[at:], offset + at)
        except OSError:
            self.dropped = True
            raise
        self.dirty, self.changed = True, time.time_ns()
        return len(data)

    def truncate(self, length: int) -> None:
        os.ftruncate(self.storage.fileno(), length)
        self.dirty, self.changed = True, time.time_ns()


IncomingFile: TypeAlias = Spool | Summary  # being received, or stored


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
        if isinstance(file, Spool):
            status = os.fstat(file.storage.fileno())
            return File(status.st_size, status.st_blocks * 512, file.changed, lambda: file, fixed=False)
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

    def create(self, path: Path, opener: int) -> Spool:
        """A new file to receive. ``opener``: the thread that opens it. Raises OSError."""
        if len(path) != DEPTH:
            raise PermissionError(errno.EPERM, "files belong in the directory of an application")
        # TMPDIR only if it is set: /tmp is often in memory, and an image may not fit.
        directory = os.environ.get("TMPDIR") or self._store.path
        file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        spool = Spool(file, path, opener)
        with self._lock:
            self._drop(path)
            self._files[path] = spool
        return spool

    def open(self, path: Path, opener: int, truncate: bool) -> Spool:
        """An existing file, for writing. Raises OSError."""
        file = self._file(path)
        if isinstance(file, Spool):
            with file.lock:
                file.opens += 1
            if truncate:
                file.truncate(0)
            return file
        if truncate:
            return self.create(path, opener)
        raise PermissionError(errno.EPERM, READ_ONLY)

    def flush(self, spool: Spool, closer: int) -> None:
        """A process closes one of its descriptors of the file. Raises StoreError if the file could not be stored."""
        with spool.lock:
            if _killed(closer):
                spool.dropped = True
            elif _same_process(spool.opener, closer):
                self._put(spool)

    def release(self, spool: Spool) -> None:
        """The last descriptor of an open file was closed."""
        with spool.lock:
            spool.opens -= 1
            if spool.opens:
                return
            try:
                self._put(spool)
            except (StoreError, OSError) as error:
                log.error("%s was not stored: %s", "/".join(("incoming", *spool.path)), error)
            with self._lock:
                if self._files.get(spool.path) is spool:
                    del self._files[spool.path]
                    if spool.stored is not None:
                        self._files[spool.path] = spool.stored
                        self._forget_oldest()
            spool.storage.close()

    def _forget_oldest(self) -> None:
        """Keep the newest MAX_VISIBLE_VERSIONS stored files visible. The caller holds the lock."""
        stored = [path for path, file in self._files.items() if isinstance(file, Summary)]
        for path in stored[: max(0, len(stored) - MAX_VISIBLE_VERSIONS)]:
            del self._files[path]

    def truncate(self, path: Path, length: int) -> None:
        file = self._file(path)
        if not isinstance(file, Spool):
            raise PermissionError(errno.EPERM, READ_ONLY)
        file.truncate(length)

    def touch(self, path: Path, changed: int | None) -> None:
        """Set a file's time, in ns since 1970; None for now. A version keeps the time when it was taken."""
        if len(path) == DEPTH and isinstance(file := self._file(path), Spool):
            file.changed = time.time_ns() if changed is None else changed

    def rename(self, old: Path, new: Path) -> None:
        if len(old) != DEPTH or old[:-1] != new[:-1]:
            raise OSError(errno.EXDEV, "a file cannot be moved to another application")
        file = self._file(old)
        with self._lock:
            if old != new:
                self._drop(new)
                del self._files[old]
                self._files[new] = file
                if isinstance(file, Spool):
                    file.path = new

    def remove(self, path: Path) -> None:
        """Hide a file. A stored version stays in the store; a file that is not stored yet will not be."""
        self._file(path)
        with self._lock:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        file = self._files.pop(path, None)
        if isinstance(file, Spool):
            file.dropped = True

    def _file(self, path: Path) -> IncomingFile:
        with self._lock:
            if path not in self._files:
                raise FileNotFoundError
            return self._files[path]

    def _put(self, spool: Spool) -> None:
        """Store what was written since the last put, if there is anything to store."""
        if not spool.dirty or spool.dropped or spool.size == 0:
            return
        spool.dirty = False
        machine, application, _name = spool.path
        with self._putting:
            try:
                spool.stored = self._store.put(f"/proc/self/fd/{spool.storage.fileno()}", Label(machine, application=application))
            except StoreError:
                spool.dropped = True
                raise
        log.info("stored %s as image %s", "/".join(("incoming", *spool.path)), spool.stored.id)


def _has(versions: VersionIndex, path: Path) -> bool:
    """Whether there are versions of a machine, or of a machine and an application."""
    return versions.has(path[0]) if len(path) == 1 else path[1] in versions.applications(path[0])


def _same_process(thread: int, other: int) -> bool:
    """Whether two threads belong to one process."""
    return thread == other or os.path.exists(f"/proc/{thread}/task/{other}")


def _killed(thread: int) -> bool:
    """Whether a signal is ending the thread's process, which closes its files as it ends."""
    try:
        with open(f"/proc/{thread}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & PF_SIGNALED)
    except (OSError, ValueError, IndexError):
        return False
