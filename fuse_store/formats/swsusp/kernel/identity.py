# SPDX-License-Identifier: GPL-3.0-or-later
"""Identifies the kernel in an image: its note, and the names of the machine that it ran on.

A note is trusted if ``init_uts_ns``, found with its help, names the same release: the notes of guests do not pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuse_store.formats.swsusp.header import printable
from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.kernel.addresses import MASK, translation
from fuse_store.formats.swsusp.kernel.vmcoreinfo import VmCoreInfo, candidates, read_note
from fuse_store.formats.swsusp.layout import MAX_PFN, UTS_FIELDS, UTS_LENGTH

UTS_NAME_OFFSET = 4  # of name in uts_namespace before Linux 5.11, whose note lacks it: after a kref


@dataclass(frozen=True)
class Kernel:
    """The kernel in an image. ``uts`` has the six names of utsname, and is empty if they were not found."""

    info: VmCoreInfo
    page_size: int
    uts: dict[str, str]

    @property
    def release(self) -> str:
        return self.info.release

    @property
    def host(self) -> str:
        """The name of the machine, empty if it was not found."""
        return self.uts.get("nodename", "")


def find_kernel(image: HibernationImage, note: int | None = None) -> Kernel | None:
    """The Kernel in an image, None if there is no note. ``note`` is the PFN where ``describe`` found it earlier; without it, the
    image is read until a note is found. Raises Damaged."""
    unconfirmed: Kernel | None = None
    known = read_note(image, note) if note is not None and 0 <= note < MAX_PFN else None
    for info in (known,) if known else candidates(image):
        kernel = Kernel(info, image.page_size, _uts_names(image, info))
        if kernel.uts:
            return kernel
        unconfirmed = unconfirmed or kernel
    return unconfirmed


def _uts_names(image: HibernationImage, info: VmCoreInfo) -> dict[str, str]:
    """The names in ``init_uts_ns``, if its release is that of the note; otherwise none."""
    symbol, offset = info.number("SYMBOL", "init_uts_ns"), translation(image).kernel(image, info)
    name = info.number("OFFSET", "uts_namespace.name")
    if symbol is None or offset is None:
        return {}
    address = (symbol + (UTS_NAME_OFFSET if name is None else name) - offset) & MASK
    if not image.holds(address) or not image.holds(address + len(UTS_FIELDS) * UTS_LENGTH - 1):
        return {}
    content = image.memory(address, len(UTS_FIELDS) * UTS_LENGTH)
    names = {key: printable(content[at * UTS_LENGTH : (at + 1) * UTS_LENGTH]) for at, key in enumerate(UTS_FIELDS)}
    return names if names["release"] == info.release else {}
