# SPDX-License-Identifier: GPL-3.0-or-later
"""The time for which the system stands still: its memory is copied, and written to the device.

Whatever this needs is there before: files are open, memory is locked, names are looked up. From the moment when all other processes are
stopped nothing but the device is touched, and no program is started: it would be stopped as well. Every way out of it frees the image,
and thaws filesystems and processes. For the main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuse_store.errors import StoreError
from fuse_store.repository.atomic import fault_point
from fuse_store.snapshot.filesystems import Filesystems
from fuse_store.snapshot.guard import Guard
from fuse_store.snapshot.kernel import SnapshotDevice
from fuse_store.snapshot.recorder import Recorder
from fuse_store.snapshot.restored.random import open_pool, reseed

_MCL_CURRENT, _MCL_FUTURE = 1, 2  # include/uapi/asm-generic/mman.h
_OUT_OF_MEMORY_SCORE = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True)
class Image:
    """``restored``: the system was resumed from it; else ``size`` in bytes, and ``pause`` in seconds. ``tags``: what the guard noted."""

    restored: bool
    size: int
    pause: float
    tags: Mapping[str, str]


def check_kernel() -> None:
    """Raises Refused if the kernel makes no images now."""
    SnapshotDevice().close()


def make_image(recorder: Recorder, quiet: Filesystems, guard: Guard, preferred: int, page_size: int, limit: float) -> Image:
    """Stop the system, write its image, of ``preferred`` bytes at most if that is possible, and let it go on. Raises Refused,
    StoreError, Damaged."""
    with contextlib.ExitStack() as outside:
        kernel = SnapshotDevice()
        outside.callback(kernel.close)
        pool = outside.enter_context(open_pool())
        kernel.prefer(preferred)
        outside.enter_context(locked_in_memory())
        restored, size, tags, begun = False, 0, {}, time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            with contextlib.ExitStack() as frozen:  # undoes all, even if one fails
                frozen.enter_context(_signals_blocked())
                kernel.freeze()
                frozen.callback(kernel.unfreeze)
                fault_point("snapshot frozen")
                frozen.callback(quiet.thaw)
                quiet.freeze()
                fault_point("snapshot filesystems frozen")
                frozen.callback(kernel.free)
                frozen.enter_context(_watchdog(limit))
                tags = guard.record()
                if kernel.create():
                    size = kernel.size()
                    fault_point("snapshot created")
                    recorder.write(kernel.read, size // page_size)
                    fault_point("snapshot written")
                else:
                    restored = True
                    reseed(pool)
        except OSError as error:
            raise StoreError("snapshot", f"writing the image failed: {error.strerror or error}.", "Use another device.") from None
        return Image(restored, size, time.clock_gettime(time.CLOCK_BOOTTIME) - begun, tags)


@contextlib.contextmanager
def locked_in_memory() -> Iterator[None]:
    """All memory of this process is there and stays, and the kernel ends another one, if it may, when no memory is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    score = _OUT_OF_MEMORY_SCORE.read_text()
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(PermissionError):  # without CAP_SYS_RESOURCE
            _OUT_OF_MEMORY_SCORE.write_text("-1000")
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
            raise StoreError("snapshot", f"memory cannot be locked: {os.strerror(ctypes.get_errno())}.", "Run the command as root.")
        yield
    finally:
        libc.munlockall()
        with contextlib.suppress(PermissionError):
            _OUT_OF_MEMORY_SCORE.write_text(score)
        gc.enable()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Signals wait, except that of the watchdog."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _watchdog(limit: float) -> Iterator[None]:
    """What takes longer than ``limit`` seconds ends with a StoreError."""

    def expired(_number: int, _frame: FrameType | None) -> None:
        raise StoreError("snapshot", f"given up after {limit:g} seconds.", "Allow more time with --time-limit, or use a faster device.")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit if math.isfinite(limit) else 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
