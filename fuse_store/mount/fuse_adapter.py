# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows the tree to the kernel through libfuse 3 and mfusepy. Import it only where libfuse is installed (``daemon``).

libfuse calls the methods of Operations from several threads at the same time. Every error becomes an errno here; a damaged
read is EIO, and is logged with image, extent and pack.

Caching in the kernel: pages and attributes of files that never change are kept without limit; names are not kept, so
``latest``, new versions and removed ones are seen at once. A look-up of a name costs one request, a cached page none.
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

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.mount.content import MAX_CACHED_WINDOWS, READ_AHEAD_WINDOW, Content, offset_of
from fuse_store.mount.incoming import Incoming, Received
from fuse_store.mount.prefetch import UPKEEP_INTERVAL, PrefetchProcesses, close_removed
from fuse_store.mount.tree import Access, Directory, File, Link, Path, Tree, attributes, normal_path
from fuse_store.store import Store

log = logging.getLogger(__name__)

LIBFUSE_VERSION: int = mfusepy.fuse_version_major
LIBFUSE = mfusepy._libfuse
LIBFUSE.fuse_get_session.restype = ctypes.c_void_p
INCOMING = "incoming"
FUSE_THREADS = 10  # threads of libfuse that answer requests
READ_AHEAD_SLABS = MAX_CACHED_WINDOWS + FUSE_THREADS  # windows that can be in use at the same time
ATTRIBUTE_TIMEOUT = 365 * 86400.0  # seconds for which the kernel keeps attributes: a year stands for "without limit"
STAT_BLOCK_SIZE = 512  # bytes, the unit of st_blocks
PREFERRED_READ_SIZE = 1 << 20  # bytes, st_blksize
WATCH_INTERVAL = 0.5  # seconds
ENDING_SECONDS = 5.0  # for which requests may go on when the mount has ended
DAMAGE_LOG_INTERVAL = 60.0  # seconds before the same damage is logged again
MAX_REMEMBERED_DAMAGES = 1000  # log lines that are remembered, to recognise the same damage
# include/uapi/linux/fuse.h and libfuse's fuse_common.h name these FUSE_CAP_…
AUTO_INVAL_DATA, READDIRPLUS, READDIRPLUS_AUTO = 1 << 12, 1 << 13, 1 << 14

FILE_TYPES: dict[type, int] = {Directory: stat.S_IFDIR, Link: stat.S_IFLNK, File: stat.S_IFREG}
ERRNOS: tuple[tuple[type[StoreError], int], ...] = (  # the first class that the error is an instance of
    (Damaged, errno.EIO), (NotFound, errno.ESTALE), (UsageError, errno.EINVAL), (Refused, errno.EACCES), (Locked, errno.EBUSY),
)  # fmt: skip

# Python makes a new thread state at each call from a foreign thread, and drops it afterwards. libfuse's threads, of which there
# are never more than FUSE_THREADS, keep theirs.
THREAD = threading.local()

P = ParamSpec("P")
R = TypeVar("R")


