# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a store is: a folder (``posix``) or a bucket (``object``). Used by ``store`` and the modules below it, which ask a
Backend for names of the layout (docs/format.md, "Files") and never a file system. Threads may share one; what writes is
for who holds the writer's lock, and ``lock`` for everybody.

A backend raises FileNotFoundError for what is not there. What a disk does wrong is an OSError, as ever; a server that
can't be reached, or refuses, is a StoreError, so that nobody takes it for damage.
"""

from __future__ import annotations

from pathlib import Path

from fuse_store.errors import StoreError
from fuse_store.repository.backends.base import Backend, Entry, Lock
from fuse_store.repository.backends.posix import PosixBackend

__all__ = ["Backend", "Entry", "Lock", "PosixBackend", "backend"]


def backend(location: str | Path) -> Backend:
    """The backend that ``--store`` names. Raises UsageError, StoreError."""
    if isinstance(location, str) and "://" in location:
        try:
            from fuse_store.repository.backends.s3 import S3Backend
        except ImportError as error:
            raise StoreError(f"store {location}", f"{error.name} is not here, which talks to servers.", "pip install obstore.") from None

        return S3Backend(location)
    return PosixBackend(Path(location))
