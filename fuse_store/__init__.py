# SPDX-License-Identifier: GPL-3.0-or-later
"""A store of boot images: versioned, deduplicated, checksummed, encrypted. ``docs/format.md`` is what it writes.

From Python: ``Store.create`` and ``Store.open``; ``store.put(source, Label(machine))`` returns a Summary with the ``id``;
``store.open_image(store.find("web01/system/latest").id).read(offset, length)`` reads a version; ``image.restore.get`` writes one to a
file or device. What goes wrong is a ``StoreError`` or one of its subclasses. ``docs/architecture.md`` shows the layers.
"""

from __future__ import annotations

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError, WrongKey

TYPE_CHECKING = False  # typing would take longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from fuse_store.store import Label, Store

__version__ = "1.0.0"
__all__ = ["Damaged", "Label", "Locked", "NotFound", "Refused", "Store", "StoreError", "UsageError", "WrongKey"]


def __getattr__(name: str) -> Any:
    """``Store`` and ``Label`` are imported when they are first used: importing any part of the package costs no more than that part."""
    if name in ("Label", "Store"):
        from fuse_store import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
