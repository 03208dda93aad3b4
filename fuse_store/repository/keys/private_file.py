# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads files that only their owner may read or write. Functions of paths; safe in threads."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path

from fuse_store.errors import Refused

OTHERS = 0o077  # permissions of everyone but the owner; an access control list shows in them as well
MAX_SIZE = 16 << 20  # bytes


def read_private(path: Path, what: str, owners: Collection[int] = ()) -> bytes:
    """The content of a file, checked as ssh(1) checks its keys: it belongs to this user, to root or to one of ``owners`` (user ids),
    and no one else has any permission. ``what`` it is, for errors. Raises Refused, OSError."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):  # a pipe is what <(command) of a shell gives
            return b""
        if status.st_uid not in {os.geteuid(), 0, *owners}:
            raise Refused(f"{what} {path}", f"belongs to user {_user(status.st_uid)}.", f"Run 'chown {_user(os.geteuid())} {path}'.")
        if status.st_mode & OTHERS:
            raise Refused(f"{what} {path}", "other users have access to it.", f"Run 'chmod 600 {path}'.")
        return file.read(MAX_SIZE)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
