# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of images: what each can do, and the table of them.

The store, the mount and the command line know a kind only through the classes here. A kind that has structure is a subclass
of ``Kind`` in a module of its own, named in KINDS and loaded when it is first needed; every other kind is stored, shown and
given back as plain bytes. To add one, write the subclass and its line in KINDS. A kind may answer:

- ``recognise``: is it in this input? What it tells about it (tags), and how its bytes are better stored;
- ``neutral``: its first bytes without what may differ though it is the same image;
- ``inspect`` and ``describe``: what is in a device or file, and what a stored version is, for info.json and ``show``;
- ``views``: files that are derived from a version when they are read, for the mount;
- ``checksum``: whether a checksum that the image has of its own is right.

A *transform* (``Transform``) stores bytes in another way and computes them again when they are read. Objects here may be
shared by threads, but for ``Recognised``, which belongs to one put.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fuse_store.errors import NotFound, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fuse_store.columns import I64
    from fuse_store.formats.readable import Readable
    from fuse_store.image.inputs import Batch, InputFile
    from fuse_store.image.reader import Image
    from fuse_store.progress import Progress
    from fuse_store.repository.manifest import Computed, Head
    from fuse_store.repository.state_log import StateEntry


FIRST_BYTES = 64 << 10  # in which a kind is told by its sign
NO_CHECKSUM, RIGHT, WRONG = "none", "right", "wrong"


class View(Protocol):
    """A file that is derived from an image when it is read. Anything but Damaged that ``size`` or ``read`` raises means that
    this image does not have it: the mount leaves it out."""

    @property
    def name(self) -> str:
        """One component of a path; not one that the mount itself has (image, info.json, B3SUMS)."""
        ...

    def size(self) -> int:
        """Bytes, exactly as many as ``read`` gives. Asked once, when the directory is listed; may read some of the image."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, fewer at the end."""
        ...


@dataclass(frozen=True)
class Settings:
    """How the store stores: bytes of a page, codec and level of blocks, the digest of a block, those of pages (16 bytes each)."""

    page_size: int
    codec: str
    level: int
    digest: Callable[[bytes], bytes]
    page_digests: Callable[[Sequence[bytes | memoryview]], bytes]


class StoredAs(Protocol):
    """Another way to store a file: some of its pages are not stored but computed from other pages when they are read.

    ``batches`` gives those other pages; after it has been read to its end, the rest says what is computed from them. What a
    block is computed to has been compared with the file by then.
    """

    @property
    def size(self) -> int:
        """Bytes that ``batches`` will give, for the progress."""
        ...

    def batches(self) -> Generator[Batch, None, None]:
        """Pages with their place in the address space, behind the file. Raises StoreError."""
        ...

    @property
    def computed(self) -> Computed | None:
        """For the manifest; None if nothing is computed after all."""
        ...

    @property
    def rows(self) -> NDArray[np.uint8]:
        """Parameters of the computed blocks, a row each."""
        ...

    @property
    def digests(self) -> bytes:
        """16 bytes for each computed block: the keyed digest of what it is computed to."""
        ...

    def extents(self) -> tuple[I64, I64, I64, I64]:
        """(page, count, row, page in the computed block) of the pages that need not be read, ascending by ``page``."""
        ...

    def page_digests(self) -> tuple[I64, bytes]:
        """(the pages that need not be read, ascending; the digests of what is in them, 16 bytes each)."""
        ...


ReadPages = Callable[[int, int], "NDArray[np.uint8]"]  # (first page, how many) → rows of pages; raises Damaged


class Transform(Protocol):
    """Computes blocks of one open version. Threads may share it."""

    def check(self, rows: NDArray[np.uint8], slots: I64) -> None:
        """Raises ValueError if these rows of parameters cannot be, or a block has not as many pages as its entry of ``slots``
        (the highest page that an extent names, plus one)."""
        ...

    def order(self, rows: NDArray[np.uint8]) -> I64:
        """A number for each row: blocks are computed quickest in this order."""
        ...

    def compute(self, row: NDArray[np.uint8], read_pages: ReadPages) -> bytes:
        """The bytes of one block, in whole pages; the caller compares their digest. Raises Damaged, StoreError."""
        ...

    def explain(self, row: NDArray[np.uint8], content: bytes) -> tuple[str, str, str]:
        """(thing, cause, remedy) for a block whose bytes are not those that were stored."""
        ...

    def chunk(self, row: NDArray[np.uint8], read_pages: ReadPages) -> tuple[int, Callable[[], NDArray[np.uint8]]] | None:
        """``formats.readable.CompressedChunks.chunk_at`` for a computed block; None if it is no such chunk."""
        ...


