# SPDX-License-Identifier: GPL-3.0-or-later
"""``incoming/<machine>/<application>/``: a file that is copied there becomes a version when it is closed. Used by ``adapter``.

Until then it is in a file without a name, which nobody else can open and which is gone when the process is. Whoever
opened the file gets the error of a failed put from ``close``; if another process is the last to close it, the error is
only logged. A file whose writer was killed, that is empty, or that was removed before, makes no version. A version stays
in sight under the name it was copied to, so that tools can compare it, set its times and rename it. Threads may share one.
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
from fuse_store.mount.tree import File, Folder, Node, Path, Tree, taken_ns
from fuse_store.mount.versions import Versions
from fuse_store.policy import names
from fuse_store.repository.manifest import Summary
from fuse_store.store import Label, Store

log = logging.getLogger(__name__)

DEPTH = 3  # incoming/MACHINE/APPLICATION/FILE
REMEMBERED = 1000  # files that became versions
KILLED = 0x400  # PF_SIGNALED in the flags of /proc/PID/stat (include/linux/sched.h): a signal ended this process


class Spool:
    """A file that is being received: open in ``opens`` places, first by ``opener``."""

    def __init__(self, file: BinaryIO, path: Path, opener: int) -> None:
        self.file, self.path, self.opener = file, path, opener
        self.opens = 1
        self.dirty = False  # something was written that is in no version
        self.dropped = False  # and never will be
        self.changed = time.time_ns()
        self.stored: Summary | None = None
        self.lock = threading.Lock()

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.file.fileno(), length, offset)

    def data(self, offset: int) -> int | None:
        return offset

    def hole(self, offset: int) -> int:
        return self.size

    def write(self, data: bytes, offset: int) -> int:
        """Raises OSError."""
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(self.file.fileno(), memoryview(data)[at:], offset + at)
        except OSError:
            self.dropped = True
            raise
        self.dirty, self.changed = True, time.time_ns()
        return len(data)

    def truncate(self, length: int) -> None:
        os.ftruncate(self.file.fileno(), length)
        self.dirty, self.changed = True, time.time_ns()


Entry: TypeAlias = Spool | Summary


class Incoming:
    """What has been, and is being, copied into a store."""

    def __init__(self, store: Store, tree: Tree) -> None:
        self._store, self._tree = store, tree
        self._folders: set[Path] = set()
        self._entries: dict[Path, Entry] = {}
        self._lock = threading.Lock()
        self._putting = threading.Lock()
        self._started = time.time_ns()

    # what is in sight ------------------------------------------------------------------------------------------------

    def node(self, versions: Versions, path: Path) -> Node:
        """Raises FileNotFoundError, NotADirectoryError."""
        if len(path) > DEPTH:
            raise NotADirectoryError
        if len(path) < DEPTH:
            if path and path not in self._folders and not _has(versions, path):
                raise FileNotFoundError
            return Folder(lambda: self._names(versions, path), self._started)
        entry = self._entry(path)
        if isinstance(entry, Spool):
            status = os.fstat(entry.file.fileno())
            return File(status.st_size, status.st_blocks * 512, entry.changed, lambda: entry, fixed=False)
        return File(entry.size, entry.allocated, taken_ns(entry), lambda: self._tree.image(entry.id), fixed=False, summary=entry)

    def _names(self, versions: Versions, path: Path) -> Iterable[tuple[str, type]]:
        depth = len(path)
        with self._lock:
            found = {one[depth] for one in self._folders if len(one) > depth and one[:depth] == path}
            files = [one[depth] for one in self._entries if depth == DEPTH - 1 and one[:depth] == path]
        if depth == 0:
            found.update(versions.machines)
        elif depth == 1:
            found.update(versions.machines.get(path[0], ()))
        yield from ((name, Folder) for name in sorted(found))
        yield from ((name, File) for name in files)

    # what changes it; paths are those below incoming -----------------------------------------------------------------

    def make_folder(self, path: Path) -> None:
        """Raises UsageError for a name that machines or applications can't have, OSError."""
        if not 0 < len(path) < DEPTH:
            raise PermissionError(errno.EPERM, "only machines and applications are folders here")
        names.checked(("the machine", "the application")[len(path) - 1], path[-1])
        with self._lock:
            self._folders.add(path)

    def remove_folder(self, path: Path) -> None:
        with self._lock:
            if path not in self._folders:
                raise PermissionError(errno.EPERM, "it was not made here")
            if any(one[: len(path)] == path and one != path for one in (*self._folders, *self._entries)):
                raise OSError(errno.ENOTEMPTY, "there is something in it")
            self._folders.remove(path)

    def create(self, path: Path, opener: int) -> Spool:
        """A file to receive. ``opener``: the process or thread that opens it. Raises OSError."""
        if len(path) != DEPTH:
            raise PermissionError(errno.EPERM, "files go into the folder of an application")
        # TMPDIR is for those who say so; where it is memory, as /tmp often is, an image may not fit.
        folder = os.environ.get("TMPDIR") or self._store.path
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        spool = Spool(file, path, opener)
        with self._lock:
            self._drop(path)
            self._entries[path] = spool
        return spool

    def open(self, path: Path, opener: int, truncate: bool) -> Spool:
        """A file that is there, to be written to. Raises OSError."""
        entry = self._entry(path)
        if isinstance(entry, Spool):
            with entry.lock:
                entry.opens += 1
            if truncate:
                entry.truncate(0)
            return entry
        if truncate:
            return self.create(path, opener)
        raise PermissionError(errno.EPERM, "versions don't change")

    def flush(self, spool: Spool, closer: int) -> None:
        """One of those who have the file open closes it. Raises StoreError if it was to become a version, and could not."""
        with spool.lock:
            if _killed(closer):
                spool.dropped = True
            elif _same_process(spool.opener, closer):
                self._put(spool)

    def release(self, spool: Spool) -> None:
        """The last of those who share an open file has closed it."""
        with spool.lock:
            spool.opens -= 1
            if spool.opens:
                return
            try:
                self._put(spool)
            except (StoreError, OSError) as error:
                log.error("%s made no version: %s", "/".join(("incoming", *spool.path)), error)
            with self._lock:
                if self._entries.get(spool.path) is spool:
                    del self._entries[spool.path]
                    if spool.stored is not None:
                        self._entries[spool.path] = spool.stored
                        while sum(isinstance(one, Summary) for one in self._entries.values()) > REMEMBERED:
                            del self._entries[next(key for key, one in self._entries.items() if isinstance(one, Summary))]
            spool.file.close()

    def truncate(self, path: Path, length: int) -> None:
        entry = self._entry(path)
        if not isinstance(entry, Spool):
            raise PermissionError(errno.EPERM, "versions don't change")
        entry.truncate(length)

    def touch(self, path: Path, changed: int | None) -> None:
        """Set a file's time, ns since 1970, None for now. The time of a version is that of its capture, and stays."""
        if len(path) == DEPTH and isinstance(entry := self._entry(path), Spool):
            entry.changed = time.time_ns() if changed is None else changed

    def rename(self, old: Path, new: Path) -> None:
        if len(old) != DEPTH or old[:-1] != new[:-1]:
            raise OSError(errno.EXDEV, "a file stays with its application")
        entry = self._entry(old)
        with self._lock:
            if old != new:
                self._drop(new)
                del self._entries[old]
                self._entries[new] = entry
                if isinstance(entry, Spool):
                    entry.path = new

    def remove(self, path: Path) -> None:
        """Out of sight, and no version if it is none yet; what became a version stays one."""
        self._entry(path)
        with self._lock:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        entry = self._entries.pop(path, None)
        if isinstance(entry, Spool):
            entry.dropped = True

    def _entry(self, path: Path) -> Entry:
        with self._lock:
            if path not in self._entries:
                raise FileNotFoundError
            return self._entries[path]

    def _put(self, spool: Spool) -> None:
        """Make a version of what was written since the last, if there is reason to."""
        if not spool.dirty or spool.dropped or spool.size == 0:
            return
        spool.dirty = False
        machine, application, _name = spool.path
        with self._putting:
            try:
                spool.stored = self._store.put(f"/proc/self/fd/{spool.file.fileno()}", Label(machine, application=application))
            except StoreError:
                spool.dropped = True
                raise
        log.info("%s became image %s", "/".join(("incoming", *spool.path)), spool.stored.id)


def _has(versions: Versions, path: Path) -> bool:
    machine = versions.machines.get(path[0], {})
    return bool(machine) and (len(path) == 1 or path[1] in machine)


def _same_process(one: int, other: int) -> bool:
    """Whether two threads belong to one process."""
    return one == other or os.path.exists(f"/proc/{one}/task/{other}")


def _killed(thread: int) -> bool:
    """Whether a signal is ending that thread's process, which closes its files on the way."""
    try:
        with open(f"/proc/{thread}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & KILLED)
    except (OSError, ValueError, IndexError):
        return False
