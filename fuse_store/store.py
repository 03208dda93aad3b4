# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: create, open, put, list, find, remove. The one thing that ``cli`` and the mount talk to.

Reading needs no lock and may go on in threads, beside one writer in any process. What changes the store takes the
writer's lock; a version appears when its manifest is renamed into place, and is gone when it is renamed away.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError, WrongKey
from fuse_store.policy import names
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.aead import DIGEST, Aead, default_key_file, new_key, read_key, write_key
from fuse_store.repository.atomic import fault_point, write_file
from fuse_store.repository.backends import Backend, Lock, backend
from fuse_store.repository.manifest import PAGE_SIZES, Head, ImageFile, Summary, image_name, read_head, summary
from fuse_store.repository.state_log import StateLog

FORMAT = 1
COMPRESSIONS = ("zstd", "lz4", "none")  # blocks.CODECS, which is not imported for a list of versions
LEVELS, LEVEL = (*range(-7, 0), *range(1, 20)), -2  # of zstd, and the one that is taken unless told otherwise
DURABILITY = ("full", "batch", "none")
CACHE = "summaries"
UNCACHED = 16  # manifests that are read anew each time, before the cache is written again; at most 1/64 of all
REFERENCE = re.compile(r"[0-9a-f]{1,32}\Z")


@dataclass(frozen=True)
class Config:
    """What ``store.json`` says. ``check`` tells a wrong key; ``root`` is there only if the store is not encrypted."""

    format: int
    id: str
    page_size: int
    compression: str
    level: int
    encryption: str
    durability: str
    check: str
    root: str = ""

    def is_possible(self) -> bool:
        """Whether the choices are such that ``create`` offers."""
        return (
            self.page_size in PAGE_SIZES and self.compression in COMPRESSIONS and self.durability in DURABILITY
            and self.encryption in ("aes-256-gcm", "none") and self.level in LEVELS
        )  # fmt: skip


