# SPDX-License-Identifier: GPL-3.0-or-later
"""State logs: what happened to a content after it was captured (verified, staged, armed, resumed, failed).

A version never changes, its state log does: a small encrypted file, replaced as a whole. It belongs to the *content*, not to the
version: the same bytes stored again, or by another name, have the same log, and what was resumed stays resumed. ``captured`` and
``verified`` are of one version, all other entries of the content.

A log exists from the put on, and has a ``captured`` of every version with its content. So one that is missing, damaged, or without
that entry is not the one that was written: what happened is *unknown*, which is not "nothing". Entries that say how an image was
used are never dropped. Reading is safe in threads; writing is for the holder of the writer lock. Byte map: docs/format.md.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard

import msgpack

if TYPE_CHECKING:  # the command line needs the names of the states alone
    from fuse_store.repository.aead import Aead
    from fuse_store.repository.backends import Backend

STATES = ("captured", "verified", "staged", "armed", "resumed", "failed", "unknown")
OF_ONE_VERSION = ("captured", "verified")
ON_A_DEVICE = ("staged", "armed")
REPORTED = ("resumed", "failed")
MAX_ENTRIES = 1000  # of a log; then entries that a newer one repeats are dropped, but for those of use
DISARMED = "disarmed"  # value of the field ``action`` of an entry ``staged``: the device is not armed any more
STAMPS = "states/changed"  # a directory that changes when any log does
_NAME = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{30})\.log")
MISSING = "is missing"
LOST = "the state log was missing or damaged: what happened before is not known"


class StateEntry(TypedDict):
    """``time``: ns since 1970; ``image``: the id of the version; ``detail``: a remark of the user; ``fields``: values for programs."""

    state: str
    time: int
    image: str
    detail: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Usage:
    """What the entries of a log say about use. ``known``: whether nothing is missing. ``armed``: by device, where the image was
    armed and may have been resumed since; ``resumed``: when it was; ``ever_armed``: whether that was ever recorded."""

    known: bool
    armed: dict[str, StateEntry]
    resumed: StateEntry | None
    ever_armed: bool


def usage(entries: Iterable[StateEntry]) -> Usage:
    """The entries, oldest first, folded. A report names the device, or is of all of them."""
    known, ever_armed, resumed = True, False, None
    armed: dict[str, StateEntry] = {}
    for entry in entries:
        state, device = entry["state"], entry["fields"].get("device", "")
        if state == "unknown":
            known = False
        elif state == "armed":
            armed[device], ever_armed = entry, True
        elif state == "staged" and entry["fields"].get("action") == DISARMED:
            armed.pop(device, None)
        elif state in REPORTED:
            known, resumed = True, entry if state == "resumed" else resumed
            armed = {other: at for other, at in armed.items() if device not in ("", other)}
    return Usage(known, armed, resumed, ever_armed)


def outlives(entries: Iterable[StateEntry]) -> bool:
    """Whether a log is kept when no version has its content: it was used, or that is not known."""
    told = usage(entries)
    return told.ever_armed or told.resumed is not None or not told.known


@dataclass(frozen=True)
class Log:
    """The log of a content. ``problem``: why there are no entries though there should be; empty if it could be read."""

    entries: tuple[StateEntry, ...] = ()
    problem: str = ""

    @cached_property
    def usage(self) -> Usage:
        return usage(self.entries)

    @cached_property
    def versions(self) -> frozenset[str]:
        """The versions that were captured with it."""
        return frozenset(entry["image"] for entry in self.entries if entry["state"] == "captured")

    def problem_of(self, image_id: str) -> str:
        """Why this is not the log that was written at the put of a version; empty if it is."""
        return self.problem or ("" if image_id in self.versions else f"does not know version {image_id[:12]}")

    def state(self, image_id: str) -> str:
        """What last happened, other than verified; else ``verified``; else ``captured``. ``unknown`` if the log is not whole."""
        if self.problem_of(image_id) or not (self.usage.known or self.usage.armed):
            return "unknown"
        newest = next((entry for entry in reversed(self.entries) if entry["state"] not in (*OF_ONE_VERSION, "unknown")), None)
        if newest is None:
            return "verified" if any(self._of(image_id, ("verified",))) else "captured"
        ended = newest["state"] in REPORTED or newest["fields"].get("action") == DISARMED
        return "armed" if ended and self.usage.armed else newest["state"]

    def verified(self, image_id: str) -> bool:
        """Whether every byte of this very version was read, as it is before it is staged, and no failure was reported since."""
        read = any(self._of(image_id, ("verified", *ON_A_DEVICE)))
        return read and self.state(image_id) != "failed"

    def verified_at(self, image_id: str) -> int:
        """When every byte of this very version was last found to be as it was stored, in ns since 1970; 0 if that is not known, or a
        failure was reported since."""
        if self.state(image_id) in ("failed", "unknown"):
            return 0
        return max((entry["time"] for entry in self._of(image_id, ("verified",))), default=0)

    def entries_of(self, image_id: str) -> list[StateEntry]:
        """The entries of a version, oldest first: its own, and those of its content."""
        return [entry for entry in self.entries if entry["image"] == image_id or entry["state"] not in OF_ONE_VERSION]

    def _of(self, image_id: str, states: Sequence[str]) -> Iterator[StateEntry]:
        return (entry for entry in self.entries if entry["image"] == image_id and entry["state"] in states)


def on_devices(logs: Iterable[Log]) -> dict[str, str]:
    """By id, which versions are on a device to be resumed, ``staged`` or ``armed``: no other one was staged there since, and how
    it went was not reported."""
    last: dict[str, tuple[int, str, str]] = {}  # by device: when, version, state
    for log in logs:
        own: dict[str, tuple[int, str, str]] = {}
        for entry in log.entries:
            device = entry["fields"].get("device", "")
            if entry["state"] in ON_A_DEVICE:
                own[device] = entry["time"], entry["image"], entry["state"]
            elif entry["state"] in REPORTED:
                for ended in [device] if device else list(own):
                    own[ended] = entry["time"], "", ""
        for device, mark in own.items():
            last[device] = max(mark, last.get(device, mark))
    on = sorted(last.values(), key=lambda mark: ON_A_DEVICE.index(mark[2]) if mark[2] else 0)
    return {image_id: state for _time, image_id, state in on if state}  # armed, if it is that anywhere


class StateLog:
    """The state logs of a store. ``sync``: make durable what replaces a log."""

    def __init__(self, backend: Backend, aead: Aead, sync: bool) -> None:
        self._backend, self._aead, self._sync = backend, aead, sync

    def read(self, content: bytes) -> Log:
        """The log of a content. Raises StoreError if the server of a store in S3 fails."""
        try:
            packed = self._aead.decrypt(_object(content), self._backend.read(_path(content)))
            entries = msgpack.unpackb(packed, unicode_errors="surrogateescape")
            if isinstance(entries, list) and all(map(_is_entry, entries)):
                return Log(tuple(entries))
            problem = "is damaged"
        except FileNotFoundError:
            problem = MISSING
        except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
            problem = f"cannot be read ({error})"
        return Log(problem=problem)

    def begin(self, content: bytes, image_id: str, *, usable: bool, sync: bool) -> None:
        """Before a version appears: note that it was captured. ``usable``: see ``mend``. ``sync``: of a log that is new."""
        log = self.read(content)
        if log.problem and log.problem != MISSING:
            self.mend(content, image_id, usable=usable)
        elif image_id not in log.versions:
            self._write(content, [*log.entries, _entry("captured", image_id)], sync or (self._sync and bool(log.entries)))

    def record(
        self, content: bytes, image_id: str, state: str, detail: str = "", *, usable: bool, after: int = 0, **fields: str
    ) -> None:
        """Add an entry, later than ``after`` (ns since 1970) whatever the clock says. ``usable``: see ``mend``. Raises OSError."""
        self.mend(content, image_id, usable=usable)
        entries = self.read(content).entries
        newest = max(after, entries[-1]["time"])
        self._write(content, [*entries, _entry(state, image_id, detail, fields, newest)], self._sync)

    def mend(self, content: bytes, image_id: str, *, usable: bool) -> bool:
        """Have a log that is whole for a version. If it was not, it says ``unknown`` from now on, unless the content is not
        ``usable``: what no machine can resume was never used. Whether it was not whole."""
        log = self.read(content)
        if not log.problem_of(image_id):
            return False
        more = [_entry("captured", image_id), *([_entry("unknown", image_id, LOST)] if usable else [])]
        self._write(content, [*log.entries, *more], self._sync)
        return True

    def forget(self, content: bytes, image_id: str, *, usable: bool) -> None:
        """A version was removed. The log stays as long as others have its content, it tells of use, or is not whole."""
        self.mend(content, image_id, usable=usable)
        log = self.read(content)
        left = [entry for entry in log.entries if entry["image"] != image_id or entry["state"] not in OF_ONE_VERSION]
        if log.versions - {image_id} or outlives(left):
            self._write(content, left, self._sync)
        else:
            self.discard(content)

    def discard(self, content: bytes) -> None:
        self._backend.remove(_path(content))

    def name(self, content: bytes) -> str:
        """The name of the log of a content in the store."""
        return _path(content)

    def changed(self) -> tuple[int, bool]:
        """``Backend.changed`` of all state logs, without looking at each."""
        try:
            return self._backend.changed(STAMPS)
        except OSError:
            return 0, True

    def contents(self) -> Iterator[bytes]:
        """The contents with a state log."""
        for entry in self._backend.entries("states"):
            match = _NAME.fullmatch(entry.name.removeprefix("states/"))
            if match:
                yield bytes.fromhex(match[2])

    def _write(self, content: bytes, entries: Sequence[StateEntry], sync: bool) -> None:
        packed = msgpack.packb(_shortened(entries), unicode_errors="surrogateescape")
        self._backend.write(_path(content), self._aead.encrypt(_object(content), packed), sync)
        with suppress(OSError):  # what is recorded is recorded, though readers may notice it later
            self._backend.write(f"{STAMPS}/stamp", os.urandom(16), False)


def _object(content: bytes) -> bytes:
    return b"state" + content


def _path(content: bytes) -> str:
    return f"states/{content.hex()[:2]}/{content.hex()}.log"


def _entry(state: str, image_id: str, detail: str = "", fields: Mapping[str, str] | None = None, after: int = -1) -> StateEntry:
    return {"state": state, "time": max(time.time_ns(), after + 1), "image": image_id, "detail": detail, "fields": dict(fields or {})}


def _shortened(entries: Sequence[StateEntry]) -> list[StateEntry]:
    """At most MAX_ENTRIES, if so many are repeated by newer ones; entries of use are not dropped."""
    spare = len(entries) - MAX_ENTRIES
    if spare <= 0:
        return list(entries)
    seen: set[tuple[Any, ...]] = set()
    repeated: set[int] = set()
    for row in range(len(entries) - 1, -1, -1):
        entry = entries[row]
        key = (entry["state"], entry["image"], *sorted(entry["fields"].items()))
        if key in seen and entry["state"] in (*OF_ONE_VERSION, "staged") and "action" not in entry["fields"]:
            repeated.add(row)
        seen.add(key)
    dropped = set(sorted(repeated)[:spare])
    return [entry for row, entry in enumerate(entries) if row not in dropped]


def _is_entry(entry: Any) -> TypeGuard[StateEntry]:
    """Whether something that was unpacked has the form of an entry."""
    return (
        isinstance(entry, dict)
        and entry.get("state") in STATES
        and isinstance(entry.get("time"), int)
        and isinstance(entry.get("image"), str)
        and isinstance(entry.get("detail"), str)
        and isinstance(fields := entry.get("fields"), dict)
        and all(isinstance(text, str) for pair in fields.items() for text in pair)
    )
