# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux swap hibernation images: read, described, shown as a dump of memory, written. For ``formats``, ``device`` and views.

docs/hibernation-image.md describes the format. Images are untrusted input: whatever is in one, only errors of
``fuse_store.errors`` come out, after bounded time and with bounded memory.
"""

from __future__ import annotations

from fuse_store.formats.swsusp.header import Header, armed, disarmed, find, swap_header
from fuse_store.formats.swsusp.image import HibernationImage

__all__ = ["Header", "HibernationImage", "armed", "disarmed", "find", "swap_header"]
