# SPDX-License-Identifier: GPL-3.0-or-later
"""What the state log tells of a version's use: where it was staged, and whether it may have been resumed. Used by ``arm``,
``preflight`` and ``cli``.

A state of a machine is good for one resume: a second one repeats what the first did to disks, networks and keys. That a
version was armed stands in the state log before its signature does on the device; so whoever finds it there, and no word that
the attempt failed or that it was disarmed, has to take it for resumed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fuse_store.errors import NotFound
from fuse_store.store import Store

DISARMED = "disarmed"
ENTRY = "{device}; {what}"

Entries = list[dict[str, Any]]


def staged_on(store: Store, device: str) -> str:
    """The id of the version that was staged last on a device, by its stable name. Raises NotFound."""
    newest: tuple[int, str] | None = None
    existing = set(store.ids())
    for image_id in store.state_log.ids():
        for entry in store.state_log.entries(image_id) if image_id in existing else ():
            if entry["state"] in ("staged", "armed") and entry["detail"].partition(";")[0] == device:
                newest = max(newest or (0, ""), (int(entry["time"]), image_id))
    if newest is None:
        raise NotFound(f"device {device}", "nothing was staged on it out of this store.", "Name the version with --image.")
    return newest[1]


def used(entries: Entries) -> str:
    """When and how a version was used, for people; empty if it was not."""
    text = ""
    pending: dict[str, Any] | None = None
    for entry in entries:
        if entry["state"] == "armed":
            pending = entry
        elif entry["state"] == "resumed":
            text, pending = f"it was resumed (recorded {_when(entry)})", None
        elif entry["state"] == "failed" or (entry["state"] == "staged" and entry["detail"].endswith(DISARMED)):
            pending = None
    if pending:
        return f"it was armed {_when(pending)} on {pending['detail'].partition(';')[0]}, and may have been resumed since"
    return text


def checksum_was_right(entries: Entries) -> bool:
    """Whether ``verify`` has compared the kernel's own checksum of the version."""
    return any(entry["state"] == "verified" and RIGHT in entry["detail"] for entry in entries)


RIGHT = "kernel's checksum: right"


def _when(entry: dict[str, Any]) -> str:
    return f"{datetime.fromtimestamp(entry['time'] / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
