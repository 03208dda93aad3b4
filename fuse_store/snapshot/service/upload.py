# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks for the snapshots in slots to be put into the store, in the background: another process does it, at low priority
(``fuse-store put --slots``), which systemd starts because there is a file. docs/snapshots.md has the units."""

from __future__ import annotations

import contextlib
from pathlib import Path

WANTED = Path("/run/fuse-store/put-wanted")


def begin(wanted: Path = WANTED) -> None:
    """A put begins now: what asked for it so far is answered."""
    with contextlib.suppress(OSError):
        wanted.unlink(missing_ok=True)


def ask(wanted: Path = WANTED) -> str:
    """Have it done soon, also if it is being done now: the snapshot may have come too late for that. Returns why not; empty if it is."""
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.touch()
    except OSError as error:
        return f"the store is not told of the snapshot: {wanted}: {error.strerror}"
    return ""
