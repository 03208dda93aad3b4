# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot on a device of its own: its header is in the first block, and the kernel sees a swap area until the image is whole."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from fuse_store.errors import Refused, StoreError
from fuse_store.formats.swsusp import armed, layout, leading_to, swap_page, without_image
from fuse_store.formats.swsusp.placement import Extents, capacity
from fuse_store.hibernation.swap_device import DeviceContents, SwapDevice, contents_of
from fuse_store.repository.atomic import fault_point
from fuse_store.snapshot.memory import Memory
from fuse_store.snapshot.recorder import Recorder
from fuse_store.snapshot.targets import Wishes


@contextlib.contextmanager
def opened(path: Path | str, wishes: Wishes) -> Iterator[WholeDevice]:
    """Raises NotFound, UsageError, Refused, Locked, StoreError."""
    with SwapDevice(path) as device:
        yield WholeDevice(device, wishes)


class WholeDevice:
    """See ``Target``."""

    slot: int | None = None

    def __init__(self, device: SwapDevice, wishes: Wishes) -> None:
        """Raises Refused unless what is on the device may go."""
        self.device, self._wishes = device, wishes
        self._contents = _replaceable(device, wishes.replace)
        self._page = b""

    def check(self, points: list[str]) -> None:
        if (self._wishes.arm or self._wishes.rearm) and points:
            raise Refused(
                "snapshot", f"cannot be armed: mounted writable, and changing after it: {', '.join(points)}.",
                "Mount read-only what is on block devices, or omit --arm.",
            )  # fmt: skip

    def prepare(self, image: str, memory: Memory, page_size: int) -> Extents:
        blocks = self.device.size // page_size
        space = capacity(blocks, page_size) * page_size
        if memory.needed > space:
            raise Refused(
                f"device {self.device.path}", f"too small: it has space for {space >> 20} MiB, and {memory.needed >> 20} MiB are in use.",
                "Use a larger device, or stop programs that need much memory.",
            )  # fmt: skip
        page = self._contents.swap_page or b""
        self._page = without_image(page if len(page) == page_size else swap_page(page_size, blocks - 1, uuid.uuid4().bytes))
        self.device.write_checked(0, self._page)
        fault_point("snapshot begin")
        return [(0, blocks)]

    def enlarge(self, pages: int) -> Extents | None:
        return None

    def complete(self, recorder: Recorder, tags: Mapping[str, str]) -> None:
        header = self._header(recorder)
        if recorder.read_back(self.device.read, header)[0] != recorder.checksum:
            raise self.device.not_kept(recorder.first_map * len(header))
        self.device.write_checked(0, armed(header) if self._wishes.arm or self._wishes.rearm else header)
        fault_point("snapshot header")

    def restored(self, recorder: Recorder) -> list[str]:
        if self._wishes.rearm:
            try:
                self.device.write_checked(0, armed(self._header(recorder)))
            except StoreError as error:
                return [f"the image is not armed again: {error}"]
        return []

    def _header(self, recorder: Recorder) -> bytes:
        return leading_to(self._page, recorder.first_map, layout.NOCOMPRESS)


def _replaceable(device: SwapDevice, replace: bool) -> DeviceContents:
    """What is on the device. Raises Refused unless it may go."""
    contents = contents_of(device)
    if contents.replaceable or (replace and contents.armed and contents.header):
        return contents
    remedy = "Use --replace to replace it." if contents.armed and contents.header else "Name another device."
    raise Refused(f"device {device.path}", f"contains {contents.description}.", remedy)
