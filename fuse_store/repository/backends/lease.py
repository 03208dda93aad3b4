# SPDX-License-Identifier: GPL-3.0-or-later
"""One writer per store in a bucket. Used by ``object``; the counterpart of ``locks``, which tells what it is for.

The lock is an object that is created only if there is none (If-None-Match), names its holder, and is written anew by a
thread of its holder as long as it works. It is taken over, by writing it only if nobody else did meanwhile (If-Match),
from a holder that is gone for certain, as on a disk, and from any that has not renewed it for LEASE seconds by the
server's clock: its machine is off, hibernates or is cut off. A holder that comes back finds it out by ``check``, which
precedes each commit. A server that does not heed the conditions is found out when the lock is taken.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

from fuse_store.errors import Locked, Refused, StoreError
from fuse_store.repository.locks import held, holder_in, is_gone, this_process

if TYPE_CHECKING:
    from fuse_store.repository.backends.s3 import S3Backend

NAME = "locks/writer"
LEASE = 300.0  # seconds
RENEWED = 60.0  # seconds between two renewals


class Lease:
    """``with Lease(backend) as lock``. Raises Locked, Refused, StoreError."""

    def __init__(self, backend: S3Backend) -> None:
        self._backend = backend
        self._token = os.urandom(8).hex()
        self._count = 0
        self._tag: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        for _attempt in range(8):
            self._tag = self._backend.put(NAME, self._content(), "create")
            if self._tag is None and not self._is_ours():
                self._take_over()
            if self._tag is not None:
                break
        else:
            raise self._locked({})
        if self._backend.put(NAME, self._content(), "create") is not None:
            self._backend.remove(NAME)
            raise Refused(
                f"store {self._backend.url}", "the server does not heed conditions, so two writers could be at work at once.",
                "Use a server with conditional writes (If-None-Match). Reading is possible.",
            )  # fmt: skip
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        try:
            if self._is_ours():
                self._backend.remove(NAME)
        except StoreError:
            pass  # it runs out by itself

    def check(self) -> None:
        """Raise Locked if the lock is no longer ours."""
        if not self._is_ours():
            raise Locked(
                "the writer's lock", "somebody else took it while this process slept.", "Nothing was changed. Run it again."
            )

    def _content(self) -> bytes:
        self._count += 1  # else a lock that was renewed would have the e_tag it had before
        return json.dumps({**this_process(), "token": self._token, "count": self._count}, sort_keys=True).encode()

    def _is_ours(self) -> bool:
        """Whether the lock is; a request that was sent twice fails the second time because of the first."""
        try:
            content, tag, _written = self._backend.get(NAME)
        except FileNotFoundError:
            return False
        if holder_in(content).get("token") != self._token:
            return False
        self._tag = tag
        return True

    def _renew(self) -> None:
        while not self._end.wait(RENEWED):
            try:
                tag = self._backend.put(NAME, self._content(), {"e_tag": self._tag})
                if tag is not None:
                    self._tag = tag
                elif not self._is_ours():
                    return
            except StoreError:
                continue  # before a commit ``check`` asks

    def _take_over(self) -> None:
        """Have the lock of a holder that is gone; Locked otherwise."""
        try:
            content, tag, written = self._backend.get(NAME)
        except FileNotFoundError:
            return
        holder = holder_in(content)
        if not is_gone(holder) and self._backend.now() - written < LEASE:
            raise self._locked(holder)
        self._tag = self._backend.put(NAME, self._content(), {"e_tag": tag})

    def _locked(self, holder: dict[str, Any]) -> Locked:
        remedy = f"Wait until it is done; a machine that is gone loses it after {LEASE:.0f} seconds."
        return held(self._backend.url, holder, remedy)
