# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are made from an image when somebody reads them: what the mount shows beside ``image`` for each kind.

``filesystem`` looks a version's kind up in DERIVED and shows what the function there gives. Whoever knows a kind adds its
line; nothing else has to change. A derived file belongs to one open image, and several threads may read it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fuse_store.image.reader import Image


class DerivedFile(Protocol):
    """A file that is computed. Whatever ``size`` and ``read`` raise other than Damaged means that it can't be made from
    this image: the mount then leaves it out."""

    @property
    def name(self) -> str:
        """One component of a path; not one that the mount itself has (image, info.json, B3SUMS)."""
        ...

    def size(self) -> int:
        """Bytes, exactly as many as ``read`` gives. Asked once, when the folder is listed; may read some of the image."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, fewer at the end."""
        ...


def _hibernation(image: Image) -> Sequence[DerivedFile]:
    from fuse_store.formats.swsusp.views import derived

    tags = image.summary.tags
    page = tags.get("vmcoreinfo_page")
    return derived(image, int(tags.get("resume_offset", 0)), None if page is None else int(page))


DERIVED: dict[str, Callable[[Image], Sequence[DerivedFile]]] = {"hibernation": _hibernation}  # by kind (names.KINDS)
