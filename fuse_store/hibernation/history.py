# SPDX-License-Identifier: GPL-3.0-or-later
"""Resume history: from a version's state log, the device it was last staged on, and whether it may have been resumed.

The state of a machine may be resumed once: a second resume repeats what the first one did to disks, networks and keys. The
state log says ``armed`` before the signature on the device does. So a version counts as resumed from then on, until an entry
says that the attempt failed or that the device was disarmed. Pure functions of the log; safe from any thread.

Fields of an entry that this package writes: ``device`` (stable path; ``staged``, ``armed``, ``failed``), ``action``
(``disarmed``; ``staged``), ``checksum`` (``right``; ``verified``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from fuse_store.errors import NotFound
from fuse_store.image.kind import RIGHT
from fuse_store.repository.state_log import StateEntry
from fuse_store.store import Store

DISARMED = "disarmed"  # value of the field ``action``


def staged_on(store: Store, device: str) -> str:
    """The id of the version that was last staged on a device, given by its stable path. Raises NotFound."""
    newest: tuple[int, str] | None = None
    existing = set(store.ids())
    for image_id in existing.intersection(store.state_log.ids()):
        for entry in store.state_log.entries(image_id):
            if entry["state"] in ("staged", "armed") and entry["fields"].get("device") == device:
                newest = max(newest or (0, ""), (entry["time"], image_id))
    if newest is None:
        raise NotFound(f"device {device}", "no version of this store was staged on it.", "Name the version with --image.")
    return newest[1]


def resume_history(entries: Sequence[StateEntry]) -> str:
    """When and how a version was or may have been resumed, for messages; empty if it was not."""
    text = ""
    armed: StateEntry | None = None
    for entry in entries:
        if entry["state"] == "armed":
            armed = entry
        elif entry["state"] == "resumed":
            text, armed = f"resumed (recorded {_time_of(entry)})", None
        elif entry["state"] == "failed" or (entry["state"] == "staged" and entry["fields"].get("action") == DISARMED):
            armed = None
    if armed:
        return f"armed {_time_of(armed)} on {armed['fields'].get('device', 'an unknown device')} and may have been resumed since"
    return text


def checksum_was_right(entries: Sequence[StateEntry]) -> bool:
    """Whether ``verify`` has compared the kernel's own checksum of the version and found it right."""
    return any(entry["state"] == "verified" and entry["fields"].get("checksum") == RIGHT for entry in entries)


def _time_of(entry: StateEntry) -> str:
    return f"{datetime.fromtimestamp(entry['time'] / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
