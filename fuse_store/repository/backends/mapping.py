# SPDX-License-Identifier: GPL-3.0-or-later
"""Files mapped into memory, without a descriptor for each: ``mmap.mmap`` keeps one as long as the mapping lives, so that a store
with a thousand fragments of the index could not be opened with the usual limit. Threads may share a Mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import BinaryIO, ClassVar

LARGE_SIZE = 16 << 20  # bytes; what is smaller may stay in memory
MAX_TOUCHED = 64  # places in large files that are read before it is asked how much of all is in memory
MAX_RESIDENT = 112 << 20  # bytes of files, libraries included, that a process should have in memory
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


class Mapped:
    """The content of an immutable file. ``view`` is read-only, and is unmapped when nothing uses it or a part of it any more."""

    _large: ClassVar[weakref.WeakSet[Mapped]] = weakref.WeakSet()
    _touched: ClassVar[int] = 0  # places in large files, since it was asked

    def __init__(self, view: memoryview, address: int = 0) -> None:
        self.view, self._address = view, address
        if address and len(view) > LARGE_SIZE:
            Mapped._large.add(self)

    def release(self) -> None:
        """Take the pages out of this process's memory; they are read again when they are used."""
        if self._address:
            _libc.madvise(self._address, len(self.view), mmap.MADV_DONTNEED)

    def touch(self, places: int) -> None:
        """To be called after reads at ``places`` anywhere in the file: each takes a page or more into memory, and all of the file
        would be there in the end. The count is not exact if threads read at once."""
        if self not in Mapped._large:
            return
        Mapped._touched += places
        if Mapped._touched >= MAX_TOUCHED:
            Mapped._touched = 0
            if _resident() > MAX_RESIDENT:
                for mapped in list(Mapped._large):
                    mapped.release()


def map_file(file: BinaryIO, size: int) -> Mapped:
    """The first ``size`` bytes of a file. Raises OSError."""
    if not size:
        return Mapped(memoryview(b""))
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    content = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(content, _libc.munmap, address, size).atexit = False  # every view of it keeps it
    return Mapped(memoryview(content).cast("B").toreadonly(), address)


def _resident() -> int:
    """Bytes of files that this process has in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[2]) * mmap.PAGESIZE
