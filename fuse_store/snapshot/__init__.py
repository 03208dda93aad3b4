# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: an image of the whole running system is written to a device, and the system goes on.

``take`` is the entry point; ``taking`` has the order, ``standstill`` the part in which the system stands still. ``kernel`` is the
interface of /dev/snapshot, ``recorder`` writes what it reads as an image that the kernel resumes, to where ``targets`` say; ``memory`` has
sizes, ``filesystems`` and ``swap`` bring the system into a state that can be resumed, and ``guardian`` undoes that if the process is
killed. Needs the standard library alone, because it runs on the machine itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fuse_store.snapshot.taking import Snapshot, Wishes, take

__all__ = ["Snapshot", "Wishes", "take"]


def __getattr__(name: str) -> Any:
    """What is named here is imported when it is first used: an application that only asks the service needs ``client`` alone."""
    if name in __all__:
        from fuse_store.snapshot import taking

        return getattr(taking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
