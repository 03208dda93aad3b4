# SPDX-License-Identifier: GPL-3.0-or-later
"""One fragment of the index: a file (docs/format.md, "Index") that is written once, under the digest of its header.

The columns of digests are searched where the file is mapped. The values of a row are encrypted by themselves in an encrypted store
(AES-256-CTR, the row as the counter; NIST SP 800-38A), so that a look-up decrypts the rows that it found and no other. The key is
the fragment's own: its name covers a random number and the digests of all columns. Threads may share a Fragment.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgpack
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, halves
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import Backend, Mapped
from fuse_store.repository.index.rows import U32, Place, Rows, find

MAGIC = b"FSINDEX1"
START = struct.Struct("<8sII")  # magic, length of the encrypted header, offset of the columns
HIGH_SIZE = LOW_SIZE = 8  # bytes of a row in each column
VALUES_SIZE = 16
ROW_SIZE = HIGH_SIZE + LOW_SIZE + VALUES_SIZE
MAX_PACKS = 1 << 22  # in a fragment
PROBES = 256  # rows that are looked up at once
_VALUES = b"index values"  # what the key of the values is for


@dataclass(frozen=True)
class Header:
    """``number``: greater than that of each fragment that was there; ``digests``: of the columns, not encrypted."""

    rows: int
    packs: bytes
    number: int
    nonce: bytes
    digests: bytes

    def packed(self) -> bytes:
        content: bytes = msgpack.packb(vars(self))
        return content


def parse_header(content: bytes) -> Header:
    """Raises ValueError."""
    try:
        header = Header(**msgpack.unpackb(content, max_bin_len=MAX_PACKS * DIGEST))
        if not (
            all(type(number) is int and 0 <= number < 1 << 63 for number in (header.rows, header.number))
            and all(isinstance(text, bytes) for text in (header.packs, header.nonce, header.digests))
        ):
            raise ValueError("invalid values in the header")
    except (TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"cannot read the header ({error})") from None
    if len(header.packs) % DIGEST or len(header.nonce) != DIGEST or len(header.digests) != 3 * DIGEST:
        raise ValueError("invalid values in the header")
    return header


class _Digests:
    """The digests of the columns, of rows that come one after the other."""

    def __init__(self, aead: Aead) -> None:
        self._hashers = [aead.hasher() for _column in range(3)]

    def update(self, rows: Rows) -> None:
        for hasher, content in zip(self._hashers, (_bytes(rows.high), _bytes(rows.low), _bytes(_values(rows))), strict=True):
            hasher.update(content)

    def digest(self) -> bytes:
        return b"".join(hasher.digest(DIGEST) for hasher in self._hashers)


def _values(rows: Rows) -> U32:
    values = np.empty((len(rows), 4), "<u4")
    for number, column in enumerate((rows.pack, rows.offset, rows.stored, rows.length)):
        values[:, number] = column
    return values


def _bytes(column: U64 | U32) -> memoryview:
    return np.ascontiguousarray(column).reshape(-1).view(np.uint8).data


class _Cipher:
    """Encrypts and decrypts the values of rows; leaves them as they are in a store without encryption."""

    def __init__(self, aead: Aead, name: bytes) -> None:
        self._key = aead.key(_VALUES, name) if aead.encrypted else None

    def run(self, begin: int, values: memoryview) -> bytes | memoryview:
        """The values of the rows from ``begin`` on."""
        if self._key is None:
            return values
        return Cipher(AES(self._key), CTR(begin.to_bytes(16, "big"))).encryptor().update(values)

    def rows(self, rows: I64, values: U64) -> U64:
        """The values of any rows, shape (rows, 2)."""
        if self._key is None:
            return values
        counters = np.zeros(values.shape, ">u8")
        counters[:, 1] = rows
        stream = Cipher(AES(self._key), ECB()).encryptor().update(counters.tobytes())
        decrypted: U64 = values ^ np.frombuffer(stream, "<u8").reshape(-1, 2)
        return decrypted


class Fragment:
    """The rows of one file; ``high``, ``low``: its columns of digests, sorted, not checked; ``packs``: 16 bytes each."""

    def __init__(self, name: str, content: Mapped, aead: Aead) -> None:
        """``name`` without the suffix. Raises ValueError if this is not the fragment of that name."""
        view = content.view
        if len(view) < START.size:
            raise ValueError("truncated")
        magic, length, begin = START.unpack(view[: START.size])
        if magic != MAGIC or begin % 8 or not START.size + length <= begin <= len(view):
            raise ValueError("not an index fragment")
        packed = aead.decrypt(b"index", view[START.size : START.size + length])
        digest = aead.digest(packed)
        if digest.hex() != name:
            raise ValueError("has the name of another fragment")
        self._header = parse_header(packed)
        rows = self._header.rows
        if len(view) != begin + rows * ROW_SIZE:
            raise ValueError("wrong length")
        self.name, self.number, self.packs = f"{name}.idx", self._header.number, self._header.packs
        self.high: U64 = np.frombuffer(view, "<u8", rows, begin)
        self.low: U64 = np.frombuffer(view, "<u8", rows, begin + rows * HIGH_SIZE)
        values = begin + rows * (HIGH_SIZE + LOW_SIZE)
        self._values: U64 = np.frombuffer(view, "<u8", 2 * rows, values).reshape(-1, 2)
        self._sealed = view[values:]
        self._aead, self._cipher = aead, _Cipher(aead, digest)
        self.release, self._touch = content.release, content.touch

    def __len__(self) -> int:
        return len(self.high)

    def find(self, high: U64, low: U64) -> I64:
        """The first row of each digest, -1 where there is none. Quicker if the digests are in order."""
        row = np.empty(len(high), np.int64)
        for begin in range(0, len(high), PROBES):
            part = slice(begin, begin + PROBES)
            row[part] = find(self.high, self.low, high[part], low[part])
            self._touch(len(row[part]))
        return row

    def repeats(self, rows: I64) -> NDArray[np.bool_]:
        """Whether the next row is of the same block."""
        known = np.flatnonzero(rows < len(self) - 1)
        repeated = np.zeros(len(rows), bool)
        row = rows[known]
        repeated[known] = (self.high[row] == self.high[row + 1]) & (self.low[row] == self.low[row + 1])
        return repeated

    def rows_of(self, digest: bytes) -> range:
        """The rows of a block."""
        high, low = halves(digest)
        first = end = int(self.find(high, low)[0])
        if first < 0:
            return range(0)
        while end < len(self) and self.high[end] == high[0] and self.low[end] == low[0]:
            end += 1
        return range(first, end)

    def values(self, rows: I64) -> tuple[I64, I64, I64, I64]:
        """(ordinal in ``packs``, offset, length stored, length of the pages) of rows. What was not checked may be any number."""
        values = np.empty((len(rows), 2), np.uint64)
        for begin in range(0, len(rows), PROBES):
            part = rows[begin : begin + PROBES]
            values[begin : begin + PROBES] = self._values[part]
            self._touch(len(part))
        pack, offset, stored, length = self._cipher.rows(rows, values).view("<u4").astype(np.int64).T
        return pack, offset, stored, length

    @property
    def pack_count(self) -> int:
        return len(self.packs) // DIGEST

    def pack_ids(self) -> Iterator[bytes]:
        return map(self.pack_id, range(self.pack_count))

    def pack_id(self, ordinal: int) -> bytes:
        return self.packs[ordinal * DIGEST : (ordinal + 1) * DIGEST]

    def place(self, row: int) -> Place:
        pack, offset, stored, _length = (int(column[0]) for column in self.values(np.array([row])))
        return self.pack_id(pack), offset, stored

    def part(self, begin: int, end: int) -> Rows:
        values = self._cipher.run(begin, self._sealed[begin * VALUES_SIZE : end * VALUES_SIZE])
        pack, offset, stored, length = np.frombuffer(values, "<u4").reshape(-1, 4).T
        return Rows(self.high[begin:end], self.low[begin:end], offset.astype(np.uint64), pack, stored, length, self.packs)

    def checked(self) -> _Checked:
        return _Checked(self, self._header.digests, self._aead)


class _Checked:
    """A fragment that is read from its beginning to its end, and compared with its digests then."""

    def __init__(self, fragment: Fragment, digests: bytes, aead: Aead) -> None:
        self._fragment, self._wanted, self._aead = fragment, digests, aead
        self._digests = _Digests(aead)
        self.high, self.packs, self.release = fragment.high, fragment.packs, fragment.release

    def __len__(self) -> int:
        return len(self._fragment)

    def part(self, begin: int, end: int) -> Rows:
        """Raises ValueError."""
        if not begin:
            self._digests = _Digests(self._aead)
        rows = self._fragment.part(begin, end)
        self._digests.update(rows)
        if end == len(self) and self._digests.digest() != self._wanted:
            raise ValueError("checksum mismatch")
        return rows


def write_fragment(
    backend: Backend, aead: Aead, parts: Callable[[], Iterable[Rows]], packs: bytes, number: int, sync: bool
) -> str | None:
    """Write a fragment, durable with ``sync`` when this returns; its name, or None if there are no rows. ``parts`` gives all rows,
    in order, the same at each of two calls. Raises ValueError for a damaged
    source, and for what a reader would refuse, OSError."""
    if len(packs) > MAX_PACKS * DIGEST:
        raise ValueError("too many packs for one fragment")
    digests, count = _Digests(aead), 0
    for rows in parts():
        if len(rows) and int(rows.offset.max()) >> 32:
            raise ValueError("a block is behind the first 4 GiB of its pack")
        digests.update(rows)
        count += len(rows)
    if not count:
        return None
    header = Header(count, packs, number, os.urandom(DIGEST), digests.digest()).packed()
    name, encrypted = aead.digest(header), aead.encrypt(b"index", header)
    begin = -(-(START.size + len(encrypted)) // 8) * 8
    cipher, at = _Cipher(aead, name), 0
    with backend.new("index", sync) as new:
        new.file.write(START.pack(MAGIC, len(encrypted), begin) + encrypted + bytes(begin - START.size - len(encrypted)))
        for rows in parts():
            values = cipher.run(at, _bytes(_values(rows)))
            column = begin
            for content, size in ((_bytes(rows.high), HIGH_SIZE), (_bytes(rows.low), LOW_SIZE), (values, VALUES_SIZE)):
                new.file.seek(column + at * size)
                new.file.write(content)
                column += count * size
            at += len(rows)
        with contextlib.suppress(FileExistsError):  # the name says that it has the same content
            new.create(f"index/{name.hex()}.idx")
    return f"{name.hex()}.idx"
