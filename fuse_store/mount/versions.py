# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of a store by machine, application, kind and id.

Always current: the files that a writer changes are checked with two ``stat`` calls at each use, and the index is built
again when they have changed. A VersionIndex never changes once it is built; threads may share everything here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

from fuse_store.repository.manifest import Summary
from fuse_store.store import Store

READ_WHOLE = frozenset({"verified", "staged", "armed", "resumed"})  # states that are reached only after every byte was verified
NAME_MAX = 255  # bytes of a file name (include/uapi/linux/limits.h)


def verified(summary: Summary) -> bool:
    """Whether every byte of the version was verified, and no problem was recorded since."""
    return summary.state in READ_WHOLE


class VersionIndex:
    """The versions of a store at one moment."""

    def __init__(self, summaries: Sequence[Summary], changed: int) -> None:
        """``summaries`` by machine, application and time; ``changed``: when the store changed last, ns since 1970."""
        self.changed = changed
        self.machines: dict[str, dict[str, dict[str, Summary]]] = {}
        for summary in summaries:
            applications = self.machines.setdefault(summary.machine, {})
            applications.setdefault(summary.application, {}).setdefault(summary.version, summary)
        self._summaries = summaries

    @cached_property
    def ids(self) -> dict[str, Summary]:
        return {summary.id: summary for summary in self._summaries}

    @cached_property
    def kinds(self) -> dict[str, dict[str, Summary]]:
        """By kind, then by ``MACHINE-APPLICATION-VERSION``, cut to NAME_MAX bytes."""
        kinds: dict[str, dict[str, Summary]] = {}
        for summary in self._summaries:
            version = f"-{summary.version}"
            owner = f"{summary.machine}-{summary.application}".encode()[: NAME_MAX - len(version)].decode(errors="ignore")
            kinds.setdefault(summary.kind, {}).setdefault(owner + version, summary)
        return kinds

    @cached_property
    def links(self) -> dict[tuple[str, str], dict[str, Summary]]:
        """By machine and application, the targets of ``latest`` and ``latest-verified``, as far as they exist."""
        links: dict[tuple[str, str], dict[str, Summary]] = {}
        for summary in self._summaries:
            own = links.setdefault((summary.machine, summary.application), {})
            own["latest"] = summary
            if verified(summary):
                own["latest-verified"] = summary
        return links


class VersionIndexCache:
    """The current VersionIndex of a store, built again when the store has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._index = VersionIndex((), 0)

    def current(self) -> VersionIndex:
        """Raises StoreError, OSError."""
        if self._stamp()[0] == self._seen:
            return self._index
        with self._lock:
            stamp, reliable = self._stamp()
            if stamp != self._seen:
                self._index = VersionIndex(self._store.summaries(), max(stamp))
                self._seen = stamp if reliable else ()
            return self._index

    def _stamp(self) -> tuple[tuple[int, int], bool]:
        """(times of the last changes to images and states, whether a later change is sure to get another time)."""
        images, images_reliable = self._store.backend.changed("images")
        states, states_reliable = self._store.state_log.changed()
        return (images, states), images_reliable and states_reliable
