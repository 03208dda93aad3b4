# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs, and the index fragment of each. Used by ``capture`` (writes them), ``image`` (reads blocks), ``upkeep`` (both).

A pack is a file of blocks, written once. What an index fragment says of it stands at its end as well, so the index can be
deleted at any time. Fragments are small; the ones used last are kept in memory. Reading is safe in threads.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fuse_store.blocks import HEADER, LARGEST, Block, parse_header, unpack_block
from fuse_store.crypto import DIGEST, Sealer
from fuse_store.durable import crash, new_file, write_file
from fuse_store.errors import Damaged, StoreError

PACK_HEADER = struct.Struct("<8s16s")  # magic, pack id
PACK_MAGIC = b"FSPACK01"
TRAILER = struct.Struct("<Q8s")  # length of the fragment before it, magic
TRAILER_MAGIC = b"FSPKEND1"
INDEX_HEADER = struct.Struct("<8s16sIQ16s")  # magic, pack id, blocks, length of the sealed pages, checksum
INDEX_MAGIC = b"FSINDEX1"
ROW = 32  # bytes of the columns for one block: digest, offset, length stored, length of its pages
FULL = 256 << 20  # bytes in a pack; an interrupted put begins again after the last full one
MOST_BLOCKS = 1 << 20
FRAGMENT_NAME = re.compile(r"[0-9a-f]{32}\.idx")
SETTLED = 20_000_000  # ns after which a directory's time tells whether it changed again
FRAGMENTS = 512  # kept in memory, about 100 KB each

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]


@dataclass(frozen=True)
class Fragment:
    """What is in one pack: columns of equal length, sorted by digest. ``high`` and ``low`` are a digest's two halves,
    little-endian; ``offset`` and ``stored`` say where the block is, header included; ``length`` is that of its pages."""

    pack: bytes
    high: U64
    low: U64
    offset: U64
    stored: U32
    length: U32

    def find(self, digest: bytes) -> int:
        """The row of a block, or -1."""
        high, low = struct.unpack("<QQ", digest)
        row = int(np.searchsorted(self.high, np.uint64(high)))
        while row < len(self.high) and self.high[row] == high:
            if self.low[row] == low:
                return row
            row += 1
        return -1

    def digests(self) -> bytes:
        return np.stack([self.high, self.low], axis=1).astype("<u8").tobytes()


class PackWriter:
    """Writes packs of about FULL bytes, one after the other. For the one thread that holds the writer's lock."""

    def __init__(self, root: Path, sealer: Sealer, sync: bool) -> None:
        self._root, self._sealer, self._sync = root, sealer, sync
        self._rows: list[tuple[bytes, int, int, int, bytes]] = []
        self._file: BinaryIO | None = None
        self._size = 0
        self.pack = b""
        self.written = 0

    def add(self, block: Block, page_digests: bytes) -> bytes:
        """Append a block; ``page_digests`` are 16 bytes for each of its pages. Returns the id of its pack."""
        if self._file is None:
            self._begin()
        assert self._file is not None
        self._rows.append((block.digest, self._size, len(block.stored), block.length, page_digests))
        self._file.write(block.stored)
        self._size += len(block.stored)
        self.written += len(block.stored)
        pack = self.pack
        if self._size >= FULL:
            self.finish()
        return pack

    def finish(self) -> None:
        """Make what was added durable, first the pack, then its index fragment."""
        if self._file is None:
            return
        fragment = fragment_bytes(self.pack, self._rows, self._sealer)
        self._file.write(fragment + TRAILER.pack(len(fragment), TRAILER_MAGIC))
        self._context.__exit__(None, None, None)
        self._file = None
        write_file(index_path(self._root, self.pack), fragment, self._sync)
        self._rows = []

    def abandon(self) -> None:
        """Drop the pack that is being written."""
        if self._file is not None:
            self._file = None
            error = StoreError("pack", "abandoned.")
            try:
                self._context.__exit__(StoreError, error, None)
            except StoreError:
                pass

    def _begin(self) -> None:
        self.pack = secrets.token_bytes(DIGEST)
        path = pack_path(self._root, self.pack)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        crash("begin pack")
        self._context = new_file(path, self._sync)
        self._file = self._context.__enter__()
        self._file.write(PACK_HEADER.pack(PACK_MAGIC, self.pack))
        self._size = PACK_HEADER.size


