# SPDX-License-Identifier: GPL-3.0-or-later
"""From an input to a version: pages are compared with those of the bases, and only new ones are stored.

One thread reads, finds equal pages and writes; others compress and encrypt. Pages are looked for wherever in the bases they
stand. New pages go into blocks: an aligned unit of 128 KiB that is mostly new is a block of its own, so that equal units
of other machines' images are stored once; the scattered rest is gathered. Memory is bounded by a batch of pages, the queue of
blocks, and the table of known pages. If a file is stored in another way (``image.kind.StoredAs``), the pages that its blocks
are computed from come first, and stand behind the files in the address space.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fuse_store.columns import I64, U64, distinct, group_starts, halves, joint_runs, starts
from fuse_store.errors import StoreError
from fuse_store.image import kind as kinds
from fuse_store.image.block_workers import Encrypted, Group, groups_of, workers
from fuse_store.image.inputs import Batch, Input, InputFile
from fuse_store.image.kind import FIRST_BYTES, Settings, StoredAs
from fuse_store.image.page_table import Bases, PageTable
from fuse_store.progress import Progress
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.block import BLOCK_SIZE, seal_block, split
from fuse_store.repository.extents import MAX_EXTENTS, Extents, Rows, encrypt_segment, no_rows
from fuse_store.repository.index import Index, Located
from fuse_store.repository.manifest import Computed, Segment
from fuse_store.repository.pack import PackReader, PackWriter, Table

_FIRST_COMPUTED = 1 << 40  # blocks with this ordinal or a higher one are computed, and in no pack

_Columns = tuple[I64, I64, I64, I64]  # (page, count, block, slot) of extents


def page_sums(pages: NDArray[np.uint8]) -> U64:
    """The sum of the words of each page, a row each. Taken before the digests of pages and after the last use of a copy of them: a bit
    that flips in memory in between would be stored under the digest of what it was."""
    sums: U64 = pages.view(np.uint64).sum(axis=1, dtype=np.uint64)
    return sums


@dataclass
class WrittenImage:
    """What was written, for the manifest. ``segments`` say where in ``encrypted`` the extents are. Sizes in bytes."""

    files: list[tuple[InputFile, int]] = field(default_factory=list)  # and the offset of each
    segments: list[Segment] = field(default_factory=list)
    encrypted: list[bytes] = field(default_factory=list)
    allocated: int = 0
    new: int = 0
    computed: Computed | None = None
    content: bytes = bytes(DIGEST)


class ContentDigest:
    """The digest of what an image holds, by which versions with the same bytes are known: over the number and the page digest of
    each page that is not zero, in order, however it is stored. What differs in images of one state of a machine does not count
    (``image.kind.Kind.neutral``)."""

    def __init__(self, aead: Aead) -> None:
        self._hasher = aead.hasher()
        self._hasher.update(b"content")
        self._known = np.empty((0, 3), np.uint64)  # rows of pages that ``add`` does not get

    def know(self, page: I64, digests: bytes) -> None:
        """Pages, ascending, that ``add`` will not get; before the first ``add``."""
        self._known = _content_rows(page, *halves(digests))

    def add(self, page: I64, high: U64, low: U64) -> None:
        """Pages that are not zero, ascending from one call to the next."""
        rows = _content_rows(page, high, low)
        before = int(np.searchsorted(self._known[:, 0], np.uint64(page[-1]))) if len(page) else 0
        if before:
            rows = np.concatenate((self._known[:before], rows))
            rows, self._known = rows[np.argsort(rows[:, 0])], self._known[before:]
        self._hasher.update(rows.tobytes())

    def digest(self) -> bytes:
        self._hasher.update(self._known.tobytes())
        return self._hasher.digest(DIGEST)


def _content_rows(page: I64, high: U64, low: U64) -> U64:
    rows = np.empty((len(page), 3), "<u8")
    rows[:, 0], rows[:, 1], rows[:, 2] = page, high, low
    return rows


class BlockWriter:
    """Puts pages into blocks, and blocks into packs; a context manager. For one thread; it has others for the work."""

    def __init__(self, index: Index, reader: PackReader, packs: PackWriter, aead: Aead, settings: Settings, sync: bool) -> None:
        self._index, self._reader, self._packs, self._aead, self._sync = index, reader, packs, aead, sync
        self._codec, self._level = settings.codec, settings.level
        self._page_size, self._slots = settings.page_size, BLOCK_SIZE // settings.page_size
        self._digests = bytearray()  # of every block that is known, by ordinal
        groups = groups_of(self._slots, self._page_size)
        self._group, *self._free = groups  # the one that is being filled, and those that are empty
        self._begun: deque[Group] = deque()
        self._gathered = np.empty((self._slots, settings.page_size), np.uint8)  # the block that is being filled
        self._gathered_digests = np.empty((self._slots, 3), np.uint64)  # and sums
        self._filled, self._gathering = 0, -1  # its pages so far, and its ordinal
        self._workers = workers(self._encrypt, groups, forked=reader.survives_fork)

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is compressed any more."""
        self._workers.close()

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
        self._workers.begin(self._group)
        self._begun.append(self._group)
        if not self._free:
            self._write_group()
        self._group = self._free.pop()

    def _encrypt(self, group: Group) -> Encrypted:
        """Have the blocks that the store does not have in ``group.stored``, one after the other. Where it is called, by another thread or
        process, nothing else changes."""
        bounds = list(pairwise(group.ends))
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
        end = group.ends[-1]
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
        group = self._begun.popleft()
        digests, new = self._workers.next()
        for ordinal, digest in zip(group.ordinals, digests, strict=True):
            self._digests[ordinal * DIGEST : (ordinal + 1) * DIGEST] = digest
        for rows in self._packs.add_all(group.stored, new):
            self._index.add([rows], self._sync)
        group.clear()
        self._free.append(group)


