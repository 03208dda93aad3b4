# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of a store: list and find them. Everything is read from the manifests and state logs; a cache beside the
index saves reading them all each time. Threads may share a Versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgpack

from fuse_store.errors import Damaged, NotFound, StoreError, UsageError
from fuse_store.repository.aead import Aead
from fuse_store.repository.atomic import write_file
from fuse_store.repository.backends import Backend
from fuse_store.repository.manifest import Summary, read_head, summary
from fuse_store.repository.state_log import StateLog

CACHE_NAME = "summaries"  # below index/ in the local directory
MIN_STALE = 16  # manifests that are read anew each time before the cache is written again; at most 1/64 of all
_REFERENCE = re.compile(r"[0-9a-f]{1,32}\Z")
_MANIFEST = re.compile(r"[0-9a-f]{32}\.img")
_TAKEN, _BASES = (list(Summary.__dataclass_fields__).index(name) for name in ("taken", "bases"))


class Versions:
    """Those of one store."""

    def __init__(self, backend: Backend, aead: Aead, state_log: StateLog) -> None:
        self._backend, self._aead, self._state_log = backend, aead, state_log

    def ids(self) -> list[str]:
        """The id of every version, in no order. Raises StoreError."""
        try:
            return [name[:-4] for name in self._backend.names("images") if _MANIFEST.fullmatch(name)]
        except OSError as error:
            raise StoreError(f"store {self._backend.url}", f"{error.strerror} ({error.filename}).") from None

    def summaries(self) -> list[Summary]:
        """Every version, by machine, application and time. Damaged manifests are left out; ``verify`` names them."""
        known, states_at, states = self._cached()
        changed, reliable = self._state_log.changed()
        if changed != states_at:
            states = {image_id: self._state_log.state(image_id) for image_id in self._state_log.ids()}
        there: dict[str, Summary] = {}
        fresh = 0
        for image_id in self.ids():
            if image_id not in known:
                try:
                    known[image_id] = summary(image_id, read_head(self._backend, image_id, self._aead)[0])
                except (NotFound, Damaged):
                    continue
                fresh += 1
            there[image_id] = known[image_id]
        stale = fresh + len(known) - len(there) + (changed != states_at)
        if stale > max(MIN_STALE, len(there) // 64) or (changed != states_at and len(states) > MIN_STALE):
            self._cache(there, changed if reliable else -1, states)
        every = (replace(version, state=states[version.id]) if version.id in states else version for version in there.values())
        return sorted(every, key=lambda version: (version.machine, version.application, version.taken, version.id))

    def of(self, machine: str, application: str) -> list[Summary]:
        """The versions of one machine and application, oldest first."""
        return _of(machine, application, self.summaries())

    def find(self, reference: str, versions: Sequence[Summary] | None = None) -> Summary:
        """The version that ``reference`` means: an id or the start of one, M/A/latest, M/A@TIME. ``versions``: those of
        ``summaries``, if they are known. Raises NotFound, UsageError."""
        versions = self.summaries() if versions is None else versions
        matching = _by_name(reference, versions) if "/" in reference else _by_id(reference, versions)
        if not matching:
            raise NotFound(f"image {reference}", "no such image.", "Run 'fuse-store list' to see what is stored.")
        return matching[-1]

    # the cache -------------------------------------------------------------------------------------------------------

    def forget_cache(self) -> None:
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._backend.local_dir / "index" / CACHE_NAME

    def _cached(self) -> tuple[dict[str, Summary], int, dict[str, str]]:
        """(summaries by id, the time of the state logs, states by id)."""
        try:
            content = self._aead.decrypt(b"summaries", self._path.read_bytes())
            rows, states_at, states = msgpack.unpackb(content)
            cached = {}
            for row in rows:
                row[_TAKEN], row[_BASES] = datetime.fromtimestamp(row[_TAKEN] / 1e6, UTC), tuple(row[_BASES])
                cached[row[0]] = Summary(*row)
            return cached, int(states_at), dict(states)
        except (OSError, ValueError, TypeError, IndexError, msgpack.UnpackException):
            return {}, 0, {}

    def _cache(self, versions: Mapping[str, Summary], states_at: int, states: Mapping[str, str]) -> None:
        rows = []
        for version in versions.values():
            values = list(vars(version).values())
            values[_TAKEN] = int(version.taken.timestamp() * 1e6)
            rows.append(values)
        try:
            content = self._aead.encrypt(b"summaries", msgpack.packb([rows, states_at, dict(states)]))
            write_file(self._path, content, sync=False)
        except OSError:
            pass  # a store that is read-only or full lists more slowly


def _of(machine: str, application: str, versions: Sequence[Summary]) -> list[Summary]:
    return [version for version in versions if (version.machine, version.application) == (machine, application)]


def _by_name(reference: str, versions: Sequence[Summary]) -> list[Summary]:
    machine, _slash, rest = reference.partition("/")
    application, at, when = rest.partition("@")
    if at:
        return [
            version for version in _of(machine, application, versions)
            if version.taken.isoformat().startswith(when) or version.version.startswith(when)
        ]  # fmt: skip
    application, _slash, name = rest.rpartition("/")
    return [version for version in _of(machine, application, versions) if name in ("latest", version.version)]


def _by_id(reference: str, versions: Sequence[Summary]) -> list[Summary]:
    matching = [version for version in versions if _REFERENCE.match(reference) and version.id.startswith(reference)]
    if len(matching) > 1:
        ids = ", ".join(version.id[:12] for version in matching[:4])
        raise UsageError(f"image {reference}", f"matches {len(matching)} ids: {ids}.", "Give more digits.")
    return matching
