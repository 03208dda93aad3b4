# SPDX-License-Identifier: GPL-3.0-or-later
"""A store in a directory of a local file system. Threads may share a PosixBackend.

Index fragments are mapped, packs are read by pread from files that stay open, and a rename makes a file appear; ``atomic`` has
the steps of a commit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fuse_store.errors import Locked, Refused
from fuse_store.repository.atomic import (
    NewFile,
    remove_partials,
    sync_directory,
    sync_filesystem,
    write_file,
)
from fuse_store.repository.backends.base import MISSING, Entry
from fuse_store.repository.backends.mapping import Mapped, map_file
from fuse_store.repository.locks import WriterLock

DIRECTORIES = ("packs", "index", "images", "machines", "states", "trash", "locks", "partial")
MAY_BE_MISSING = ("machines", "states", "trash", "locks", "partial")  # of a copy that lost empty directories, and is read-only
DIRECTORIES_WITH_PARTIALS = ("partial", "index", "locks")  # of files of the store, of caches, of the lock
NOT_SUPPORTED = (  # how file systems say that they cannot do something
    errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENODEV, errno.EMLINK, errno.EXDEV,
)  # fmt: skip
CLOCK_TICK = 20_000_000  # ns: within one, a directory may change twice and have one time (10 ms at 100 Hz and in exFAT)
COARSE_CLOCK_TICK = 2_020_000_000  # ns, the same where times are in whole seconds, or every second one as in FAT
SUFFIXES = {"packs": ".pack", "index": ".idx"}
MAX_OPEN_PACKS = 64


def _open(path: Path) -> int:
    """A descriptor of a file of the store, which is to be closed. A FIFO in its place is not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return descriptor


class _File:
    """An open pack. Closed when it is no longer referenced, so one thread can forget it while another reads."""

    def __init__(self, path: Path, trash: Path) -> None:
        try:
            self.descriptor = _open(path)
        except FileNotFoundError:  # a reader that located it before may finish
            self.descriptor = _open(trash / path.name)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class PosixFile(NewFile):
    """A NewFile whose names are relative to the store."""

    def __init__(self, root: Path, directory: str, sync: bool) -> None:
        self._root = root
        super().__init__(root / "partial", sync, SUFFIXES.get(directory, ""))

    def __enter__(self) -> PosixFile:
        return self

    def create(self, name: str | Path, before: Callable[[], None] | None = None) -> None:
        super().create(self._root / name, before)


