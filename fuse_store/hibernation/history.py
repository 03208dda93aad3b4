# SPDX-License-Identifier: GPL-3.0-or-later
"""Resume history: from state logs, the device that an image was last staged on, and whether it may have been resumed.

The state of a machine may be resumed once: a second resume repeats what the first one did to disks, networks and keys. The
state log says ``armed`` before the signature on the device does. So an image counts as resumed from then on, until an entry
says that the attempt failed or that the device was disarmed, and that for each device on which it was armed. What a lost log
said is not known, and does not count as "never". Reads the store; safe from any thread.

Fields of an entry that this package writes: ``device`` (stable path; ``staged``, ``armed``, ``failed``, ``resumed``), ``action``
(``disarmed``; ``staged``), ``checksum`` (``right``; ``verified``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fuse_store.errors import NotFound, Refused, StoreError
from fuse_store.hibernation.swap_device import stable_name
from fuse_store.image.kind import RIGHT, row_of
from fuse_store.repository.manifest import Summary
from fuse_store.repository.state_log import ON_A_DEVICE, StateEntry, Usage
from fuse_store.store import Store

NEVER_STAGED = ("captured", "verified")  # states of versions whose logs need not be read


def staged_on(store: Store, device: str) -> str:
    """The id of the version that was last staged on a device, given by its stable path. Raises NotFound."""
    image_id = max(_staged(store, device), default=(0, ""))[1]
    if not image_id:
        raise NotFound(f"device {device}", "no version of this store was staged on it.", "Name the version with --image.")
    return image_id


def newest_on(store: Store, device: str) -> int:
    """When a version was last staged on a device, ns since 1970; 0 if none was. The next entry has to be later, whatever the clock."""
    return max(_staged(store, device), default=(0, ""))[0]


def _staged(store: Store, device: str) -> Iterator[tuple[int, str]]:
    """(when, id of a version that exists) of each entry of a device."""
    for content in {version.content for version in store.versions.each() if version.state not in NEVER_STAGED}:
        for entry in store.state_log.read(content).entries:
            on_it = entry["state"] in ON_A_DEVICE and entry["fields"].get("device") == device
            if on_it and store.versions.exists(entry["image"]):
                yield entry["time"], entry["image"]


def resume_history(usage: Usage) -> str:
    """When and how an image was or may have been resumed, for messages; empty if it was not."""
    texts = [f"resumed (recorded {_time_of(usage.resumed)})"] if usage.resumed and not usage.armed else []
    texts += [
        f"armed {_time_of(entry)} on {device or 'an unknown device'} and may have been resumed since"
        for device, entry in usage.armed.items()
    ]
    return "; ".join(texts)


def doubt(store: Store, version: Summary) -> str:
    """Why the history of a version is not known, for messages; empty if it is: its log is whole, also for every other version
    with the same content, and no report is missing since one was lost."""
    log = store.state_log.read(version.content)
    problem = log.problem_of(version.id)
    if not problem and not log.usage.known:
        problem = "was lost before, and nothing was reported since"
    if not problem:
        lost = [other.id for other in _with_content(store, version.content) if log.problem_of(other.id)]
        problem = f"does not know version {lost[0][:12]}, which has the same content" if lost else ""
    return problem


def _with_content(store: Store, content: bytes) -> list[Summary]:
    """The versions with a content, of all machines."""
    return [version for versions in store.versions.by_machine() for version in versions if version.content == content]


def report(store: Store, version: Summary, result: str, detail: str = "", device: str = "") -> None:
    """Record how it went: ``resumed`` or ``failed``, on the device where the version was armed. Raises Refused if it was not armed,
    or on several devices and none is named, NotFound, Locked, StoreError."""
    name = f"image {version.id[:12]}"
    if not row_of(version.recognised).bootable:
        raise Refused(name, "no hibernation image was recognised in it, so none was resumed.", "Name the version that was armed.")
    told = store.state_log.read(version.content).usage
    armed = [*told.armed]
    doubtful = bool(doubt(store, version))
    if device:
        armed = [known for known in armed if known in (device, _name_of(device))] or ([device] if doubtful else [])
        if not armed:
            raise Refused(name, f"not armed on {device}.", "Run 'fuse-store show' to see where it was armed.")
    elif not armed and not told.ever_armed and not doubtful:
        raise Refused(name, "was never armed.", "Run 'fuse-store arm DEVICE' first. Nothing was recorded.")
    elif len(armed) > 1:
        raise Refused(name, f"armed on {' and '.join(armed)}.", "Name the device with --device.")
    with store.writing():
        for other in _with_content(store, version.content):
            store.state_log.mend(other.content, other.id, usable=True)
    fields = {"device": armed[0]} if armed else {}
    store.record([version.id], result, detail, after=newest_on(store, armed[0]) if armed else 0, **fields)


def _name_of(device: str) -> str:
    """The stable path of a device, by which it is recorded; as it is if there is no such device."""
    path = Path(device)
    try:
        return stable_name(path) if path.is_block_device() else os.path.realpath(path)
    except (OSError, StoreError):
        return device


def checksum_was_right(entries: Sequence[StateEntry]) -> bool:
    """Whether ``verify`` has compared the kernel's own checksum of the version and found it right."""
    return any(entry["state"] == "verified" and entry["fields"].get("checksum") == RIGHT for entry in entries)


def _time_of(entry: StateEntry) -> str:
    return f"{datetime.fromtimestamp(entry['time'] / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
