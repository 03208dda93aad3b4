# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: an image of the whole running system is written to a device, and the system goes on.

``take`` is the entry point. ``kernel`` is the interface of /dev/snapshot, ``recorder`` writes what it reads as an image that the
kernel resumes, ``filesystems`` and ``swap`` bring the system into a state that can be resumed. Needs the standard library alone,
because it runs on the machine itself.
"""

from __future__ import annotations

from fuse_store.snapshot.taking import Snapshot, take

__all__ = ["Snapshot", "take"]
