# SPDX-License-Identifier: GPL-3.0-or-later
"""A store in a bucket of an S3-compatible server (docs/format.md, "In a bucket"). Threads may share an S3Backend.

One PUT makes an object appear. There is no rename: an object is copied to the trash by the server and then deleted, so
readers find it in one of the two places at any time. Packs are read in pieces of many blocks, by several threads at
once. Immutable objects are cached in a local directory, checked when they are read; the cache may be deleted at any time.
Endpoint and credentials come from the environment, as with other S3 clients. obstore's threads do not survive a fork: a
process that forks has to open its store afterwards.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import io
import itertools
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import obstore
from blake3 import blake3
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.repository.atomic import WRITE_BUFFER_SIZE, NewFile, fault_point
from fuse_store.repository.backends.base import MISSING, Entry, Lock
from fuse_store.repository.backends.lease import Lease, probe
from fuse_store.repository.backends.mapping import Mapped, map_file
from fuse_store.user_directories import cache_home

PIECE_SIZE = 1 << 20  # bytes of a pack that are read at once: a dozen blocks
MAX_PIECES = 48  # in memory
READ_REQUESTS = 8  # at once, to hide the latency of the server
UPLOAD_PART_SIZE = 16 << 20  # bytes of a pack
UPLOAD_REQUESTS = 4  # at once
MAX_OBJECT_SIZE = 1 << 30  # bytes of an object that is read as a whole
LOCAL_CACHE_SIZE = 1 << 30  # bytes of each directory of the local cache; the oldest files are removed first
LIST_PAGE, HEADS_PER_PAGE = 1000, 100  # objects that one request lists; objects that are asked for one by one in the same time, about
LIST_VALID_SECONDS = 1.0  # how long ``changed`` trusts the last list
LIST_FAILED_SECONDS = 5.0  # how long lists fail at once after one that failed
CONNECT_SECONDS, REQUEST_SECONDS = 5, 120
SILENCE_SECONDS = 15  # a server that sends nothing for so long has stalled; not for uploads, whose answer comes at the end
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
RETRY_SECONDS = 20
RETRIES = {
    "max_retries": 4, "retry_timeout": datetime.timedelta(seconds=RETRY_SECONDS),
    "backoff": {"init_backoff": datetime.timedelta(milliseconds=100), "max_backoff": datetime.timedelta(seconds=5), "base": 2},
}  # fmt: skip
_CHECKSUM_SIZE = 32
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([\w!.*'()/-]*))?", re.ASCII)
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
# A pattern in the message of the server or the client, the error, the cause, the remedy; the first match counts.
CAUSES: tuple[tuple[str, type[StoreError], str, str], ...] = (
    ("NoSuchBucket", NotFound, "no such bucket.", "Create it with the tools of the server, or name another."),
    ("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken", StoreError, "wrong credentials.", CREDENTIALS),
    ("169\\.254\\.|InvalidCredentials|[Mm]issing (access|secret)", StoreError, "no credentials.", CREDENTIALS),
    ("AccessDenied|code: 40[13] ", StoreError, "permission denied.", "Allow these credentials to read and write in the bucket."),
    ("QuotaExceeded|StorageFull|code: 507 ", StoreError, "no space left on the server.", "Free some, or run 'fuse-store gc'."),
    ("BadScheme|builder error", StoreError, "the endpoint is not encrypted (http).", "Use https, or set AWS_ALLOW_HTTP=true."),
    ("error sending request|timed out", StoreError, "cannot reach the server.", "Check AWS_ENDPOINT_URL."),
    ("NotImplemented|code: 501 ", Refused, "the server lacks a required function.", "Use a server with conditional writes."),
)  # fmt: skip


class S3Backend:
    """The Backend of an S3 bucket."""

    def __init__(self, url: str) -> None:
        """Raises UsageError, StoreError."""
        match = _URL.fullmatch(url)
        if not match or ".." in url or "//" in url[5:]:
            raise UsageError(f"store {url}", "not a URL like s3://BUCKET/PREFIX.", "Name a directory or an S3 URL.")
        self.url = url.rstrip("/")
        self.readers, self.needs_fsync, self.survives_fork = READ_REQUESTS, False, False
        self.local_dir = cache_home()  # until ``bind``
        self._pieces: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._listed: dict[str, tuple[float, int]] = {}
        self._directories: dict[str, tuple[float, frozenset[str]]] = {}
        self._list_failed: tuple[float, StoreError] | None = None
        self._lock = threading.Lock()
        allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
        options: dict[str, Any] = {  # override the environment
            "allow_http": allow_http, "timeout": f"{REQUEST_SECONDS}s", "connect_timeout": f"{CONNECT_SECONDS}s",
        }  # fmt: skip
        prefix = (match[2] or "").strip("/") or None
        _check_endpoint()
        with self._translated_errors(""):
            settings: Any = {"prefix": prefix, "retry_config": RETRIES}
            self._uploads = S3Store(match[1], client_options=cast(Any, options), **settings)
            silence: Any = options | {"read_timeout": f"{SILENCE_SECONDS}s"}
            self._objects = S3Store(match[1], client_options=silence, **settings)

    def bind(self, store_id: str) -> None:
        self.local_dir = cache_home() / store_id
        try:
            for directory in (self.local_dir, self.local_dir / "index", self.local_dir / "tables"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.local_dir.lstat()
        except OSError as error:
            raise StoreError(f"directory {self.local_dir}", f"{error.strerror}.", "Set XDG_CACHE_HOME to another directory.") from None
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Refused(f"directory {self.local_dir}", "other users can read or write it.", "Remove it; it is created again.")

    def is_free(self) -> bool:
        return not any(True for _entry in self.entries(""))

    def prepare(self) -> None:
        pass  # a bucket has no directories

    def probe(self, sync: bool) -> None:
        probe(self)

    # reading ---------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        return self.get(name)[0]

    def read_range(self, name: str, offset: int, length: int, *, trashed: bool) -> bytes:
        if not name.startswith("packs/"):
            return self._range(name, offset, length, trashed)
        first, last = offset // PIECE_SIZE, -(-(offset + length) // PIECE_SIZE)
        content = b"".join([self._piece(name, index) for index in range(first, last)])
        return content[offset - first * PIECE_SIZE :][:length]

    def read_into(self, name: str, offset: int, out: memoryview) -> int:
        content = self.read_range(name, offset, len(out), trashed=True)
        out[: len(content)] = content
        return len(content)

    def size(self, name: str) -> int:
        size = self._sizes.get(name)
        if size is None:
            with self._translated_errors(name):
                size = int(obstore.head(self._objects, name)["size"])
            if name.startswith("packs/"):
                self._sizes[name] = size
        return size

    def read_mmap(self, name: str, *, check: bool) -> Mapped:
        path = self.local_dir / name
        mapped = None if check else _map_cached(path)
        if mapped is None:
            with self._translated_errors(name):
                self._add_to_cache(path, map(bytes, obstore.get(self._objects, name).stream(min_chunk_size=PIECE_SIZE)))
            mapped = _map_cached(path) or Mapped(memoryview(self.read(name)))  # in memory, if the disk is full
        return mapped

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self.local_dir / "tables" / name
        mapped = _map_cached(path)
        if mapped is not None:
            return bytes(mapped.view)
        content = make()
        self._add_to_cache(path, [content])
        return content

    def stream(self, name: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Stream(self, name, self.size(name)), PIECE_SIZE))

    def names(self, directory: str) -> list[str]:
        return [entry.name.rpartition("/")[2] for entry in self.entries(directory)]

    def directories(self, directory: str) -> list[str]:
        with self._translated_list_errors(directory):
            found = obstore.list_with_delimiter(self._objects, directory)
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]

    def has_directory(self, directory: str) -> bool:
        above, _slash, name = directory.rpartition("/")
        with self._lock:
            listed_at, names = self._directories.get(above, (0.0, frozenset()))
        if not listed_at or time.monotonic() - listed_at >= LIST_VALID_SECONDS:  # one is asked for after the other
            listed_at, names = time.monotonic(), frozenset(self.directories(above))
            with self._lock:
                self._directories[above] = listed_at, names
        return name in names

    def remove_empty(self, directory: str) -> None:
        pass

    def entries(self, directory: str) -> Iterator[Entry]:
        for meta in self._list(directory):
            yield Entry(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def changed(self, directory: str) -> tuple[int, bool]:
        now = time.monotonic()
        with self._lock:
            listed_at, stamp = self._listed.get(directory, (0.0, 0))
        if not listed_at or now - listed_at >= LIST_VALID_SECONDS:
            listed_at = now
            newest, digest = 0, hashlib.blake2b(digest_size=8)
            for meta in self._list(directory):
                newest = max(newest, int(meta["last_modified"].timestamp()))
                digest.update(f"{meta['path']} {meta['e_tag']}\n".encode())
            # The server's times are whole seconds: the digest below them distinguishes lists with the same newest object.
            stamp = newest * 1_000_000_000 + int.from_bytes(digest.digest(), "little") % 1_000_000_000
            with self._lock:
                self._listed[directory] = listed_at, stamp
        return stamp, True

    def stamps(self, directory: str, names: Sequence[str] | None = None) -> Callable[[str], str]:
        listed = self._list(directory)
        most = None if names is None else LIST_PAGE * (1 + len(names) // HEADS_PER_PAGE)
        tags = {meta["path"]: _tag(meta) for meta in itertools.islice(listed, most)}
        if names is not None and next(listed, None) is not None:  # too many to list them all for a few
            with ThreadPoolExecutor(READ_REQUESTS) as pool:
                tags = dict(zip(names, pool.map(self._stamp, names), strict=True))
        return lambda name: tags.get(name, MISSING)

    def _stamp(self, name: str) -> str:
        try:
            with self._translated_errors(name):
                return _tag(obstore.head(self._objects, name))
        except FileNotFoundError:
            return MISSING

    def refresh(self, directory: str) -> None:
        with self._lock:  # and those above it, whose lists have the same names, and below it
            self._directories.clear()
            for listed in list(self._listed):
                if f"{listed}/".startswith(f"{directory}/") or f"{directory}/".startswith(f"{listed}/"):
                    del self._listed[listed]

    def now(self) -> float:
        name = f"locks/clock.{os.urandom(4).hex()}"
        self.put(name, b"")
        with self._translated_errors(name):
            now = obstore.head(self._objects, name)["last_modified"].timestamp()
        self.remove(name)
        return now

    # writing ---------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes, mode: Any = "overwrite") -> str | None:
        """Write an object; its e_tag, or None if the condition ``mode`` (obstore.PutMode) does not hold. Raises StoreError."""
        with self._translated_errors(name):
            try:
                objects = self._objects if len(content) < PIECE_SIZE else self._uploads
                return obstore.put(objects, name, content, mode=mode)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                return None

    def get(self, name: str) -> tuple[bytes, str, float]:
        """(content, e_tag, time of the last write by the server's clock). Raises FileNotFoundError, Damaged, StoreError."""
        with self._translated_errors(name):
            result = obstore.get(self._objects, name)
            meta = result.meta
            if meta["size"] > MAX_OBJECT_SIZE:
                raise Damaged(f"object {name}", f"too large ({meta['size']} bytes).", "Restore it from a copy of the store.")
            return bytes(result.bytes()), meta["e_tag"] or "", meta["last_modified"].timestamp()

    def write(
        self, name: str, content: bytes, sync: bool, before: Callable[[], None] | None = None, *, create: bool = False
    ) -> None:
        suffix = PurePath(name).suffix
        fault_point(f"write {suffix}")
        fault_point(f"rename {suffix}")
        if before is not None:
            before()
        if create:
            self._create(name, content)
        else:
            self.put(name, content)
        fault_point(f"renamed {suffix}")
        self.refresh(name.rpartition("/")[0])

    def new(self, directory: str, sync: bool) -> ObjectFile:
        return ObjectFile(self)

    def upload(self, name: str, file: BinaryIO) -> None:
        """Write an object from a file, which must not exist. Raises FileExistsError, StoreError."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= UPLOAD_PART_SIZE:
            self._create(name, file.read())
            return
        # The last request of a multipart upload has no condition in obstore. The name of a pack depends on its content: what another
        # machine could write there between the two requests are the same bytes.
        with self._translated_errors(name), contextlib.suppress(FileNotFoundError):
            obstore.head(self._objects, name)
            raise self._exists(name)
        with self._translated_errors(name):
            obstore.put(self._uploads, name, cast(Any, file), chunk_size=UPLOAD_PART_SIZE, max_concurrency=UPLOAD_REQUESTS)

    def remove(self, name: str) -> None:
        with self._translated_errors(name), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._objects, name)
        self.refresh(name.rpartition("/")[0])

    def to_trash(self, name: str) -> None:
        with self._translated_errors(name):
            obstore.copy(self._objects, name, f"trash/{PurePath(name).name}")
        fault_point(f"trash {PurePath(name).suffix}")
        self.remove(name)

    def sync(self, directory: str) -> None:
        pass  # a PUT is durable when the server has answered

    def sync_all(self) -> None:
        pass

    def remove_partials(self) -> None:
        with self._lock:  # a writer trusts nothing from before it had the lock
            self._listed.clear()
            self._directories.clear()
            self._sizes.clear()

    def forget(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name, None)

    def close_removed(self) -> bool:
        return False  # there are no open files

    def close(self) -> None:
        with self._lock:
            self._pieces.clear()

    def lock(self) -> contextlib.AbstractContextManager[Lock]:
        return Lease(self)

    # requests ------------------------------------------------------------------------------------------------------

    def error(self, error: Exception) -> StoreError:
        """The StoreError for an error of the client."""
        text, _debug, _details = str(error).partition("Debug source")
        code = re.search(r"<Code>\w+</Code>", text)
        # It contains names chosen by users, too, which must not match a pattern.
        text = re.sub(r"(https?://[^/\s]+)\S*", r"\1", text.partition("<?xml")[0]) + (code[0] if code else "")
        for pattern, kind, cause, remedy in CAUSES:
            if re.search(pattern, text):
                return kind(f"store {self.url}", cause, remedy)
        cause = f"request failed: {' '.join(text.split())[:300]}."
        return StoreError(f"store {self.url}", cause, "Check the server, and run the command again.")

    def _create(self, name: str, content: bytes) -> None:
        """Write an object that must not exist. Raises FileExistsError, StoreError."""
        # A request that was sent again, because its answer was lost, finds what it wrote itself.
        if self.put(name, content, "create") is None and self.read(name) != content:
            raise self._exists(name)

    def _exists(self, name: str) -> FileExistsError:
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{self.url}/{name}")

    @contextlib.contextmanager
    def _translated_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self.error(error) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.url}/{name}") from None
        except BaseError as error:
            raise self.error(error) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the client, by settings that it does not expect
                raise
            raise StoreError(f"store {self.url}", f"the client of the server failed: {error}.", "Check the AWS_… variables.") from None

    @contextlib.contextmanager
    def _translated_list_errors(self, directory: str) -> Iterator[None]:
        """As ``_translated_errors``. One ls in a mount needs many lists: after one that failed the others do not wait as long."""
        failed = self._list_failed
        if failed is not None and time.monotonic() - failed[0] < LIST_FAILED_SECONDS:
            raise failed[1]
        try:
            with self._translated_errors(directory):
                yield
        except StoreError as error:
            self._list_failed = time.monotonic(), error
            raise

    def _list(self, directory: str) -> Iterator[Any]:
        with self._translated_list_errors(directory):
            batches = obstore.list(self._objects, directory or None)
        while True:
            with self._translated_list_errors(directory):
                batch = next(iter(batches), None)
            if batch is None:
                return
            yield from batch

    def _range(self, name: str, offset: int, length: int, trashed: bool) -> bytes:
        if length <= 0:
            return b""
        try:
            with self._translated_errors(name):
                return bytes(obstore.get_range(self._objects, name, start=offset, length=length))
        except FileNotFoundError:
            if not trashed:
                raise
            return self._range(f"trash/{PurePath(name).name}", offset, length, False)
        except StoreError as error:
            if "416 " in error.cause:  # the object ends before
                return b""
            raise

    def _piece(self, name: str, index: int) -> bytes:
        """A piece of a pack. Threads that read the same piece wait for the first of them."""
        with self._lock:
            job = self._pieces.get((name, index))
            if job is None:
                own = self._pieces[name, index] = Future()
                while len(self._pieces) > MAX_PIECES:
                    self._pieces.popitem(last=False)
            else:
                self._pieces.move_to_end((name, index))
        if job is not None:
            return job.result()
        try:
            content = self._range(name, index * PIECE_SIZE, PIECE_SIZE, True)
        except BaseException as error:
            with self._lock:
                self._pieces.pop((name, index), None)
            own.set_exception(error)
            raise
        own.set_result(content)
        return content

    def _add_to_cache(self, path: Path, content: Iterable[bytes]) -> None:
        hasher = blake3()
        try:
            with NewFile(path.parent, sync=False) as new:
                for part in content:
                    hasher.update(part)
                    new.file.write(part)
                new.file.write(hasher.digest())
                new.replace(path)
            files = [(file.stat(), file) for file in path.parent.iterdir()]
            size = sum(status.st_size for status, _file in files)
            for status, file in sorted(files, key=lambda each: each[0].st_mtime):
                if size <= LOCAL_CACHE_SIZE or file == path:
                    break
                file.unlink(missing_ok=True)
                size -= status.st_size
        except OSError:
            pass  # the disk is full: the next reader asks the server again


class ObjectFile:
    """A NewFile: a local file without a name, until it is sent."""

    def __init__(self, backend: S3Backend) -> None:
        self._backend = backend
        self.file = cast(BinaryIO, tempfile.TemporaryFile(dir=backend.local_dir, buffering=WRITE_BUFFER_SIZE))  # noqa: SIM115
        fault_point("write")

    def __enter__(self) -> ObjectFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.abandon()

    def create(self, name: str, before: Callable[[], None] | None = None) -> None:
        suffix = PurePath(name).suffix
        fault_point(f"rename {suffix}")
        if before is not None:
            before()
        self._backend.upload(name, self.file)
        self.file.close()
        fault_point(f"renamed {suffix}")
        self._backend.refresh(name.rpartition("/")[0])

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # it writes what is buffered; the disk may be full
            self.file.close()


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


def _tag(meta: Any) -> str:
    return (meta["e_tag"] or "").strip('"')


def _check_endpoint() -> None:
    """Raises UsageError for an endpoint that is no URL; the client would end the process."""
    for variable in ENDPOINTS:
        value = os.environ.get(variable)
        if value is None:
            continue
        try:
            url = urlsplit(value)
            valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            valid = False
        if not valid or not re.fullmatch(r"[!-~]+", value):
            raise UsageError(f"{variable} {value!r}", "not a URL like https://HOST:PORT.", "Write it with http:// or https://.")


def _map_cached(path: Path) -> Mapped | None:
    """The content of a file of the local cache; None if it does not exist or is damaged."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - _CHECKSUM_SIZE
            if size <= 0:
                return None
            content = map_file(file, size)
            file.seek(size)
            if blake3(content.view).digest() == file.read(_CHECKSUM_SIZE):
                return content
    except OSError:
        pass
    return None
