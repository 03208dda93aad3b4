# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors of the package, each with the exit code of the command line. Raised by every layer, caught by ``cli``.

An error has a thing, a cause and a remedy; ``str()`` joins them: ``<thing>: <cause> <remedy>``. Cause and remedy are sentences
that end with a full stop; the remedy is an instruction, or empty. Exceptions are immutable values: any thread may raise them.
"""

from __future__ import annotations


class StoreError(Exception):
    """The operation failed: a full disk, missing permissions, a device error. Base class of all errors of the package."""

    exit_code = 1

    def __init__(self, thing: str, cause: str, remedy: str = "") -> None:
        super().__init__(thing, cause, remedy)
        self.thing, self.cause, self.remedy = thing, cause, remedy

    def __str__(self) -> str:
        return f"{self.thing}: {self.cause}" + (f" {self.remedy}" if self.remedy else "")


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
