# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a file with settings that a person writes. Its content is for the caller to check."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fuse_store.errors import NotFound, UsageError, failed


def read(path: Path | str, what: str, document: str, limit: int) -> tuple[bytes, os.stat_result]:
    """The first ``limit`` bytes and one more of a file, and its status. ``what`` it is, and the ``document`` with an example, are for
    messages. Raises NotFound, UsageError for what is no regular file, StoreError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{what} {path}", f"{error.strerror}.", f"Create it; {document} has an example.") from None
    except OSError as error:
        raise failed(f"{what} {path}", error) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UsageError(f"{what} {path}", "not a regular file.", f"Name a file; {document} has an example.")
    with open(descriptor, "rb") as file:
        try:
            return file.read(limit + 1), status
        except OSError as error:
            raise failed(f"{what} {path}", error) from None
