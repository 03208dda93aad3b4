# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the interpreter and its libraries for work on images. Call ``prepare`` in the main thread before anything is loaded.

They affect speed, not results; docs/decisions/0044-give-threads-eight-blocks-at-once.md and 0194-start-without-what-is-not-needed.md have
the measurements.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

from fuse_store.streams import open_closed

MALLOC = {-3: 32 << 20, -1: 256 << 20, -8: 1}  # mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in bytes, M_ARENA_MAX
LOADED = 40_000  # objects, about as many as are there when all modules are loaded: none of them is part of a cycle that ends
TEXTS = ("numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")  # modules of numpy that give functions their docstrings
SWITCH_INTERVAL = 0.0005  # seconds until a waiting thread gets the interpreter: most work is in C and releases it


def prepare() -> None:
    """Open closed standard streams, and tune the interpreter, numpy and malloc."""
    open_closed()
    sys.setswitchinterval(SWITCH_INTERVAL)
    _collect_later()
    for name in TEXTS:
        sys.modules.setdefault(name, type(sys)(name))  # an empty module in its place; where numpy has no such module, nothing
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's BLAS would start threads that nothing here uses
    _keep_freed_memory()


def _collect_later() -> None:
    """Have the collector of cycles run when LOADED objects are there, and then as often as ever: errors are parts of cycles, and hold
    what was read."""
    often = gc.get_threshold()

    def begun(_phase: str, _details: dict[str, int]) -> None:
        gc.set_threshold(*often)
        gc.callbacks.remove(begun)

    gc.callbacks.append(begun)
    gc.set_threshold(LOADED, *often[1:])


def _keep_freed_memory() -> None:
    """Have glibc keep freed buffers for reuse. By default large ones return to the kernel, and the page faults of the next buffer
    take as long as decompressing into it. Other C libraries have no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)