class Store:
    """An open store; a context manager. Get one by ``create`` or ``open``."""

    def __init__(self, backend: Backend, config: Config, aead: Aead) -> None:
        self.backend, self.config, self.aead = backend, config, aead
        self.backend.bind(config.id)
        self.url, self.path = backend.url, backend.local_dir
        self.sync = config.durability == "full" and backend.needs_fsync  # every file, before what depends on it
        self.state_log = StateLog(backend, aead, self.sync)
        self._blocks: Any = None  # made when a block is first needed: lists need neither numpy nor threads

    @classmethod
    def create(
        cls, path: str | Path, *, encryption: bool = True, key_file: str | Path | None = None, compression: str = "zstd",
        level: int = LEVEL, page_size: int = 4096, durability: str = "full",
    ) -> Store:  # fmt: skip
        """A new store in a folder, or below a URL, that is empty or not there. Raises Refused, UsageError, StoreError."""
        place = backend(path)
        for what, value, choice in (
            ("page size", page_size, PAGE_SIZES), ("compression", compression, COMPRESSIONS), ("durability", durability, DURABILITY),
        ):  # fmt: skip
            if value not in choice:
                raise UsageError(f"{what} {value}", "there is no such.", f"There are {', '.join(map(str, choice))}.")
        if level not in LEVELS:
            raise UsageError(f"level {level}", "there is no such.", "zstd has -7 to -1, which are faster, and 1 to 19.")
        store_id = os.urandom(DIGEST)
        root = new_key()
        aead = Aead(store_id, root, encryption)
        key_path = Path(key_file) if key_file else default_key_file(store_id)
        config = Config(
            FORMAT, store_id.hex(), page_size, compression, level, "aes-256-gcm" if encryption else "none", durability,
            aead.check.hex(), "" if encryption else root.hex(),
        )  # fmt: skip
        try:
            if not place.is_free():
                raise Refused(f"store {path}", "something is there already.", "Name a folder that is empty or not there.")
            if encryption:
                write_key(key_path, store_id, root)
            try:
                place.prepare()
                place.write("store.json", (json.dumps(asdict(config), indent=1) + "\n").encode(), sync=True)
            except (OSError, StoreError):
                if encryption:
                    key_path.unlink()
                raise
        except OSError as error:
            raise StoreError(f"store {path}", f"{error.strerror} ({error.filename}).") from None
        return cls(place, config, aead)

    @classmethod
    def open(cls, path: str | Path, *, key_file: str | Path | None = None) -> Store:
        """Raises NotFound, Refused (no key), WrongKey, Damaged."""
        place = backend(path)
        try:
            values = json.loads(place.read("store.json").decode())
            if values["format"] != FORMAT:
                raise Refused(f"store {path}", "its format is not known to this program.", "Use a newer fuse-store.")
            config = Config(**values)
            store_id, check, root = (bytes.fromhex(text) for text in (config.id, config.check, config.root))
            if not config.is_possible():
                raise ValueError("it has impossible values")
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"store {path}", "there is no store.", f"fuse-store --store {path} init makes one.") from None
        except OSError as error:
            raise StoreError(f"store {path}", f"{error.strerror}.") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Damaged(f"store {path}", f"store.json cannot be read ({error}).", "Restore it from a copy.") from None
        if config.encryption != "none":
            named = key_file or os.environ.get("FUSE_STORE_KEY_FILE")
            root = read_key(Path(named) if named else default_key_file(store_id), store_id)
        elif Path(key_file or default_key_file(store_id)).exists():
            raise Refused(
                f"store {path}", "there is a key for it, and its store.json says that it is not encrypted.",
                "Somebody may have changed store.json: restore it from a copy.",
            )  # fmt: skip
        aead = Aead(store_id, root, config.encryption != "none")
        if aead.check != check:
            raise WrongKey(f"store {path}", "the key is not the one it was made with.", "Name the right one with --key-file.")
        return cls(place, config, aead)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._blocks is not None:
            self._blocks.close()
            self._index.close()
        self.backend.close()

    # what is there -------------------------------------------------------------------------------------------------

    def summaries(self) -> list[Summary]:
        """Every version, by machine, application and time. Damaged manifests are left out; ``verify`` names them."""
        known, states_at, states = self._cached()
        changed, settled = self.state_log.changed()
        if changed != states_at:
            states = {image_id: self.state_log.state(image_id) for image_id in self.state_log.ids()}
        found: dict[str, Summary] = {}
        fresh = 0
        for image_id in self.ids():
            if image_id not in known:
                try:
                    known[image_id] = summary(image_id, read_head(self.backend, image_id, self.aead)[0])
                except (NotFound, Damaged):
                    continue
                fresh += 1
            found[image_id] = known[image_id]
        stale = fresh + len(known) - len(found) + (changed != states_at)
        if stale > max(UNCACHED, len(found) // 64) or (changed != states_at and len(states) > UNCACHED):
            self._cache(found, changed if settled else -1, states)
        every = (replace(one, state=states[one.id]) if one.id in states else one for one in found.values())
        return sorted(every, key=lambda one: (one.machine, one.application, one.taken, one.id))

    def find(self, reference: str) -> Summary:
        """The version that ``reference`` means: an id or the start of one, M/A/latest, M/A@TIME. Raises NotFound, UsageError."""
        every = self.summaries()
        machine, slash, rest = reference.partition("/")
        if slash:
            application, at, when = rest.partition("@")
            name = "latest"
            if not at:
                application, _slash, name = rest.rpartition("/")
            own = [one for one in every if (one.machine, one.application) == (machine, application)]
            if at:
                own = [one for one in own if one.taken.isoformat().startswith(when) or one.version.startswith(when)]
            elif name != "latest":
                own = [one for one in own if one.version == name]
        else:
            own = [one for one in every if REFERENCE.match(reference) and one.id.startswith(reference)]
            if len(own) > 1:
                ids = ", ".join(one.id[:12] for one in own[:4])
                raise UsageError(f"image {reference}", f"{len(own)} ids begin like this: {ids}.", "Give more of it.")
        if not own:
            raise NotFound(f"image {reference}", "there is none like this.", "fuse-store list shows what there is.")
        return own[-1]

    def open_image(self, image_id: str) -> Any:
        """The Image with that id. Raises NotFound, Damaged."""
        from fuse_store.image.reader import Image

        self.backend.refresh("index")  # it may name what another writer has just stored
        return Image(self.backend, image_id, self.aead, self.blocks)

    @property
    def blocks(self) -> Any:
        """The BlockCache of this store."""
        if self._blocks is None:
            from fuse_store.image.reader import BlockCache
            from fuse_store.repository.index import Index
            from fuse_store.repository.pack import PackReader

            self._index, self._reader = Index(self.backend, self.aead), PackReader(self.backend, self.aead)
            self._blocks = BlockCache(self._index, self._reader, self.backend.readers)
        return self._blocks

    @property
    def index(self) -> Any:
        """The Index of this store."""
        _ = self.blocks
        return self._index

    @property
    def reader(self) -> Any:
        """The PackReader of this store."""
        _ = self.blocks
        return self._reader

    # what changes it -----------------------------------------------------------------------------------------------

    def put(
        self, source: str, *, machine: str, application: str = "system", kind: str = "file", event: str = "",
        tags: Mapping[str, str] | None = None, bases: Sequence[str] | None = None, replace: bool = False,
        progress: Progress = SILENT,
    ) -> Summary:  # fmt: skip
        """Store what ``source`` names as a new version. ``bases`` are references, by default the newest version of the same
        machine and application; ``replace`` removes that one once the new one is there. Raises StoreError."""
        from fuse_store.image.inputs import open_source
        from fuse_store.image.writer import Capture
        from fuse_store.repository.manifest import write_manifest
        from fuse_store.repository.pack import PackWriter

        machine, application = names.checked("the machine", machine), names.checked("the application", application)
        event, kind = names.checked("the event", event, empty=True), names.checked_kind(kind)
        own_tags = names.checked_tags(tags or {})
        _kind, files = open_source(source)
        with self.writing() as lock:
            taken = time.time_ns()
            earlier = [one for one in self.summaries() if (one.machine, one.application) == (machine, application)]
            base = [self.find(one) for one in bases] if bases is not None else earlier[-1:]
            packs = dict.fromkeys(pack for one in base for pack in self._packs(one.id))
            writer = PackWriter(self.backend, self.aead, self.sync)
            chunks = None
            if kind == "hibernation" and len(files) == 1:
                from fuse_store.hibernation.lzo_chunks.encode import open_chunks

                config, offset = self.config, own_tags.get("resume_offset", "0")
                chunks = open_chunks(files[0], offset, config.page_size, self.aead.digest, config.compression, config.level)
            try:
                capture = Capture(
                    self.index, self.reader, writer, self.aead, page_size=self.config.page_size,
                    codec=self.config.compression, level=self.config.level, sync=self.sync, bases=packs,
                )  # fmt: skip
                captured = capture.run(files, progress, chunks)
                self.index.compact(self.sync, lambda: self.settle(lock))
                stored = [ImageFile(file.name, file.size or 0, offset, file.mode, file.mtime) for file, offset in captured.files]
                head = Head(
                    machine, application, kind, event, own_tags, taken, sum(file.size for file in stored), captured.allocated,
                    captured.new, writer.written, self.config.page_size, tuple(one.id for one in base), tuple(stored),
                    tuple(captured.segments), captured.chunks,
                )  # fmt: skip
                fault_point("commit")
                image_id = write_manifest(
                    self.backend, head, captured.encrypted, self.aead, self.config.durability != "none", lambda: self.settle(lock)
                )
            except OSError as error:
                raise StoreError(f"store {self.url}", f"{error.strerror}.", "No version was made, none was lost.") from None
            finally:
                writer.abandon()
                if chunks is not None:
                    chunks.close()
            if replace and earlier:
                self._remove([earlier[-1].id], lock)
        return summary(image_id, head)

    def settle(self, lock: Lock) -> None:
        """Before something depends on what was written, or something goes: make it durable, if files are not synced one by
        one, and make sure that the lock is still ours. Raises Locked, OSError."""
        if self.config.durability == "batch":
            self.backend.sync_all()
        lock.check()

    def record(self, ids: Sequence[str], state: str, detail: str = "") -> None:
        """Note in the state log what happened to versions: ``verified`` and so on. Raises Locked, StoreError."""
        with self.writing():
            try:
                for image_id in ids:
                    self.state_log.record(image_id, state, detail)
            except OSError as error:
                raise StoreError(f"store {self.url}", f"{error.strerror}.", "The state was not recorded.") from None

    def _packs(self, image_id: str) -> list[bytes]:
        """The packs of a base; none if it can't be read: then nothing is found in it, and all is stored anew."""
        try:
            return list(self.open_image(image_id).packs())
        except (NotFound, Damaged):
            return []

    def remove(self, ids: Sequence[str]) -> None:
        """Remove versions. Their manifests go to the trash; ``upkeep.collect`` frees the room. Raises Locked, NotFound."""
        with self.writing() as lock:
            self._remove(ids, lock)

    def _remove(self, ids: Sequence[str], lock: Lock) -> None:
        for image_id in ids:
            fault_point("remove")
            try:
                lock.check()
            except Locked as lost:
                raise Locked(lost.thing, lost.cause, f"Image {image_id} was not removed. Run it again.") from None
            try:
                self.backend.to_trash(image_name(image_id))
            except FileNotFoundError:
                raise NotFound(f"image {image_id}", "it is not in the store.", "fuse-store list shows what is.") from None
            fault_point("removed")
            self.state_log.forget(image_id)
        if self.config.durability != "none":
            self.backend.sync("images")

    def writing(self) -> Any:
        """A context manager: the writer's lock. What writers that were killed left behind is swept away first."""
        return _Writing(self)

    def ids(self) -> list[str]:
        try:
            return [name[:-4] for name in self.backend.names("images") if re.fullmatch(r"[0-9a-f]{32}\.img", name)]
        except OSError as error:
            raise StoreError(f"store {self.url}", f"{error.strerror} ({error.filename}).") from None

    # the cache of summaries: everything in it can be read from the manifests ------------------------------------------

    @property
    def _summaries(self) -> Path:
        return self.path / "index" / CACHE

    def forget_summaries(self) -> None:
        self._summaries.unlink(missing_ok=True)

    def _cached(self) -> tuple[dict[str, Summary], int, dict[str, str]]:
        """(summaries by id, the time of the state log, states by id)."""
        from datetime import UTC, datetime

        try:
            content = self.aead.decrypt(b"summaries", self._summaries.read_bytes())
            rows, states_at, states = msgpack.unpackb(content)
            found = {}
            for row in rows:
                row[6], row[12] = datetime.fromtimestamp(row[6] / 1e6, UTC), tuple(row[12])
                found[row[0]] = Summary(*row)
            return found, int(states_at), dict(states)
        except (OSError, ValueError, TypeError, IndexError, msgpack.UnpackException):
            return {}, 0, {}

    def _cache(self, found: Mapping[str, Summary], states_at: int, states: Mapping[str, str]) -> None:
        rows = []
        for one in found.values():
            values = list(vars(one).values())
            values[6] = int(one.taken.timestamp() * 1e6)
            rows.append(values)
        try:
            content = self.aead.encrypt(b"summaries", msgpack.packb([rows, states_at, dict(states)]))
            write_file(self._summaries, content, sync=False)
        except OSError:
            pass  # a store that is read-only or full lists more slowly


class _Writing:
    """The writer's lock around a change."""

    def __init__(self, store: Store) -> None:
        self._lock = store.backend.lock()
        self._store = store

    def __enter__(self) -> Lock:
        try:
            self._store.backend.prepare()  # a copy of the store may have lost those that were empty
            lock = self._lock.__enter__()
        except OSError as error:
            raise StoreError(f"store {self._store.url}", f"{error.strerror}.", "Nothing was changed.") from None
        self._store.backend.remove_partials()
        return lock

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, trace)
        if isinstance(error, OSError):
            raise StoreError(f"store {self._store.url}", f"{error.strerror}.", "What was in it is still there.") from None

