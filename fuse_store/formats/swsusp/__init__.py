# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux swap hibernation images ("swsusp"): read, described, and shown as dumps of memory; their headers armed and disarmed.

docs/hibernation-image.md describes the format to the byte. ``layout`` has its tables; ``header``, ``info``, ``swap_map``,
``stream`` and ``page_index`` read one part each, and ``image`` puts them together; ``placement`` says where an image is that is
written. ``kernel`` identifies the kernel in the
memory, ``describe`` gives the JSON of ``inspect``, ``views`` the derived files of the mount. Images are untrusted input:
whatever is in one, only errors of ``fuse_store.errors`` are raised, after bounded time and with bounded memory.
"""

from __future__ import annotations

from fuse_store.formats.swsusp.header import Header, armed, disarmed, find, leading_to, swap_page, without_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fuse_store.formats.swsusp.image import HibernationImage

__all__ = ["Header", "HibernationImage", "armed", "disarmed", "find", "leading_to", "swap_page", "without_image"]


def __getattr__(name: str) -> Any:
    """``HibernationImage`` is imported when it is first used: it needs numpy, which headers do not."""
    if name == "HibernationImage":
        from fuse_store.formats.swsusp import image

        return image.HibernationImage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
