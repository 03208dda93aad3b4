# SPDX-License-Identifier: GPL-3.0-or-later
"""The trash: removed files stay there for a grace period, so that readers that located them earlier can finish.

For the holder of the writer lock, except ``empty``, which may run beside a writer.
"""

from __future__ import annotations

from fuse_store.repository.atomic import fault_point
from fuse_store.store import Store

GRACE_PERIOD = 3600.0  # seconds


def move_to_trash(store: Store, name: str) -> None:
    """Move a file to the trash; durable when this returns. Raises FileNotFoundError, OSError."""
    store.backend.to_trash(name)
    if store.sync:
        store.backend.sync("trash")
        store.backend.sync(name.rpartition("/")[0])


def empty(store: Store, grace: float) -> None:
    """Destroy everything that has been in the trash for at least ``grace`` seconds."""
    now = store.backend.now()
    for entry in store.backend.entries("trash"):
        if now - entry.changed >= grace:
            fault_point("gc destroy")
            store.backend.remove(entry.name)
