# SPDX-License-Identifier: GPL-3.0-or-later
"""A store in a bucket of an S3-compatible server. What is owed to whom says ``backends``; docs/format.md, "In a bucket".

One PUT is what makes an object appear. There is no rename: what goes to the trash is copied there by the server and then
deleted, so that readers find it in one of the two places at any time. Packs are read in pieces that hold many blocks, by
several threads at once. What never changes is kept in a local folder, checked when it is read, and may be deleted at any
time. Where the server is, and who asks, comes from the environment, as with other clients of S3. obstore's threads do not
survive a fork: a process that forks has to open its store afterwards.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import io
import mmap
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

import obstore
from blake3 import blake3
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.repository.atomic import BUFFER, fault_point, write_file
from fuse_store.repository.backends.base import Entry, Lock
from fuse_store.repository.backends.lease import Lease

PIECE = 1 << 20  # bytes of a pack that are read at once: a dozen blocks
PIECES = 48  # that are kept in memory
READERS = 8  # requests at once: what a server far away takes its time for
PART = 16 << 20  # bytes of a pack that are sent at once
SENDERS = 4
LARGEST = 1 << 30  # bytes of what is read as a whole; a fragment of the index has less than a tenth
KEPT = 1 << 30  # bytes kept in the local folder; what was used longest ago goes first
POLL = 1.0  # seconds for which a list is believed by who asks whether something changed
LIMITS = {"timeout": "120s", "connect_timeout": "5s"}
RETRIES = {
    "max_retries": 4, "retry_timeout": datetime.timedelta(seconds=60),
    "backoff": {"init_backoff": datetime.timedelta(milliseconds=100), "max_backoff": datetime.timedelta(seconds=5), "base": 2},
}  # fmt: skip
_DIGEST = 32
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([\w!.*'()/-]*))?", re.ASCII)
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
# What stands in the server's or the client's words, the error, the cause, the remedy; the first that fits.
CAUSES: tuple[tuple[str, type[StoreError], str, str], ...] = (
    ("NoSuchBucket", NotFound, "there is no such bucket.", "Make it with the tools of the server, or name another."),
    ("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken", StoreError, "the credentials are wrong.", CREDENTIALS),
    ("169\\.254\\.|InvalidCredentials|[Mm]issing (access|secret)", StoreError, "there are no credentials.", CREDENTIALS),
    ("AccessDenied|code: 40[13] ", StoreError, "permission denied.", "Let these credentials read and write there."),
    ("QuotaExceeded|StorageFull|code: 507 ", StoreError, "the server has no room.", "Make room, or run fuse-store gc."),
    ("BadScheme|builder error", StoreError, "the server is asked without encryption.", "AWS_ALLOW_HTTP=true allows it."),
    ("error sending request|timed out", StoreError, "the server can't be reached.", "Look at AWS_ENDPOINT_URL."),
    ("NotImplemented|code: 501 ", Refused, "the server can't do what is needed.", "Use one with conditional writes."),
)  # fmt: skip


class S3Backend:
    """A Backend."""

    def __init__(self, url: str) -> None:
        """Raises UsageError, StoreError."""
        found = _URL.fullmatch(url)
        if not found or ".." in url or "//" in url[5:]:
            raise UsageError(f"store {url}", "that is no s3://BUCKET/PREFIX.", "Name a folder, or a bucket like this.")
        self.url = url.rstrip("/")
        self.readers, self.needs_fsync, self.survives_fork = READERS, False, False
        self.local_dir = _home()  # until it is known which store it is
        self._pieces: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._listed: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()
        clear = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
        options = cast(Any, LIMITS | {"allow_http": clear})  # given here, as options hide what the environment says
        prefix = (found[2] or "").strip("/") or None
        try:
            self._objects = S3Store(found[1], prefix=prefix, client_options=options, retry_config=cast(Any, RETRIES))
        except BaseError as error:
            raise self.error(error) from None

    def bind(self, store_id: str) -> None:
        self.local_dir = _home() / store_id
        try:
            for folder in (self.local_dir, self.local_dir / "index", self.local_dir / "tables"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.local_dir.lstat()
        except OSError as error:
            raise StoreError(f"folder {self.local_dir}", f"{error.strerror}.", "Name another one in XDG_CACHE_HOME.") from None
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Refused(f"folder {self.local_dir}", "others may write to it, or read it.", "Remove it; it is made anew.")

    def is_free(self) -> bool:
        return not any(True for _entry in self.entries(""))

    def prepare(self) -> None:
        pass  # a bucket has no folders

    # reading ---------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        return self.get(name)[0]

    def read_range(self, name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        if not name.startswith("packs/"):
            return self._range(name, offset, length, trashed)
        first, last = offset // PIECE, -(-(offset + length) // PIECE)
        content = b"".join([self._piece(name, number) for number in range(first, last)])
        return content[offset - first * PIECE :][:length]

    def size(self, name: str) -> int:
        known = self._sizes.get(name)
        if known is None:
            with self._asked(name):
                known = int(obstore.head(self._objects, name)["size"])
            if name.startswith("packs/"):
                self._sizes[name] = known
        return known

    def read_mmap(self, name: str, *, check: bool) -> bytes | mmap.mmap:
        path = self.local_dir / name
        found = None if check else _mapped(path)
        if found is None:
            content = self.read(name)
            self._keep(path, content)
            found = _mapped(path) or content  # with a full disk in memory
        return found

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self.local_dir / "tables" / name
        found = _mapped(path)
        if found is not None:
            return bytes(found)
        content = make()
        self._keep(path, content)
        return content

    def stream(self, name: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Stream(self, name, self.size(name)), PIECE))

    def names(self, folder: str) -> list[str]:
        return [entry.name.rpartition("/")[2] for entry in self.entries(folder)]

    def entries(self, folder: str) -> Iterator[Entry]:
        for one in self._list(folder):
            yield Entry(one["path"], one["size"], one["last_modified"].timestamp())

    def changed(self, folder: str) -> tuple[int, bool]:
        with self._lock:
            asked, number = self._listed.get(folder, (0.0, 0))
        if not asked or time.monotonic() - asked >= POLL:
            asked = time.monotonic()
            newest, everything = 0, hashlib.blake2b(digest_size=8)
            for one in self._list(folder):
                newest = max(newest, int(one["last_modified"].timestamp()))
                everything.update(f"{one['path']} {one['e_tag']}\n".encode())
            # The server's times are whole seconds: what stands after them tells lists with the same newest apart.
            number = newest * 1_000_000_000 + int.from_bytes(everything.digest(), "little") % 1_000_000_000
            with self._lock:
                self._listed[folder] = asked, number
        return number, True

    def refresh(self, folder: str) -> None:
        with self._lock:
            self._listed.pop(folder, None)

    def now(self) -> float:
        name = f"locks/clock.{os.urandom(4).hex()}"
        self.put(name, b"")
        with self._asked(name):
            found = obstore.head(self._objects, name)["last_modified"].timestamp()
        self.remove(name)
        return found

    # writing ---------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes, mode: Any = "overwrite") -> str | None:
        """Have it there; its e_tag. ``mode``: obstore.PutMode. None: the condition does not hold. Raises StoreError."""
        with self._asked(name):
            try:
                return obstore.put(self._objects, name, content, mode=mode)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                return None

    def get(self, name: str) -> tuple[bytes, str, float]:
        """(content, e_tag, when it was written by the server's clock)."""
        with self._asked(name):
            found = obstore.get(self._objects, name)
            if found.meta["size"] > LARGEST:  # none of ours is
                raise Damaged(f"object {name}", f"it has {found.meta['size']} bytes.", "Restore it from a copy.")
            return bytes(found.bytes()), found.meta["e_tag"] or "", found.meta["last_modified"].timestamp()

    def write(self, name: str, content: bytes, sync: bool, before: Callable[[], None] | None = None) -> None:
        suffix = PurePath(name).suffix
        fault_point(f"write {suffix}")
        fault_point(f"rename {suffix}")
        if before is not None:
            before()
        if self.put(name, content, "create" if name == "store.json" else "overwrite") is None:
            raise Refused(f"store {self.url}", "somebody else has made one there.", "Name another prefix.")
        fault_point(f"renamed {suffix}")
        self.refresh(name.partition("/")[0])

    @contextlib.contextmanager
    def new(self, name: str, sync: bool) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile(dir=self.local_dir, buffering=BUFFER) as file:  # without a name: nothing to sweep
            fault_point(f"write {PurePath(name).suffix}")
            yield cast(BinaryIO, file)
            file.seek(0)
            fault_point(f"rename {PurePath(name).suffix}")
            with self._asked(name):
                obstore.put(self._objects, name, cast(Any, file), chunk_size=PART, max_concurrency=SENDERS)
        fault_point(f"renamed {PurePath(name).suffix}")

    def remove(self, name: str) -> None:
        with self._asked(name), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._objects, name)
        self.refresh(name.partition("/")[0])

    def to_trash(self, name: str) -> None:
        with self._asked(name):
            obstore.copy(self._objects, name, f"trash/{PurePath(name).name}")
        fault_point(f"trash {PurePath(name).suffix}")
        self.remove(name)

    def sync(self, folder: str) -> None:
        pass  # what the server has answered for is durable

    def sync_all(self) -> None:
        pass

    def remove_partials(self) -> None:
        with self._lock:  # who writes believes nothing from before
            self._listed.clear()
            self._sizes.clear()

    def forget(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name, None)

    def close(self) -> None:
        with self._lock:
            self._pieces.clear()

    def lock(self) -> contextlib.AbstractContextManager[Lock]:
        return Lease(self)

    # what the server is asked ----------------------------------------------------------------------------------------

    def error(self, error: Exception) -> StoreError:
        """What an error of the client means."""
        text, _debug, _details = str(error).partition("Debug source")
        code = re.search(r"<Code>\w+</Code>", text)
        # Names that users chose stand in it, too: they must not be taken for the server's words.
        text = re.sub(r"(https?://[^/\s]+)\S*", r"\1", text.partition("<?xml")[0]) + (code[0] if code else "")
        for pattern, kind, cause, remedy in CAUSES:
            if re.search(pattern, text):
                return kind(f"store {self.url}", cause, remedy)
        return StoreError(f"store {self.url}", f"the server did not do it: {' '.join(text.split())[:300]}.")

    @contextlib.contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self.error(error) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.url}/{name}") from None
        except BaseError as error:
            raise self.error(error) from None

    def _list(self, folder: str) -> Iterator[Any]:
        try:
            for batch in obstore.list(self._objects, folder or None):
                yield from batch
        except BaseError as error:
            raise self.error(error) from None

    def _range(self, name: str, offset: int, length: int, trashed: bool) -> bytes:
        if length <= 0:
            return b""
        try:
            with self._asked(name):
                return bytes(obstore.get_range(self._objects, name, start=offset, length=length))
        except FileNotFoundError:
            if not trashed:
                raise
            return self._range(f"trash/{PurePath(name).name}", offset, length, False)
        except StoreError as error:
            if "416 " in error.cause:  # it ends before
                return b""
            raise

    def _piece(self, name: str, number: int) -> bytes:
        """A piece of a pack. Threads that want the same one wait for the first of them."""
        with self._lock:
            job = self._pieces.get((name, number))
            if job is None:
                own = self._pieces[name, number] = Future()
                while len(self._pieces) > PIECES:
                    self._pieces.popitem(last=False)
            else:
                self._pieces.move_to_end((name, number))
        if job is not None:
            return job.result()
        try:
            content = self._range(name, number * PIECE, PIECE, True)
        except BaseException as error:
            with self._lock:
                self._pieces.pop((name, number), None)
            own.set_exception(error)
            raise
        own.set_result(content)
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            write_file(path, content + blake3(content).digest(), sync=False)
            kept = [(one.stat(), one) for one in path.parent.iterdir()]
            size = sum(status.st_size for status, _one in kept)
            for status, one in sorted(kept, key=lambda each: each[0].st_mtime):
                if size <= KEPT or one == path:
                    break
                one.unlink(missing_ok=True)
                size -= status.st_size
        except OSError:
            pass  # a full disk: the next one asks the server again


class _Stream(io.RawIOBase):
    def __init__(self, backend: S3Backend, name: str, size: int) -> None:
        self._backend, self._name, self._size, self._at = backend, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        content = self._backend.read_range(self._name, self._at, length, trashed=False)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuse-store"


def _mapped(path: Path) -> mmap.mmap | bytes | None:
    """What was kept, if it is as it was."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - _DIGEST
            if size <= 0:
                return None
            found = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
            file.seek(size)
            if blake3(found).digest() == file.read(_DIGEST):
                return found
    except (OSError, ValueError):
        pass
    return None
