# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts that name a file or a directory. Functions without state."""

from __future__ import annotations

import os
from pathlib import Path

from fuse_store.errors import UsageError


def checked_path(what: str, text: str | Path) -> Path:
    """``text`` as a path. An empty one is none: it comes from a variable that was not set, and ``Path("")`` is the current
    directory. ``what``: the thing that it names, for the error. Raises UsageError."""
    if not str(text):
        raise UsageError(what, "empty path.", "Name a file or a directory; the current one is '.'.")
    if "\0" in str(text):
        raise UsageError(what, "a path cannot contain a NUL character.", "Choose another name.")
    return Path(text)


def is_inside(path: str | Path, directory: str | Path) -> bool:
    """Whether a path, through its links, is a directory or below it. Neither need exist; links that lead to themselves stay as they
    are (pathlib's ``resolve`` raises for them)."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))
