# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends: where the files of a store are, a local directory (``posix``) or an S3 bucket (``s3``). The layers above use the names
of the layout (docs/format.md, "Files") with the Backend protocol (``base``), and never a file system. Threads may share a
backend; writing is for the holder of the writer lock, except ``lock``. A missing file is a FileNotFoundError, a failing disk an
OSError, a server that cannot be reached or refuses a StoreError, so that it is not mistaken for damage.
"""

from __future__ import annotations

from pathlib import Path

from fuse_store.errors import StoreError
from fuse_store.paths import checked_path
from fuse_store.repository.backends.base import Backend, Entry, Lock, NewFile
from fuse_store.repository.backends.mapping import Mapped
from fuse_store.repository.backends.posix import PosixBackend

__all__ = ["Backend", "Entry", "Lock", "Mapped", "NewFile", "PosixBackend", "backend"]


def backend(location: str | Path) -> Backend:
    """The backend for ``--store``: a directory or an s3:// URL. Raises UsageError, StoreError."""
    if isinstance(location, str) and "://" in location:
        try:
            from fuse_store.repository.backends.s3 import S3Backend
        except ImportError as error:
            cause = f"Python package {error.name} is not installed."
            raise StoreError(f"store {location}", cause, "Install it beside fuse-store, with the pip of its virtual environment.") from None

        return S3Backend(location)
    return PosixBackend(checked_path("store", location))
