# SPDX-License-Identifier: GPL-3.0-or-later
"""The index of a store: its fragments together. Threads may share an Index; writing is for the holder of the writer lock.

Fragments are in the order of their age, newest first. A block that was stored again, because its older places are not good, is so
found in the newest. Those next to each other that are of similar size are merged, which keeps that order.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePath

import numpy as np

from fuse_store.columns import I64, halves
from fuse_store.repository.aead import Aead
from fuse_store.repository.atomic import fault_point
from fuse_store.repository.backends import Backend
from fuse_store.repository.index.fragment import Fragment, write_fragment
from fuse_store.repository.index.merge import Merge, Source
from fuse_store.repository.index.rows import Place, Rows

_NAME = re.compile(r"([0-9a-f]{32})\.idx")


@dataclass(frozen=True)
class Located:
    """The places of blocks: columns as in Rows, in the order of the request. ``pack`` is -1 for a block that is not in the index."""

    pack: I64
    offset: I64
    stored: I64
    length: I64
    packs: tuple[bytes, ...]


def similar(fragments: Sequence[Fragment]) -> Sequence[Fragment]:
    """The newest fragments that are worth merging: as many as possible, the oldest with at most twice the rows of those after
    it together. So each that is left has more than that, and there are as many as the logarithm of their rows."""
    count = total = 0
    for number, fragment in enumerate(fragments):
        if number and len(fragment) <= 2 * total:
            count = number + 1
        total += len(fragment)
    return fragments[:count]


class Index:
    """The index of a store."""

    def __init__(self, backend: Backend, aead: Aead) -> None:
        self._backend, self._aead = backend, aead
        self._fragments: dict[str, Fragment] = {}
        self._damaged: dict[str, str] = {}
        self._own: set[str] = set()  # added since ``separate``: no version needs them yet
        self._stamp = 0  # of ``Backend.changed``, when the fragments were listed
        self._lock = threading.Lock()

    # reading ---------------------------------------------------------------------------------------------------------

    def locate(self, digests: bytes | bytearray | memoryview) -> Located:
        """The places of the blocks with these digests, 16 bytes each."""
        high, low = halves(digests)
        pack = np.full(len(high), -1, np.int64)
        offset, stored, length = (np.zeros(len(high), np.int64) for _ in range(3))
        packs: list[bytes] = []
        pending = np.argsort(high)
        for fragment in self.fragments().values():
            if not len(pending):
                break
            row = fragment.find(high[pending], low[pending])
            hit = np.flatnonzero(row >= 0)
            if not len(hit):
                continue
            ordinal, *values = fragment.values(row[hit])
            listed = ordinal < fragment.pack_count  # else the fragment is damaged
            hit = hit[listed]
            located = pending[hit]
            if len(located):
                offset[located], stored[located], length[located] = (column[listed] for column in values)
                ordinals, index = np.unique(ordinal[listed], return_inverse=True)
                pack[located] = index + len(packs)
                packs += map(fragment.pack_id, ordinals.tolist())
                pending = np.delete(pending, hit)
        return Located(pack, offset, stored, length, tuple(packs))

    def places(self, digest: bytes) -> list[Place]:
        """Every place of a block, newest first: some of them may be wrong."""
        found = _places(self.fragments().values(), digest)
        return found or _places(self._trashed_fragments(), digest)  # of a removed version, which a reader may still have open

    def fragments(self) -> dict[str, Fragment]:
        """Every readable fragment, by name, newest first."""
        with self._lock:
            self._list()
            return self._fragments

    def damaged(self) -> dict[str, str]:
        """What is wrong with each fragment that cannot be read, by name: the blocks that only it names are not found."""
        with self._lock:
            self._list()
            return self._damaged

    def check(self) -> tuple[list[Fragment], dict[str, str]]:
        """Read all fragments as they are in the store now, and compare their columns with the digests: (the sound ones, newest first;
        the problem of each other one, by name)."""
        self.close()
        self.refresh()
        with self._lock:
            self._list(check=True)
            fragments, damaged = self._fragments, dict(self._damaged)
        sound = []
        for name, fragment in fragments.items():
            try:
                for _part in Merge([fragment.checked()]).parts():
                    pass
                sound.append(fragment)
            except ValueError as error:
                damaged[name] = str(error)
        return sound, damaged

    def close(self) -> None:
        """Close the mapped files, so that the disk can be unmounted."""
        with self._lock:
            self._fragments, self._damaged, self._stamp = {}, {}, 0

    def refresh(self) -> None:
        """List the fragments again at the next use, even if the directory seems unchanged."""
        self._backend.refresh("index")
        with self._lock:
            self._stamp = 0

    # writing ---------------------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Rows], sync: bool) -> None:
        """Write rows, newest first, to one fragment, durable when this returns; it is merged with similar ones that were added
        since ``separate``, without a sync: no version needs them yet. Raises OSError."""
        name = self._write(rows, 1 + max((fragment.number for fragment in self.fragments().values()), default=0), sync)
        if name is None:
            return
        self._own.add(name)
        newest = takewhile(lambda fragment: fragment.name in self._own, self.fragments().values())
        merged = self._merge(similar(list(newest)), sync, lambda: None)
        if merged is not None:
            self._own.add(merged)

    def compact(self, sync: bool, before: Callable[[], None]) -> None:
        """Merge the newest fragments that are of similar size. ``before``: see ``drop``. A damaged one is left as it is: the
        put goes on; verify, gc and repair report it."""
        self.separate()
        self._merge(similar(list(self.fragments().values())), sync, before)

    def separate(self) -> None:
        """Do not merge what is added from now on with what is there: versions may need that. Each writer begins with it."""
        self._own.clear()

    def without(self, packs: Set[bytes], sync: bool, before: Callable[[], None]) -> None:
        """Replace the fragments that name some of ``packs``. The old ones go to the trash, for readers of blocks in these."""
        old = [fragment for fragment in self.fragments().values() if not packs.isdisjoint(fragment.pack_ids())]
        for fragment in old:
            self._write([fragment.checked()], fragment.number, sync, packs)
        self.drop([fragment.name for fragment in old], sync, before, to_trash=True)

    def drop(self, names: Collection[str], sync: bool, before: Callable[[], None], to_trash: bool = False) -> None:
        """Remove fragments when ``before`` returned: what replaces them has to be durable then, and the lock still held."""
        before()
        for name in names:
            fault_point("drop index")
            if to_trash:
                self._backend.to_trash(f"index/{name}")
            else:
                self._backend.remove(f"index/{name}")
        if sync:
            self._backend.sync("index")
        self.refresh()

    def _write(self, sources: Sequence[Source], number: int, sync: bool, dropped: Collection[bytes] = ()) -> str | None:
        merge = Merge(sources, dropped)
        name = write_fragment(self._backend, self._aead, merge.parts, merge.packs, number, sync)
        self.refresh()
        return name

    def _merge(self, group: Sequence[Fragment], sync: bool, before: Callable[[], None]) -> str | None:
        if not group:
            return None
        try:
            name = self._write([fragment.checked() for fragment in group], group[0].number, sync)
        except ValueError:
            return None
        self.drop([fragment.name for fragment in group], sync, before)
        return name

    # files -----------------------------------------------------------------------------------------------------------

    def _list(self, check: bool = False) -> None:
        """Open the fragments that are new; ``check``: see ``Backend.read_mmap``."""
        for _attempt in range(8):
            stamp, trusted = self._backend.changed("index")
            if stamp == self._stamp:
                return
            opened, damaged = [], {}
            try:
                for name in self._names():
                    try:
                        opened.append(self._fragments.get(name) or self._open(f"index/{name}", check))
                    except ValueError as error:
                        damaged[name] = str(error)
            except FileNotFoundError:
                continue  # merged between the list and the read
            opened.sort(key=lambda fragment: (-fragment.number, fragment.name))
            self._fragments, self._damaged = {fragment.name: fragment for fragment in opened}, damaged
            self._stamp = stamp if trusted else 0
            return

    def _names(self) -> list[str]:
        try:
            return [name for name in self._backend.names("index") if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []  # repair rebuilds it

    def _open(self, path: str, check: bool = False) -> Fragment:
        """Raises FileNotFoundError, ValueError."""
        return Fragment(PurePath(path).stem, self._backend.read_mmap(path, check=check), self._aead)

    def _trashed_fragments(self) -> Iterator[Fragment]:
        for name in filter(_NAME.fullmatch, self._backend.names("trash")):
            try:
                yield self._open(f"trash/{name}")
            except (OSError, ValueError):
                continue


def _places(fragments: Iterator[Fragment] | Collection[Fragment], digest: bytes) -> list[Place]:
    places = (fragment.place(row) for fragment in fragments for row in fragment.rows_of(digest))
    return [place for place in places if place[0]]  # a damaged one has no id of a pack
