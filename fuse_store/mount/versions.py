# SPDX-License-Identifier: GPL-3.0-or-later
"""Which versions there are, by machine, application, kind and id. Used by ``tree``; threads may share a Catalogue.

It is always current: the folders that a writer changes are looked at each time, which costs two ``stat``, and the list of
versions is made anew when they have changed. A Versions, once given out, stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

from fuse_store.repository.manifest import Summary
from fuse_store.store import Store

READ_WHOLE = frozenset({"verified", "staged", "armed", "resumed"})  # to get there, every byte was read and verified
LONGEST_NAME = 255  # bytes, NAME_MAX


def verified(summary: Summary) -> bool:
    """Whether every byte of the version was found sound once, and nothing else since."""
    return summary.state in READ_WHOLE


class Versions:
    """The versions of a store at one moment."""

    def __init__(self, summaries: Sequence[Summary], changed: int) -> None:
        """``summaries`` by machine, application and time; ``changed``: when the store changed last, ns since 1970."""
        self.changed = changed
        self.machines: dict[str, dict[str, dict[str, Summary]]] = {}
        for one in summaries:
            self.machines.setdefault(one.machine, {}).setdefault(one.application, {}).setdefault(one.version, one)
        self._summaries = summaries

    @cached_property
    def ids(self) -> dict[str, Summary]:
        return {one.id: one for one in self._summaries}

    @cached_property
    def kinds(self) -> dict[str, dict[str, Summary]]:
        """By kind, under names that hold a machine, an application and a version, cut to what a file name may have."""
        found: dict[str, dict[str, Summary]] = {}
        for one in self._summaries:
            version = f"-{one.version}"
            owner = f"{one.machine}-{one.application}".encode()[: LONGEST_NAME - len(version)].decode(errors="ignore")
            found.setdefault(one.kind, {}).setdefault(owner + version, one)
        return found

    @cached_property
    def links(self) -> dict[tuple[str, str], dict[str, Summary]]:
        """By machine and application, what ``latest`` and ``latest-verified`` point to, those that there are."""
        found: dict[tuple[str, str], dict[str, Summary]] = {}
        for one in self._summaries:
            own = found.setdefault((one.machine, one.application), {})
            own["latest"] = one
            if verified(one):
                own["latest-verified"] = one
        return found


class Catalogue:
    """The versions of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._versions = Versions((), 0)

    def current(self) -> Versions:
        """Raises StoreError, OSError."""
        if self._stamp()[0] == self._seen:
            return self._versions
        with self._lock:
            stamp, settled = self._stamp()
            if stamp != self._seen:
                self._versions = Versions(self._store.summaries(), max(stamp))
                self._seen = stamp if settled else ()
            return self._versions

    def _stamp(self) -> tuple[tuple[int, int], bool]:
        """(what is another value when a version has come, gone, or got another state; whether that can be trusted)."""
        (images, settled), (states, states_settled) = self._store.backend.changed("images"), self._store.state_log.changed()
        return (images, states), settled and states_settled
