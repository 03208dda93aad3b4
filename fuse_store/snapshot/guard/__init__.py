# SPDX-License-Identifier: GPL-3.0-or-later
"""Guards: which bytes of the devices tell whether the filesystems of a machine have changed since a snapshot.

A system that is resumed goes on with what it remembers of its filesystems, so they must be as they were. ``mounted`` finds those that
are, ``places`` knows where each kind shows a change, ``record`` reads these places while everything stands still. The result are tags of
the snapshot; a shell compares them before it lets the kernel resume, and so does ``hibernation.filesystem_state``. docs/snapshots.md
describes them. Standard library alone.
"""

from __future__ import annotations

from fuse_store.snapshot.guard.record import NONE, UNSAFE, Guard

__all__ = ["NONE", "UNSAFE", "Guard"]
