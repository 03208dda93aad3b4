# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened to each version after it was captured: verified, staged, armed, resumed, failed. Used by ``store``.

A version never changes; its state log does. It is one small encrypted file for each version that something happened to, replaced
as a whole. A lost or damaged state log says that the version was captured, which is true.
"""

from __future__ import annotations

import re
import time
from typing import Any, TypedDict, TypeGuard

import msgpack

from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import Backend

STATES = ("captured", "verified", "staged", "armed", "resumed", "failed")
MOST = 1000  # entries of a version; the oldest go first
_NAME = re.compile(r"[0-9a-f]{32}\.log")


class StateEntry(TypedDict):
    """``time`` is in ns since 1970; ``detail`` is a remark of the user's; ``fields`` is what programs read again."""

    state: str
    time: int
    detail: str
    fields: dict[str, str]


class StateLog:
    """The ledgers of a store. Writing is for who holds the writer's lock."""

    def __init__(self, backend: Backend, aead: Aead, sync: bool) -> None:
        self._backend, self._aead, self._sync = backend, aead, sync

    def record(self, image_id: str, state: str, detail: str = "", **fields: str) -> None:
        """Add an entry. Raises OSError."""
        entry: StateEntry = {"state": state, "time": time.time_ns(), "detail": detail, "fields": fields}
        entries = [*self.entries(image_id), entry][-MOST:]
        content = self._aead.encrypt(self._name(image_id), msgpack.packb(entries, unicode_errors="surrogateescape"))
        self._backend.write(f"states/{image_id}.log", content, self._sync)

    def entries(self, image_id: str) -> list[StateEntry]:
        """What happened, oldest first; empty if the log is lost or damaged."""
        try:
            content = self._aead.decrypt(self._name(image_id), self._backend.read(f"states/{image_id}.log"))
            entries = msgpack.unpackb(content, unicode_errors="surrogateescape")
            if isinstance(entries, list) and all(map(_is_entry, entries)):
                return entries
        except (OSError, ValueError, TypeError, msgpack.UnpackException):
            pass
        return []

    def state(self, image_id: str) -> str:
        """The newest state; ``captured`` if nothing happened. A check hides nothing of what else happened."""
        states = [str(entry["state"]) for entry in self.entries(image_id)]
        return next((state for state in reversed(states) if state != "verified"), "verified" if states else "captured")

    def changed(self) -> tuple[int, bool]:
        """``Backend.changed`` of the folder of the ledgers."""
        try:
            return self._backend.changed("states")
        except OSError:
            return 0, True

    def ids(self) -> list[str]:
        """The versions that something happened to."""
        try:
            return [name[:-4] for name in self._backend.names("states") if _NAME.fullmatch(name)]
        except OSError:
            return []

    def forget(self, image_id: str) -> None:
        """The version is gone."""
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
