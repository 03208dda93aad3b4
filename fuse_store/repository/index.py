# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: in which pack, and at which offset, each block is. Threads may share an Index.

A set of fragments: write-once files of sorted columns, mapped into memory and searched by bisection, many digests at a
time. A writer of packs adds a fragment; small ones are merged, so that their number grows with the logarithm of the
store. The index can be rebuilt from the packs. A wrong row does no harm: a block is verified when it is read, and a
block that a put finds in the index is looked up in its pack.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, halves
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.backends import Backend

MAGIC = b"FSINDEX1"
_START = struct.Struct("<8sII")  # magic, length of the encrypted header, offset of the columns
_NAME = re.compile(r"[0-9a-f]{32}\.idx")
ROW_SIZE = 36  # bytes of all columns, for one block
MAX_MERGED_ROWS = 1 << 20  # fragments are not merged to more
MAX_PACKS = 1 << 22  # in a fragment

U32 = NDArray[np.uint32]
COLUMNS = (("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("pack", "<u4"), ("stored", "<u4"), ("length", "<u4"))


@dataclass(frozen=True)
class Rows:
    """Columns of equal length, one element for each block, sorted by digest (high, then low).

    ``high`` and ``low``: the halves of the digest, little-endian; ``pack``: an ordinal into ``packs``, 16 bytes each;
    ``offset`` and ``stored``: the bytes of the block in the pack, header included; ``length``: bytes of its pages.
    """

    high: U64
    low: U64
    offset: U64
    pack: U32
    stored: U32
    length: U32
    packs: bytes

    def __len__(self) -> int:
        return len(self.high)

    def digest(self, row: int) -> bytes:
        return int(self.high[row]).to_bytes(8, "little") + int(self.low[row]).to_bytes(8, "little")

    def pack_id(self, ordinal: int) -> bytes:
        return self.packs[ordinal * DIGEST : (ordinal + 1) * DIGEST]

    def place(self, row: int) -> tuple[bytes, int, int]:
        """(pack id, offset, length stored) of the block of a row."""
        return self.pack_id(int(self.pack[row])), int(self.offset[row]), int(self.stored[row])

    def select(self, rows: NDArray[np.bool_] | I64) -> Rows:
        """Some of the rows, by a mask or by ascending row numbers; only the packs that they name."""
        used, pack = np.unique(self.pack[rows], return_inverse=True)
        packs = b"".join(map(self.pack_id, used.tolist()))
        return Rows(
            self.high[rows], self.low[rows], self.offset[rows], pack.astype(np.uint32), self.stored[rows], self.length[rows], packs
        )

    def find(self, high: U64, low: U64) -> I64:
        """The row of each digest, -1 where there is none."""
        row = np.full(len(high), -1, np.int64)
        candidate = np.searchsorted(self.high, high)
        pending = np.arange(len(high))
        while len(pending):  # twice only if two digests have the same first half
            pending = pending[candidate[pending] < len(self.high)]
            pending = pending[self.high[candidate[pending]] == high[pending]]
            hit = self.low[candidate[pending]] == low[pending]
            row[pending[hit]] = candidate[pending[hit]]
            pending = pending[~hit]
            candidate[pending] += 1
        return row


@dataclass(frozen=True)
class Located:
    """The places of blocks: columns as in Rows, in the order of the request. ``pack`` is -1 for a block that is not in the index."""

    pack: I64
    offset: I64
    stored: I64
    length: I64
    packs: tuple[bytes, ...]


def merged(parts: Sequence[Rows], has: Callable[[bytes, bytes, int, int], bool] | None = None) -> Rows:
    """The rows of all parts, one for each block. Of a block with several places, the first is taken; with ``has`` (called with
    digest, pack id, offset and length stored) the first of which that is true: the pack of the others may be lost."""
    ordinals: dict[bytes, int] = {}
    packs = []
    for part in parts:
        ids = map(part.pack_id, range(len(part.packs) // DIGEST))
        new_ordinals = np.array([ordinals.setdefault(pack_id, len(ordinals)) for pack_id in ids], np.uint32)
        packs.append(new_ordinals[part.pack])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name, _kind in COLUMNS if name != "pack"}
    columns["pack"] = np.concatenate(packs)
    order = np.lexsort((columns["low"], columns["high"]))  # stable: equal digests stay in the order of the parts
    rows = Rows(**{name: column[order] for name, column in columns.items()}, packs=b"".join(ordinals))
    chosen = np.ones(len(order), bool)
    chosen[1:] = (np.diff(rows.high) != 0) | (np.diff(rows.low) != 0)
    if has is not None:
        _choose_readable(rows, chosen, has)
    return rows.select(chosen)


def _choose_readable(rows: Rows, chosen: NDArray[np.bool_], has: Callable[[bytes, bytes, int, int], bool]) -> None:
    """``rows`` are sorted, and ``chosen`` is true for the first row of each block. Of a block with different places choose the
    first that ``has`` is true of, if there is one."""
    starts = np.flatnonzero(chosen)
    elsewhere = np.zeros(len(rows), bool)
    elsewhere[1:] = ~chosen[1:] & ((np.diff(rows.pack) != 0) | (np.diff(rows.offset) != 0))
    for block in np.unique(np.cumsum(chosen)[elsewhere] - 1).tolist():
        start, end = int(starts[block]), int(starts[block + 1]) if block + 1 < len(starts) else len(rows)
        digest = rows.digest(start)
        readable = next((row for row in range(start, end) if has(digest, *rows.place(row))), start)
        chosen[start] = False
        chosen[readable] = True


def fragment_bytes(rows: Rows, aead: Aead) -> bytes:
    """A fragment as stored (docs/format.md, "Index")."""
    columns = b"".join(getattr(rows, name).astype(kind).tobytes() for name, kind in COLUMNS)
    header = msgpack.packb({"rows": len(rows), "packs": rows.packs, "digest": aead.digest(columns)})
    encrypted = aead.encrypt(b"index", header)
    begin = -(-(_START.size + len(encrypted)) // 8) * 8
    return _START.pack(MAGIC, len(encrypted), begin) + encrypted + bytes(begin - _START.size - len(encrypted)) + columns


def parse_fragment(content: bytes | mmap.mmap, aead: Aead, check: bool = False) -> Rows:
    """The Rows of a fragment, as views of ``content``. ``check``: compare the columns with their digest. Raises ValueError."""
    if len(content) < _START.size:
        raise ValueError("truncated")
    magic, encrypted, begin = _START.unpack(content[: _START.size])
    if magic != MAGIC or begin % 8 or not _START.size + encrypted <= begin <= len(content):
        raise ValueError("not an index fragment")
    try:
        header = msgpack.unpackb(
            aead.decrypt(b"index", content[_START.size : _START.size + encrypted]), max_bin_len=MAX_PACKS * DIGEST
        )
        count, packs, digest = header["rows"], header["packs"], header["digest"]
    except (KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"cannot read the header ({error})") from None
    if not isinstance(count, int) or not isinstance(packs, bytes) or len(packs) % DIGEST or count < 0:
        raise ValueError("invalid values in the header")
    if len(content) != begin + count * ROW_SIZE:
        raise ValueError("wrong length")
    if check and aead.digest(memoryview(content)[begin:]) != digest:
        raise ValueError("checksum mismatch")
    columns = {}
    for name, kind in COLUMNS:
        columns[name] = np.frombuffer(content, kind, count, begin)
        begin += columns[name].nbytes
    if check and count and int(columns["pack"].max()) >= len(packs) // DIGEST:
        raise ValueError("names packs that are not listed")
    return Rows(**columns, packs=packs)


class Index:
    """The index of a store. Reading is safe in threads; writing is for the holder of the writer lock."""

    def __init__(self, backend: Backend, aead: Aead) -> None:
        self._backend, self._aead = backend, aead
        self._fragments: dict[str, Rows] = {}
        self._stamp = 0  # of ``Backend.changed``, when the fragments were listed
        self._lock = threading.Lock()

    def locate(self, digests: bytes | bytearray | memoryview) -> Located:
        """The places of the blocks with these digests, 16 bytes each."""
        high, low = halves(digests)
        pack = np.full(len(high), -1, np.int64)
        offset, stored, length = (np.zeros(len(high), np.int64) for _ in range(3))
        packs: list[bytes] = []
        pending = np.arange(len(high))
        for rows in self.fragments().values():
            if not len(pending):
                break
            row = rows.find(high[pending], low[pending])
            hit = row >= 0
            located, row, pending = pending[hit], row[hit], pending[~hit]
            if len(located):
                ordinals, index = np.unique(rows.pack[row], return_inverse=True)
                pack[located] = index + len(packs)
                packs += map(rows.pack_id, ordinals.tolist())
                offset[located], stored[located], length[located] = rows.offset[row], rows.stored[row], rows.length[row]
        return Located(pack, offset, stored, length, tuple(packs))

    def places(self, digest: bytes) -> list[tuple[bytes, int, int]]:
        """(pack id, offset, length stored) of every row of a block: some of them may be wrong."""
        high, low = halves(digest)
        row_of = [(rows, int(rows.find(high, low)[0])) for rows in self.fragments().values()]
        if all(row < 0 for _rows, row in row_of):  # of a removed version, which a reader may still have open
            row_of = [(rows, int(rows.find(high, low)[0])) for rows in self._trashed_fragments()]
        return [rows.place(row) for rows, row in row_of if row >= 0]

    def fragments(self) -> dict[str, Rows]:
        """Every readable fragment, by name."""
        with self._lock:
            for _attempt in range(8):
                stamp, trusted = self._backend.changed("index")
                if stamp == self._stamp:
                    break
                try:
                    fragments = {name: self._fragments.get(name) or self._open(name) for name in self._names()}
                    self._fragments = {name: rows for name, rows in fragments.items() if rows is not None}
                except FileNotFoundError:
                    continue  # merged between the list and the read
                self._stamp = stamp if trusted else 0
                break
            return self._fragments

    def close(self) -> None:
        """Close the mapped files, so that the disk can be unmounted."""
        with self._lock:
            self._fragments, self._stamp = {}, 0

    def refresh(self) -> None:
        """List the fragments again at the next use, even if the directory seems unchanged."""
        self._backend.refresh("index")
        with self._lock:
            self._stamp = 0

    def checked(self) -> Iterator[tuple[str, Rows | str]]:
        """Every fragment, its columns compared with their digest: (name, Rows), or (name, the problem) if damaged."""
        for name in sorted(self._names()):
            try:
                yield name, parse_fragment(self._read(name, check=True), self._aead, check=True)
            except FileNotFoundError:
                continue
            except ValueError as error:
                yield name, str(error)

    def add(self, rows: Rows, sync: bool) -> None:
        """Write ``rows`` as a fragment, durable when this returns. Raises OSError."""
        if len(rows):
            self._backend.write(f"index/{os.urandom(DIGEST).hex()}.idx", fragment_bytes(rows, self._aead), sync)
            self.refresh()

    def replace(
        self, old: Sequence[str], rows: Sequence[Rows], sync: bool, before: Callable[[], None], to_trash: bool = False
    ) -> None:
        """Replace the fragments ``old`` by ``rows``. The old ones are dropped when the new ones are durable and ``before``
        returned; ``to_trash``: to the trash, for readers of blocks that the new ones do not name."""
        for part in rows:
            self.add(part, sync)
        before()
        for name in old:
            fault_point("drop index")
            if to_trash:
                self._backend.to_trash(f"index/{name}")
            else:
                self._backend.remove(f"index/{name}")
        if sync:
            self._backend.sync("index")
        self.refresh()

    def compact(self, sync: bool, before: Callable[[], None], has: Callable[[bytes, bytes, int, int], bool]) -> None:
        """Merge the smallest fragments, as long as the next one is at most twice as large as those before it together. ``has``:
        ``PackReader.has``."""
        sizes = sorted((len(rows), name) for name, rows in self.fragments().items())
        group: list[str] = []
        total = 0
        for size, name in sizes:
            if group and (size > 2 * total or size + total > MAX_MERGED_ROWS):
                break
            group.append(name)
            total += size
        if len(group) > 1:
            try:
                parts = [parse_fragment(self._read(name, check=True), self._aead, check=True) for name in group]
            except ValueError:
                return  # the put goes on; verify, gc and repair report it
            self.replace(group, [merged(parts, has)], sync, before)

    def _trashed_fragments(self) -> Iterator[Rows]:
        for name in self._backend.names("trash"):
            try:
                if _NAME.fullmatch(name):
                    yield parse_fragment(self._backend.read(f"trash/{name}"), self._aead)
            except (OSError, ValueError):
                continue

    def _names(self) -> list[str]:
        try:
            return [name for name in self._backend.names("index") if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []  # repair rebuilds it

    def _open(self, name: str) -> Rows | None:
        """None if it is damaged: the blocks that only it names are not found; ``checked`` reports it."""
        try:
            return parse_fragment(self._read(name, check=False), self._aead)
        except ValueError:
            return None

    def _read(self, name: str, *, check: bool) -> bytes | mmap.mmap:
        return self._backend.read_mmap(f"index/{name}", check=check)