class SegmentWriter:
    """Collects extents in the order of their pages, and makes segments of them."""

    def __init__(self, aead: Aead, blocks: BlockWriter) -> None:
        self._aead, self._blocks = aead, blocks
        self._columns: list[_Columns] = []
        self._count = self._length = 0
        self._computed: _Columns | None = None  # extents of computed blocks that are in no segment yet
        self._rows, self._row_digests = no_rows(), b""
        self.encrypted: list[bytes] = []

    def add(self, page: I64, block: I64, slot: I64) -> list[Segment]:
        """Take in pages; the segments that this made full."""
        self._columns.append(joint_runs(page, block, slot))
        self._count += len(self._columns[-1][0])
        return self.close() if self._count >= MAX_EXTENTS else []

    def add_computed(self, extents: _Columns, rows: Rows, digests: bytes) -> None:
        """Take in the extents of all computed blocks: each gets into a segment when the pages around it do."""
        self._computed, self._rows, self._row_digests = extents, rows, digests

    def close(self, final: bool = False) -> list[Segment]:
        """Make segments of what was taken in; ``final``: with all computed blocks that are left."""
        self._blocks.flush()  # a segment names its blocks by their digests
        computed = self._take_computed(final)
        if computed is not None:
            self._columns.append(computed)
        if not self._columns:
            return []
        page, count, block, slot = (np.concatenate(parts) for parts in zip(*self._columns, strict=True))
        if computed is not None:
            order = np.argsort(page)
            page, count, block, slot = page[order], count[order], block[order], slot[order]
        self._columns, self._count = [], 0
        parts = [slice(begin, begin + MAX_EXTENTS) for begin in range(0, len(page), MAX_EXTENTS)]
        return [self._segment(page[part], count[part], block[part], slot[part]) for part in parts]

    def _segment(self, page: I64, count: I64, block: I64, slot: I64) -> Segment:
        used, local = np.unique(block, return_inverse=True)
        stored, computed = used[used < _FIRST_COMPUTED], used[used >= _FIRST_COMPUTED] - _FIRST_COMPUTED
        digests = self._blocks.digests[stored].tobytes() + np.frombuffer(self._row_digests, f"V{DIGEST}")[computed].tobytes()
        extents = Extents(page, count, local.astype(np.int64), slot, digests, self._rows[computed])
        segment, encrypted = encrypt_segment(extents, self._length, self._aead)
        self._length += len(encrypted)
        self.encrypted.append(encrypted)
        return segment

    def _take_computed(self, final: bool) -> _Columns | None:
        """The extents of computed blocks before the end of what has been read, and in no segment yet; all if ``final``."""
        if self._computed is None:
            return None
        end = len(self._computed[0])
        if not final:
            end = int(np.searchsorted(self._computed[0], self._columns[-1][0][-1]))
        page, count, row, slot = (column[:end] for column in self._computed)
        rest_page, rest_count, rest_row, rest_slot = (column[end:] for column in self._computed)
        self._computed = rest_page, rest_count, rest_row, rest_slot
        return (page, count, row + _FIRST_COMPUTED, slot) if end else None


