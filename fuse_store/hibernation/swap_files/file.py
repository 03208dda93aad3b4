# SPDX-License-Identifier: GPL-3.0-or-later
"""A swap file of this system, of which no one else has a part, seen as the kernel sees it when it resumes: as blocks of a device.

It is written through its filesystem, which is mounted, and read from the device, past the kernel's caches of both. So what is read back is
what the next boot finds. Not safe for use from several threads.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from fuse_store.errors import Refused, UsageError, failed
from fuse_store.formats.swsusp import layout, without_image
from fuse_store.hibernation.swap_device import SwapDevice, stable_name
from fuse_store.hibernation.swap_files.extents import place_of
from fuse_store.image import devices

PAGE = mmap.PAGESIZE  # of the running kernel, in which resume_offset= counts


class SwapFile(SwapDevice):
    """Offsets are those of the block device ``device``, a stable path; so is ``size``. ``extents``: the (first block, number of blocks)
    of the file, in its order. ``offset``: the first one, for ``resume_offset=``."""

    def __init__(self, path: Path | str) -> None:
        """Raises as SwapDevice; UsageError for a device; Refused if the kernel could not resume from the file."""
        if Path(path).is_block_device():
            raise UsageError(f"device {path}", "a block device, not a swap file.", "Omit --swap-file.")
        super().__init__(path)
        try:
            self._place = place_of(self.descriptor, self.path, PAGE)
            self.direct = self._open_device()
        except BaseException:
            os.close(self.descriptor)
            raise
        self.size = os.lseek(self.direct, 0, os.SEEK_END)
        self.device = stable_name(self._place.device)
        self.extents = tuple((physical // PAGE, length // PAGE) for _logical, physical, length in self._place.runs)
        self.offset = self.extents[0][0]
        self.blocks = sum(count for _first, count in self.extents)

    def read(self, offset: int, length: int) -> bytes:
        return self.read_direct(offset, length)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        view = memoryview(content)
        try:
            while view:
                logical, physical, length = next(
                    run for run in self._place.runs if run[1] <= offset < run[1] + run[2]
                )
                here = min(len(view), physical + length - offset)
                devices.write_at(self.descriptor, view[:here], logical + offset - physical)
                view, offset = view[here:], offset + here
        except OSError as error:
            raise failed(f"swap file {self.path}", error, what=f"writing at {offset:#x} failed") from None

    @property
    def page(self) -> bytes:
        """Its header page."""
        return self.read(self.offset * PAGE, PAGE)

    def empty_page(self) -> bytes:
        """Its header page without an image. Raises Refused if it is not that of a swap area."""
        page = self.page
        version, last, *_rest = layout.SWAP.unpack_from(page, layout.SWAP_AT)
        known = (layout.SIGNATURE, *layout.SWAP_SIGNATURES)
        if page[-layout.SIGNATURE_SIZE :] not in known or version != 1 or not 0 < last < self.blocks:
            raise Refused(
                f"swap file {self.path}", "holds no swap area as large as it is.",
                "Create one with mkswap, or with the module swap_file; or name another file.",
            )  # fmt: skip
        return without_image(page)

    def check_place(self) -> None:
        """Raises Refused if the file is not where it was when it was opened."""
        if place_of(self.descriptor, self.path, PAGE) != self._place:
            remedy = "Stage the image again, when nothing defragments the file."
            raise Refused(f"swap file {self.path}", "was moved by its filesystem meanwhile.", remedy)

    def _open_device(self) -> int:
        try:
            return os.open(self._place.device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise failed(f"device {self._place.device}", error, what="opening it failed") from None
