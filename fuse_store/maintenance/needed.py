# SPDX-License-Identifier: GPL-3.0-or-later
"""Which blocks versions need, for ``gc``: read from the manifests once, and remembered.

The versions of a machine and application are remembered together, in the order in which they were stored. Most blocks of one are those
of the one before it, so what is kept is *runs*: a block, and from which version to which one it is needed. A version that is removed
takes the runs away that no other one is in; a new one is read and added.

What is remembered names the versions that it was made of. The id of a version covers each of its blocks, so nothing can be
remembered of a version that is not so. A file is encrypted, with its name; for each version it has the number and the sum of the digests
that were read in the manifest, and the runs have to give the same. Anything else is as if there were no file: the manifests
are read. So a file that is old, damaged, forged or gone costs time and nothing else. For one thread.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, halves
from fuse_store.errors import Damaged, NotFound
from fuse_store.image.kind import open_transform
from fuse_store.repository.aead import DIGEST
from fuse_store.repository.extents import Extents, read_segment
from fuse_store.repository.manifest import Head, Summary, read_head
from fuse_store.store import Store

MAX_RUNS = 1 << 20  # that are remembered together, in memory at once: 24 MiB. A version with more blocks is read each time
MAX_VERSIONS = 1 << 16  # that are remembered together
MIN_STALE = 16  # versions that are read anew each time, unless they have many blocks, before a file is written again
STALE_RATIO = 8  # so many runs are worth writing again for one block that was read
_NAME = re.compile(r"([0-9a-f]{4})\.([0-9a-f]{8})\.([0-9]{1,6})\.blocks")
_START = struct.Struct("<8sII")  # magic, versions, runs
_MAGIC = b"FSNEEDS1"
_VERSION = np.dtype([("id", "V16"), ("content", "V16"), ("blocks", "<u8"), ("high", "<u8"), ("low", "<u8")])
_RUN_SIZE = 24
MAX_SIZE = _START.size + MAX_VERSIONS * _VERSION.itemsize + MAX_RUNS * _RUN_SIZE + 64
_NONE = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Runs:
    """Columns of equal length: the halves of the digest of a block, and which versions need it, ``first`` to ``last`` (exclusive)."""

    high: U64
    low: U64
    first: I64
    last: I64

    def __len__(self) -> int:
        return len(self.high)

    def select(self, rows: I64) -> Runs:
        return Runs(self.high[rows], self.low[rows], self.first[rows], self.last[rows])


def _joined(parts: Iterable[Runs]) -> Runs:
    parts = list(parts)
    return Runs(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("high", "low", "first", "last")))


_NO_RUNS = Runs(_NONE, _NONE, np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Version:
    """One that was read. ``blocks``: how many distinct ones it needs; ``high``, ``low``: the sums of their digests' halves."""

    id: str
    content: bytes
    blocks: int
    high: int
    low: int


class Group:
    """Versions that are remembered together, and the runs of their blocks."""

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self._open = _NO_RUNS  # of the blocks of the last version, by digest
        self._ended: list[Runs] = []
        self._ended_runs = 0

    def __len__(self) -> int:
        return len(self._open) + self._ended_runs

    def has_space(self, blocks: int) -> bool:
        return len(self.versions) < MAX_VERSIONS and len(self) + blocks <= MAX_RUNS

    def add(self, image_id: str, content: bytes, high: U64, low: U64) -> None:
        """A version with these blocks, each once, in the order of (high, low)."""
        number, before = len(self.versions), self._open
        self.versions.append(Version(image_id, content, len(high), int(high.sum(dtype=np.uint64)), int(low.sum(dtype=np.uint64))))
        new = Runs(high, low, np.full(len(high), number, np.int64), np.full(len(high), -1, np.int64))
        if len(before) == len(high) and (before.high == high).all() and (before.low == low).all():
            return
        both = _joined((before, new))
        order = np.lexsort((both.low, both.high))  # stable: of equal ones that of the version before comes first
        both, is_new = both.select(order), order >= len(before)
        repeats = np.zeros(len(order), bool)  # also in the version before
        repeats[1:] = (both.high[1:] == both.high[:-1]) & (both.low[1:] == both.low[:-1])
        goes_on = np.append(repeats[1:], False)
        ended = both.select(np.flatnonzero(~is_new & ~goes_on))
        if len(ended):
            ended.last[:] = number
            self._ended.append(ended)
            self._ended_runs += len(ended)
        self._open = both.select(np.flatnonzero(is_new & ~repeats | goes_on))

    def runs(self) -> Runs:
        last = np.full(len(self._open), len(self.versions), np.int64)
        return _joined((*self._ended, Runs(self._open.high, self._open.low, self._open.first, last)))

    def needed(self, there: Iterable[str]) -> tuple[U64, U64]:
        """The digests of the blocks that those of the versions need that are ``there``, in order."""
        there = set(there)
        before = np.cumsum([0, *(version.id in there for version in self.versions)])  # how many versions before each are there
        runs = self.runs()
        used = np.flatnonzero(before[runs.last] > before[runs.first])
        order = used[np.argsort(runs.high[used])]
        return runs.high[order], runs.low[order]

    def without(self, gone: set[str]) -> Group:
        """The group without some of its versions."""
        keep = np.array([version.id not in gone for version in self.versions], bool)
        before = np.cumsum([0, *keep.tolist()])
        runs = self.runs()
        moved = Runs(runs.high, runs.low, before[runs.first], before[runs.last])
        versions = [version for version, kept in zip(self.versions, keep.tolist(), strict=True) if kept]
        return _group(versions, moved.select(np.flatnonzero(moved.last > moved.first)))

    def packed(self) -> bytes:
        rows = [(bytes.fromhex(version.id), version.content, version.blocks, version.high, version.low) for version in self.versions]
        runs = self.runs()
        columns = (runs.high.astype("<u8"), runs.low.astype("<u8"), runs.first.astype("<u4"), runs.last.astype("<u4"))
        start = _START.pack(_MAGIC, len(rows), len(runs)), np.array(rows, _VERSION).tobytes()
        return b"".join((*start, *(column.tobytes() for column in columns)))


