# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree through FUSE, by libfuse 3 and mfusepy. Used by ``mounting``, which sees to it that libfuse is there.

libfuse calls the methods of Operations from several threads at once. Every error becomes an errno here; a damaged read is
EIO and is logged with image, extent and pack.

What the kernel may keep: the pages and attributes of what never changes, for ever; names not at all, so that ``latest``,
a version that appears and one that is gone are seen at once. A name costs the kernel one question, a page none.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, ParamSpec, TypeVar

import mfusepy
import numpy as np

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.mount.content import WINDOW, WINDOWS, Content
from fuse_store.mount.incoming import Incoming, Spool
from fuse_store.mount.prefetch import Readers
from fuse_store.mount.tree import File, Folder, Link, Path, Tree, attributes
from fuse_store.store import Store

log = logging.getLogger(__name__)

LIBRARY: int = mfusepy.fuse_version_major  # of libfuse
INCOMING = "incoming"
THREADS = 10
SLABS = WINDOWS + THREADS  # that may be in use at once
FOR_EVER = 365 * 86400.0  # seconds
BLOCK = 512  # the unit of st_blocks
GOOD_READ = 1 << 20  # st_blksize
REPEAT = 60.0  # seconds in which a damage that was logged is not logged again
# include/uapi/linux/fuse.h and libfuse's fuse_common.h name these FUSE_CAP_…
AUTO_INVAL_DATA, READDIRPLUS, READDIRPLUS_AUTO = 1 << 12, 1 << 13, 1 << 14

TYPES: dict[type, int] = {Folder: stat.S_IFDIR, Link: stat.S_IFLNK, File: stat.S_IFREG}
ERRORS: tuple[tuple[type[StoreError], int], ...] = (  # the first that fits
    (Damaged, errno.EIO), (NotFound, errno.ESTALE), (UsageError, errno.EINVAL), (Refused, errno.EACCES), (Locked, errno.EBUSY),
)  # fmt: skip

# Python makes a new state for a thread that is not its own at each call, and drops it after; libfuse's threads, of which
# there are THREADS and no more, keep theirs.
THREAD = threading.local()

P = ParamSpec("P")
R = TypeVar("R")


