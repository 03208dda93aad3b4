# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory is in use, and how large an image of it is to be."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused
from fuse_store.hibernation.machine import Machine

SHARE = 0.4  # of the memory that an image should have: the kernel's own /sys/power/image_size
MARGIN = 16  # one in so many bytes of memory: what may be in use more when the system stands still than when it was measured
_IMAGE_SIZE = Path("/sys/power/image_size")
_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Memory:
    """In bytes: ``total``, what the kernel cannot free and has to be in an image (``used``), and what is in use for anything;
    ``swapped``: what comes back from swap before the image is made."""

    total: int
    used: int
    filled: int
    swapped: int = 0

    @classmethod
    def of(cls, machine: Machine, swapped: int = 0) -> Memory:
        sizes = machine.memory
        # The kernel itself is not in MemTotal, and is in an image.
        total = (machine.present_pages or 0) * (machine.page_size or 0) or sizes.get("MemTotal", 0)
        filled = total - sizes.get("MemFree", 0)
        caches = sum(sizes.get(name, 0) for name in ("Buffers", "Cached", "SReclaimable")) - sizes.get("Shmem", 0)
        return cls(total, max(0, filled - caches), filled, swapped)

    @property
    def margin(self) -> int:
        return self.total // MARGIN

    @property
    def needed(self) -> int:
        """Bytes that an image has at least."""
        return self.used + self.swapped

    @property
    def least(self) -> int:
        """Bytes of space that are enough, with all caches freed."""
        return self.needed + self.margin

    @property
    def most(self) -> int:
        """Bytes of space for an image with the caches that the kernel leaves in it: at most half of the memory, and the margin."""
        with_caches = min(self.filled + self.swapped, int(self.total * SHARE))
        return max(self.least, min(with_caches, self.total // 2) + self.margin)

    def preferred(self, space: int) -> int:
        """Bytes that an image should have at most, of which ``space`` are there for it."""
        return max(min(self.needed, space), min(int(self.total * SHARE), space - self.margin))

    def check_half(self) -> None:
        """Raises Refused if the kernel cannot copy within memory what has to be in an image."""
        if self.needed > self.total // 2:
            raise Refused(
                "snapshot",
                f"{self.needed >> 20} of {self.total >> 20} MiB of memory are in use, and the kernel copies them within memory.",
                "Stop programs that need much memory, until less than half is in use.",
            )  # fmt: skip


def free_caches(machine: Machine, preferred: int) -> None:
    """Free caches before the system stands still, if the kernel would have to while it does, for an image of ``preferred`` bytes."""
    os.sync()
    if Memory.of(machine).filled > preferred:
        with contextlib.suppress(OSError):
            _CACHES.write_text("1")


def preferred_size() -> str:
    """The size of images that the kernel prefers, for all hibernations; empty if it does not tell."""
    try:
        return _IMAGE_SIZE.read_text()
    except OSError:
        return ""


def prefer_again(size: str) -> None:
    if size:
        with contextlib.suppress(OSError):
            _IMAGE_SIZE.write_text(size)
