# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's random numbers: another course than that of every system that was resumed from the same image.

Programs that keep random numbers of their own have to ask the kernel again: docs/snapshots.md says which.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from io import FileIO
from pathlib import Path

RESEED = 0x5207  # RNDRESEEDCRNG of include/uapi/linux/random.h
_POOL = "/dev/urandom"
_HARDWARE = Path("/dev/hwrng")
_HARDWARE_BYTES = 64
_CURRENT = Path("/sys/class/misc/hw_random/rng_current")


def open_pool() -> FileIO:
    """The kernel's pool, opened before the system stands still. Raises OSError."""
    return open(_POOL, "wb", buffering=0)


def reseed(pool: FileIO, more: bytes = b"") -> None:
    """Mix times, and ``more``, into the pool, and have the kernel use it at once; with RDRAND, the kernel adds that."""
    with contextlib.suppress(OSError):
        pool.write(struct.pack("<QQQ", time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.perf_counter_ns()) + more)
        fcntl.ioctl(pool, RESEED)


def from_hardware() -> bytes:
    """Bytes of the hardware's generator of random numbers that the kernel has chosen; empty without one. Raises OSError."""
    try:
        if _CURRENT.read_text().strip() in ("", "none"):
            return b""
        descriptor = os.open(_HARDWARE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(descriptor, _HARDWARE_BYTES)
    except BlockingIOError:
        return b""
    finally:
        os.close(descriptor)


def reseed_again(more: bytes = b"") -> list[str]:
    """Once the system goes on: with bytes of the hardware. The kernel had no time for that while it stood still."""
    with open_pool() as pool:
        pool.write(more + from_hardware())
        fcntl.ioctl(pool, RESEED)
    return []