def _group(versions: list[Version], runs: Runs) -> Group:
    group = Group()
    group.versions = versions
    is_open = runs.last == len(versions)
    last = runs.select(np.flatnonzero(is_open))
    group._open = last.select(np.lexsort((last.low, last.high)))
    group._ended = [runs.select(np.flatnonzero(~is_open))]
    group._ended_runs = len(runs) - len(last)
    return group


def parse(content: bytes) -> Group:
    """What ``Group.packed`` gave. Raises ValueError for anything that contradicts itself."""
    if not _START.size <= len(content) <= MAX_SIZE:
        raise ValueError("impossible length")
    magic, versions, runs = _START.unpack_from(content)
    at = _START.size + versions * _VERSION.itemsize
    if magic != _MAGIC or len(content) != at + runs * _RUN_SIZE:
        raise ValueError("wrong length")
    rows = np.frombuffer(content, _VERSION, versions, _START.size)
    columns = []
    for kind in ("<u8", "<u8", "<u4", "<u4"):
        columns.append(np.frombuffer(content, kind, runs, at))
        at += columns[-1].nbytes
    found = Runs(columns[0], columns[1], columns[2].astype(np.int64), columns[3].astype(np.int64))
    if ((found.first >= found.last) | (found.last > versions)).any():
        raise ValueError("runs of no version")
    _check(rows, found)
    return _group(
        [Version(bytes(row["id"]).hex(), bytes(row["content"]), int(row["blocks"]), int(row["high"]), int(row["low"])) for row in rows],
        found,
    )  # fmt: skip


def _check(versions: NDArray[np.void], runs: Runs) -> None:
    """Compare the number and the sum of the digests of each version with those that were read. Raises ValueError."""
    numbers = np.arange(len(versions))
    wanted = {"blocks": np.ones(len(runs), np.uint64), "high": runs.high, "low": runs.low}
    totals = {name: np.zeros(len(versions), np.uint64) for name in wanted}
    for column, sign in ((runs.first, False), (runs.last, True)):
        order = np.argsort(column, kind="stable")
        ends = np.searchsorted(column[order], numbers, "right")  # of the runs that begin, or end, at a version or before it
        for name, values in wanted.items():
            sums = np.append(np.zeros(1, np.uint64), np.cumsum(values[order], dtype=np.uint64))[ends]
            totals[name] = totals[name] - sums if sign else totals[name] + sums
    if any((totals[name] != versions[name]).any() for name in wanted):
        raise ValueError("runs that are not those of the versions")