class ImageWriter:
    """One put. ``bases``: in which blocks pages are looked for, the first that it knows."""

    def __init__(
        self, index: Index, reader: PackReader, packs: PackWriter, aead: Aead, settings: Settings, sync: bool, bases: Bases
    ) -> None:
        self._page_size, self._aead, self._bases = settings.page_size, aead, bases
        self._zero = halves(aead.page_digests([bytes(settings.page_size)]))
        self._known = PageTable()
        self._blocks = BlockWriter(index, reader, packs, aead, settings, sync)
        self._segments = SegmentWriter(aead, self._blocks)
        self._content = ContentDigest(aead)
        self._written = WrittenImage()
        try:
            for table in bases.tables():
                self._know(table)
                if not self._known.space:
                    break
        except BaseException:
            self._blocks.close()
            raise
        self._little_used, self._left = bases.little_used()  # blocks, by ordinal; pages that may be stored again because of them
        self._again = PageTable()  # where these are now

    def run(self, source: Input, progress: Progress, stored_as: StoredAs | None = None) -> WrittenImage:
        """Store what is new in an input. ``stored_as`` is how its only file is stored. Raises StoreError, OSError."""
        end = source.end(self._page_size)
        before = 0 if stored_as is None else stored_as.size
        progress.start("put", None if end is None else before + end)
        with self._blocks:
            try:
                if stored_as is not None:
                    self._run_computed(stored_as, source.files[0], progress)
                behind, self._written.segments = self._written.segments, []
                with closing(source.batches(self._page_size)) as batches:
                    for batch in batches:
                        pages = self._batch(batch.page, batch.data)
                        self._content.add(*(self._neutral(*pages, batch) if len(source.files) == 1 else pages))
                        progress.at(before + batch.end)
                progress.at(before + (source.end(self._page_size) or 0))
                self._written.files = source.placed(self._page_size)
                self._written.segments += self._segments.close(final=True) + behind
                self._blocks.finish()
            finally:
                progress.finish()
        self._written.encrypted, self._written.content = self._segments.encrypted, self._content.digest()
        return self._written

    def _run_computed(self, stored_as: StoredAs, file: InputFile, progress: Progress) -> None:
        """Store the pages that blocks are computed from; the file need then not be read where those blocks stand."""
        with closing(stored_as.batches()) as batches:
            for batch in batches:
                self._batch(batch.page, batch.data)
                progress.at(batch.end)
        self._written.segments += self._segments.close(final=True)
        self._written.computed = stored_as.computed
        if stored_as.computed is None:
            return
        extents = stored_as.extents()
        self._segments.add_computed(extents, stored_as.rows, stored_as.digests)
        file.skip = extents[:2]
        self._content.know(*stored_as.page_digests())
        self._written.allocated = int(extents[1].sum()) * self._page_size

    def _neutral(self, page: I64, high: U64, low: U64, batch: Batch) -> tuple[I64, U64, U64]:
        """Pages of a batch with the digests that count for the content: of the first pages of a file as a kind of image says that they
        count (``image.kind.neutral``)."""
        size = self._page_size
        count = int(np.searchsorted(batch.page, FIRST_BYTES // size))
        if not count or not len(page):
            return page, high, low
        first = np.zeros((FIRST_BYTES // size, size), np.uint8)
        first[batch.page[:count]] = np.frombuffer(batch.data, np.uint8, count * size).reshape(-1, size)
        neutral = np.frombuffer(kinds.neutral(first.tobytes()), np.uint8).reshape(first.shape)
        for number in np.flatnonzero((first != neutral).any(axis=1)).tolist():
            changed = page == number
            high[changed], low[changed] = halves(self._aead.page_digests([neutral[number].data]))
        return page, high, low

    def _batch(self, page: I64, data: memoryview) -> tuple[I64, U64, U64]:
        """Pages with these numbers, whose content stands one after the other in ``data``. Those that are not zeros, with their
        digests."""
        size = self._page_size
        content = np.frombuffer(data, np.uint8).reshape(-1, size)
        sums = page_sums(content)
        high, low = halves(self._aead.page_digests(split(data, size)))
        rows = np.flatnonzero((high != self._zero[0]) | (low != self._zero[1]))
        page, high, low = page[rows], high[rows], low[rows]
        if not len(rows):
            return page, high, low
        block, slot, again = self._find(high, low)
        absent = np.flatnonzero(block < 0)
        if len(absent):
            first, back = distinct(high[absent], low[absent])  # a page that is new twice in a batch is stored once
            new = absent[first]
            digests = np.stack((high[new], low[new], sums[rows[new]]), axis=1)
            blocks, slots = self._blocks.add(page[new], content, rows[new], digests)
            for table, part in ((self._known, ~again[new]), (self._again, again[new])):
                table.add(high[new][part], low[new][part], blocks[part], slots[part])
            block[absent], slot[absent] = blocks[back], slots[back]
            stored_again = int(again[new].sum())
            self._left -= stored_again
            self._written.new += (len(new) - stored_again) * size
        self._written.allocated += len(page) * size
        self._written.segments += self._segments.add(page, block, slot)
        return page, high, low

    def _find(self, high: U64, low: U64) -> tuple[I64, I64, NDArray[np.bool_]]:
        """(block, slot) of pages that are known, and which of them are to be stored again; block is -1 for these, for pages that are not
        known, and for those of blocks that are found to be damaged."""
        while True:
            block, slot = self._known.find(high, low)
            again = (block >= 0) & (block < len(self._little_used)) & (self._left > 0)
            again[again] = self._little_used[block[again]]
            block[again], slot[again] = self._again.find(high[again], low[again])
            bad = self._bases.unreadable(block)
            if not len(bad):
                return block, slot, again
            self._known.forget(bad)

    def _know(self, table: Table) -> None:
        """Make the pages of blocks known."""
        first = self._blocks.know(table.digests)
        counts = table.counts(self._page_size)
        block = np.repeat(np.arange(first, first + len(counts)), counts)
        slot = np.arange(len(table.pages)) - np.repeat(starts(counts), counts)
        self._known.add(np.ascontiguousarray(table.pages[:, 0]), np.ascontiguousarray(table.pages[:, 1]), block, slot)
