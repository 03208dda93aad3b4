# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a version: one file; a version exists if and only if its manifest does.

The head says what the version is, and where in the file its extent segments are; those are read when needed. The id of a
version begins with the keyed digest of its head, which holds the digests of the segments, which hold those of the blocks: so
the id covers every byte. It ends with a digest of the machine's name, which is the directory of the manifest too, so that the
versions of one machine are found without looking at the others. Byte map: docs/format.md, "Manifest". Functions are pure, or
read and write through a Backend; threads may call them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.repository import entries
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend
from fuse_store.repository.entries import MAX_TIME, ImageDirectory, ImageLink

FORMAT, DIRECTORY_FORMAT = 1, 2  # of a head; the second one has TREE as well
TREE = ("directories", "links")
_FILE = struct.Struct("<8sI")  # magic, length of the encrypted head
_MAGIC = b"FSIMAGE1"
PAGE_SIZES = (4096, 16384, 65536)
MAX_HEAD_SIZE = 64 << 20  # bytes
MAX_IMAGE_SIZE = 1 << 50  # bytes of its address space
MAX_FILES = 1 << 22
MAX_TEXT_SIZE = 1 << 16  # bytes
MAX_NUMBER = 1 << 62
MACHINE_TAG = 2  # bytes at the end of an id that tell the machine
MAX_ROW_SIZE = 256  # bytes of parameters of one computed block
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_READ = 4096  # bytes that hold most heads: one request to an S3 server


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
    """Where one extent segment is: the pages it covers, its offset behind the head and its length in bytes, its digest."""

    first: int
    last: int
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True)
class Computed:
    """Blocks that are in no pack: ``transform`` computes each from other pages of the same image.

    Those pages follow the files in the address space: ``pages`` of them from page ``first``. ``count`` is how many blocks
    are computed; each has ``row_size`` bytes of parameters in its extent segment, whose meaning is the transform's, as is
    that of ``parameters``, which are the same for all.
    """

    transform: str
    first: int
    pages: int
    count: int
    row_size: int
    parameters: dict[str, int]


