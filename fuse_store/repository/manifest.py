# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a version: one file, whose appearance is what makes the version exist. Used by ``store`` and ``image``.

Its head tells what the version is, and where in the file its segments of extents are; those are read when they are
needed. The id of a version is the keyed digest of its head, which holds the digests of the segments, which hold those of
the blocks: so the id stands for every byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import msgpack

from fuse_store.errors import Damaged, NotFound
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend

FORMAT = 1
WITH_CHUNKS = 2  # of a version that has some; programs that know format 1 alone refuse it
_FILE = struct.Struct("<8sI")  # magic, length of the encrypted head
_MAGIC = b"FSIMAGE1"
PAGE_SIZES = (4096, 16384, 65536)
LARGEST_HEAD = 64 << 20
_USUAL = 4096  # bytes that hold most heads: one request of a server
LARGEST_IMAGE = 1 << 50
CHUNK_PAGES = 32  # of a hibernation image in a chunk, the last excepted (UNC_PAGES, kernel/power/swap.c)
CHUNK_GROUP = 32  # chunks whose pages stand together
MOST_CHUNKS = 1 << 20  # 128 GiB of pages of 4 KiB


@dataclass(frozen=True)
class ImageFile:
    """One file of an image: where it begins in the image's address space (at a page), its size, mode and mtime (ns)."""

    name: str
    size: int
    offset: int
    mode: int = 0o600
    mtime: int = 0