class Recognised:
    """An image of a kind that was found in an input. A context manager; this one has found nothing."""

    tags: Mapping[str, str] = {}
    problem: str = ""  # why nothing was found, for people
    confirms: bool = False  # whether ``confirm`` can tell

    def store_as(self, file: InputFile, settings: Settings) -> StoredAs | None:
        """How ``file`` is better stored; None: as it is. Raises StoreError."""
        return None

    def confirm(self, image: Image) -> bool:
        """Look at an image that came through a pipe, before it becomes a version: whether it says itself that it is whole. ``tags`` are
        complete afterwards. Raises Refused if it says that a part is missing."""
        return False

    def close(self) -> None:
        pass

    def __enter__(self) -> Recognised:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Kind:
    """A kind of image; this class is one without structure. ``private``: ``get`` writes its files for their owner only.
    ``bootable``: a machine can be booted from one that was recognised, so ``prune`` keeps the newest. ``module`` has a subclass
    ``Implementation``; it is loaded for what has ``sign``, a pattern, in its first bytes."""

    name: str
    private: bool = False
    bootable: bool = False
    module: str = ""
    sign: bytes = b""

    def recognise(self, files: Sequence[InputFile], tags: Mapping[str, str], machine_disks: Sequence[Path]) -> Recognised:
        """Look for an image of this kind in an input. ``tags`` are those that the user gave. ``machine_disks`` are disks of the
        machine it belongs to, whose state is recorded. Raises UsageError, StoreError if the disks mean nothing or cannot be read."""
        if machine_disks:
            raise UsageError("--machine-disk", f"not possible for kind {self.name}.", "Use it with --kind hibernation.")
        return Recognised()

    def neutral(self, first: bytes) -> bytes:
        """The first bytes of a file, FIRST_BYTES at most, without what may differ though it is the same state of a machine: two
        files that differ in nothing else have one content, and so one state log. As many bytes, zero pages as they are."""
        return first

    def inspect(self, readable: Readable, resume_offset: int, check: bool, progress: Progress) -> dict[str, Any]:
        """What is in a device, file or version, as JSON, by its first bytes; key ``format`` names the format, ``crc`` says whether
        a checksum of its own is right. ``check`` reads all of it. ``resume_offset`` is in pages, 0 where it has no meaning.
        Raises NotFound if there is no image of this kind, Refused or Damaged for one that cannot be read."""
        raise NotFound("image", "unknown format.", "Name a device or file with an image of a kind that is recognised.")

    def describe(self, image: Image) -> dict[str, Any] | None:
        """A stored version as JSON; never changes. None if it is not of this kind, or cannot be read."""
        return None

    def shown(self, description: dict[str, Any], entries: Sequence[StateEntry], *, brief: bool) -> dict[str, Any]:
        """``describe`` with what the state log adds, for ``show``; ``brief``: for info.json."""
        return description

    def checksum(self, image: Image, progress: Progress) -> str:
        """The checksum that the image has of its own, after all of it was read: ``none``, ``right`` or ``wrong``. Raises
        Damaged if the image contradicts itself."""
        return NO_CHECKSUM

    def is_in(self, image: Image) -> bool:
        """Whether there is a whole image of this kind in the bytes of a version. Raises Damaged, StoreError if they cannot be read."""
        return False

    def views(self, image: Image) -> Sequence[View]:
        """Files for the mount, beside the image."""
        return ()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("hibernation", private=True, bootable=True, module="fuse_store.hibernation.kind", sign=rb"S1SUSPEND|SWAP-?SPACE"),
        Kind("memory", private=True),
        Kind("disk"),
        Kind("process", private=True),
        Kind("vm", private=True),
        Kind(  # ELF, of type ET_CORE in either byte order
            "core", private=True, module="fuse_store.kinds.core",
            sign=rb"\A\x7fELF[\x01\x02](?:\x01[\s\S]{10}\x04\x00|\x02[\s\S]{10}\x00\x04)",
        ),
        Kind("language"),
        Kind("iso"),
        Kind("file"),
    )
}  # fmt: skip


def row_of(name: str) -> Kind:
    """The row of KINDS, without loading its module. A kind that this program does not know has no structure."""
    return KINDS.get(name) or Kind(name)


@lru_cache
def load(name: str) -> Kind:
    """The kind with all that it can do."""
    row = row_of(name)
    if not row.module:
        return row
    implementation: type[Kind] = importlib.import_module(row.module).Implementation
    return implementation(**vars(row))


def recognised(image: Image) -> str:
    """The first kind of which there is a whole image in the bytes of a version, whatever it was called; empty if none is."""
    first = image.read(0, FIRST_BYTES)
    named = (row for row in KINDS.values() if row.module and (row.name == image.head.kind or re.search(row.sign, first)))
    return next((row.name for row in named if load(row.name).is_in(image)), "")


def neutral(first: bytes) -> bytes:
    """``Kind.neutral`` of every kind whose sign is in the first bytes of a file, whatever the version is called."""
    for row in KINDS.values():
        if row.module and re.search(row.sign, first):
            first = load(row.name).neutral(first)
    return first


def inspect(readable: Readable, resume_offset: int, check: bool, progress: Progress) -> dict[str, Any]:
    """``Kind.inspect`` of the first kind that recognises what is there. Raises NotFound with the cause from one whose sign is there, or the
    first one."""
    first, missing = readable.read(0, FIRST_BYTES), None
    for row in KINDS.values():
        if row.module:
            try:
                return load(row.name).inspect(readable, resume_offset, check, progress)
            except NotFound as error:
                missing = error if missing is None or re.search(row.sign, first) else missing
    raise missing or NotFound("image", "unknown format.", "Name a device or file with an image of a kind that is recognised.")


def by_kind(name: str, description: dict[str, Any] | None) -> dict[str, dict[str, Any] | None]:
    """A description under its kind's name, for JSON; None under the names of the other kinds that have one."""
    described: dict[str, dict[str, Any] | None] = {row.name: None for row in KINDS.values() if row.module}
    return {**described, name: description} if name in described else described


TRANSFORMS = {"lzo": "fuse_store.hibernation.lzo_chunks.transform"}  # a module with a function ``open_transform``


def open_transform(head: Head) -> Transform | None:
    """The Transform of a version; None if it has no computed blocks. Raises ValueError if it is unknown, or its parameters
    cannot be."""
    if head.computed is None:
        return None
    module = TRANSFORMS.get(head.computed.transform)
    if module is None:
        raise ValueError(f"transform {head.computed.transform[:32]!r} is unknown; a newer fuse-store is needed")
    opened: Transform = importlib.import_module(module).open_transform(head.computed, head)
    return opened