class Damages:
    """The log of damaged reads: each of them, but the same one not more than once a minute."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()

    def tell(self, error: Damaged) -> None:
        text, now = str(error), time.monotonic()
        with self._lock:
            if self._logged.get(text, -REPEAT) > now - REPEAT:
                return
            if len(self._logged) > 1000:
                self._logged.clear()
            self._logged[text] = now
        log.error("damaged: %s", text)


DAMAGES = Damages()


def number(error: Exception) -> int:
    """The errno for an error; logs what is not everyday life."""
    if isinstance(error, OSError):
        return error.errno or (errno.ENOTDIR if isinstance(error, NotADirectoryError) else _missing(error))
    if isinstance(error, Damaged):
        DAMAGES.tell(error)
    elif isinstance(error, StoreError):
        log.error("%s", error)
    else:
        log.exception("unexpected")
    cause = error.__context__  # a StoreError is made from it: a full disk, for example
    known = cause.errno if isinstance(cause, OSError) and cause.errno else errno.EIO
    return next((value for kind, value in ERRORS if isinstance(error, kind)), known)


def _missing(error: OSError) -> int:
    return errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO


def answers(method: Callable[P, R]) -> Callable[P, R]:
    """Have a method raise nothing but OSError with an errno, which is what mfusepy passes on."""

    @functools.wraps(method)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hasattr(THREAD, "stays"):
            THREAD.stays = ctypes.pythonapi.PyGILState_Ensure()
        try:
            return method(*args, **kwargs)
        except Exception as error:
            value = number(error)
        raise OSError(value, os.strerror(value))

    return answer


def parts(path: str) -> Path:
    return tuple(path.split("/")[1:]) if path != "/" else ()


class Operations(mfusepy.Operations):  # type: ignore[misc]
    """The calls of FUSE. ``mounted`` is called, in a thread, when the mount answers."""

    use_ns = True

    def __init__(self, store: Store, *, writable: bool, allow_other: bool, mounted: Callable[[], None]) -> None:
        self._store, self._mounted = store, mounted
        self._tree = Tree(store, Readers.start(store, WINDOW, SLABS))
        self._incoming: Incoming | None = None
        if writable:
            self._incoming = Incoming(store, self._tree)
            self._tree.add(INCOMING, self._incoming.node)
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._folder = os.getcwd()
        self._modes = {Folder: 0o555, Link: 0o777, File: 0o444} if allow_other else {Folder: 0o500, Link: 0o777, File: 0o400}
        self._handles: dict[int, Content] = {}
        self._numbers = itertools.count(1)

    def init_with_config(self, connection: Any, config: Any) -> None:
        os.chdir(self._folder)  # libfuse goes to /, and the store's path may be relative
        config.attr_timeout = FOR_EVER
        config.entry_timeout = config.negative_timeout = 0.0
        config.use_ino = 1
        config.hard_remove = 1
        # Attributes that came with a folder's names would be asked for again at once: names are not kept.
        connection.want &= ~(READDIRPLUS | READDIRPLUS_AUTO | AUTO_INVAL_DATA)
        threading.Thread(target=self._mounted, name="mounted", daemon=True).start()

    def close(self) -> None:
        self._tree.close()

    # looking ---------------------------------------------------------------------------------------------------------

    @answers
    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        where = parts(path)
        node = self._tree.node(where)
        kind = type(node)
        mode = self._modes[kind]
        if where[:1] == (INCOMING,) and kind is not Link:
            mode = mode & 0o500 | 0o200
        size = node.size if isinstance(node, File) else len(node.target.encode()) if isinstance(node, Link) else 0
        return {
            "st_mode": TYPES[kind] | mode,
            "st_ino": _inode(path),
            "st_nlink": 1,
            "st_uid": self._uid,
            "st_gid": self._gid,
            "st_size": size,
            "st_blocks": -(-node.allocated // BLOCK) if isinstance(node, File) else 0,
            "st_blksize": GOOD_READ,
            "st_atime": node.changed,
            "st_mtime": node.changed,
            "st_ctime": node.changed,
        }

    @answers
    def readlink(self, path: str) -> str:
        node = self._tree.node(parts(path))
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, "no link")
        return node.target

    @answers
    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        node = self._tree.node(parts(path))
        if not isinstance(node, Folder):
            raise NotADirectoryError
        return list(_names(path, node))

    @answers
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        values = attributes(self._tree.node(parts(path)))
        if name not in values:
            raise OSError(errno.ENODATA, "no such attribute")
        return values[name]

    @answers
    def listxattr(self, path: str) -> list[str]:
        return list(attributes(self._tree.node(parts(path))))

    @answers
    def statfs(self, path: str) -> dict[str, int]:
        """That of the file system in which the store is."""
        found = os.statvfs(self._store.path)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return {**{name: getattr(found, name) for name in names}, "f_namemax": 255}

    # reading ---------------------------------------------------------------------------------------------------------

    @answers
    def open(self, path: str, flags: int) -> tuple[int, bool]:
        """(handle, whether the kernel may keep the pages it has)."""
        where = parts(path)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if where[:1] == (INCOMING,):
            content = self._receiver().open(where[1:], _caller(), bool(flags & os.O_TRUNC)) if writing else None
        elif writing:
            raise OSError(errno.EROFS, "versions don't change")
        else:
            content = None
        if content is not None:
            return self._handle(content), False
        node = self._tree.node(where)
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        return self._handle(node.open()), node.fixed

    @answers
    def read(self, fh: int, size: int, offset: int) -> bytes | memoryview:
        return self._handles[fh].read(offset, size)

    @answers
    def lseek(self, fh: int, offset: int, whence: int) -> int:
        content = self._handles[fh]
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "the kernel does the others")
        found = None
        if 0 <= offset < content.size:
            found = content.data(offset) if whence == os.SEEK_DATA else content.hole(offset)
        if found is None:
            raise OSError(errno.ENXIO, "nothing after it")
        return found

    @answers
    def flush(self, path: str | None, fh: int) -> int:
        content = self._handles[fh]
        if isinstance(content, Spool):
            self._receiver().flush(content, _caller())
        return 0

    @answers
    def release(self, path: str | None, fh: int) -> int:
        content = self._handles.pop(fh)
        if isinstance(content, Spool):
            self._receiver().release(content)
        return 0

    # writing, below incoming only ------------------------------------------------------------------------------------

    @answers
    def mkdir(self, path: str, mode: int) -> int:
        self._receiver().make_folder(_below(path))
        return 0

    @answers
    def rmdir(self, path: str) -> int:
        self._receiver().remove_folder(_below(path))
        return 0

    @answers
    def create(self, path: str, mode: int, flags: int) -> int:
        return self._handle(self._receiver().create(_below(path), _caller()))

    @answers
    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        content = self._handles[fh]
        if not isinstance(content, Spool):
            raise OSError(errno.EBADF, "not open for writing")
        return content.write(data, offset)

    @answers
    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        return 0  # a version is durable when close has returned; before that, nothing is promised

    @answers
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._receiver().truncate(_below(path), length)
        return 0

    @answers
    def unlink(self, path: str) -> int:
        self._receiver().remove(_below(path))
        return 0

    @answers
    def rename(self, old: str, new: str) -> int:
        self._receiver().rename(_below(old), _below(new))
        return 0

    @answers
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._receiver().touch(_below(path), times[1] if times else None)
        return 0

    @answers
    def chmod(self, path: str, mode: int) -> int:
        _below(path)  # tools set what they copied; files here are for their owner all the same
        return 0

    @answers
    def chown(self, path: str, uid: int, gid: int) -> int:
        _below(path)
        return 0

    def _receiver(self) -> Incoming:
        if self._incoming is None:
            raise OSError(errno.EROFS, "the mount is read-only")
        return self._incoming

    def _handle(self, content: Content) -> int:
        handle = next(self._numbers)
        self._handles[handle] = content
        return handle


class Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy's FUSE with what it leaves out: ``lseek``, pages kept for each file as it may be, reads without a copy."""

    def open(self, path: bytes, fip: Any) -> int:
        info = fip.contents
        info.fh, info.keep_cache = self.operations.open(path.decode(self.encoding, self.errors), info.flags)
        info.noflush = info.flags & os.O_ACCMODE == os.O_RDONLY  # older libraries don't have it, and don't see it
        return 0

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:
        data = self.operations.read(fip.contents.fh, size, offset)
        length = min(len(data), size)
        if length:
            ctypes.memmove(buffer, np.frombuffer(data, np.uint8).ctypes.data, length)
        return length

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        return int(self.operations.lseek(fip.contents.fh, offset, whence))


