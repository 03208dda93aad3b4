# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: in which pack, and where in it, each block is. Used by ``capture``, ``image`` and ``upkeep``.

It is a set of fragments: write-once files of sorted columns, mapped into memory and looked up by bisection, many
digests at a time. Whoever writes packs adds a fragment; small ones are merged, so that their number grows with the
logarithm of the store. Everything in it can be made anew from the packs. A wrong row does no harm: a block is verified
when it is read, and a block that the index says is there already is looked at in its pack. Threads may share an Index.
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

from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.backends import Backend

MAGIC = b"FSINDEX1"
_START = struct.Struct("<8sII")  # magic, length of the encrypted header, where the columns begin
_NAME = re.compile(r"[0-9a-f]{32}\.idx")
ROW = 36  # bytes of the columns for one block
MOST_ROWS = 1 << 20  # a fragment with more is merged no further
MOST_PACKS = 1 << 22

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
COLUMNS = (("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("pack", "<u4"), ("stored", "<u4"), ("length", "<u4"))


@dataclass(frozen=True)
class Rows:
    """Columns of equal length, one element for each block, sorted by digest.

    ``high`` and ``low`` are the halves of the digest, little-endian; ``pack`` is an ordinal into ``packs``, 16 bytes each;
    ``offset`` and ``stored`` say where in the pack the block is, header included; ``length`` is that of its pages.
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

    def place(self, row: int) -> tuple[bytes, int, int]:
        """(pack, offset, length stored) of one block."""
        pack = int(self.pack[row])
        return self.packs[pack * DIGEST : (pack + 1) * DIGEST], int(self.offset[row]), int(self.stored[row])

    def select(self, rows: NDArray[np.bool_] | I64) -> Rows:
        """Some of the rows; rows must stay in order."""
        used, pack = np.unique(self.pack[rows], return_inverse=True)
        packs = b"".join(self.packs[one * DIGEST : (one + 1) * DIGEST] for one in used.tolist())
        return Rows(
            self.high[rows], self.low[rows], self.offset[rows], pack.astype(np.uint32), self.stored[rows], self.length[rows], packs
        )

    def find(self, high: U64, low: U64) -> I64:
        """The row of each digest, -1 where there is none."""
        row = np.full(len(high), -1, np.int64)
        at = np.searchsorted(self.high, high)
        open_ = np.arange(len(high))
        while len(open_):  # twice only if two digests have one half in common
            open_ = open_[at[open_] < len(self.high)]
            open_ = open_[self.high[at[open_]] == high[open_]]
            hit = self.low[at[open_]] == low[open_]
            row[open_[hit]] = at[open_[hit]]
            open_ = open_[~hit]
            at[open_] += 1
        return row


@dataclass(frozen=True)
class Located:
    """Where blocks are: columns as in Rows, in the order in which they were asked for. ``pack`` is -1 where there is none."""

    pack: I64
    offset: I64
    stored: I64
    length: I64
    packs: tuple[bytes, ...]


def halves(digests: bytes | bytearray | memoryview) -> tuple[U64, U64]:
    """The columns ``high`` and ``low`` of digests that stand one after the other."""
    both = np.frombuffer(digests, "<u8").reshape(-1, 2)
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def merged(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts; a block that several have is taken from the first of them."""
    ordinals: dict[bytes, int] = {}
    packs = []
    for part in parts:
        names = [part.packs[at : at + DIGEST] for at in range(0, len(part.packs), DIGEST)]
        table = np.array([ordinals.setdefault(name, len(ordinals)) for name in names], np.uint32)
        packs.append(table[part.pack])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name, _kind in COLUMNS if name != "pack"}
    columns["pack"] = np.concatenate(packs)
    order = np.lexsort((columns["low"], columns["high"]))  # stable: equal digests stay in the order of the parts
    columns = {name: column[order] for name, column in columns.items()}
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(columns["high"]) != 0) | (np.diff(columns["low"]) != 0)
    return Rows(**columns, packs=b"".join(ordinals)).select(first)