def pack_path(root: Path, pack: bytes) -> Path:
    name = pack.hex()
    return root / "packs" / name[:2] / f"{name}.pack"


def index_path(root: Path, pack: bytes) -> Path:
    return root / "index" / f"{pack.hex()}.idx"


def fragment_bytes(pack: bytes, rows: Sequence[tuple[bytes, int, int, int, bytes]], sealer: Sealer) -> bytes:
    """The index fragment of a pack with the rows (digest, offset, length stored, length of the pages, page digests)."""
    halves = np.frombuffer(b"".join(row[0] for row in rows), "<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    numbers = np.array([row[1:4] for row in rows], np.uint64).reshape(-1, 3)[order]
    columns = b"".join(
        (
            halves[order, 0].astype("<u8").tobytes(),
            halves[order, 1].astype("<u8").tobytes(),
            numbers[:, 0].astype("<u8").tobytes(),
            numbers[:, 1].astype("<u4").tobytes(),
            numbers[:, 2].astype("<u4").tobytes(),
        )
    )
    pages = sealer.seal(b"pages" + pack, b"".join(rows[row][4] for row in order))
    head = struct.pack("<8s16sIQ", INDEX_MAGIC, pack, len(rows), len(pages))
    return head + sealer.digest(head + columns) + columns + pages


def parse_fragment(content: bytes, pack: bytes, sealer: Sealer) -> tuple[Fragment, int]:
    """The Fragment in the first bytes of ``content``, and where its sealed page digests begin. Raises ValueError."""
    if len(content) < INDEX_HEADER.size:
        raise ValueError("it is cut off")
    magic, found, count, _sealed, checksum = INDEX_HEADER.unpack_from(content)
    if magic != INDEX_MAGIC or found != pack:
        raise ValueError("it is not the index of this pack")
    end = INDEX_HEADER.size + ROW * count
    if count > MOST_BLOCKS or end > len(content):
        raise ValueError("it is cut off")
    if sealer.digest(content[: INDEX_HEADER.size - DIGEST] + content[INDEX_HEADER.size : end]) != checksum:
        raise ValueError("its checksum is wrong")
    at = INDEX_HEADER.size
    columns = []
    for kind in ("<u8", "<u8", "<u8", "<u4", "<u4"):
        columns.append(np.frombuffer(content, kind, count, at))
        at += columns[-1].nbytes
    return Fragment(pack, *columns), end


class PackReader:
    """Finds and reads blocks. Threads may share it; nothing in it is written to the store."""

    def __init__(self, root: Path, sealer: Sealer) -> None:
        self._root, self._sealer = root, sealer
        self._fragments: OrderedDict[bytes, Fragment] = OrderedDict()
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()
        self._packs: list[bytes] = []
        self._listed = 0

    def packs(self) -> list[bytes]:
        """The ids of all packs that have an index fragment, in no order."""
        folder = self._root / "index"
        changed = os.stat(folder).st_mtime_ns
        if changed != self._listed:
            self._packs = [bytes.fromhex(name[:-4]) for name in os.listdir(folder) if FRAGMENT_NAME.fullmatch(name)]
            # A directory that changes twice within one tick of its clock looks unchanged the second time.
            self._listed = changed if time.time_ns() - changed > SETTLED else 0
        return self._packs

    def fragment(self, pack: bytes) -> Fragment:
        """Raises FileNotFoundError if there is none, Damaged."""
        with self._lock:
            if pack in self._fragments:
                self._fragments.move_to_end(pack)
                return self._fragments[pack]
        path = index_path(self._root, pack)
        with open(path, "rb") as file:
            header = file.read(INDEX_HEADER.size)
            count = INDEX_HEADER.unpack(header)[2] if len(header) == INDEX_HEADER.size else 0
            content = header + file.read(min(count, MOST_BLOCKS) * ROW)
        try:
            fragment, _pages = parse_fragment(content, pack, self._sealer)
        except ValueError as error:
            raise Damaged(f"index {path.name}", f"{error}.", "Run fuse-store repair, which makes it anew.", pack=pack.hex()) from None
        with self._lock:
            self._fragments[pack] = fragment
            while len(self._fragments) > FRAGMENTS:
                self._fragments.popitem(last=False)
        return fragment

    def page_digests(self, pack: bytes) -> tuple[Fragment, NDArray[np.uint64]]:
        """The Fragment of a pack, and the digests of its blocks' pages, in the fragment's order: (pages, 2), halves as in
        Fragment. Raises FileNotFoundError, Damaged."""
        path = index_path(self._root, pack)
        content = path.read_bytes()
        try:
            fragment, end = parse_fragment(content, pack, self._sealer)
            pages = self._sealer.open(b"pages" + pack, content[end:])
            if len(pages) % DIGEST:
                raise ValueError("it is cut off")
        except ValueError as error:
            raise Damaged(f"index {path.name}", f"{error}.", "Run fuse-store repair, which makes it anew.", pack=pack.hex()) from None
        return fragment, np.frombuffer(pages, "<u8").reshape(-1, 2)

    def locate(self, digest: bytes, hint: bytes | None = None) -> tuple[Fragment, int] | None:
        """Where a block is, looked for in the pack ``hint`` first. None if it is nowhere."""
        if hint is not None:
            try:
                fragment = self.fragment(hint)
            except FileNotFoundError:
                pass  # collected since; its blocks are elsewhere
            else:
                row = fragment.find(digest)
                if row >= 0:
                    return fragment, row
        for pack in self.packs():
            try:
                fragment = self.fragment(pack)
            except FileNotFoundError:
                continue
            row = fragment.find(digest)
            if row >= 0:
                return fragment, row
        return None

    def read(self, digest: bytes, hint: bytes | None = None) -> bytes:
        """The pages of a block, verified. Raises Damaged."""
        for last in (False, True):
            found = self.locate(digest, hint)
            if found is None:
                raise Damaged(f"block {digest.hex()}", "it is in no pack.", "Run fuse-store repair.", pack=hint.hex() if hint else "")
            fragment, row = found
            try:
                stored = self._stored(fragment.pack, int(fragment.offset[row]), int(fragment.stored[row]))
                break
            except FileNotFoundError:  # collected between the look and the read
                self.forget(fragment.pack)
                if last:
                    raise self._damaged(digest, fragment.pack, "the pack is gone") from None
        try:
            return unpack_block(stored, digest, self._sealer)
        except ValueError as error:
            raise self._damaged(digest, fragment.pack, str(error)) from None

    def scan(self, pack: bytes) -> Iterator[tuple[bytes, int, int, int]]:
        """(digest, offset, length stored, length of the pages) of every block, by the headers in the pack itself. Ends at
        the fragment at the pack's end, or at the first header that can't be read. Raises FileNotFoundError, ValueError."""
        with open(pack_path(self._root, pack), "rb") as file:
            head = file.read(PACK_HEADER.size)
            if len(head) < PACK_HEADER.size or PACK_HEADER.unpack(head) != (PACK_MAGIC, pack):
                raise ValueError("it is no pack, or another one")
            at = PACK_HEADER.size
            while True:
                file.seek(at)
                try:
                    _codec, sealed, length, digest = parse_header(file.read(HEADER.size))
                except ValueError:
                    return
                yield digest, at, HEADER.size + sealed, length
                at += HEADER.size + sealed

    def forget(self, pack: bytes | None = None) -> None:
        """Drop what is remembered of a pack, or of all."""
        with self._lock:
            for known in [pack] if pack is not None else list({*self._fragments, *self._files}):
                self._fragments.pop(known, None)
                descriptor = self._files.pop(known, None)
                if descriptor is not None:
                    os.close(descriptor)

    def close(self) -> None:
        self.forget()

    def _stored(self, pack: bytes, offset: int, length: int) -> bytes:
        if length > LARGEST + HEADER.size + 2 * DIGEST:
            raise self._damaged(b"", pack, "the index gives an impossible length")
        with self._lock:
            descriptor = self._files.get(pack)
            if descriptor is None:
                descriptor = os.open(pack_path(self._root, pack), os.O_RDONLY | os.O_CLOEXEC)
                self._files[pack] = descriptor
                while len(self._files) > 64:
                    os.close(self._files.popitem(last=False)[1])
            own = os.dup(descriptor)
        try:
            return os.pread(own, length, offset)
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._damaged(b"", pack, "the disk cannot read it") from None
            raise
        finally:
            os.close(own)

    def _damaged(self, digest: bytes, pack: bytes, cause: str) -> Damaged:
        return Damaged(
            f"block {digest.hex()}", f"{cause}.", "fuse-store verify tells which images it belongs to.", pack=pack.hex()
        )
