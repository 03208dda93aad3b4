# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, each with the exit code of the command line. Raised by the whole package, caught by ``cli``.

An error names the thing, the cause and the remedy; ``str()`` puts the three together.
"""

from __future__ import annotations


class StoreError(Exception):
    """``thing`` could not be had because of ``cause``; ``remedy`` says what to do about it."""

    exit_code = 1

    def __init__(self, thing: str, cause: str, remedy: str = "") -> None:
        super().__init__(thing, cause, remedy)
        self.thing, self.cause, self.remedy = thing, cause, remedy

    def __str__(self) -> str:
        return f"{self.thing}: {self.cause}" + (f" {self.remedy}" if self.remedy else "")


class UsageError(StoreError):
    """What was asked for makes no sense."""

    exit_code = 2


class NotFound(StoreError):
    """There is no such store, image or source."""

    exit_code = 3


class Damaged(StoreError):
    """Stored bytes are not what was stored. ``image``, ``extent`` and ``pack`` say where, as far as it is known."""

    exit_code = 4

    def __init__(self, thing: str, cause: str, remedy: str = "", *, image: str = "", extent: str = "", pack: str = "") -> None:
        super().__init__(thing, cause, remedy)
        self.image, self.extent, self.pack = image, extent, pack

    def __str__(self) -> str:
        where = ", ".join(f"{name} {value}" for name, value in vars(self).items() if value and name in ("image", "extent", "pack"))
        return super().__str__() + (f" ({where})" if where else "")


class WrongKey(Damaged):
    """The key at hand is not the key of this store."""


class Refused(StoreError):
    """It could be done, and would not be safe."""

    exit_code = 5


class Locked(StoreError):
    """Somebody else writes to the store, or took the lock while this process could not hold it."""

    exit_code = 6
