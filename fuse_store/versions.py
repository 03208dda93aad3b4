# SPDX-License-Identifier: GPL-3.0-or-later
"""The versions of a store: list and find them, a directory of manifests at a time.

``images/`` has a directory for each machine (two may share one, by chance), so the versions of a machine are found without
looking at the others, and lists of everything need the memory of one machine. The names of the machines are in ``machines/``, a
small file each. A cache saves reading the manifests each time (``summaries``). Threads may share a Versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import PurePath

from fuse_store.errors import Damaged, NotFound, UsageError, failed
from fuse_store.policy.names import normal
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.manifest import (
    Summary,
    image_directory,
    machine_digest,
    machine_tag,
    machine_tag_of,
    no_such_image,
    read_head,
    summary,
)
from fuse_store.repository.state_log import StateLog
from fuse_store.summaries import SummaryCache, is_stale
from fuse_store.times import period

MACHINES = "machines"  # the directory of the machines' names
_ID = re.compile(r"[0-9a-f]{32}\Z")
_PREFIX = re.compile(r"[0-9a-f]{1,32}\Z")
_TAG = re.compile(r"[0-9a-f]{4}\Z")
SNAPSHOT = "snapshot"  # tag of a version that was a snapshot in a slot: its id there
GOLDEN = "golden"  # tag of a version that was golden in its slot, with the value yes; it is so again in another
_MIN_SNAPSHOT_DIGITS = 8  # of the start of such an id

Unreadable = MutableMapping[str, Damaged]  # why a manifest cannot be read, by id


@dataclass(frozen=True)
class Listed:
    """The versions of one directory of manifests, without their states, in no order."""

    summaries: list[Summary]
    unreadable: dict[str, Damaged]


def verified(version: Summary) -> bool:
    """Whether every byte of the version was verified, and no problem was recorded since."""
    return version.verified


# Names that mean the newest version of an application that is so; in references and in the mount.
LINKS: Mapping[str, Callable[[Summary], bool]] = {"latest": lambda _version: True, "latest-verified": verified}


class Versions:
    """Those of one store. Every method may raise StoreError."""

    def __init__(self, backend: Backend, aead: Aead, state_log: StateLog) -> None:
        self._backend, self._aead, self._state_log = backend, aead, state_log
        self.cache = SummaryCache(backend.local_dir, aead)
        self._names: dict[str, str] = {}  # of machines, by their file in ``machines/``: they never change

    # what exists -----------------------------------------------------------------------------------------------------

    def directories(self) -> list[str]:
        """The directories of manifests, sorted: machine tags."""
        try:
            return sorted(name for name in self._backend.directories("images") if _TAG.match(name))
        except OSError as error:
            raise failed(f"store {self._backend.url}", error, what=str(error.filename)) from None

    def ids(self) -> Iterator[str]:
        """The id of every version, a directory after the other. No manifest is read."""
        for tag in self.directories():
            yield from self.ids_in(tag)

    def ids_in(self, tag: str) -> list[str]:
        """The ids of the versions in one directory."""
        try:
            names = self._backend.names(image_directory(tag))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failed(f"store {self._backend.url}", error, what=str(error.filename)) from None
        end = f"{tag}.img"
        return [name[:-4] for name in names if name.endswith(end) and _ID.match(name[:-4])]

    def exists(self, image_id: str) -> bool:
        """Whether there is a version with that id."""
        return image_id in self.ids_in(machine_tag_of(image_id))

    def listed(self, tag: str) -> Listed:
        """The versions in one directory."""
        known = self.cache.read(tag)
        there: list[Summary] = []
        unreadable: dict[str, Damaged] = {}
        fresh = 0
        for image_id in self.ids_in(tag):
            version = known.get(image_id)
            if version is None:
                try:
                    version = summary(image_id, read_head(self._backend, image_id, self._aead)[0])
                except NotFound:  # removed meanwhile
                    continue
                except Damaged as error:
                    unreadable[image_id] = error
                    continue
                fresh += 1
            there.append(version)
        if is_stale(fresh, len(known) + fresh - len(there), len(there)):
            self.cache.keep(tag, there)
        return Listed(there, unreadable)

    # machines --------------------------------------------------------------------------------------------------------

    def machines(self) -> list[str]:
        """The machines that have versions, sorted. Reads manifests only where a machine's name is missing."""
        names, unnamed = self._named()
        for tag in unnamed:
            names += {version.machine for version in self.listed(tag).summaries}
        return sorted(names)

    def name_machine(self, machine: str, sync: bool) -> None:
        """Have the name of a machine in the store, before its first version. Raises OSError."""
        digest = machine_digest(machine, self._aead)
        name = f"{MACHINES}/{digest.hex()}"
        try:
            named = self._name_of(digest.hex(), self._backend.read(name)) == machine
        except FileNotFoundError:
            named = False
        if not named:
            self._backend.write(name, self._aead.encrypt(b"machine" + digest, machine.encode()), sync)

    def has_machine(self, machine: str) -> bool:
        """Whether a machine has versions; in doubt yes, if its name is in the store and it shares its directory."""
        machine = normal(machine)
        tag = machine_tag(machine, self._aead)
        if not self._backend.has_directory(image_directory(tag)):
            return False
        named = self._machine_in(machine_digest(machine, self._aead).hex()) == machine
        return named or any(version.machine == machine for version in self.listed(tag).summaries)

    def name_all(self, sync: bool) -> None:
        """Have the names of all machines in the store whose manifests can be read. Raises OSError."""
        for versions in self.by_machine():
            for machine in {version.machine for version in versions}:
                self.name_machine(machine, sync)

    def forget_names(self) -> None:
        """Remove the names of machines that have no versions any more. For the holder of the writer lock. Raises OSError."""
        for tag in self.directories():
            self._backend.remove_empty(image_directory(tag))  # of a put that was killed
        for record in self._records():
            machine = self._machine_in(record)
            if machine is not None and not self._backend.has_directory(image_directory(machine_tag(machine, self._aead))):
                self._backend.remove(f"{MACHINES}/{record}")

    def _named(self) -> tuple[list[str], list[str]]:
        """(the names of machines that have a directory, the directories in which no machine with a name is)."""
        tags = set(self.directories())
        machines = filter(None, map(self._machine_in, self._records()))
        names = {name: tag for name in machines if (tag := machine_tag(name, self._aead)) in tags}
        return list(names), sorted(tags.difference(names.values()))

    def _machine_in(self, record: str) -> str | None:
        """The name in a file of ``machines/``; None if there is none, or it cannot be read."""
        if record not in self._names:
            for read in (self._cached_record, self._backend.read):
                try:
                    machine = self._name_of(record, read(f"{MACHINES}/{record}"))
                except OSError:
                    return None
                if machine is not None:
                    self._names[record] = machine
                    break
        return self._names.get(record)

    def _cached_record(self, name: str) -> bytes:
        return self._backend.cached(f"{PurePath(name).name}.machine", lambda: self._backend.read(name))

    def _records(self) -> list[str]:
        try:
            return [name for name in self._backend.names(MACHINES) if _ID.match(name)]
        except OSError:
            return []  # the names are in the manifests, too

    def _name_of(self, record: str, content: bytes) -> str | None:
        """The name in a file of ``machines/``; None if it cannot be read."""
        try:
            digest = bytes.fromhex(record)
            machine = self._aead.decrypt(b"machine" + digest, content).decode()
            return machine if len(digest) == DIGEST and machine_digest(machine, self._aead) == digest else None
        except ValueError:
            return None

    # versions --------------------------------------------------------------------------------------------------------

    def each(
        self, machine: str | None = None, application: str | None = None, unreadable: Unreadable | None = None
    ) -> Iterator[Summary]:
        """Versions by machine, application and order, with their states; by default all. ``unreadable`` takes in the versions whose
        manifests cannot be read, of whatever machine they are."""
        for versions in self.by_machine(machine, application, unreadable, states=True):
            yield from versions

    def by_machine(
        self, machine: str | None = None, application: str | None = None, unreadable: Unreadable | None = None, *,
        states: bool = False,
    ) -> Iterator[list[Summary]]:  # fmt: skip
        """The versions of one machine after the other, by application and order; with their ``states`` if wanted."""
        unreadable = {} if unreadable is None else unreadable
        application = application if application is None else normal(application)
        met: set[str] = set()  # machines
        every = self._backend.stamps("states") if states and machine is None else None

        def listed(tag: str) -> list[Summary]:
            there = self.listed(tag)
            unreadable.update(there.unreadable)
            met.update(version.machine for version in there.summaries)
            return there.summaries

        def of(machine: str) -> list[Summary]:
            own = [
                version for version in listed(machine_tag(machine, self._aead))
                if version.machine == machine and application in (None, version.application)
            ]  # fmt: skip
            own.sort(key=lambda version: (version.application, version.order))
            return self._with_states(own, every) if states else own

        if machine is not None:
            yield of(normal(machine))
            return
        names, unnamed = self._named()
        for name in sorted(names):
            yield of(name)
        for tag in unnamed:
            listed(tag)
        for name in sorted(met.difference(names)):  # their names are missing in the store
            yield of(name)

    def of(self, machine: str, application: str | None = None, unreadable: Unreadable | None = None) -> list[Summary]:
        """The versions of one machine (and application), by application and order, without their states."""
        return next(self.by_machine(machine, application, unreadable))

    def find(self, reference: str, unreadable: Unreadable | None = None) -> Summary:
        """The version that ``reference`` means: an id or the start of one, M/A/NAME with a name in the mount, latest or latest-verified,
        M/A@TIME for the newest one of that period. ``unreadable``: see ``each``. Raises NotFound, UsageError, and Damaged if it
        may be one whose manifest cannot be read."""
        reference = normal(reference)
        if "/" not in reference:
            image_id = self.id_of(reference)
            return self.with_state(summary(image_id, read_head(self._backend, image_id, self._aead)[0]))
        damaged: dict[str, Damaged] = {} if unreadable is None else unreadable  # type: ignore[assignment]
        machine = reference.partition("/")[0]
        states = reference.endswith("/latest-verified")
        matching = _by_name(reference, lambda application: next(self.by_machine(machine, application, damaged, states=states)))
        if matching:
            return self.with_state(matching[-1])
        if damaged:
            image_id = next(iter(damaged))
            raise Damaged(
                f"image {reference}", f"not found, but manifest {image_id}.img of this machine cannot be read.",
                "Restore it from a copy of the store.", image=image_id,
            )  # fmt: skip
        raise no_such_image(reference)

    def with_state(self, version: Summary) -> Summary:
        """The version with its newest state."""
        return _in_state(version, *self._state_of(version))

    def _state_of(self, version: Summary) -> tuple[str, bool]:
        log = self._state_log.read(version.content)
        return log.state(version.id), log.verified(version.id)

    def _with_states(self, versions: list[Summary], every: Callable[[str], str] | None) -> list[Summary]:
        """The versions of a machine with their states, from the cache as far as the stamps of the state logs are the same. ``every``
        tells these, if those of all versions are needed."""
        if not versions:
            return []
        logs = [self._state_log.name(version.content) for version in versions]
        stamp = every or self._backend.stamps("states", sorted(set(logs)))
        tag = machine_tag_of(versions[0].id)
        known = self.cache.states(tag)
        result, fresh = [], 0
        for version, log in zip(versions, logs, strict=True):
            now = stamp(log)
            seen = known.get(version.id)
            if seen is None or seen[0] != now or not now:
                fresh += now != ""
                seen = known[version.id] = now, *self._state_of(version)
            result.append(_in_state(version, *seen[1:]))
        if is_stale(fresh, 0, len(versions)):
            there = set(self.ids_in(tag))
            self.cache.keep_states(tag, {image_id: state for image_id, state in known.items() if image_id in there and state[0]})
        return result

    def id_of(self, reference: str, unreadable: Unreadable | None = None) -> str:
        """The id of the version that ``reference`` means. A manifest named by its id need not be readable. Raises as ``find`` does."""
        if "/" in reference:
            return self.find(reference, unreadable).id
        if not _PREFIX.match(reference):
            raise no_such_image(reference)
        if _ID.match(reference) and self.exists(reference):
            return reference
        matching = [image_id for image_id in self.ids() if image_id.startswith(reference)] if not _ID.match(reference) else []
        if not matching:
            return self._of_snapshot(reference)
        if len(matching) > 1:
            ids = ", ".join(image_id[:12] for image_id in sorted(matching)[:4])
            raise UsageError(f"image {reference}", f"matches {len(matching)} ids: {ids}.", "Give more digits.")
        return matching[0]

    def _of_snapshot(self, reference: str) -> str:
        """The id of the newest version that was the snapshot with this id, or the start of it. Raises NotFound, UsageError."""
        found: dict[str, Summary] = {}  # by the id of the snapshot
        for versions in self.by_machine() if len(reference) >= _MIN_SNAPSHOT_DIGITS else ():
            for version in versions:
                snapshot = version.tags.get(SNAPSHOT, "")
                if snapshot.startswith(reference):
                    found[snapshot] = max(found.get(snapshot, version), version, key=lambda one: one.order)
        if len(found) > 1:
            raise UsageError(f"image {reference}", f"matches {len(found)} ids of snapshots.", "Give more digits.")
        for version in found.values():
            return version.id
        raise no_such_image(reference)


def _in_state(version: Summary, state: str, is_verified: bool) -> Summary:
    return replace(version, state=state, verified=is_verified)


def _by_name(reference: str, of: Callable[[str], list[Summary]]) -> list[Summary]:
    """Those that a reference means; ``of`` gives the versions of an application of its machine. Raises UsageError."""
    rest = reference.partition("/")[2]
    application, at, when = rest.partition("@")
    if at:
        named = [version for version in of(application) if version.version == when]
        if named:
            return named
        try:
            start, end = period(when)
        except ValueError as error:
            raise UsageError(f"image {reference}", f"{error}.", "Name a day, an hour or a second after the @.") from None
        return [version for version in of(application) if start <= version.taken < end]
    application, _slash, name = rest.rpartition("/")
    return [version for version in of(application) if (LINKS[name](version) if name in LINKS else version.version == name)]