class PosixBackend:
    """The Backend of a local directory."""

    def __init__(self, root: Path) -> None:
        self.local_dir, self.url = root, str(root)
        self.readers, self.needs_fsync, self.survives_fork = max(2, os.cpu_count() or 1), True, True
        self._trash = root / "trash"
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def bind(self, store_id: str) -> None:
        pass

    def is_free(self) -> bool:
        return not self.local_dir.exists() or (self.local_dir.is_dir() and not any(self.local_dir.iterdir()))

    def prepare(self) -> None:
        self.local_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in DIRECTORIES:
            (self.local_dir / directory).mkdir(mode=0o700, exist_ok=True)

    def probe(self, sync: bool) -> None:
        try:
            for what, works in (
                ("lock files", self._locks), ("create files without replacing others", self._creates),
                ("replace, move and map files", self._replaces), *([("sync files and directories", self._syncs)] if sync else []),
            ):  # fmt: skip
                try:
                    problem = "" if works() else "it does as if it could"
                except OSError as error:
                    if error.errno not in NOT_SUPPORTED:
                        raise
                    problem = os.strerror(error.errno or 0)
                if problem:
                    remedy = "Use another one" + (", or --durability none." if works == self._syncs else ".")
                    raise Refused(f"store {self.url}", f"its file system cannot {what} ({problem}).", remedy)
        except BaseException:
            for directory in DIRECTORIES:
                shutil.rmtree(self.local_dir / directory, ignore_errors=True)
            raise

    def _locks(self) -> bool:
        with self.lock():
            try:
                with self.lock():
                    return False
            except Locked:
                return True

    def _creates(self) -> bool:
        self.write("trash/probe", b"0", False, create=True)
        try:
            self.write("trash/probe", b"1", False, create=True)
        except FileExistsError:
            return self.read("trash/probe") == b"0"
        return False

    def _replaces(self) -> bool:
        self.write("images/probe", b"2", False)
        self.write("images/probe", b"3", False)
        with self.new("packs", False) as new:
            new.file.write(b"4")
            new.create("packs/00/probe")
        mapped = bytes(self.read_mmap("images/probe", check=True).view)
        self.to_trash("images/probe")
        done = mapped == self.read("trash/probe") == b"3" and not self.names("images") and self.read("packs/00/probe") == b"4"
        for name in ("trash/probe", "packs/00/probe"):
            self.remove(name)
        (self.local_dir / "packs/00").rmdir()
        return done

    def _syncs(self) -> bool:
        self.write("partial/probe", b"5", True)
        self.remove("partial/probe")
        self.sync_all()
        return True

    def read(self, name: str) -> bytes:
        with open(_open(self.local_dir / name), "rb") as file:
            return file.read()

    def read_range(self, name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        if name.startswith("packs/"):
            return os.pread(self._file(name).descriptor, length, offset)
        path = self.local_dir / name
        try:
            file = open(_open(path), "rb")  # noqa: SIM115
        except FileNotFoundError:
            if not trashed:
                raise
            file = open(_open(self._trash / path.name), "rb")  # noqa: SIM115
        with file:
            file.seek(offset)
            return file.read(length)

    def read_into(self, name: str, offset: int, out: memoryview) -> int:
        return os.preadv(self._file(name).descriptor, [out], offset)

    def size(self, name: str) -> int:
        return os.stat(self.local_dir / name).st_size

    def read_mmap(self, name: str, *, check: bool) -> Mapped:
        with open(_open(self.local_dir / name), "rb") as file:
            return map_file(file, os.fstat(file.fileno()).st_size)

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        return make()

    def stream(self, name: str) -> BinaryIO:
        return open(_open(self.local_dir / name), "rb")

    def names(self, directory: str) -> list[str]:
        try:
            return os.listdir(self.local_dir / directory)
        except FileNotFoundError:
            if directory not in MAY_BE_MISSING:
                raise
            return []

    def directories(self, directory: str) -> list[str]:
        with os.scandir(self.local_dir / directory) as items:
            return [item.name for item in items if item.is_dir(follow_symlinks=False)]

    def has_directory(self, directory: str) -> bool:
        return (self.local_dir / directory).is_dir()

    def remove_empty(self, directory: str) -> None:
        with contextlib.suppress(OSError):
            (self.local_dir / directory).rmdir()

    def entries(self, directory: str) -> Iterator[Entry]:
        try:
            with os.scandir(self.local_dir / directory) as items:
                for item in items:
                    name = f"{directory}/{item.name}" if directory else item.name
                    if item.is_dir(follow_symlinks=False):
                        yield from self.entries(name)
                        continue
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # removed by a writer
                    yield Entry(name, status.st_size, max(status.st_ctime, status.st_mtime))  # FAT has no time of a rename
        except FileNotFoundError:
            return

    def changed(self, directory: str) -> tuple[int, bool]:
        try:
            changed = os.stat(self.local_dir / directory).st_mtime_ns
        except FileNotFoundError:
            return -1, True
        return changed, _is_settled(changed, time.time_ns())

    def stamps(self, directory: str, names: Sequence[str] | None = None) -> Callable[[str], str]:
        now = time.time_ns()

        def stamp(name: str) -> str:
            try:
                status = os.stat(self.local_dir / name)
            except FileNotFoundError:
                return MISSING
            except OSError:
                return ""
            return f"{status.st_ino} {status.st_mtime_ns} {status.st_size}" if _is_settled(status.st_mtime_ns, now) else ""

        return stamp

    def refresh(self, directory: str) -> None:
        pass

    def now(self) -> float:
        return time.time()

    def write(
        self, name: str, content: bytes, sync: bool, before: Callable[[], None] | None = None, *, create: bool = False
    ) -> None:
        try:
            write_file(self.local_dir / name, content, sync, before, create=create, partial_dir=self.local_dir / "partial")
        except BaseException:
            if name.count("/") > 1:  # the directory may have been created for it
                self.remove_empty(name.rpartition("/")[0])
            raise

    def new(self, directory: str, sync: bool) -> PosixFile:
        return PosixFile(self.local_dir, directory, sync)

    def remove(self, name: str) -> None:
        (self.local_dir / name).unlink(missing_ok=True)  # a reader that mapped it keeps it

    def to_trash(self, name: str) -> None:
        path = self.local_dir / name
        os.utime(path)
        os.rename(path, self._trash / path.name)

    def sync(self, directory: str) -> None:
        sync_directory(self.local_dir / directory)

    def sync_all(self) -> None:
        sync_filesystem(self.local_dir)

    def remove_partials(self) -> None:
        for directory in DIRECTORIES_WITH_PARTIALS:
            remove_partials(self.local_dir / directory)

    def forget(self, name: str) -> None:
        with self._lock:
            self._files.pop(name, None)

    def close_removed(self) -> bool:
        with self._lock:
            names = list(self._files)
        removed = [name for name in names if not (self.local_dir / name).exists()]
        for name in removed:
            self.forget(name)
        return bool(removed)

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def lock(self) -> WriterLock:
        return WriterLock(self.local_dir / "locks")

    def _file(self, name: str) -> _File:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _File(self.local_dir / name, self._trash)
                while len(self._files) > MAX_OPEN_PACKS:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(name)
            return file


def _is_settled(changed: int, now: int) -> bool:
    """Whether a change after ``now`` is sure to get another time; both in ns since 1970."""
    return now - changed > (CLOCK_TICK if changed % 1_000_000_000 else COARSE_CLOCK_TICK)
