# SPDX-License-Identifier: GPL-3.0-or-later
"""What is copied into the mount, until it is a version: in a file without a name, encrypted with a key that is nowhere but in
memory. So nothing of it is in the clear on the disk, and nothing can be read of it once the process has ended.

Units of 128 KiB are encrypted on their own, each time with a new nonce; one of them is in memory, so that small writes in order
are encrypted once. A unit that was never written is a hole. Threads may share a Spool.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fuse_store.errors import Damaged
from fuse_store.image.inputs import Batch, Input, InputFile
from fuse_store.image.inputs.reading import BATCH_SIZE, Run, batches

UNIT = 128 << 10  # bytes
NONCE, TAG = 12, 16  # bytes
SLOT = NONCE + UNIT + TAG


class Spool:
    """A file that is written and read at any offset, as Content. Reading and writing raise OSError, Damaged."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        self._descriptor = self._file.fileno()
        self._aead = AESGCM(os.urandom(32))
        self._written = bytearray()  # a byte for each unit: whether it was ever written
        self._unit, self._number, self._dirty = bytearray(UNIT), -1, False  # the one in memory
        self._lock = threading.Lock()
        self.size = 0
        self.changed = time.time_ns()

    @property
    def allocated(self) -> int:
        return sum(self._written) * UNIT

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """As many bytes as there are, at most all of ``buffer``."""
        with self._lock:
            length = max(0, min(len(buffer), self.size - offset))
            at = 0
            while at < length:
                number, begin = divmod(offset + at, UNIT)
                part = min(UNIT - begin, length - at)
                buffer[at : at + part] = memoryview(self._content(number))[begin : begin + part]
                at += part
            return length

    def write(self, data: bytes, offset: int) -> None:
        with self._lock:
            view, at = memoryview(data), 0
            while at < len(view):
                number, begin = divmod(offset + at, UNIT)
                part = view[at : at + UNIT - begin]
                self._load(number, whole=len(part) == UNIT)
                self._mark(number)
                self._unit[begin : begin + len(part)] = part
                self._dirty = True
                at += len(part)
            self.size = max(self.size, offset + len(view))
            self.changed = time.time_ns()

    def truncate(self, length: int) -> None:
        with self._lock:
            number, begin = divmod(length, UNIT)
            if length < self.size:
                if begin and self._is_written(number):
                    self._load(number)
                    self._unit[begin:] = bytes(UNIT - begin)
                    self._dirty = True
                after = number + bool(begin)
                if self._number >= after:
                    self._number, self._dirty = -1, False
                del self._written[after:]
                os.ftruncate(self._descriptor, len(self._written) * SLOT)
            self.size, self.changed = length, time.time_ns()

    def data(self, offset: int) -> int | None:
        """The first offset from ``offset`` on that is not in a hole."""
        with self._lock:
            number = self._written.find(1, offset // UNIT)
            start = max(offset, number * UNIT)
            return None if number < 0 or start >= self.size else start

    def hole(self, offset: int) -> int:
        with self._lock:
            number = self._written.find(0, offset // UNIT)
            return min(max(offset, (len(self._written) if number < 0 else number) * UNIT), self.size)

    def _is_written(self, number: int) -> bool:
        return number < len(self._written) and bool(self._written[number])

    def _mark(self, number: int) -> None:
        if len(self._written) <= number:
            self._written.extend(bytes(number + 1 - len(self._written)))
        self._written[number] = 1

    def _content(self, number: int) -> bytes | bytearray:
        """A unit that may be in memory, in the file, or nowhere."""
        if number == self._number:
            return self._unit
        if not self._is_written(number):
            return bytes(UNIT)
        slot = os.pread(self._descriptor, SLOT, number * SLOT)
        try:
            return self._aead.decrypt(slot[:NONCE], slot[NONCE:], number.to_bytes(8))
        except InvalidTag:
            raise Damaged("incoming file", "what was copied into the mount reads back differently.", "Copy it again.") from None

    def _load(self, number: int, whole: bool = False) -> None:
        """Have a unit in memory; ``whole``: all of it will be written."""
        if number == self._number:
            return
        content = bytes(UNIT) if whole else self._content(number)
        self._store()
        self._unit[:], self._number, self._dirty = content, number, False

    def _store(self) -> None:
        if not self._dirty:
            return
        nonce = os.urandom(NONCE)
        slot = memoryview(nonce + self._aead.encrypt(nonce, bytes(self._unit), self._number.to_bytes(8)))
        at = 0
        while at < SLOT:
            at += os.pwrite(self._descriptor, slot[at:], self._number * SLOT + at)
        self._dirty = False

    def close(self) -> None:
        with self._lock:
            self._unit[:], self._number, self._dirty = bytes(UNIT), -1, False
            self._file.close()
            self._descriptor = -1  # its number may soon be that of another file


class SpoolInput(Input):
    """A Spool as what is put; its owner keeps it from changing meanwhile, and closes it."""

    def __init__(self, spool: Spool) -> None:
        super().__init__("incoming file")
        self._spool = spool
        self.files = [InputFile("image", None, spool.size, mtime=spool.changed)]

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        yield from batches(self._runs(page_size), self._spool.size, page_size, self.doubts, buffers)

    def _runs(self, page_size: int) -> Generator[Run, None, None]:
        at, size = 0, self._spool.size
        while (start := self._spool.data(at)) is not None:
            at = self._spool.hole(start)
            end = -(-at // page_size) * page_size
            for begin in range(start, end, BATCH_SIZE):
                yield Run(self._spool.read_into, begin, min(begin + BATCH_SIZE, end), size, begin // page_size, "incoming file")
