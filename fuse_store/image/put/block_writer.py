# SPDX-License-Identifier: GPL-3.0-or-later
"""New pages in blocks, and blocks in packs.

An aligned unit of 128 KiB that is mostly new is a block of its own, so that equal units of other machines' images are stored once; the
scattered rest is gathered. Blocks are compressed and encrypted in groups, by others than the thread that decides what is new.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, group_starts, starts
from fuse_store.errors import StoreError
from fuse_store.image.kind import Settings
from fuse_store.image.put.page_digests import page_sums
from fuse_store.processes.forking import shared
from fuse_store.processes.workers import Result, Workers
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.block import BLOCK_SIZE, MAX_ADDED, seal_block
from fuse_store.repository.index import Index, Located
from fuse_store.repository.pack import NewBlock, PackReader, PackWriter

GROUP = 8  # blocks that are compressed and encrypted in one go
MAX_GROUPS = 16  # that wait or are being compressed

Encrypted = tuple[list[bytes], list[NewBlock]]  # the digest of each block, and those that are to be written


class Group:
    """Blocks with their pages one after the other, in memory that processes share and that is used again and again: the first use of new
    memory takes as long as compressing what is in it."""

    def __init__(self, number: int, slots: int, page_size: int) -> None:
        pages = GROUP * slots
        sizes = pages * page_size, pages * 24, GROUP * (slots * page_size + MAX_ADDED)
        memory = shared(sum(sizes))
        self.number, self.capacity = number, GROUP
        self.pages = np.frombuffer(memory, np.uint8, sizes[0]).reshape(pages, page_size)
        self.digests = np.frombuffer(memory, np.uint64, pages * 3, sizes[0]).reshape(pages, 3)  # their halves, and sums
        self.stored = memory[sizes[0] + sizes[1] :]  # the blocks as they will be in a pack
        self.ordinals: list[int] = []
        self.ends = [0]  # of the pages of each block, after a first 0

    def clear(self) -> None:
        self.ordinals, self.ends = [], [0]


class BlockWriter:
    """Puts pages into blocks, and blocks into packs. For one thread, and while ``workers`` are running."""

    def __init__(
        self, index: Index, reader: PackReader, packs: PackWriter, aead: Aead, settings: Settings, sync: bool, workers: Workers
    ) -> None:
        self._index, self._reader, self._packs, self._aead, self._sync = index, reader, packs, aead, sync
        self._codec, self._level = settings.codec, settings.level
        self._page_size, self._slots = settings.page_size, BLOCK_SIZE // settings.page_size
        self._digests = bytearray()  # of every block that is known, by ordinal
        self._groups = [Group(number, self._slots, self._page_size) for number in range(MAX_GROUPS + 1)]
        self._group, *self._free = self._groups  # the one that is being filled, and those that are empty
        self._begun: deque[tuple[Group, Result[Encrypted]]] = deque()
        self._begin = workers.task(self._encrypt, threads=True)
        self._gathered = np.empty((self._slots, settings.page_size), np.uint8)  # the block that is being filled
        self._gathered_digests = np.empty((self._slots, 3), np.uint64)  # and sums
        self._filled, self._gathering = 0, -1  # its pages so far, and its ordinal

    @property
    def digests(self) -> NDArray[np.void]:
        """The digest of every block, by ordinal; complete after ``flush``."""
        return np.frombuffer(self._digests, f"V{DIGEST}")

    def know(self, digests: bytes) -> int:
        """Take in blocks that are stored already; the ordinal of the first."""
        first = len(self._digests) // DIGEST
        self._digests += digests
        return first

    def add(self, page: I64, content: NDArray[np.uint8], rows: I64, digests: U64) -> tuple[I64, I64]:
        """Put pages (ascending), which are ``rows`` of ``content``, into blocks; (block, slot) of each. ``digests`` has three columns:
        the halves of their digests, and their sums."""
        block, slot = np.empty(len(page), np.int64), np.empty(len(page), np.int64)
        begins = group_starts(page // self._slots)
        counts = np.diff(np.append(begins, len(page)))
        own = 2 * counts >= self._slots
        units, sizes = np.flatnonzero(np.repeat(own, counts)), counts[own]
        ordinals = self._ordinals(len(sizes)) + np.arange(len(sizes))
        block[units] = np.repeat(ordinals, sizes)
        slot[units] = np.arange(len(units)) - np.repeat(starts(sizes), sizes)
        self._submit(ordinals, sizes, content, rows[units], digests[units])
        scattered = np.flatnonzero(np.repeat(~own, counts))
        block[scattered], slot[scattered] = self._gather(content, rows[scattered], digests[scattered])
        return block, slot

    def _gather(self, content: NDArray[np.uint8], rows: I64, digests: U64) -> tuple[I64, I64]:
        """``add`` for pages that go into one block after the other."""
        at = self._filled + np.arange(len(rows))  # from the first page of the block that is being filled
        if not len(rows):
            return at, at
        begun = min(self._filled, 1)
        new = -(-(self._filled + len(rows)) // self._slots) - begun
        ordinals = np.append(np.full(begun, self._gathering), self._ordinals(new) + np.arange(new))
        done = self._fill(content, rows[: self._slots - self._filled], digests) if begun else 0
        whole = (len(rows) - done) // self._slots
        end = done + whole * self._slots
        self._submit(ordinals[begun : begun + whole], np.full(whole, self._slots), content, rows[done:end], digests[done:end])
        if end < len(rows):
            self._gathering = int(ordinals[-1])
            self._fill(content, rows[end:], digests[end:])
        return ordinals[at // self._slots], at % self._slots

    def _fill(self, content: NDArray[np.uint8], rows: I64, digests: U64) -> int:
        """Have these pages in the block that is being filled, and close it when it is full; how many there are."""
        end = self._filled + len(rows)
        self._gathered[self._filled : end] = content[rows]
        self._gathered_digests[self._filled : end] = digests[: len(rows)]
        self._filled = end
        if end == self._slots:
            self._close_gathered()
        return len(rows)

    def flush(self) -> None:
        """Have every block in a pack, or on its way, and its digest known."""
        self._close_gathered()
        if self._group.ordinals:
            self._submit_group()
        while self._begun:
            self._write_group()

    def finish(self) -> None:
        """Close the last pack. Raises OSError."""
        rows = self._packs.finish()
        if rows is not None:
            self._index.add([rows], self._sync)

    def _ordinals(self, count: int) -> int:
        """So many blocks that get their digests later; the ordinal of the first."""
        return self.know(bytes(count * DIGEST))

    def _close_gathered(self) -> None:
        if self._filled:
            only, filled, rows = np.array([self._gathering]), np.array([self._filled]), np.arange(self._filled)
            self._submit(only, filled, self._gathered, rows, self._gathered_digests[: self._filled])
            self._filled, self._gathering = 0, -1

    def _submit(self, ordinals: I64, counts: I64, content: NDArray[np.uint8], rows: I64, digests: U64) -> None:
        """Take in blocks. Block n has the next ``counts[n]`` of ``rows`` of ``content``. All is copied."""
        ends = np.cumsum(counts)
        begin = done = 0
        while done < len(ordinals):
            group = self._group
            blocks = slice(done, done + group.capacity - len(group.ordinals))
            filled, end, done = group.ends[-1], int(ends[blocks][-1]), min(blocks.stop, len(ordinals))
            part = slice(filled, filled + end - begin)
            np.take(content, rows[begin:end], axis=0, out=group.pages[part], mode="clip")  # checking would copy once more
            group.digests[part] = digests[begin:end]
            group.ends += (ends[blocks] + (filled - begin)).tolist()
            group.ordinals += ordinals[blocks].tolist()
            begin = end
            if len(group.ordinals) == group.capacity:
                self._submit_group()

    def _submit_group(self) -> None:
        self._begun.append((self._group, self._begin(self._group.number, self._group.ends)))
        while not self._free or (self._begun and self._begun[0][1].done()):
            self._write_group()
        self._group = self._free.pop()  # one that was used before, if there is one: its memory is there

    def _encrypt(self, number: int, ends: list[int]) -> Encrypted:
        """Have the blocks of a group that the store does not have in ``Group.stored``, one after the other; ``ends`` are the group's. Where
        it is called, by another thread or process, nothing else changes."""
        group = self._groups[number]
        bounds = list(pairwise(ends))
        contents = [group.pages[begin:end].reshape(-1).data for begin, end in bounds]
        digests = [self._aead.digest(pages) for pages in contents]
        located = self._index.locate(b"".join(digests))
        new, at = [], 0
        for row, digest in enumerate(digests):
            if located.pack[row] < 0 or not self._is_there(digest, located, row):
                pages = contents[row]
                stored = seal_block(pages, digest, self._aead, self._codec, self._level, group.stored[at:])
                of_pages = group.digests[slice(*bounds[row]), :2].astype("<u8").tobytes()
                new.append((digest, stored, len(pages), of_pages))
                at += stored
        end = ends[-1]
        if (page_sums(group.pages[:end]) != group.digests[:end, 2]).any():
            raise StoreError(
                "memory", "changed a page of the source while it was stored.",
                "No version was created. Test the memory of this machine, and run the command again.",
            )  # fmt: skip
        return digests, new

    def _is_there(self, digest: bytes, located: Located, row: int) -> bool:
        """Whether the block can be read, there or where another row of the index says."""
        place = located.packs[int(located.pack[row])], int(located.offset[row]), int(located.stored[row])
        return self._reader.has(digest, *place) or any(self._reader.has(digest, *other) for other in self._index.places(digest))

    def _write_group(self) -> None:
        group, encrypted = self._begun.popleft()
        digests, new = encrypted.result()
        for ordinal, digest in zip(group.ordinals, digests, strict=True):
            self._digests[ordinal * DIGEST : (ordinal + 1) * DIGEST] = digest
        for rows in self._packs.add_all(group.stored, new):
            self._index.add([rows], self._sync)
        group.clear()
        self._free.append(group)