class DamageLog:
    """Logs reads that failed, the same one at most once in DAMAGE_LOG_INTERVAL. Threads may share it."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()

    def log(self, damage: str, text: str) -> None:
        """``damage`` tells which one it is, ``text`` where it was met."""
        now = time.monotonic()
        with self._lock:
            if self._logged.get(damage, -DAMAGE_LOG_INTERVAL) > now - DAMAGE_LOG_INTERVAL:
                return
            if len(self._logged) > MAX_REMEMBERED_DAMAGES:
                self._logged.clear()
            self._logged[damage] = now
        log.error("%s", text)


DAMAGE_LOG = DamageLog()


def errno_of(error: Exception, where: str = "") -> int:
    """The errno for an error. Logs the error, unless it is an OSError. ``where`` it happened, for a read: then every error is logged,
    because the reader sees no more than the errno."""
    place = f"{where}: " if where else ""
    if isinstance(error, OSError):
        if where:
            text = f"{place}{error.strerror or error}"
            DAMAGE_LOG.log(text, text)
        return error.errno or _default_errno(error)
    if isinstance(error, Damaged):
        DAMAGE_LOG.log(str(error), f"damaged: {place}{error}")
    elif isinstance(error, StoreError):
        log.error("%s%s", place, error)
    else:
        log.exception("%sunexpected error", place)
    cause = error.__context__  # a StoreError is raised while an OSError is handled: a full disk, for example
    default = cause.errno if isinstance(cause, OSError) and cause.errno else errno.EIO
    return next((value for kind, value in ERRNOS if isinstance(error, kind)), default)


def _default_errno(error: OSError) -> int:
    """The errno for an OSError that was raised without one."""
    if isinstance(error, NotADirectoryError):
        return errno.ENOTDIR
    return errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO


def fuse_call(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the method raises only OSError with an errno, which is what mfusepy passes on to the kernel."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hasattr(THREAD, "state"):
            THREAD.state = ctypes.pythonapi.PyGILState_Ensure()
        try:
            return method(*args, **kwargs)
        except Exception as error:
            value = errno_of(error)
        raise OSError(value, os.strerror(value))

    return call


def split_path(path: str) -> Path:
    return tuple(path.split("/")[1:]) if path != "/" else ()


class Operations(mfusepy.Operations):  # type: ignore[misc]
    """The FUSE calls. ``mounted`` is called, in a thread of its own, when the mount answers; ``abandon``, in another, to end the
    process ENDING_SECONDS after a signal or the unmount, if requests have not ended by then."""

    use_ns = True

    def __init__(
        self, store: Store, access: Access, *, mounted: Callable[[], None], abandon: Callable[[], None]
    ) -> None:
        self._store, self._mounted, self._abandon = store, mounted, abandon
        self._ended = threading.Event()
        self._session: int | None = None
        self._session_lock = threading.Lock()
        self._tree = Tree(store, PrefetchProcesses.start(store, READ_AHEAD_WINDOW, READ_AHEAD_SLABS), programs=access.exec)
        self._incoming: Incoming | None = None
        if access.writable:
            self._incoming = Incoming(store, self._tree)
            self._tree.add_directory(INCOMING, self._incoming.node)
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._working_directory = os.getcwd()
        # Nothing can be written, but a copy has these modes, and its owner must be able to change and remove it.
        others = access.allow_other
        self._modes = {Directory: 0o755 if others else 0o700, Link: 0o777, File: 0o644 if others else 0o600}
        self._contents: dict[int, Content] = {}  # by file handle
        self._paths: dict[int, str] = {}  # the same; for the log
        self._next_handle = itertools.count(1)

    def init_with_config(self, connection: Any, config: Any) -> None:
        os.chdir(self._working_directory)  # libfuse changes to /, and the store's path may be relative
        config.attr_timeout = ATTRIBUTE_TIMEOUT
        config.entry_timeout = config.negative_timeout = 0.0
        config.use_ino = 1
        config.hard_remove = 1
        # Attributes that come with the names of a directory would be requested again at once: names are not kept.
        connection.want &= ~(READDIRPLUS | READDIRPLUS_AUTO | AUTO_INVAL_DATA)
        threading.Thread(target=self._mounted, name="mounted", daemon=True).start()
        self._session = LIBFUSE.fuse_get_session(ctypes.c_void_p(LIBFUSE.fuse_get_context().contents.fuse))
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def destroy(self, path: str) -> None:
        with self._session_lock:
            self._session = None  # libfuse frees it

    def _serves(self) -> bool:
        with self._session_lock:
            return self._session is not None and not LIBFUSE.fuse_session_exited(ctypes.c_void_p(self._session))

    def _watch(self) -> None:
        """In a thread: close removed files from time to time; end the process if requests outlive the mount, as those to a server
        that does not answer: libfuse waits for them, and handles no second signal."""
        looked = time.monotonic()
        while self._serves():
            if self._ended.wait(WATCH_INTERVAL):
                return
            if time.monotonic() - looked >= UPKEEP_INTERVAL:
                looked = time.monotonic()
                close_removed(self._store)
        if not self._ended.wait(ENDING_SECONDS):
            log.warning("requests did not end with the mount; ending without them.")
            self._tree.kill()
            self._abandon()

    def close(self) -> None:
        """Wait until everything has ended."""
        self._tree.close()
        self._store.close()
        self._ended.set()

    # names and attributes ---------------------------------------------------------------------------------------------

    @fuse_call
    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        tree_path = split_path(path)
        node = self._tree.node(tree_path)
        kind = type(node)
        mode = self._modes[kind]
        if isinstance(node, File) and node.program:
            mode |= mode >> 2 & 0o111
        if tree_path[:1] == (INCOMING,) and kind is not Link:
            mode &= 0o700
        size = node.size if isinstance(node, File) else len(node.target.encode()) if isinstance(node, Link) else 0
        return {
            "st_mode": FILE_TYPES[kind] | mode,
            "st_ino": _inode(path),
            "st_nlink": 1,
            "st_uid": self._uid,
            "st_gid": self._gid,
            "st_size": size,
            "st_blocks": -(-node.allocated // STAT_BLOCK_SIZE) if isinstance(node, File) else 0,
            "st_blksize": PREFERRED_READ_SIZE,
            "st_atime": node.changed,
            "st_mtime": node.changed,
            "st_ctime": node.changed,
        }

    @fuse_call
    def readlink(self, path: str) -> str:
        node = self._tree.node(split_path(path))
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, "not a link")
        return node.target

    @fuse_call
    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        node = self._tree.node(split_path(path))
        if not isinstance(node, Directory):
            raise NotADirectoryError
        return _entries(path, node)  # a million names need no list

    @fuse_call
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        values = attributes(self._tree.node(split_path(path)))
        if name not in values:
            raise OSError(errno.ENODATA, "no such attribute")
        return values[name]

    @fuse_call
    def listxattr(self, path: str) -> list[str]:
        return list(attributes(self._tree.node(split_path(path))))

    @fuse_call
    def statfs(self, path: str) -> dict[str, int]:
        """Of the file system that holds the store."""
        status = os.statvfs(self._store.path)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return {**{name: getattr(status, name) for name in names}, "f_namemax": 255}

    # reading ---------------------------------------------------------------------------------------------------------

    @fuse_call
    def open(self, path: str, flags: int) -> tuple[int, bool]:
        """(handle, whether the kernel may keep the pages that it has cached)."""
        tree_path = split_path(path)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if tree_path[:1] == (INCOMING,):
            content = self._require_incoming().open(tree_path[1:], _caller(), bool(flags & os.O_TRUNC)) if writing else None
        elif writing:
            raise OSError(errno.EROFS, "versions are read-only")
        else:
            content = None
        if content is not None:
            return self._handle(content, path), False
        node = self._tree.node(tree_path)
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        return self._handle(node.open(), path), node.fixed

    @fuse_call
    def read(self, fh: int, size: int, offset: int) -> bytes | memoryview:
        try:
            return self._contents[fh].read(offset, size)
        except Exception as error:
            value = errno_of(error, f"{self._paths.get(fh, '')} at offset {offset_of(self._contents[fh], error, offset)}")
        raise OSError(value, os.strerror(value))

    @fuse_call
    def lseek(self, fh: int, offset: int, whence: int) -> int:
        content = self._contents[fh]
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "the kernel implements the other modes")
        position = None
        if 0 <= offset < content.size:
            position = content.data(offset) if whence == os.SEEK_DATA else content.hole(offset)
        if position is None:
            raise OSError(errno.ENXIO, "no data after this offset")
        return position

    @fuse_call
    def flush(self, path: str | None, fh: int) -> int:
        content = self._contents[fh]
        if isinstance(content, Received):
            self._require_incoming().flush(content, _caller())
        return 0

    @fuse_call
    def release(self, path: str | None, fh: int) -> int:
        content = self._contents.pop(fh)
        self._paths.pop(fh, None)
        if isinstance(content, Received):
            self._require_incoming().release(content)
        return 0

    # writing, below incoming/ only -------------------------------------------------------------------------------------

    @fuse_call
    def mkdir(self, path: str, mode: int) -> int:
        self._require_incoming().make_directory(_below(path))
        return 0

    @fuse_call
    def rmdir(self, path: str) -> int:
        self._require_incoming().remove_directory(_below(path))
        return 0

    @fuse_call
    def create(self, path: str, mode: int, flags: int) -> int:
        return self._handle(self._require_incoming().create(_below(path), _caller()), path)

    @fuse_call
    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        content = self._contents[fh]
        if not isinstance(content, Received):
            raise OSError(errno.EBADF, "not open for writing")
        return content.write(data, offset, _caller())

    @fuse_call
    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        return 0  # a version is durable when close has returned, not before

    @fuse_call
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._require_incoming().truncate(_below(path), length, _caller())
        return 0

    @fuse_call
    def unlink(self, path: str) -> int:
        self._require_incoming().remove(_below(path))
        return 0

    @fuse_call
    def rename(self, old: str, new: str) -> int:
        self._require_incoming().rename(_below(old), _below(new), _caller())
        return 0

    @fuse_call
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._require_incoming().touch(_below(path), times[1] if times else None)
        return 0

    @fuse_call
    def chmod(self, path: str, mode: int) -> int:
        _below(path)  # accepted, because copying tools set modes, and ignored: these files are for their owner only
        return 0

    @fuse_call
    def chown(self, path: str, uid: int, gid: int) -> int:
        _below(path)
        return 0

    def _require_incoming(self) -> Incoming:
        if self._incoming is None:
            raise OSError(errno.EROFS, "the mount is read-only")
        return self._incoming

    def _handle(self, content: Content, path: str) -> int:
        handle = next(self._next_handle)
        self._paths[handle] = path
        self._contents[handle] = content
        return handle


class Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy's FUSE with what that lacks: ``lseek``, cached pages kept per file, reads without a copy."""

    def open(self, path: bytes, fip: Any) -> int:
        info = fip.contents
        info.fh, info.keep_cache = self.operations.open(path.decode(self.encoding, self.errors), info.flags)
        info.noflush = info.flags & os.O_ACCMODE == os.O_RDONLY  # a bit that older libraries ignore
        return 0

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:
        data = self.operations.read(fip.contents.fh, size, offset)
        length = min(len(data), size)
        if length:
            there = (ctypes.c_char * length).from_address(ctypes.addressof(buffer.contents))
            memoryview(there).cast("B")[:] = memoryview(data)[:length]  # memmove takes no memoryview
        return length

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        return int(self.operations.lseek(fip.contents.fh, offset, whence))


