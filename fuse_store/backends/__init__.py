# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a store is: a folder (``posix``) or a bucket (``object``). Used by ``store`` and the modules below it, which ask a
Backend for names of the layout (docs/format.md, "Layout") and never a file system. Threads may share one; what writes is
for who holds the writer's lock, and ``lock`` for everybody.

A backend raises FileNotFoundError for what is not there. What a disk does wrong is an OSError, as ever; a server that
can't be reached, or refuses, is a StoreError, so that nobody takes it for damage.
"""

from __future__ import annotations

from pathlib import Path

from fuse_store.backends.base import Backend, Entry, Lock
from fuse_store.backends.posix import Posix
from fuse_store.errors import StoreError

__all__ = ["Backend", "Entry", "Lock", "Posix", "backend"]


def backend(where: str | Path) -> Backend:
    """The backend that ``--store`` names. Raises UsageError, StoreError."""
    if isinstance(where, str) and "://" in where:
        try:
            from fuse_store.backends.object import Object
        except ImportError as error:
            raise StoreError(f"store {where}", f"{error.name} is not here, which talks to servers.", "pip install obstore.") from None

        return Object(where)
    return Posix(Path(where))