class Needed:
    """What the versions of a store need, a directory of manifests after the other. ``keep``: whether to remember what was read."""

    def __init__(self, store: Store, mark: Callable[[U64, U64], None], seen: Callable[[int], None], *, keep: bool) -> None:
        """``mark`` is told of blocks that are needed, and raises Damaged if one of them is not in the index; ``seen``: how many versions
        there were so far."""
        self._store, self._mark, self._seen, self._keep = store, mark, seen, keep
        self._cache = store.versions.cache
        self._names: dict[str, list[str]] = {}  # of files, by directory of manifests
        for name in self._cache.names():
            match = _NAME.fullmatch(name)
            if match:
                self._names.setdefault(match[1], []).append(name)
        self.contents = bytearray()  # of the versions that were seen, 16 bytes each
        self.count = 0

    def of(self, tag: str) -> None:
        """Mark what the versions of a directory need. Raises Damaged, which names the image."""
        there = set(self._store.versions.ids_in(tag))
        known: set[str] = set()
        for name in self._names.get(tag, ()):
            group = self._read(name)
            if group is not None:
                ids = {version.id for version in group.versions}
                self._count(len((ids & there) - known))
                known |= ids & there
                right = self._use(group, ids & there)
                gone = len(ids - there)
                if not right or not ids & there or gone > max(MIN_STALE, len(ids) // 4):
                    self._write(name, group.without(ids - there) if right else Group())
        if there - known:
            self._add(tag, there - known)

    def _count(self, more: int) -> None:
        self.count += more
        if more:
            self._seen(self.count)

    def forget_others(self, tags: Iterable[str]) -> None:
        """Remove what is remembered of directories that are gone."""
        for tag in self._names.keys() - set(tags):
            for name in self._names[tag]:
                self._cache.remove(name)

    def _use(self, group: Group, ids: set[str]) -> bool:
        """Mark what some versions of a group need; whether the group is right. Raises as ``of``."""
        self.contents += b"".join(version.content for version in group.versions if version.id in ids)
        try:
            self._mark(*group.needed(ids))
            return True
        except Damaged:  # the manifests tell which version needs it, or else what was remembered is wrong
            for image_id in ids:
                with suppress(NotFound):
                    self._blocks(image_id, self._mark)
            return False

    def _add(self, tag: str, fresh: set[str]) -> None:
        """Read versions that nothing is remembered of, in the order in which they were stored, and remember them."""
        listed = self._store.versions.listed(tag)
        for image_id in fresh & listed.unreadable.keys():
            raise listed.unreadable[image_id]
        versions = sorted((version for version in listed.summaries if version.id in fresh), key=_chain)
        for image_id in fresh.difference(version.id for version in versions):
            self._check_gone(image_id)
        for key, chain in groupby(versions, key=lambda version: _chain(version)[:2]):
            self._add_chain(tag, self._store.aead.digest(repr(key).encode())[:4].hex(), chain)

    def _add_chain(self, tag: str, key: str, versions: Iterable[Summary]) -> None:
        """The same, of versions of one machine and application."""
        number = max((int(name.split(".")[2]) for name in self._names.get(tag, ()) if name.split(".")[1] == key), default=0)
        group = self._read(f"{tag}.{key}.{number}.blocks") or Group()
        read: dict[str, int] = {}  # versions that were added to the group: how many blocks each has

        def use() -> None:
            self._use(group, set(read))
            if len(read) > MIN_STALE or sum(read.values()) * STALE_RATIO > len(group):
                self._write(f"{tag}.{key}.{number}.blocks", group)

        for version in versions:
            try:
                blocks = self._blocks(version.id)
            except NotFound:  # nothing is to be remembered of it
                continue
            self._count(1)
            if blocks is None:  # too many to remember; they are marked
                self.contents += version.content
                continue
            if not group.has_space(len(blocks[0])):
                use()
                group, number, read = Group(), number + 1, {}
            group.add(version.id, version.content, *blocks)
            read[version.id] = len(blocks[0])
        use()

    def _blocks(self, image_id: str, mark: Callable[[U64, U64], None] | None = None) -> tuple[U64, U64] | None:
        """The digests of the blocks in packs that a version needs, in order, from its manifest; None if they are too many, and
        were marked, as they are with ``mark``. Raises Damaged, which names the image, and NotFound if it is gone: without the lock, in
        a dry run, it may have been removed meanwhile."""
        try:
            head, start = read_head(self._store.backend, image_id, self._store.aead)
        except NotFound:
            self._check_gone(image_id)
            raise
        try:
            open_transform(head)
        except ValueError as error:
            raise Damaged(f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.", image=image_id) from None
        digests = _NONE, _NONE
        for number in range(len(head.segments)):
            extents = self._segment(image_id, head, number, start)
            more = halves(extents.digests[: extents.stored * DIGEST])
            if mark is None:
                digests = _distinct(*map(np.concatenate, zip(digests, more, strict=True)))
            if mark is not None or len(digests[0]) > MAX_RUNS:
                mark = mark or self._mark
                try:
                    for columns in (digests, more):
                        mark(*columns)
                except Damaged as error:
                    raise Damaged(error.thing, error.cause, error.remedy, image=image_id) from None
                digests = _NONE, _NONE
        return digests if mark is None else None

    def _segment(self, image_id: str, head: Head, number: int, start: int) -> Extents:
        try:
            return read_segment(self._store.backend, image_id, head, number, start, self._store.aead)
        except NotFound:
            self._check_gone(image_id)
            raise

    def _check_gone(self, image_id: str) -> None:
        """Raises Damaged if a version is there whose manifest was not found."""
        if self._store.versions.exists(image_id):
            raise Damaged(f"manifest {image_id}.img", "cannot be found, though it is listed.", image=image_id)

    # files -----------------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> Group | None:
        try:
            return parse(self._cache.packed(name, MAX_SIZE))
        except (OSError, ValueError):
            return None

    def _write(self, name: str, group: Group) -> None:
        if not self._keep:
            return
        if group.versions:
            self._cache.keep_packed(name, group.packed())
        else:
            self._cache.remove(name)


def _chain(version: Summary) -> tuple[str, str, tuple[int, datetime, str]]:
    return version.machine, version.application, version.order


def _distinct(high: U64, low: U64) -> tuple[U64, U64]:
    """The digests in order, each once."""
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    new = np.ones(len(high), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return high[new], low[new]