@dataclass(frozen=True)
class Segment:
    """Where one segment of extents is: the pages it covers, its place in the manifest's file, its digest."""

    first: int
    last: int
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True)
class Chunks:
    """That compressed chunks of a hibernation image are stored as the pages they hold. ``codec`` is ``lzo``, ``page_size`` that
    of the image, ``first`` the page of the address space at which the pages of the chunks begin, ``room`` for how many
    chunks there is room, ``stored`` how many are. ``chunks`` says where in it the pages of each are."""

    codec: str
    page_size: int
    first: int
    room: int
    stored: int

    def pages(self, page_size: int) -> int:
        """How many pages of ``page_size`` they take in the address space."""
        return -(-self.room // CHUNK_GROUP) * CHUNK_GROUP * (CHUNK_PAGES + 1) * (self.page_size // page_size)


@dataclass(frozen=True)
class Head:
    """What a version is. Sizes in bytes: ``size`` of all files, ``allocated`` of the pages that are not zero, ``new`` of
    those that no base had, ``stored`` of what was written for them. ``taken`` is in ns since 1970."""

    machine: str
    application: str
    kind: str
    event: str
    tags: dict[str, str]
    taken: int
    size: int
    allocated: int
    new: int
    stored: int
    page_size: int
    bases: tuple[str, ...]
    files: tuple[ImageFile, ...]
    segments: tuple[Segment, ...]
    chunks: Chunks | None = None

    @property
    def pages(self) -> int:
        """How many pages its address space has."""
        if self.chunks is not None:
            return self.chunks.first + self.chunks.pages(self.page_size)
        return max((-(-(file.offset + file.size) // self.page_size) for file in self.files), default=0)


@dataclass(frozen=True)
class Summary:
    """A version, as lists show it. ``taken`` is in UTC."""

    id: str
    machine: str
    application: str
    kind: str
    event: str
    tags: dict[str, str]
    taken: datetime
    size: int
    allocated: int
    new: int
    stored: int
    files: int
    bases: tuple[str, ...]
    state: str = "captured"
    chunks: int = 0

    @property
    def version(self) -> str:
        """Its name in the mount: the time and the start of the id."""
        return f"{self.taken:%Y-%m-%dT%H-%M-%SZ}-{self.id[:6]}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "taken": self.taken.isoformat(timespec="milliseconds"), "version": self.version}


def summary(image_id: str, head: Head) -> Summary:
    values = {field.name: getattr(head, field.name) for field in fields(Summary) if hasattr(head, field.name)}
    taken = datetime.fromtimestamp(head.taken / 1e9, UTC)
    chunks = head.chunks.stored if head.chunks else 0
    return Summary(**{**values, "id": image_id, "taken": taken, "files": len(head.files), "chunks": chunks})


def image_name(image_id: str) -> str:
    return f"images/{image_id}.img"


def write_manifest(
    backend: Backend, head: Head, segments: Sequence[bytes], aead: Aead, sync: bool, before: Callable[[], None] | None = None
) -> str:
    """Make the version exist; returns its id. ``segments`` are encrypted, as ``head.segments`` says; ``before``: ``new_file``."""
    values = {"format": FORMAT if head.chunks is None else WITH_CHUNKS, **asdict(head)}
    if head.chunks is None:
        del values["chunks"]
    content = bytes(msgpack.packb(values))
    digest = aead.digest(content)
    encrypted = aead.encrypt(b"image" + digest, content)
    backend.write(image_name(digest.hex()), b"".join((_FILE.pack(_MAGIC, len(encrypted)), encrypted, *segments)), sync, before)
    return digest.hex()


def read_head(backend: Backend, image_id: str, aead: Aead) -> tuple[Head, int]:
    """The Head of a version, and where in the file its segments begin. Raises NotFound, Damaged."""
    name = image_name(image_id)
    try:
        content = backend.read_range(name, 0, _USUAL, trashed=False)
        if len(content) < _FILE.size:
            raise ValueError("it is cut off")
        magic, length = _FILE.unpack(content[: _FILE.size])
        if magic != _MAGIC or length > LARGEST_HEAD:
            raise ValueError("it is no manifest")
        encrypted = content[_FILE.size : _FILE.size + length]
        if len(encrypted) < length and len(content) == _USUAL:
            encrypted += backend.read_range(name, _USUAL, length - len(encrypted), trashed=False)
        content = aead.decrypt(b"image" + bytes.fromhex(image_id), encrypted)
        return parse_head(content), _FILE.size + length
    except FileNotFoundError:
        raise NotFound(f"image {image_id}", "it is not in the store.", "fuse-store list shows what is.") from None
    except (ValueError, OSError) as error:
        raise Damaged(f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.", image=image_id) from None


def parse_head(content: bytes) -> Head:
    """The Head in an opened manifest. Raises ValueError for whatever is not as docs/format.md says."""
    try:
        value = msgpack.unpackb(content, max_array_len=1 << 22, max_map_len=1 << 10, max_bin_len=DIGEST, max_str_len=1 << 16)
        number = value.pop("format")
        if number not in (FORMAT, WITH_CHUNKS):
            raise ValueError("its format is newer than this program")
        if (number == WITH_CHUNKS) != ("chunks" in value):
            raise ValueError("its format contradicts what it has")
        if number == WITH_CHUNKS:
            value["chunks"] = Chunks(**value["chunks"])
        value["files"] = tuple(ImageFile(**file) for file in value["files"])
        value["segments"] = tuple(Segment(**segment) for segment in value["segments"])
        value["bases"] = tuple(value["bases"])
        head = Head(**value)
    except (TypeError, KeyError, AttributeError, msgpack.UnpackException, msgpack.exceptions.ExtraData) as error:
        raise ValueError(f"its head cannot be read ({error})") from None
    numbers = [head.taken, head.size, head.allocated, head.new, head.stored, head.page_size]
    numbers += [number for file in head.files for number in (file.size, file.offset, file.mode, file.mtime)]
    numbers += [number for part in head.segments for number in (part.first, part.last, part.offset, part.length)]
    texts = [head.machine, head.application, head.kind, head.event, *head.bases, *(file.name for file in head.files)]
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(text, str) for text in texts):
        raise ValueError("its head has values of the wrong type")
    if not all(isinstance(part.digest, bytes) and len(part.digest) == DIGEST for part in head.segments):
        raise ValueError("its segments have impossible digests")
    if head.page_size not in PAGE_SIZES or not isinstance(head.tags, dict):
        raise ValueError("its head has impossible values")
    end = 0
    for file in head.files:
        if not 0 <= file.size <= LARGEST_IMAGE or file.offset < end or file.offset % head.page_size:
            raise ValueError("its files contradict each other")
        end = file.offset + file.size
    if head.chunks is not None:
        _check_chunks(head, head.chunks, end)
    last = 0
    for segment in head.segments:
        if not last <= segment.first < segment.last <= head.pages or segment.offset < 0 or segment.length < 0:
            raise ValueError("its segments contradict each other")
        last = segment.last
    return head


def _check_chunks(head: Head, chunks: Chunks, end: int) -> None:
    """Raises ValueError if the chunks of a version cannot be; its files end at ``end``."""
    numbers = (chunks.page_size, chunks.first, chunks.room, chunks.stored)
    if not all(isinstance(number, int) for number in numbers) or not isinstance(chunks.codec, str):
        raise ValueError("its chunks have values of the wrong type")
    if chunks.codec != "lzo":
        raise ValueError(f"its chunks are compressed with {chunks.codec!r}, which this program does not know")
    if chunks.page_size not in PAGE_SIZES or chunks.page_size % head.page_size or len(head.files) != 1 or head.files[0].offset:
        raise ValueError("its chunks have impossible values")
    if not 0 < chunks.stored <= chunks.room <= MOST_CHUNKS or not end <= chunks.first * head.page_size <= LARGEST_IMAGE:
        raise ValueError("its chunks have impossible values")
