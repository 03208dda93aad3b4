# SPDX-License-Identifier: GPL-3.0-or-later
"""Guards: which bytes of the devices tell whether the filesystems of a machine have changed since a snapshot.

A system that is resumed goes on with what it remembers of its filesystems, so they must be as they were. ``mounted`` finds those that
are, ``places`` knows where each kind shows a change, ``record`` reads these places while everything stands still. The result are tags of
the snapshot, which a shell compares before it lets the kernel resume. docs/snapshots.md describes them. Standard library alone.
"""

from __future__ import annotations

from fuse_store.snapshot.guard.record import NONE, UNSAFE, Guard, holds, tags_of

__all__ = ["NONE", "UNSAFE", "Guard", "holds", "tags_of"]
