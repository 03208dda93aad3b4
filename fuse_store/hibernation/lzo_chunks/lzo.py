# SPDX-License-Identifier: GPL-3.0-or-later
"""LZO1X-1(15) of liblzo2: what Linux compresses hibernation images with, byte for byte.

``lzo1x_1_compress`` of the library is another variant, despite its name; the kernel's (lib/lzo/lzo1x_compress.c) comes from
the one with a dictionary of 15 bits. The library has given the same bytes since 2.07 of 2014, which is required; earlier ones
give others, on some machines or on all. So the result is always compared. Threads may compress at once: the interpreter's
lock is released, and each has its own memory.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fuse_store.errors import StoreError

LIBRARY = "liblzo2.so.2"
OLDEST = 0x2070  # as lzo_version() tells it
_WORK = (1 << 15) * ctypes.sizeof(ctypes.c_void_p)  # LZO1X_1_15_MEM_COMPRESS (lzo/lzo1x.h)
_local = threading.local()


@functools.cache
def _function() -> Callable[..., int] | None:
    """``lzo1x_1_15_compress``; None if the library is missing or too old."""
    try:
        library = ctypes.CDLL(LIBRARY)
        function, start, version = library.lzo1x_1_15_compress, library.__getattr__("__lzo_init_v2"), library.lzo_version
    except (OSError, AttributeError):
        return None
    # lzo_init() of lzo/lzoconf.h: version 1, and -1 for each size of a type that it need not compare.
    if start(ctypes.c_uint(1), *[ctypes.c_int(-1)] * 9) or version() < OLDEST:
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p]
    compress: Callable[..., int] = function
    return compress


def available() -> bool:
    """Whether the library can be used."""
    return _function() is not None


def largest(length: int) -> int:
    """The most bytes that ``length`` compress to (lzo/doc/LZO.FAQ)."""
    return length + length // 16 + 64 + 3


def compress(content: NDArray[np.uint8]) -> bytes:
    """``content``, contiguous bytes, compressed. Raises StoreError without the library."""
    function = _function()
    if function is None:
        raise StoreError(
            "liblzo2", f"{LIBRARY} 2.07 or later is needed to read this version, and was not found.",
            "Install it (Debian: liblzo2-2, Fedora and Arch: lzo).",
        )  # fmt: skip
    if getattr(_local, "room", -1) < content.nbytes:
        _local.room = content.nbytes
        _local.work = ctypes.create_string_buffer(_WORK)
        _local.out = np.empty(largest(content.nbytes), np.uint8)
    size = ctypes.c_size_t(len(_local.out))
    failed = function(content.ctypes.data, content.nbytes, _local.out.ctypes.data, ctypes.byref(size), _local.work)
    if failed:  # it has no reason to
        raise StoreError("liblzo2", f"compressing failed with {failed}.", "Install it again, or another version of it.")
    packed: bytes = _local.out[: size.value].tobytes()
    return packed
