# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process that works on images asks of its interpreter and libraries. Used by ``cli`` before anything else is loaded.

What it asks for speed changes nothing else; docs/decisions.md, "Threads are given eight blocks at once", has the figures.
"""

from __future__ import annotations

import ctypes
import os
import sys

from fuse_store.streams import open_closed

MALLOC = {-3: 32 << 20, -1: 256 << 20, -8: 1}  # mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in bytes, M_ARENA_MAX
SWITCH = 0.0005  # seconds until a thread that waits for the interpreter gets it: most of the work is in C, and lets go of it


def prepare() -> None:
    """For the main thread, once."""
    open_closed()
    sys.setswitchinterval(SWITCH)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's library else starts threads, which spin for nothing
    _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep buffers for the next ones. It would give each back to the kernel, and the page faults of a new one cost
    as much as decompressing what goes into it. Another C library has its own ways."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)
