# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an image needs more than what a slot has of it: pages that the machine had swapped out.

Page tables in the image point to them, and they are on a swap device, not in the image. In a version that is a whole swap device they
are there, at blocks of that device; a slot has the image alone. A resume without them would give programs other data than theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fuse_store.errors import Refused
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.kernel import find_kernel
from fuse_store.formats.swsusp.kernel.symbols import read_longs
from fuse_store.image.reader import Image

TOTAL, FREE = "total_swap_pages", "nr_swap_pages"  # of all active swap areas, in pages (mm/swapfile.c)


@dataclass(frozen=True)
class SwapUse:
    """``used``: pages of swap that the machine used when the image was made; None if that cannot be determined. ``state``, for the
    table: ``inactive`` (no swap area was in use), ``unused`` (one was, with nothing in it as far as is known), or ``unknown``."""

    used: int | None
    state: str

    def check_known(self, name: str, force: bool) -> None:
        """Raises Refused, about the image ``name``, if it is not known whether pages were swapped out; with ``force`` it may be so."""
        if self.state == "unknown" and not force:
            raise Refused(
                name, "it is not known whether pages of the machine were swapped out; they would be missing.",
                "If none were, use --force. Otherwise stage the version on a device of its own.",
            )  # fmt: skip


def swap_use(version: Image, image: HibernationImage) -> SwapUse:
    """What an image tells of swap, or what is beside it in the version. Raises Damaged."""
    counted = _counted(version, image)
    if counted is not None:
        total, used = counted
        return SwapUse(used, "unused" if total else "inactive")
    return SwapUse(None, "unknown") if _has_more(version, image) else SwapUse(0, "unused")


def _counted(version: Image, image: HibernationImage) -> tuple[int, int] | None:
    """(pages of all swap areas, of which used) as the kernel in the image counted them."""
    note = version.head.tags.get("vmcoreinfo_page", "")
    kernel = find_kernel(image, int(note) if note.isdecimal() and len(note) < 16 else None)
    values = read_longs(image, kernel, (TOTAL, FREE)) if kernel else {}
    if not values or not 0 <= values[FREE] <= values[TOTAL]:
        return None
    return values[TOTAL], values[TOTAL] - values[FREE]


def _has_more(version: Image, image: HibernationImage) -> bool:
    """Whether there is anything in the version beside the image. It may be swapped-out pages, or what an earlier image left."""
    size, store_size = image.page_size, version.head.page_size
    filled = np.zeros(-(-version.size // store_size), bool)
    for place in version.places(0, len(filled)):
        filled[place.page] = True
    own = np.zeros(len(filled), bool)
    runs = [(image.header.resume_offset, 1), *((int(block), 1) for block in image.map.pages), *image.map.runs(0, image.map.count)]
    for first, count in runs:
        own[first * size // store_size : -(-(first + count) * size // store_size)] = True
    return bool((filled & ~own).any())