@dataclass(frozen=True)
class Head:
    """What a version is. Sizes in bytes: ``size`` of all files, ``allocated`` of the pages that are not zero, ``new`` of
    those that no base had, ``stored`` of what was written for it. ``taken`` is in ns since 1970 (UTC), by a clock that may have
    been wrong; ``number`` is one more than the highest of the machine when it was stored: versions come in the order of
    (``number``, ``taken``, id). ``content``: the digest of all pages, by which versions with the same bytes share a state log.
    ``recognised``: the kind of image that the program found in the bytes, whatever ``kind`` says; empty if none. ``directories``: of the
    image of a directory, itself and all below it; none for any other image, and for one that was stored before they were recorded."""

    machine: str
    application: str
    kind: str
    event: str
    tags: dict[str, str]
    taken: int
    number: int
    size: int
    allocated: int
    new: int
    stored: int
    page_size: int
    bases: tuple[str, ...]
    files: tuple[ImageFile, ...]
    segments: tuple[Segment, ...]
    computed: Computed | None = None
    content: bytes = bytes(DIGEST)
    recognised: str = ""
    directories: tuple[ImageDirectory, ...] = ()
    links: tuple[ImageLink, ...] = ()

    @property
    def is_directory(self) -> bool:
        """Whether it is the image of a directory: one that was stored before directories were recorded is told by its files."""
        return bool(self.directories) or len(self.files) != 1

    @property
    def pages(self) -> int:
        """How many pages its address space has."""
        if self.computed is not None:
            return self.computed.first + self.computed.pages
        return max((-(-(file.offset + file.size) // self.page_size) for file in self.files), default=0)


@dataclass(frozen=True)
class Summary:
    """A version as lists show it. ``taken`` is in UTC; ``chunks`` is the number of computed blocks. ``verified``: whether every byte of it
    was read and no failure was reported since. ``directory``: whether it is the image of a directory, all of which was recorded.
    ``content`` and ``recognised``: see Head."""

    id: str
    machine: str
    application: str
    kind: str
    event: str
    tags: dict[str, str]
    taken: datetime
    number: int
    size: int
    allocated: int
    new: int
    stored: int
    files: int
    bases: tuple[str, ...]
    state: str = "captured"
    chunks: int = 0
    verified: bool = False
    recognised: str = ""
    content: bytes = bytes(DIGEST)
    directory: bool = False

    @property
    def order(self) -> tuple[int, datetime, str]:
        """Ascends from the oldest to the newest version of a machine. Two that were stored at the same time, or by two clones, have
        the same number."""
        return self.number, self.taken, self.id

    @property
    def version(self) -> str:
        """Its name in the mount: the time and the start of the id."""
        return f"{self.taken:%Y-%m-%dT%H-%M-%SZ}-{self.id[:6]}"

    def as_dict(self) -> dict[str, Any]:
        taken = self.taken.isoformat(timespec="milliseconds")
        return {**asdict(self), "taken": taken, "version": self.version, "content": self.content.hex()}


def summary(image_id: str, head: Head) -> Summary:
    values = {field.name: getattr(head, field.name) for field in fields(Summary) if hasattr(head, field.name)}
    taken = EPOCH + timedelta(microseconds=head.taken // 1000)
    computed = head.computed.count if head.computed else 0
    known = {"id": image_id, "taken": taken, "files": len(head.files), "chunks": computed, "directory": bool(head.directories)}
    return Summary(**{**values, **known})


def machine_tag(machine: str, aead: Aead) -> str:
    """The last digits of the ids of the versions of a machine, and the directory of their manifests. Two machines may share one."""
    return machine_digest(machine, aead)[:MACHINE_TAG].hex()


def machine_digest(machine: str, aead: Aead) -> bytes:
    return aead.digest(b"machine" + machine.encode(errors="surrogatepass"))


def machine_tag_of(image_id: str) -> str:
    return image_id[-2 * MACHINE_TAG :]


def image_directory(tag: str) -> str:
    return f"images/{tag}"


def image_name(image_id: str) -> str:
    return f"{image_directory(machine_tag_of(image_id))}/{image_id}.img"


def pack_head(head: Head, label: str) -> bytes:
    """A head as it is encrypted. ``label`` names the version for the error. Raises Refused for one that no reader would accept."""
    try:
        content = bytes(msgpack.packb(_packable(head)))
        if len(content) > MAX_HEAD_SIZE - 2 * DIGEST:
            raise ValueError(f"{len(content) >> 20} MiB of names and segments, more than {MAX_HEAD_SIZE >> 20} MiB")
        if parse_head(content) != head:
            raise ValueError("the head would be read as another one")
        return content
    except (ValueError, TypeError, OverflowError) as error:  # UnicodeEncodeError is a ValueError
        raise Refused(f"version of {label}", f"cannot be stored: {error}.", "Store it in parts. No version was created.") from None


def _packable(head: Head) -> dict[str, Any]:
    values = asdict(head)
    if head.directories:
        return {"format": DIRECTORY_FORMAT, **values}
    return {"format": FORMAT, **{key: value for key, value in values.items() if key not in TREE}}


def write_manifest(
    backend: Backend, head: Head, segments: Sequence[bytes], aead: Aead, sync: bool,
    before: Callable[[str], None] | None = None,
) -> str:  # fmt: skip
    """Make the version exist; returns its id. ``segments`` are encrypted, as ``head.segments`` says. ``before`` is called with the
    id right before that. Raises Refused for a head that no reader would accept."""
    image_id, start = encrypt_head(pack_head(head, f"{head.machine}/{head.application}"), head.machine, aead)
    first = None if before is None else functools.partial(before, image_id)
    backend.write(image_name(image_id), b"".join((start, *segments)), sync, first)
    return image_id


def encrypt_head(content: bytes, machine: str, aead: Aead) -> tuple[str, bytes]:
    """(the id of the version, the file up to the segments) for a head that was packed."""
    image_id = _id_of(content, machine, aead)
    encrypted = aead.encrypt(b"image" + image_id, content)
    return image_id.hex(), _FILE.pack(_MAGIC, len(encrypted)) + encrypted


def _id_of(content: bytes, machine: str, aead: Aead) -> bytes:
    return aead.digest(content)[:-MACHINE_TAG] + machine_digest(machine, aead)[:MACHINE_TAG]


def read_head(backend: Backend, image_id: str, aead: Aead) -> tuple[Head, int]:
    """(the Head of a version, where in the file its segments begin). Raises NotFound, Damaged."""
    name = image_name(image_id)
    try:
        content = backend.read_range(name, 0, _FIRST_READ, trashed=False)
        if len(content) < _FILE.size:
            raise ValueError("truncated")
        magic, length = _FILE.unpack(content[: _FILE.size])
        if magic != _MAGIC or length > MAX_HEAD_SIZE:
            raise ValueError("not a manifest")
        encrypted = content[_FILE.size : _FILE.size + length]
        if len(encrypted) < length and len(content) == _FIRST_READ:
            encrypted += backend.read_range(name, _FIRST_READ, length - len(encrypted), trashed=False)
        content = aead.decrypt(b"image" + bytes.fromhex(image_id), encrypted)
        head = parse_head(content)
        if _id_of(content, head.machine, aead).hex() != image_id:
            raise ValueError("the manifest of another version")
        return head, _FILE.size + length
    except FileNotFoundError:
        raise no_such_image(image_id) from None
    except (ValueError, OSError) as error:
        raise Damaged(f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.", image=image_id) from None


def no_such_image(reference: str) -> NotFound:
    if not reference.strip():  # of a variable that was not set, or a command that printed nothing
        return NotFound("image", "the name is empty.", "Name a version; 'fuse-store list' shows what is stored.")
    return NotFound(f"image {reference}", "no such image.", "Run 'fuse-store list' to see what is stored.")


def parse_head(content: bytes) -> Head:
    """The Head in a decrypted manifest. Raises ValueError for everything that docs/format.md does not allow."""
    try:
        value = msgpack.unpackb(content, max_array_len=MAX_FILES, max_map_len=1 << 10, max_bin_len=DIGEST, max_str_len=MAX_TEXT_SIZE)
        number = value.pop("format")
        if number not in (FORMAT, DIRECTORY_FORMAT):
            raise ValueError(f"format {number!r} is unknown; a newer fuse-store is needed")
        head = _head_of(value, TREE if number == DIRECTORY_FORMAT else ())
    except (TypeError, KeyError, AttributeError, msgpack.UnpackException, msgpack.exceptions.ExtraData) as error:
        raise ValueError(f"head cannot be read ({error})") from None
    _check_types(head)
    _check_files(head)
    if number == DIRECTORY_FORMAT:
        entries.check([file.name for file in head.files], head.directories, head.links)
    if head.computed is not None:
        _check_computed(head, head.computed)
    _check_segments(head)
    return head


def _head_of(value: Mapping[str, Any], tree: Sequence[str]) -> Head:
    computed = value["computed"]
    if [key for key in TREE if key in value] != list(tree):
        raise ValueError("head has not the keys of its format")
    return Head(
        **{
            **value,
            "files": tuple(ImageFile(**file) for file in value["files"]),
            "segments": tuple(Segment(**segment) for segment in value["segments"]),
            "bases": tuple(value["bases"]),
            "computed": None if computed is None else Computed(**computed),
            "content": value["content"],
            "recognised": value["recognised"],
            "directories": tuple(ImageDirectory(**one) for one in value.get("directories", ())),
            "links": tuple(ImageLink(**one) for one in value.get("links", ())),
        }
    )


def _check_types(head: Head) -> None:
    numbers = [head.taken, head.number, head.size, head.allocated, head.new, head.stored, head.page_size]
    numbers += [number for file in head.files for number in (file.size, file.offset, file.mode, file.mtime)]
    numbers += [number for part in head.segments for number in (part.first, part.last, part.offset, part.length)]
    texts = [head.machine, head.application, head.kind, head.event, head.recognised, *head.bases, *(file.name for file in head.files)]
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(text, str) for text in texts):
        raise ValueError("head has values of the wrong type")
    if not all(isinstance(part.digest, bytes) and len(part.digest) == DIGEST for part in head.segments):
        raise ValueError("segments have impossible digests")
    if not isinstance(head.content, bytes) or len(head.content) != DIGEST:
        raise ValueError("head has an impossible digest")
    if head.page_size not in PAGE_SIZES or not isinstance(head.tags, dict):
        raise ValueError("head has impossible values")
    if not all(isinstance(text, str) for pair in head.tags.items() for text in pair):
        raise ValueError("tags have values of the wrong type")
    if not 0 <= head.taken <= MAX_TIME or not 0 <= head.number <= MAX_NUMBER:
        raise ValueError(f"time {head.taken} or number {head.number} is impossible")


def _check_files(head: Head) -> None:
    end = 0
    for file in head.files:
        if file.size < 0 or file.offset < end or file.offset % head.page_size:
            raise ValueError("files contradict each other")
        if not -MAX_TIME <= file.mtime <= MAX_TIME or not 0 <= file.mode < 1 << 16:
            raise ValueError(f"time ({file.mtime} ns) or mode ({file.mode:o}) of file {file.name!r} is impossible")
        end = file.offset + file.size
    if end > MAX_IMAGE_SIZE:
        raise ValueError(f"the files have {end} bytes, more than {MAX_IMAGE_SIZE >> 50} PiB")


def _check_segments(head: Head) -> None:
    last = 0
    for segment in head.segments:
        if not last <= segment.first < segment.last <= head.pages or segment.offset < 0 or segment.length < 0:
            raise ValueError("segments contradict each other")
        last = segment.last


def _check_computed(head: Head, computed: Computed) -> None:
    """What is the same for every transform; the transform checks its parameters."""
    if not isinstance(computed.parameters, dict):
        raise ValueError("computed blocks have values of the wrong type")
    numbers = (computed.first, computed.pages, computed.count, computed.row_size, *computed.parameters.values())
    names = (computed.transform, *computed.parameters)
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(name, str) for name in names):
        raise ValueError("computed blocks have values of the wrong type")
    end = max((file.offset + file.size for file in head.files), default=0)
    most = MAX_IMAGE_SIZE // head.page_size
    fits = end <= computed.first * head.page_size and computed.first + computed.pages <= most and 0 <= computed.first <= most
    if not fits or computed.count < 1 or computed.pages < 1 or not 0 <= computed.row_size <= MAX_ROW_SIZE:
        raise ValueError("computed blocks have impossible values")