def fragment_bytes(rows: Rows, aead: Aead) -> bytes:
    """A fragment as it is stored (docs/format.md, "Index")."""
    columns = b"".join(getattr(rows, name).astype(kind).tobytes() for name, kind in COLUMNS)
    header = msgpack.packb({"rows": len(rows), "packs": rows.packs, "digest": aead.digest(columns)})
    encrypted = aead.encrypt(b"index", header)
    begin = -(-(_START.size + len(encrypted)) // 8) * 8
    return _START.pack(MAGIC, len(encrypted), begin) + encrypted + bytes(begin - _START.size - len(encrypted)) + columns


def parse_fragment(content: bytes | mmap.mmap, aead: Aead, check: bool = False) -> Rows:
    """The Rows in a fragment, as views of ``content``. ``check`` compares the columns with their digest. Raises ValueError."""
    if len(content) < _START.size:
        raise ValueError("it is cut off")
    magic, encrypted, begin = _START.unpack(content[: _START.size])
    if magic != MAGIC or begin % 8 or not _START.size + encrypted <= begin <= len(content):
        raise ValueError("it is no index")
    try:
        header = msgpack.unpackb(
            aead.decrypt(b"index", content[_START.size : _START.size + encrypted]), max_bin_len=MOST_PACKS * DIGEST
        )
        count, packs, digest = header["rows"], header["packs"], header["digest"]
    except (KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"its header cannot be read ({error})") from None
    if not isinstance(count, int) or not isinstance(packs, bytes) or len(packs) % DIGEST or count < 0:
        raise ValueError("its header has impossible values")
    if len(content) != begin + count * ROW:
        raise ValueError("its length is wrong")
    if check and aead.digest(memoryview(content)[begin:]) != digest:
        raise ValueError("its checksum is wrong")
    columns = {}
    for name, kind in COLUMNS:
        columns[name] = np.frombuffer(content, kind, count, begin)
        begin += columns[name].nbytes
    if check and count and int(columns["pack"].max()) >= len(packs) // DIGEST:
        raise ValueError("it names packs that it does not list")
    return Rows(**columns, packs=packs)


class Index:
    """The index of a store. Reading is safe in threads; what writes is for who holds the writer's lock."""

    def __init__(self, backend: Backend, aead: Aead) -> None:
        self._backend, self._aead = backend, aead
        self._fragments: dict[str, Rows] = {}
        self._listed = 0
        self._lock = threading.Lock()

    def locate(self, digests: bytes | bytearray | memoryview) -> Located:
        """Where the blocks with these digests, 16 bytes each, are."""
        high, low = halves(digests)
        where = np.full(len(high), -1, np.int64)
        offset, stored, length = (np.zeros(len(high), np.int64) for _ in range(3))
        packs: list[bytes] = []
        open_ = np.arange(len(high))
        for rows in self.fragments().values():
            if not len(open_):
                break
            row = rows.find(high[open_], low[open_])
            hit = row >= 0
            found, row, open_ = open_[hit], row[hit], open_[~hit]
            if len(found):
                ordinals, pack = np.unique(rows.pack[row], return_inverse=True)
                where[found] = pack + len(packs)
                packs += [rows.packs[one * DIGEST : (one + 1) * DIGEST] for one in ordinals.tolist()]
                offset[found], stored[found], length[found] = rows.offset[row], rows.stored[row], rows.length[row]
        return Located(where, offset, stored, length, tuple(packs))

    def places(self, digest: bytes) -> list[tuple[bytes, int, int]]:
        """(pack, offset, length stored) of every row of a block: one of them may be wrong."""
        high, low = halves(digest)
        found = [(rows, int(rows.find(high, low)[0])) for rows in self.fragments().values()]
        if all(row < 0 for _rows, row in found):  # of a version that was removed; who has it open may finish
            found = [(rows, int(rows.find(high, low)[0])) for rows in self._trashed()]
        return [rows.place(row) for rows, row in found if row >= 0]

    def fragments(self) -> dict[str, Rows]:
        """Every fragment that can be read now, by name."""
        with self._lock:
            for _attempt in range(8):
                changed, settled = self._backend.changed("index")
                if changed == self._listed:
                    break
                try:
                    found = {name: self._fragments.get(name) or self._open(name) for name in self._names()}
                    self._fragments = {name: rows for name, rows in found.items() if rows is not None}
                except FileNotFoundError:
                    continue  # merged away between the list and the look
                self._listed = changed if settled else 0
                break
            return self._fragments

    def close(self) -> None:
        """Let go of the mapped files, so that the disk can be unmounted."""
        with self._lock:
            self._fragments, self._listed = {}, 0

    def refresh(self) -> None:
        """Look again, whatever the directory's time says."""
        self._backend.refresh("index")
        with self._lock:
            self._listed = 0

    def checked(self) -> Iterator[tuple[str, Rows | str]]:
        """Every fragment, its columns compared with their digest; instead of Rows what is wrong with it."""
        for name in sorted(self._names()):
            try:
                yield name, parse_fragment(self._mapped(name, check=True), self._aead, check=True)
            except FileNotFoundError:
                continue
            except ValueError as error:
                yield name, str(error)

    def add(self, rows: Rows, sync: bool) -> None:
        """Make a fragment of ``rows``, durable when this returns."""
        if len(rows):
            self._backend.write(f"index/{os.urandom(DIGEST).hex()}.idx", fragment_bytes(rows, self._aead), sync)
            self.refresh()

    def replace(
        self, old: Sequence[str], rows: Sequence[Rows], sync: bool, before: Callable[[], None], to_trash: bool = False
    ) -> None:
        """Put ``rows`` in the place of the fragments ``old``. Until the new ones are durable the old ones stay; ``to_trash``:
        and for a while in the trash, for readers of what they no longer name."""
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

    def compact(self, sync: bool, before: Callable[[], None]) -> None:
        """Merge fragments of similar size."""
        sizes = sorted((len(rows), name) for name, rows in self.fragments().items())
        group: list[str] = []
        total = 0
        for size, name in sizes:
            if group and (size > 2 * total or size + total > MOST_ROWS):
                break
            group.append(name)
            total += size
        if len(group) > 1:
            try:
                parts = [parse_fragment(self._mapped(name, check=True), self._aead, check=True) for name in group]
            except ValueError:
                return  # a put goes on; verify, gc and repair tell
            self.replace(group, [merged(parts)], sync, before)

    def _trashed(self) -> Iterator[Rows]:
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
            return []  # it can be made anew

    def _open(self, name: str) -> Rows | None:
        """None if it is damaged: what only it has can't be found, and the rest can. ``checked`` tells."""
        try:
            return parse_fragment(self._mapped(name, check=False), self._aead)
        except ValueError:
            return None

    def _mapped(self, name: str, *, check: bool) -> bytes | mmap.mmap:
        return self._backend.read_mmap(f"index/{name}", check=check)
