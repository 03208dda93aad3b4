# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the user's own files are (XDG Base Directory Specification 0.8): key files, known stores, the cache of stores in buckets.

A service has neither ``HOME`` nor the others; the user's entry in the password database counts then. ``~`` is never a directory's
name. Pure functions of the environment; safe in threads.
"""

from __future__ import annotations

import os
from pathlib import Path

from fuse_store.errors import Refused

PROGRAM_DIRECTORY = "fuse-store"  # in each of them


def config_home() -> Path:
    """Of key files and known stores. Raises Refused if the user has no home directory."""
    return _directory("XDG_CONFIG_HOME", ".config")


def cache_home() -> Path:
    """Of caches of stores in buckets. Raises Refused if the user has no home directory."""
    return _directory("XDG_CACHE_HOME", ".cache")


def _directory(variable: str, below_home: str) -> Path:
    named = os.environ.get(variable, "")
    if os.path.isabs(named):  # the specification has relative ones ignored
        return Path(named) / PROGRAM_DIRECTORY
    return _home(variable) / below_home / PROGRAM_DIRECTORY


def _home(variable: str) -> Path:
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        import pwd

        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            home = ""
    if not os.path.isabs(home):
        raise Refused("home directory", "the user has none.", f"Set {variable} or HOME to a directory.")
    return Path(home)