def serve(operations: Operations, point: str, options: dict[str, Any]) -> None:
    """Mount, in the foreground, and answer until it is unmounted or a signal comes. Raises RuntimeError with libfuse's code."""
    if mfusepy.fuse_version_minor >= 12:  # which reads an unset number as one that is too high, and says so
        options = {**options, "max_threads": THREADS}
    Fuse(operations, point, foreground=True, max_idle_threads=THREADS, **options)


def _names(path: str, folder: Folder) -> Iterator[tuple[str, dict[str, int], int]]:
    start = path if path.endswith("/") else f"{path}/"
    for name in (".", ".."):
        yield name, {"st_mode": stat.S_IFDIR}, 0
    for name, kind in folder.names():
        yield name, {"st_mode": TYPES[kind], "st_ino": _inode(start + name)}, 0


def _inode(path: str) -> int:
    """A number that the same path has in every mount."""
    return int.from_bytes(blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1 | 2


def _below(path: str) -> Path:
    """A path below incoming; whatever else is asked to change can't."""
    where = parts(path)
    if where[:1] != (INCOMING,):
        raise OSError(errno.EROFS, "versions don't change")
    return where[1:]


def _caller() -> int:
    """The thread whose request this is."""
    return int(mfusepy.fuse_get_context()[2])
