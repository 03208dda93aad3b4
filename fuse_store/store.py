# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: create, open, put, list, find, remove. What the command line, the mount and Python programs talk to.

Reading needs no lock and may go on in threads, beside one writer in any process. Methods that change the store take the
writer lock; a version appears when its manifest is renamed into place, and is gone when that is renamed away.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError, WrongKey, failed
from fuse_store.image import kind as kinds
from fuse_store.paths import checked_path, is_inside
from fuse_store.policy import names
from fuse_store.progress import SILENT, Progress
from fuse_store.repository import config as configuration
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.backends import Backend, Lock, backend
from fuse_store.repository.config import COMPRESSIONS, DURABILITY, LEVEL, LEVELS, Config
from fuse_store.repository.keys import known_stores
from fuse_store.repository.keys.keyfile import default_key_file, new_key, read_key, write_key
from fuse_store.repository.keys.known_stores import Known
from fuse_store.repository.manifest import (
    PAGE_SIZES,
    Head,
    ImageFile,
    Summary,
    image_directory,
    image_name,
    machine_tag_of,
    no_such_image,
    pack_head,
    read_head,
    summary,
    write_manifest,
)
from fuse_store.repository.state_log import ON_A_DEVICE, StateLog, on_devices
from fuse_store.versions import Unreadable, Versions

if TYPE_CHECKING:
    from fuse_store.image.block_cache import BlockCache
    from fuse_store.image.inputs import Input, InputFile
    from fuse_store.image.put.image_writer import WrittenImage
    from fuse_store.image.reader import Image
    from fuse_store.repository.index import Index
    from fuse_store.repository.pack import PackReader


