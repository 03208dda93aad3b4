# SPDX-License-Identifier: GPL-3.0-or-later
"""State logs: what happened to a version after it was captured (verified, staged, armed, resumed, failed).

A version never changes, its state log does: a small encrypted file, replaced as a whole. A version without one, or with a
damaged one, counts as captured. Reading is safe in threads; writing is for the holder of the writer lock.
"""

from __future__ import annotations

import re
import time
from typing import Any, TypedDict, TypeGuard

import msgpack

from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import Backend

STATES = ("captured", "verified", "staged", "armed", "resumed", "failed")
MAX_ENTRIES = 1000  # of a version; the oldest are dropped first
_NAME = re.compile(r"[0-9a-f]{32}\.log")


class StateEntry(TypedDict):
    """``time``: ns since 1970; ``detail``: a remark of the user; ``fields``: values for programs."""

    state: str
    time: int
    detail: str
    fields: dict[str, str]


class StateLog:
    """The state logs of a store."""

    def __init__(self, backend: Backend, aead: Aead, sync: bool) -> None:
        self._backend, self._aead, self._sync = backend, aead, sync

    def record(self, image_id: str, state: str, detail: str = "", **fields: str) -> None:
        """Add an entry. Raises OSError."""
        entry: StateEntry = {"state": state, "time": time.time_ns(), "detail": detail, "fields": fields}
        entries = [*self.entries(image_id), entry][-MAX_ENTRIES:]
        content = self._aead.encrypt(self._name(image_id), msgpack.packb(entries, unicode_errors="surrogateescape"))
        self._backend.write(f"states/{image_id}.log", content, self._sync)

    def entries(self, image_id: str) -> list[StateEntry]:
        """The entries of a version, oldest first; empty if there are none, or the log is damaged."""
        try:
            content = self._aead.decrypt(self._name(image_id), self._backend.read(f"states/{image_id}.log"))
            entries = msgpack.unpackb(content, unicode_errors="surrogateescape")
            if isinstance(entries, list) and all(map(_is_entry, entries)):
                return entries
        except (OSError, ValueError, TypeError, msgpack.UnpackException):
            pass
        return []

    def state(self, image_id: str) -> str:
        """The newest state other than ``verified``; else ``verified``; ``captured`` without entries."""
        states = [str(entry["state"]) for entry in self.entries(image_id)]
        return next((state for state in reversed(states) if state != "verified"), "verified" if states else "captured")

    def name(self, image_id: str) -> str:
        """The file of a state log."""
        return f"states/{image_id}.log"

    def changed(self) -> tuple[int, bool]:
        """``Backend.changed`` of the directory of the state logs."""
        try:
            return self._backend.changed("states")
        except OSError:
            return 0, True

    def ids(self) -> list[str]:
        """The ids of the versions with a state log."""
        try:
            return [name[:-4] for name in self._backend.names("states") if _NAME.fullmatch(name)]
        except OSError:
            return []

    def forget(self, image_id: str) -> None:
        """Remove the state log of a removed version."""
        self._backend.remove(f"states/{image_id}.log")

    def _name(self, image_id: str) -> bytes:
        return b"state" + bytes.fromhex(image_id)


def _is_entry(entry: Any) -> TypeGuard[StateEntry]:
    """Whether something that was unpacked has the form of an entry."""
    return (
        isinstance(entry, dict)
        and entry.get("state") in STATES
        and isinstance(entry.get("time"), int)
        and isinstance(entry.get("detail"), str)
        and isinstance(fields := entry.get("fields"), dict)
        and all(isinstance(text, str) for pair in fields.items() for text in pair)
    )
