# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened to each version after it was captured: verified, staged, armed, resumed, failed. Used by ``store``.

A version never changes; its ledger does. It is one small sealed file for each version that something happened to, replaced
as a whole. A lost or damaged ledger says that the version was captured, which is true.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgpack

from fuse_store.crypto import Sealer
from fuse_store.durable import write_file

STATES = ("captured", "verified", "staged", "armed", "resumed", "failed")
MOST = 1000  # entries of a version; the oldest go first
_NAME = re.compile(r"[0-9a-f]{32}\.log")


class Ledger:
    """The ledgers of a store. Writing is for who holds the writer's lock."""

    def __init__(self, root: Path, sealer: Sealer, sync: bool) -> None:
        self._folder, self._sealer, self._sync = root / "states", sealer, sync

    def record(self, image_id: str, state: str, detail: str = "") -> None:
        """Add an entry. Raises OSError."""
        entries = [*self.entries(image_id), {"state": state, "time": time.time_ns(), "detail": detail}][-MOST:]
        content = self._sealer.seal(self._name(image_id), msgpack.packb(entries))
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_file(self._folder / f"{image_id}.log", content, self._sync)

    def entries(self, image_id: str) -> list[dict[str, Any]]:
        """What happened, oldest first: state, time (ns since 1970), detail."""
        try:
            content = self._sealer.open(self._name(image_id), (self._folder / f"{image_id}.log").read_bytes())
            entries = msgpack.unpackb(content)
            if isinstance(entries, list) and all(entry["state"] in STATES for entry in entries):
                return entries
        except (OSError, ValueError, TypeError, KeyError, msgpack.UnpackException):
            pass
        return []

    def state(self, image_id: str) -> str:
        """The newest state; ``captured`` if nothing happened. A check hides nothing of what else happened."""
        states = [str(entry["state"]) for entry in self.entries(image_id)]
        return next((state for state in reversed(states) if state != "verified"), "verified" if states else "captured")

    def changed(self) -> int:
        """A number that is another one when an entry has been added (the folder's time, ns)."""
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0

    def ids(self) -> list[str]:
        """The versions that something happened to."""
        try:
            return [path.name[:-4] for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        except OSError:
            return []

    def forget(self, image_id: str) -> None:
        """The version is gone."""
        (self._folder / f"{image_id}.log").unlink(missing_ok=True)

    def _name(self, image_id: str) -> bytes:
        return b"state" + bytes.fromhex(image_id)