@dataclass(frozen=True)
class Label:
    """What a new version is called. Raises UsageError for a name that cannot be."""

    machine: str
    application: str = "system"
    kind: str = "file"
    event: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {
            "machine": names.checked("the machine", self.machine),
            "application": names.checked("the application", self.application),
            "kind": names.checked_kind(self.kind),
            "event": names.checked("the event", self.event, empty=True),
            "tags": names.checked_tags(self.tags),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        return f"{self.machine}/{self.application}"


def _ignore(_text: str) -> None:
    pass


def _give_up(_locked: Locked, _waited: float) -> bool:
    return False


class Store:
    """An open store; a context manager. Get one by ``create`` or ``open``. ``url`` names it for people; ``path`` is the local
    directory: the store itself, or what is kept here of one in S3. ``wait`` is called when another process holds the writer lock,
    with the error and the seconds since the first attempt: it waits, and returns whether to try again."""

    wait: Callable[[Locked, float], bool] = staticmethod(_give_up)

    def __init__(self, backend: Backend, config: Config, aead: Aead) -> None:
        self.backend, self.config, self.aead = backend, config, aead
        self.backend.bind(config.id)
        self.url, self.path = backend.url, backend.local_dir
        self.sync = config.durability == "full" and backend.needs_fsync  # every file, before what depends on it
        self.state_log = StateLog(backend, aead, config.durability != "none" and backend.needs_fsync)
        self.versions = Versions(backend, aead, self.state_log)

    @classmethod
    def create(
        cls, path: str | Path, *, encryption: bool = True, key_file: str | Path | None = None, compression: str = "zstd",
        level: int = LEVEL, page_size: int = 4096, durability: str = "full", unencrypted: bool = False,
    ) -> Store:  # fmt: skip
        """A new store in a new or empty directory or S3 prefix. ``unencrypted``: as for ``open``; a store without encryption need not be
        remembered then. Raises Refused, UsageError, StoreError."""
        place = backend(path)
        for what, value, choice in (
            ("page size", page_size, PAGE_SIZES), ("compression", compression, COMPRESSIONS), ("durability", durability, DURABILITY),
        ):  # fmt: skip
            if value not in choice:
                raise UsageError(f"{what} {value}", "not possible.", f"Choose one of {', '.join(map(str, choice))}.")
        if level not in LEVELS:
            raise UsageError(f"level {level}", "not possible.", "Choose -7 to -1, which are faster, or 1 to 19.")
        store_id, root = os.urandom(DIGEST), new_key()
        aead = Aead(store_id, root, encryption)
        config = Config(
            configuration.FORMAT, store_id.hex(), page_size, compression, level, "aes-256-gcm" if encryption else "none",
            durability, aead.check.hex(), "" if encryption else root.hex(),
        ).signed(aead.config_mac)  # fmt: skip
        try:
            if "://" not in str(path) and os.path.lexists(path) and not os.path.isdir(path):
                raise Refused(f"store {path}", "not a directory.", "Name a directory that is empty or does not exist.")
            if not place.is_free():
                raise Refused(f"store {path}", "not empty.", "Name a directory that is empty or does not exist.")
            key_path = _new_key_file(path, key_file, store_id) if encryption else None
            if key_path is not None:
                write_key(key_path, store_id, root, config.to_line())
            try:
                if not encryption and not unencrypted:
                    with _memory_needed(place.url):
                        known_stores.check_writable()
                place.prepare()
                place.probe(durability != "none")
                place.write(configuration.NAME, config.to_json(), sync=durability != "none", create=True)
            except (OSError, StoreError):
                if key_path is not None:
                    key_path.unlink()
                raise
            _remember(place.url, config)  # not before: another process may have been faster
        except FileExistsError:
            raise Refused(f"store {path}", "another process created a store there.", "Name another place.") from None
        except OSError as error:
            raise failed(f"store {path}", error, what=str(error.filename)) from None
        return cls(place, config, aead)

    @classmethod
    def open(cls, path: str | Path, *, key_file: str | Path | None = None, unencrypted: bool = False) -> Store:
        """``unencrypted``: the store is meant to have no encryption; also said by FUSE_STORE_UNENCRYPTED=1. Without it, such a store is
        opened only where this user created it. Raises NotFound, Refused (no key; not the store that was here before), WrongKey,
        Damaged."""
        place = backend(path)
        config = _read_config(place, str(path))
        store_id, check, root = (bytes.fromhex(text) for text in (config.id, config.check, config.root))
        named = os.environ.get("FUSE_STORE_KEY_FILE") if key_file is None else checked_path("key file", key_file)
        unencrypted = unencrypted or os.environ.get("FUSE_STORE_UNENCRYPTED") == "1"
        known_stores.admit(place.url, Known(config.id, config.encrypted), told=bool(named) if config.encrypted else unencrypted)
        if config.encrypted:
            root = read_key(Path(named) if named else default_key_file(store_id), store_id, _owners(place))
        elif _has_key(key_file, store_id):
            raise Refused(
                f"store {path}", "has a key file, but its store.json says that it is not encrypted.",
                "Restore store.json from the key file: it may have been tampered with.",
            )  # fmt: skip
        aead = Aead(store_id, root, config.encrypted)
        if aead.check != check:
            raise WrongKey(f"store {path}", "wrong key.", "Name the key file of this store with --key-file.")
        if config.signed(aead.config_mac) != config:
            raise Damaged(f"store {path}", "store.json was changed.", "Restore it from the key file, or from a copy.")
        if config.encrypted:
            _remember(place.url, config)
        return cls(place, config, aead)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if "blocks" in self.__dict__:  # it was needed
            self.blocks.close()
        if "index" in self.__dict__:
            self.index.close()
        self.backend.close()

    # what is there ---------------------------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        """The id of every version, in no order. Raises StoreError."""
        return list(self.versions.ids())

    def summaries(self) -> list[Summary]:
        """Every version, by machine, application and order. Damaged manifests are left out; ``verify`` names them. All at once:
        ``versions.each`` needs the memory of one machine."""
        return list(self.versions.each())

    def find(self, reference: str, unreadable: Unreadable | None = None) -> Summary:
        """The version that ``reference`` means; see ``Versions.find``. Raises NotFound, UsageError, and Damaged if it may be one whose
        manifest cannot be read."""
        return self.versions.find(reference, unreadable)

    def open_image(self, image_id: str) -> Image:
        """The version with that id, to read. Raises NotFound, Damaged."""
        from fuse_store.image.reader import Image

        self.backend.refresh("index")  # it may name what another writer has just stored
        return Image(self.backend, image_id, self.aead, self.blocks)

    # Made when a block is first needed: lists need neither numpy nor threads.

    @cached_property
    def index(self) -> Index:
        from fuse_store.repository.index import Index

        return Index(self.backend, self.aead)

    @cached_property
    def reader(self) -> PackReader:
        from fuse_store.repository.pack import PackReader

        return PackReader(self.backend, self.aead)

    @cached_property
    def blocks(self) -> BlockCache:
        from fuse_store.image.block_cache import BlockCache

        return BlockCache(self.index, self.reader, self.backend.readers)

    # what changes it -------------------------------------------------------------------------------------------------

    def put(
        self, source: str | Input, label: Label, *, bases: Sequence[str] | None = None, replace: bool = False,
        machine_disks: Sequence[Path] = (), taken: int | None = None, progress: Progress = SILENT,
        warn: Callable[[str], None] = _ignore, done: Callable[[str], None] = _ignore,
    ) -> Summary:  # fmt: skip
        """Store what ``source`` names as a new version, or an input, which the caller closes. ``bases`` are references, by
        default the newest version of the same machine and application; ``replace`` removes that one once the new one is there.
        ``machine_disks``: see ``image.kind.Kind.recognise``. ``taken``: nanoseconds since 1970, by default now. ``warn`` is
        told if there is no image of the label's kind, and what is not certain of the source; ``done`` what has been changed so far, for
        one who interrupts it. Raises StoreError."""
        from fuse_store.image.inputs import open_input

        disks = [checked_path("machine disk", disk) for disk in machine_disks]
        with (
            open_input(source) if isinstance(source, str) else nullcontext(source) as opened,
            kinds.load(label.kind).recognise(opened.files, label.tags, disks) as recognised,
        ):
            if replace and not (opened.complete or recognised.confirms):
                raise _incomplete()
            if recognised.problem:
                warn(f"no {label.kind} image found in {opened.name}: {recognised.problem}")
            with self.writing() as lock:
                unreadable: dict[str, Damaged] = {}
                of_machine = self.versions.of(label.machine, unreadable=unreadable)
                earlier = [version for version in of_machine if version.application == label.application][-1:]
                base_ids = [version.id for version in (map(self.find, bases) if bases is not None else earlier)]
                number = max((version.number for version in of_machine), default=0) + 1
                head = _new_head(label, recognised, number, self.config.page_size, base_ids, taken)
                pack_head(_with_files(head, opened, opened.placed(head.page_size)), label.name)  # before everything is read
                written, stored = self._write(opened, recognised, base_ids, progress, lock, read_all=replace)
                for text in opened.warnings:
                    warn(text)
                head = dataclasses.replace(
                    _with_files(head, opened, written.files), allocated=written.allocated, new=written.new, stored=stored,
                    segments=tuple(written.segments), computed=written.computed, content=written.content,
                )  # fmt: skip
                head = self._read_draft(head, written.encrypted, opened, recognised, label, replace=replace)
                try:
                    image_id = self._commit(head, written.encrypted, lock, done)
                except StoreError:
                    done("")
                    raise
                told = f"Version {image_id} was stored."
                done(told)
                if taken is None:
                    self._warn_of_clock(earlier, head.taken, warn)
                if replace:
                    done(f"{told} The one before it may still be there.")
                    self._replace(earlier, unreadable, lock, warn)
                    done(told)
                return self.versions.with_state(summary(image_id, head))

    def _replace(
        self, earlier: Sequence[Summary], unreadable: Unreadable, lock: Lock, warn: Callable[[str], None]
    ) -> None:
        """Remove the version before the new one, unless a manifest that cannot be read may be that version, or it is on a device."""
        if unreadable:
            warn(
                f"no version was replaced: the newest one may be one whose manifest cannot be read ({', '.join(sorted(unreadable)[:3])}). "
                "Restore it from a copy of the store, or give it up with 'fuse-store remove --damaged ID'."
            )
            return
        staged = self.staged(version.content for version in earlier)
        for version in earlier:
            if version.id in staged:
                warn(f"version {version.id[:12]} was not replaced: it is {staged[version.id]} on a device.")
            else:
                self._remove([version.id], lock)

    def _warn_of_clock(self, earlier: Sequence[Summary], taken: int, warn: Callable[[str], None]) -> None:
        before = earlier[0] if earlier else None
        if before is not None and before.taken.timestamp() > taken / 1e9:
            warn(
                f"the clock: version {before.id[:12]}, stored before this one, was taken at {before.taken:%Y-%m-%d %H:%M:%S} UTC, which "
                "is in the future. The new version counts as the newer one. Check the clock of this machine."
            )

    def _write(
        self, source: Input, recognised: kinds.Recognised, bases: Sequence[str], progress: Progress, lock: Lock,
        *, read_all: bool,
    ) -> tuple[WrittenImage, int]:  # fmt: skip
        """Have everything but the manifest in the store; (what the manifest says of it, bytes written). ``read_all``: read every
        block that is shared with a base."""
        from fuse_store.image.put.image_writer import ImageWriter
        from fuse_store.image.put.page_table import Bases
        from fuse_store.repository.pack import PackWriter

        config = self.config
        settings = kinds.Settings(config.page_size, config.compression, config.level, self.aead.digest, self.aead.page_digests)
        stored_as = recognised.store_as(source.files[0], settings) if len(source.files) == 1 else None
        packs = PackWriter(self.backend, self.aead, self.sync)
        with self._no_version_on_error(), Bases(self.reader, config.page_size, self.backend.readers, read_all=read_all) as known:
            for image_id in bases:
                with suppress(NotFound, Damaged):  # what cannot be read of it is stored again
                    known.add(self.open_image(image_id))
            try:
                writer = ImageWriter(self.index, self.reader, packs, self.aead, settings, self.sync, known)
                written = writer.run(source, progress, stored_as)
                self.index.compact(self.sync, lambda: self.before_commit(lock))
            finally:
                packs.abandon()
        return written, packs.written

    def _read_draft(
        self, head: Head, segments: Sequence[bytes], source: Input, recognised: kinds.Recognised, label: Label, *, replace: bool
    ) -> Head:
        """Read what was written, before there is a manifest: the head with what that tells. Raises Refused if it is not whole."""
        from fuse_store.image.block_cache import BlockCache
        from fuse_store.image.reader import Image

        with closing(BlockCache(self.index, self.reader, self.backend.readers)) as blocks:  # later readers read what is on the disk
            draft = Image.of_written(head, segments, self.aead, blocks)
            whole = recognised.confirms and recognised.confirm(draft)
            if replace and not (source.complete or whole):  # a pipe ends in the same way whether it was all or not
                raise _incomplete()
            return dataclasses.replace(head, tags=source.tags_with(_tags(label, recognised)), recognised=_recognised(draft))

    def _commit(self, head: Head, segments: Sequence[bytes], lock: Lock, done: Callable[[str], None]) -> str:
        """Make the version exist, and read its manifest back as a reader would. ``done`` is told when it may. Raises StoreError: no version
        exists then."""
        from fuse_store.repository.extents import by_offset, check_segment

        written = by_offset(segments)
        for segment in head.segments:
            check_segment(head, segment, written[segment.offset], self.aead)
        fault_point("commit")

        def before(image_id: str) -> None:
            lock.check()
            self.state_log.begin(head.content, image_id, usable=_is_bootable(head), sync=self.sync)
            self.before_commit(lock)
            done(f"Version {image_id} may have been created: run 'fuse-store list'.")

        with self._no_version_on_error():
            self.versions.name_machine(head.machine, self.sync)
            sync = self.config.durability != "none"
            image_id = write_manifest(self.backend, head, segments, self.aead, sync, before)
        try:
            self._read_back(image_id)
        except (Damaged, NotFound) as error:
            lock.check()
            with self._no_version_on_error(), suppress(FileNotFoundError):
                self.backend.to_trash(image_name(image_id))
                self.backend.remove_empty(image_directory(machine_tag_of(image_id)))
            raise Damaged(
                f"image {image_id}", f"cannot be read back: {error}",
                "No version was created, none was removed. Run 'fuse-store verify', and check the disk and the memory of this machine.",
                image=image_id,
            ) from None  # fmt: skip
        return image_id

    def _read_back(self, image_id: str) -> None:
        """Read the whole manifest, and find every block that it names. Raises Damaged, NotFound."""
        for digests, located, _first_pages in self.open_image(image_id).blocks():
            missing = int((located.pack < 0).sum())
            if missing:
                raise Damaged(f"image {image_id}", f"{missing} of {len(digests) // DIGEST} blocks are in no pack.", image=image_id)

    @contextmanager
    def _no_version_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _failed(self.url, error, "No version was created, none was lost.") from None

    def before_commit(self, lock: Lock) -> None:
        """Before something depends on what was written, or something is removed: make it durable, if files are not synced one
        by one, and make sure that the lock is still held. Raises Locked, OSError."""
        if self.config.durability == "batch":
            self.backend.sync_all()
        lock.check()

    def record(self, ids: Sequence[str], state: str, detail: str = "", *, after: int = 0, **fields: str) -> None:
        """Note in the state logs what happened to versions: ``verified`` and so on. Raises Locked, NotFound, Damaged, StoreError."""
        with self.writing():
            try:
                for image_id in ids:
                    head, _start = read_head(self.backend, image_id, self.aead)
                    self.state_log.record(
                        head.content, image_id, state, detail, usable=_is_bootable(head), after=after, **fields
                    )
            except OSError as error:
                raise _failed(self.url, error, "The state was not recorded.") from None

    def staged(self, contents: Iterable[bytes]) -> dict[str, str]:
        """By id, which versions with these contents are on a device to be resumed: ``staged`` or ``armed``. Another one that was
        staged there since, and a report of how it went, end that."""
        own = on_devices(map(self.state_log.read, set(contents)))
        if not own:
            return {}
        staged = {version.content for version in self.versions.each() if version.state in (*ON_A_DEVICE, "unknown")}
        every = on_devices(map(self.state_log.read, staged))
        return {image_id: state for image_id, state in every.items() if image_id in own}

    def remove(self, ids: Sequence[str], *, force: bool = False) -> None:
        """Remove versions, also those whose manifests cannot be read. Their manifests go to the trash; ``maintenance.gc`` frees the
        space. Raises Locked, NotFound, and Refused for one that is staged or armed, without ``force``."""
        with self.writing() as lock:
            staged = {} if force else self.staged(head.content for head in map(self._head, ids) if head)
            for image_id in ids:
                if image_id in staged:
                    raise Refused(
                        f"image {image_id[:12]}", f"{staged[image_id]} on a device, and how it went was not reported.",
                        "Nothing was removed. Run 'fuse-store report' or 'fuse-store disarm', or use --force.",
                    )  # fmt: skip
            self._remove(ids, lock)

    def _head(self, image_id: str) -> Head | None:
        """None for a version whose manifest cannot be read. Raises NotFound."""
        try:
            return read_head(self.backend, image_id, self.aead)[0]
        except Damaged:
            return None

    def writing(self) -> _Writing:
        """A context manager: the writer lock. Partial files of writers that were killed are removed first."""
        return _Writing(self)

    def _remove(self, ids: Sequence[str], lock: Lock) -> None:
        for image_id in ids:
            fault_point("remove")
            try:
                lock.check()
            except Locked as lost:
                raise Locked(lost.thing, lost.cause, f"Image {image_id} was not removed. Run the command again.") from None
            head = self._head(image_id)
            try:
                self.backend.to_trash(image_name(image_id))
            except FileNotFoundError:
                raise no_such_image(image_id) from None
            fault_point("removed")
            with suppress(OSError):  # gc looks after a log that a full disk left
                if head is not None:
                    self.state_log.forget(head.content, image_id, usable=_is_bootable(head))
        for directory in {image_directory(machine_tag_of(image_id)) for image_id in ids}:
            if self.config.durability != "none":
                self.backend.sync(directory)
            self.backend.remove_empty(directory)


def _new_head(
    label: Label, recognised: kinds.Recognised, number: int, page_size: int, bases: Sequence[str], taken: int | None
) -> Head:
    """The head of a version of which nothing has been read."""
    return Head(
        label.machine, label.application, label.kind, label.event, _tags(label, recognised),
        time.time_ns() if taken is None else taken, number, 0, 0, 0, 0, page_size, tuple(bases), (), (),
    )  # fmt: skip


def _tags(label: Label, recognised: kinds.Recognised) -> dict[str, str]:
    return {**names.recorded_tags(recognised.tags), **label.tags}


def _is_bootable(head: Head) -> bool:
    return kinds.row_of(head.recognised).bootable


def _recognised(image: Image) -> str:
    """The kind of image that is in what was written; what cannot be read is none."""
    try:
        return kinds.recognised(image)
    except Damaged:
        return ""


def _with_files(head: Head, source: Input, placed: Sequence[tuple[InputFile, int]]) -> Head:
    sized = tuple(ImageFile(file.name, file.size or 0, offset, file.mode, file.mtime) for file, offset in placed)
    size = sum(file.size for file in sized)
    return dataclasses.replace(head, files=sized, directories=tuple(source.directories), links=tuple(source.links), size=size)


def _failed(url: str, error: OSError, outcome: str) -> StoreError:
    """The error of a store in which something could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return failed(f"store {url}", error, f"{outcome} 'fuse-store gc --now' works on a full disk." if full else outcome)


def _incomplete() -> Refused:
    """A pipe ends in the same way when its producer has failed."""
    return Refused(
        "--replace", "standard input does not tell whether it is complete, so nothing was replaced.",
        "Run the program that writes it with --command, or give its --size.",
    )  # fmt: skip


def _read_config(place: Backend, path: str) -> Config:
    """``store.json``. Raises NotFound, Refused, Damaged, StoreError."""
    try:
        return configuration.parse(place.read(configuration.NAME), path)
    except (FileNotFoundError, NotADirectoryError):
        if "://" not in path and os.path.lexists(path) and not os.path.isdir(path):
            raise NotFound(f"store {path}", "not a directory.", "Name the directory of a store.") from None
        if any(True for _pack in place.entries("packs")):
            raise Damaged(f"store {path}", "store.json is missing.", "Restore it from the key file, or from a copy.") from None
        raise NotFound(f"store {path}", "no such store.", f"Run 'fuse-store --store {path} init' to create it.") from None
    except OSError as error:
        raise failed(f"store {path}", error) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"store {path}", f"store.json cannot be read ({error}).", "Restore it from the key file, or from a copy.") from None


def _new_key_file(path: str | Path, key_file: str | Path | None, store_id: bytes) -> Path:
    """Where the key of a new store goes. Raises Refused if that is in the store: who reads the one would have the other."""
    key_path = default_key_file(store_id) if key_file is None else checked_path("key file", key_file)
    if "://" not in str(path) and is_inside(key_path, path):
        raise Refused(f"key file {key_path}", "is inside the store.", "Name a place outside of it with --key-file.")
    return key_path


def _has_key(key_file: str | Path | None, store_id: bytes) -> bool:
    try:
        return Path(key_file or default_key_file(store_id)).exists()
    except Refused:
        return False  # a user without a home directory


def _owners(place: Backend) -> tuple[int, ...]:
    """Who may own the key file besides this user and root: the owner of the store, in whose name root may work."""
    try:
        return (os.stat(place.url).st_uid,)
    except OSError:
        return ()  # a bucket


def _remember(url: str, config: Config) -> None:
    """Note that the store is there, if that is possible. An encrypted store can do without; ``create`` has checked it for others."""
    with suppress(OSError, Refused):
        known_stores.remember(url, Known(config.id, config.encrypted))


@contextmanager
def _memory_needed(url: str) -> Iterator[None]:
    """Raises StoreError where a store without encryption could not be remembered, and then not be opened."""
    try:
        yield
    except (OSError, Refused) as error:
        cause = error.strerror if isinstance(error, OSError) else error.cause.rstrip(".")
        raise StoreError(
            f"store {url}", f"cannot be remembered as one without encryption: {cause}.",
            "Set XDG_CONFIG_HOME to a directory that can be written, or add --unencrypted, here and to each command.",
        ) from None  # fmt: skip


class _Writing:
    """The writer lock around a change."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> Lock:
        try:
            self._store.backend.prepare()  # a copy of the store may have lost directories that were empty
            lock = self._locked()
        except OSError as error:
            raise _failed(self._store.url, error, "Nothing was changed.") from None
        self._store.backend.remove_partials()
        self._store.versions.cache.remove_partials()
        if "index" in vars(self._store):
            self._store.index.separate()
        return lock

    def _locked(self) -> Lock:
        began = time.monotonic()
        while True:
            self._lock = self._store.backend.lock()
            try:
                return self._lock.__enter__()
            except Locked as locked:
                if not self._store.wait(locked, time.monotonic() - began):
                    raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, trace)
        if isinstance(error, OSError):
            raise _failed(self._store.url, error, "All versions are still there.") from None