def serve(operations: Operations, mount_point: str, options: dict[str, Any]) -> None:
    """Mount, in the foreground, and answer until it is unmounted or a signal comes. Raises RuntimeError with libfuse's code."""
    if mfusepy.fuse_version_minor >= 12:  # takes a missing number for one that is too high, and warns
        options = {**options, "max_threads": FUSE_THREADS}
    Fuse(operations, mount_point, foreground=True, max_idle_threads=FUSE_THREADS, **options)


def _entries(path: str, directory: Directory) -> Iterator[tuple[str, dict[str, int], int]]:
    start = path if path.endswith("/") else f"{path}/"
    for name in (".", ".."):
        yield name, {"st_mode": stat.S_IFDIR}, 0
    try:
        for name, kind in directory.names():
            yield name, {"st_mode": FILE_TYPES[kind], "st_ino": _inode(start + name)}, 0
    except Exception as error:  # mfusepy asks for the names outside of ``fuse_call``
        value = errno_of(error)
        raise OSError(value, os.strerror(value)) from None


def _inode(path: str) -> int:
    """An inode number that depends on the path alone, so it is the same in every mount."""
    return int.from_bytes(blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1 | 2


def _below(path: str) -> Path:
    """A path below incoming/. Raises EROFS for the rest of the tree, which is read-only."""
    tree_path = normal_path(split_path(path))
    if tree_path[:1] != (INCOMING,):
        raise OSError(errno.EROFS, "versions are read-only")
    return tree_path[1:]


def _caller() -> int:
    """The id of the thread that makes the request."""
    return int(mfusepy.fuse_get_context()[2])
