# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices and files that are written in place: opened for one process alone, identified, read and written.

Functions on paths and descriptors; callers see to it that one thread writes at a time.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from fuse_store.errors import Refused


def open_device(path: Path) -> int:
    """A descriptor of a block device that no one else has in use. Raises Refused."""
    try:
        # O_EXCL: fails with EBUSY while it is mounted, swap, or part of something (blkdev_open).
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        remedy = "Unmount it, or stop what uses it (see lsblk)." if error.errno == errno.EBUSY else ""
        raise Refused(f"device {path}", f"cannot be opened exclusively: {error.strerror}.", remedy) from None


def check_content(path: Path, ours: bool) -> None:
    """Raises Refused if blkid recognises content on a device. ``ours``: an older version may be there (--changed-only)."""
    content = content_of(path)
    if content and not ours:
        raise Refused(f"device {path}", f"holds {content}.", "Use --force to overwrite it.")


def content_of(path: Path) -> str:
    """The type that blkid recognises on a device or in a file: ext4, swap, gpt …; empty if none. Raises Refused without blkid."""
    try:
        done = subprocess.run(
            ["blkid", "-p", "-o", "export", str(path)], capture_output=True, encoding="utf-8", errors="surrogateescape", check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused(f"device {path}", "blkid not found; it tells what a device holds.", "Install util-linux, or use --force.") from None
    fields = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    contradicting = done.returncode == 8
    return fields.get("TYPE") or fields.get("PTTYPE") or ("several signatures" if contradicting else "")


def read_at(descriptor: int, at: int, length: int) -> bytes:
    """``length`` bytes, fewer at the end. Raises OSError."""
    parts = []
    while length and (part := os.pread(descriptor, length, at)):
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def write_at(descriptor: int, data: memoryview, at: int) -> None:
    """All of ``data``. Raises OSError."""
    while len(data):
        number = os.pwrite(descriptor, data, at)
        data, at = data[number:], at + number
