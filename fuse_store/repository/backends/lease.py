# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease: the writer lock of an S3 store, one writer at a time. ``locks`` has the writer lock of a local directory.

The lock is an object that is created only if none exists (If-None-Match), names its holder, and is renewed by a thread
of the holder. It is taken over, by a write that fails if the object changed meanwhile (If-Match), from a holder that has
released it, or certainly ended, as in ``locks``, and from any holder that has not renewed it for LEASE_SECONDS by the server's clock: its
machine is off, hibernated or disconnected. A holder that continues later finds out by ``check``, which precedes each
commit. A server that ignores a condition is detected by ``probe``, before a store is created, and when the lock is taken.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fuse_store.errors import Locked, Refused, StoreError
from fuse_store.repository.locks import has_ended, held_by, lost_lock, parse_holder, this_process

LOCK_NAME = "locks/writer"
LEASE_SECONDS = 300.0
RENEWAL_SECONDS = 60.0
RELEASED = "released"  # the key of a lock that nobody holds
ATTEMPTS = 8
RACERS = 8  # requests of the probe at once; of some servers all of them win
WRONG_TAG = '"00000000000000000000000000000000"'
USE_ANOTHER = "Use a server with conditional writes (If-None-Match, If-Match); the store can still be read."


class ObjectStore(Protocol):
    """The requests of an S3 store that a lease needs. ``url``: for messages. All raise StoreError."""

    url: str

    def put(self, name: str, content: bytes, mode: Any = "overwrite") -> str | None:
        """Write an object; its e_tag, or None if the condition ``mode`` (obstore.PutMode) does not hold."""
        ...

    def get(self, name: str) -> tuple[bytes, str, float]:
        """(content, e_tag, time of the last write by the server's clock). Raises FileNotFoundError."""
        ...

    def remove(self, name: str) -> None: ...

    def now(self) -> float:
        """The server's time, in s since 1970."""
        ...


class Lease:
    """``with Lease(objects) as lock``. Raises Locked, Refused, StoreError."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._token = os.urandom(8).hex()
        self._count = 0
        self._tag: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        for _attempt in range(ATTEMPTS):
            self._tag = self._take()
            if self._tag is not None or self._is_ours():
                break
        else:
            raise self._locked({})
        try:
            self._check_conditions()
        except BaseException:
            self._objects.remove(LOCK_NAME)
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        try:
            if self._is_ours():  # else it was taken over, maybe a moment ago: a delete would have no condition
                self._objects.put(LOCK_NAME, json.dumps({RELEASED: self._token}).encode(), {"e_tag": self._tag})
        except StoreError:
            pass  # the lease expires

    def check(self) -> None:
        """Raises Locked if another process took the lock over."""
        if not self._is_ours():
            raise lost_lock()

    def _check_conditions(self) -> None:
        """Whether the server refuses what a second writer would do now: take a lock that exists, or one that has changed. Raises
        Refused."""
        if self._objects.put(LOCK_NAME, self._content(), "create") is not None:
            raise _ignores(self._objects, "creates an object that exists")
        if self._objects.put(LOCK_NAME, self._content(), {"e_tag": WRONG_TAG}) is not None:
            raise _ignores(self._objects, "replaces an object that has changed")

    def _content(self) -> bytes:
        self._count += 1  # otherwise a renewed lock would have the same e_tag
        return json.dumps({**this_process(), "token": self._token, "count": self._count}, sort_keys=True).encode()

    def _is_ours(self) -> bool:
        """Whether this process holds the lock: a request that was sent twice fails the second time because of the first."""
        try:
            content, tag, _written = self._objects.get(LOCK_NAME)
        except FileNotFoundError:
            return False
        if parse_holder(content).get("token") != self._token:
            return False
        self._tag = tag
        return True

    def _renew(self) -> None:
        while not self._end.wait(RENEWAL_SECONDS):
            try:
                tag = self._objects.put(LOCK_NAME, self._content(), {"e_tag": self._tag})
                if tag is not None:
                    self._tag = tag
                elif not self._is_ours():
                    return
            except StoreError:
                continue  # ``check`` decides before a commit

    def _take(self) -> str | None:
        """Take the lock if there is none, or its holder has released it, ended, or not renewed it: its e_tag, or None if another
        process was quicker. Raises Locked, StoreError."""
        try:
            content, tag, written = self._objects.get(LOCK_NAME)
        except FileNotFoundError:
            return self._objects.put(LOCK_NAME, self._content(), "create")
        holder = parse_holder(content)
        if RELEASED not in holder and not has_ended(holder) and self._objects.now() - written < LEASE_SECONDS:
            raise self._locked(holder)
        return self._objects.put(LOCK_NAME, self._content(), {"e_tag": tag})

    def _locked(self, holder: dict[str, Any]) -> Locked:
        remedy = f"Wait until it is done, or use --wait; the lock of a machine that is off expires after {LEASE_SECONDS:.0f} seconds."
        return held_by(self._objects.url, holder, remedy)


def probe(objects: ObjectStore) -> None:
    """Whether the server heeds the conditions on which a lease relies, also when several clients ask at once. Raises Refused,
    StoreError."""
    name = f"locks/probe.{os.urandom(8).hex()}"
    try:
        tag = _one_wins(objects, name, "create", "lets several clients create one object")
        _one_wins(objects, name, {"e_tag": tag}, "lets several clients replace one object")
        if objects.put(name, b"late", {"e_tag": tag}) is not None:
            raise _ignores(objects, "replaces an object that has changed")
        if objects.put(name, b"late", "create") is not None:
            raise _ignores(objects, "creates an object that exists")
        objects.remove(name)
        if objects.put(name, b"gone", {"e_tag": tag}) is not None:
            raise _ignores(objects, "replaces an object that is gone")
    finally:
        objects.remove(name)


def _one_wins(objects: ObjectStore, name: str, mode: Any, problem: str) -> str:
    """Have RACERS write an object under one condition; the e_tag of the one that did. Raises Refused, StoreError."""
    barrier = threading.Barrier(RACERS)

    def write(_number: int) -> str | None:
        barrier.wait()
        return objects.put(name, b"racer " + os.urandom(8), mode)  # equal contents would have one e_tag

    with ThreadPoolExecutor(RACERS) as pool:
        tags = [tag for tag in pool.map(write, range(RACERS)) if tag is not None]
    content, tag, _written = objects.get(name)
    # A request that was sent twice, because its answer was lost, fails the second time: nobody may have won, and one did write.
    if len(tags) > 1 or not content.startswith(b"racer"):
        raise _ignores(objects, problem)
    return tag


def _ignores(objects: ObjectStore, problem: str) -> Refused:
    return Refused(
        f"store {objects.url}", f"the server {problem}: it ignores conditional writes, and two writers could write at once.", USE_ANOTHER
    )
