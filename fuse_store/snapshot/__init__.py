# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: an image of the whole running system is written to a device, and the system goes on.

``take`` is the entry point. ``kernel`` is the interface of /dev/snapshot, ``recorder`` writes what it reads as an image that the
kernel resumes, ``filesystems`` and ``swap`` bring the system into a state that can be resumed. Needs the standard library alone,
because it runs on the machine itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fuse_store.snapshot.taking import Snapshot, take

__all__ = ["Snapshot", "take"]


def __getattr__(name: str) -> Any:
    """``take`` and ``Snapshot`` are imported when they are first used: an application that only asks the service needs ``client`` alone."""
    if name in __all__:
        from fuse_store.snapshot import taking

        return getattr(taking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
