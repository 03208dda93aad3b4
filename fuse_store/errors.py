# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors of the package, each with the exit code of the command line. Raised by every layer, caught by ``cli``.

An error has a thing, a cause and a remedy; ``str()`` joins them: ``<thing>: <cause> <remedy>``. Cause and remedy are sentences
that end with a full stop; the remedy is an instruction, or empty. Exceptions are immutable values: any thread may raise them.
"""

from __future__ import annotations

import errno
import os

ADVICE = {  # by errno: what to do about it
    errno.EACCES: "Run the command as root, or as the owner.",
    errno.EPERM: "Run the command as root, or as the owner.",
    errno.EROFS: "Mount the filesystem for writing, or name another place.",
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space, or have the quota raised.",
    errno.EFBIG: "Name a filesystem that takes larger files, or raise the limit (ulimit -f).",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENFILE: "Close other programs: the system has too many files open.",
    errno.ENOMEM: "Close other programs, or raise the limits of memory and processes (ulimit -v, ulimit -u).",
    errno.EAGAIN: "Raise the limit of processes (ulimit -u), or close other programs.",
    errno.EIO: "Check the device and its cables; the kernel's log (dmesg) tells more.",
    errno.ENAMETOOLONG: "Name a shorter path.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "Name a file.",
    errno.ELOOP: "Check the links in the path: they lead back to themselves.",
    errno.ENOENT: "Check the path.",
    errno.ENXIO: "Check the path: no device or program answers there.",
    errno.ENOTCONN: "Mount the filesystem again.",
    errno.ESTALE: "Mount the filesystem again.",
    errno.ETIMEDOUT: "Check the connection to the server of the filesystem.",
}


def advice(number: int | None) -> str:
    """What to do about an error of the kernel; empty for one that is not known."""
    return ADVICE.get(number or 0, "")


class StoreError(Exception):
    """The operation failed: a full disk, missing permissions, a device error. Base class of all errors of the package."""

    exit_code = 1

    def __init__(self, thing: str, cause: str, remedy: str = "") -> None:
        super().__init__(thing, cause, remedy)
        self.thing, self.cause, self.remedy = thing, cause, remedy

    def __str__(self) -> str:
        return f"{self.thing}: {self.cause}" + (f" {self.remedy}" if self.remedy else "")


def failed(thing: str, error: OSError, outcome: str = "", what: str = "") -> StoreError:
    """The error for one of the kernel. ``what``: what failed, if the thing does not tell; ``outcome``: what has become of it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    cause = f"{what}: {reason}." if what else f"{reason}."
    return StoreError(thing, cause, " ".join(filter(None, (outcome, advice(error.errno)))))


class UsageError(StoreError):
    """An argument is missing, invalid, or contradicts another."""

    exit_code = 2


class NotFound(StoreError):
    """The store, image or input does not exist."""

    exit_code = 3


class Damaged(StoreError):
    """Stored bytes differ from what was stored. ``image``, ``extent`` and ``pack`` locate the damage, as far as known."""

    exit_code = 4

    def __init__(self, thing: str, cause: str, remedy: str = "", *, image: str = "", extent: str = "", pack: str = "") -> None:
        super().__init__(thing, cause, remedy)
        self.image, self.extent, self.pack = image, extent, pack

    def __str__(self) -> str:
        location = ", ".join(f"{name} {value}" for name, value in vars(self).items() if value and name in ("image", "extent", "pack"))
        return super().__str__() + (f" ({location})" if location else "")


class WrongKey(Damaged):
    """The key belongs to another store."""


class Refused(StoreError):
    """The operation is possible but not safe."""

    exit_code = 5


class Locked(StoreError):
    """Another process holds the writer lock, or has taken it over from this one."""

    exit_code = 6
