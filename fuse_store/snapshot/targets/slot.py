# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot in a slot: space for it is in the table before the system stands still, and what it did not need is given back.

The table says ``writing`` until the image was read back. It is never armed here: what selects at boot does that.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fuse_store.errors import Refused, StoreError
from fuse_store.formats.swsusp import layout, leading_to, swap_page
from fuse_store.formats.swsusp.placement import Extents, blocks_needed, capacity
from fuse_store.hibernation.slots.allocate import allocate, free_runs
from fuse_store.hibernation.slots.layout import Slot, Table
from fuse_store.hibernation.slots.manage import Slots, wait_for
from fuse_store.hibernation.slots.reserve import complete, keep, replaced, reserve, restored
from fuse_store.repository.atomic import fault_point
from fuse_store.snapshot.memory import Memory
from fuse_store.snapshot.recorder import Recorder
from fuse_store.snapshot.targets import Wishes

PATIENCE = 5.0  # seconds for which a program that notes something in the table may have hold of the device
MORE = 8  # one in so many pages: what is reserved beyond the pages of an image that was too large, as the next one may be larger


@contextlib.contextmanager
def opened(path: Path | str, wishes: Wishes) -> Iterator[InSlot]:
    """Raises NotFound, UsageError, Refused, Locked, Damaged, StoreError."""
    with wait_for(path, PATIENCE) as slots:
        yield InSlot(slots, wishes)


class InSlot:
    """See ``Target``. ``dropped``: the slots that went for it."""

    def __init__(self, slots: Slots, wishes: Wishes) -> None:
        self.device, self._slots, self._wishes = slots.device, slots, wishes
        self._reserved: Slot | None = None
        self._uuid = uuid.uuid4().bytes
        self.dropped: tuple[Slot, ...] = ()

    @property
    def slot(self) -> int | None:
        return self._reserved.number if self._reserved else None

    def check(self, points: list[str]) -> None:
        """Nothing here is armed: a boot compares the filesystems with what was noted."""

    def prepare(self, image: str, memory: Memory, page_size: int) -> Extents:
        table = self._slots.table
        if table.page_size != page_size:
            raise Refused(
                f"device {self.device.path}", f"has blocks of {table.page_size} bytes, and this machine has pages of {page_size}.",
                "Choose another device, or create its slots again with --page-size.",
            )  # fmt: skip
        wanted = Slot(
            number=0, state="writing", machine=os.uname().nodename, application=self._wishes.application, event=self._wishes.event,
            image=image, content="", taken=int(time.time()), staged=0, pages=_pages(table, memory), extents=(),
            kept="golden" if self._wishes.golden else "replaceable", swap="inactive",
        )  # fmt: skip
        return self._reserve(wanted)

    def enlarge(self, pages: int) -> Extents | None:
        assert self._reserved is not None
        return self._reserve(replace(self._reserved, pages=pages + pages // MORE))  # the one that is too small is dropped for it

    def _reserve(self, wanted: Slot) -> Extents:
        self._reserved, dropped = reserve(self._slots, wanted)
        self.dropped += tuple(slot for slot in dropped if slot.image != wanted.image)
        page_size = self._slots.table.page_size
        self.device.write_checked(self._reserved.header * page_size, bytes(page_size))  # an earlier image had its header there, maybe
        fault_point("snapshot begin")
        return self._reserved.extents

    def complete(self, recorder: Recorder, tags: Mapping[str, str]) -> None:
        assert self._reserved is not None
        place = recorder.place
        page = swap_page(place.page_size, place.blocks - 1, self._uuid)  # an area of the blocks of the slot
        header = leading_to(page, place.first_map, layout.NOCOMPRESS)
        checksum, sums = recorder.read_back(self.device.read, header)
        if checksum != recorder.checksum:
            raise self.device.not_kept(place.first_map * place.page_size)
        self.device.write_checked(self._reserved.header * len(header), header)
        fault_point("snapshot header")
        done = complete(self._slots, self._reserved, sums.sha256, pages=place.pages, tags={**tags, **sums.tags})
        if self._wishes.replace:
            self.dropped += replaced(self._slots, done)
        if self._wishes.keep is not None:
            self.dropped += keep(self._slots, done, self._wishes.keep)

    def restored(self, recorder: Recorder) -> list[str]:
        assert self._reserved is not None
        try:
            found = restored(self._slots, self._reserved.image)
        except StoreError as error:
            return [f"the table of slots does not say that the image was resumed: {error}"]
        if found is None:
            return [f"device {self.device.path} has no slot with the image that was resumed"]
        self._reserved = found
        return []


def _pages(table: Table, memory: Memory) -> int:
    """Pages to reserve: enough, and more for the caches that the kernel would leave in an image, as far as there is space for one more
    image without them."""
    least, most = (-(-size // table.page_size) for size in (memory.least, memory.most))
    free = table.without(*(slot.number for slot in table.slots if slot.state == "writing"))
    blocks = sum(count for _first, count in free_runs(free)) - blocks_needed(least, table.page_size)
    fits = min(most, capacity(blocks, table.page_size))
    if fits > least and allocate(free, blocks_needed(fits, table.page_size)) is not None:
        return fits
    return least
