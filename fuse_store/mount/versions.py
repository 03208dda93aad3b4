# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of a store by machine, application, kind and id, as the mount shows them.

Always current, and read when they are asked for: what is at the top needs no manifest, and the versions of one machine are
read together and kept, as long as two ``stat`` calls find them unchanged. A MachineVersions never changes once it is built;
threads may share everything here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from fuse_store.repository.manifest import Summary, image_directory, machine_tag
from fuse_store.store import Store
from fuse_store.versions import LINKS

NAME_MAX = 255  # bytes of a file name (include/uapi/linux/limits.h)
MAX_MACHINES = 16  # whose versions are kept

_Stamp = tuple[int, int]


def name_in_kinds(summary: Summary) -> str:
    """``MACHINE-APPLICATION-VERSION``, cut to NAME_MAX bytes; the name of the machine is never cut."""
    version = f"-{summary.version}"
    owner = f"{summary.machine}-{summary.application}".encode()[: NAME_MAX - len(version)].decode(errors="ignore")
    return owner + version


class MachineVersions:
    """The versions of one machine at one moment: ``applications`` by application and name; ``links`` by application, the
    targets of ``latest`` and ``latest-verified``, as far as they exist."""

    def __init__(self, summaries: Sequence[Summary]) -> None:
        """``summaries`` by application and order."""
        self.applications: dict[str, dict[str, Summary]] = {}
        self.links: dict[str, dict[str, Summary]] = {}
        for summary in summaries:
            self.applications.setdefault(summary.application, {}).setdefault(summary.version, summary)
            links = self.links.setdefault(summary.application, {})
            links.update((name, summary) for name, matches in LINKS.items() if matches(summary))

    def __iter__(self) -> Iterator[Summary]:
        for versions in self.applications.values():
            yield from versions.values()


class VersionIndex:
    """The current versions of a store. Every method may raise StoreError, OSError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._machines: OrderedDict[str, tuple[_Stamp, MachineVersions]] = OrderedDict()
        self._kinds: dict[str, tuple[int, frozenset[str]]] = {}  # by directory of manifests: its stamp, and the kinds in it

    @property
    def changed(self) -> int:
        """When a machine was added last, in ns since 1970."""
        return max(0, self._store.backend.changed("machines")[0])

    # by machine ------------------------------------------------------------------------------------------------------

    def machines(self) -> list[str]:
        return self._store.versions.machines()

    def has(self, machine: str) -> bool:
        return self._store.versions.has_machine(machine)

    def applications(self, machine: str) -> list[str]:
        """None, if there is no such machine."""
        try:
            return list(self.machine(machine).applications) if self.has(machine) else []
        except KeyError:
            return []

    def machine(self, name: str) -> MachineVersions:
        """Raises KeyError if the machine has no versions."""
        stamp, reliable = self._stamp(name)
        with self._lock:
            seen = self._machines.get(name)
            if seen is not None and seen[0] == stamp:
                self._machines.move_to_end(name)
                return seen[1]
        versions = MachineVersions(list(self._store.versions.each(name)))
        with self._lock:
            self._machines.pop(name, None)
            if reliable and versions.applications:
                self._machines[name] = stamp, versions
            while len(self._machines) > MAX_MACHINES:
                self._machines.popitem(last=False)
        if not versions.applications:
            raise KeyError(name)
        return versions

    def _stamp(self, machine: str) -> tuple[_Stamp, bool]:
        """(times of the last changes to the machine's manifests and to the state logs, whether a later change is sure to get
        another time)."""
        images, images_reliable = self._store.backend.changed(image_directory(machine_tag(machine, self._store.aead)))
        states, states_reliable = self._store.state_log.changed()
        return (images, states), images_reliable and states_reliable

    # by id -----------------------------------------------------------------------------------------------------------

    def ids(self) -> Iterator[str]:
        return self._store.versions.ids()

    def version(self, image_id: str) -> Summary:
        """Raises KeyError for what is no whole id, NotFound, Damaged."""
        if len(image_id) != 32 or "/" in image_id:
            raise KeyError(image_id)
        return self._store.find(image_id)

    # by kind ---------------------------------------------------------------------------------------------------------

    def kinds(self) -> list[str]:
        """The kinds of which there are versions. Only directories that have changed are looked into."""
        there = {}
        for tag in self._store.versions.directories():
            stamp, reliable = self._store.backend.changed(image_directory(tag))
            seen = self._kinds.get(tag)
            if seen is None or seen[0] != stamp:
                kinds = frozenset(version.kind for version in self._store.versions.listed(tag).summaries)
                seen = (stamp if reliable else -1, kinds)
            there[tag] = seen
        self._kinds = there
        return sorted(frozenset().union(*(kinds for _stamp, kinds in there.values())))

    def of_kind(self, kind: str) -> Iterator[str]:
        """The names of the versions of a kind."""
        for versions in self._store.versions.by_machine():
            yield from dict.fromkeys(name_in_kinds(version) for version in versions if version.kind == kind)

    def by_name_in_kinds(self, kind: str, name: str) -> Summary:
        """Raises KeyError."""
        for machine in self.machines():
            if not name.startswith(f"{machine}-"):
                continue
            for versions in self._store.versions.by_machine(machine, states=True):
                for version in versions:
                    if version.kind == kind and name_in_kinds(version) == name:
                        return version
        raise KeyError(name)
