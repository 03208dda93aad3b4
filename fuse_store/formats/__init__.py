# SPDX-License-Identifier: GPL-3.0-or-later
"""Formats of images that the store understands, one row each. ``inspect`` and ``show`` use ``describe``.

A format is a package with a function that describes a Readable, or raises NotFound if there is no such image in it; what
else it can do (views, staging) is asked of the package itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuse_store.errors import NotFound
from fuse_store.formats.readable import File, Readable
from fuse_store.formats.swsusp.describe import describe as describe_swsusp
from fuse_store.progress import SILENT, Progress

__all__ = ["FORMATS", "File", "Format", "Readable", "describe"]


@dataclass(frozen=True)
class Format:
    """``describe`` takes a Readable, the resume offset (0 where it means nothing), ``check`` and a Progress."""

    name: str
    describe: Callable[[Readable, int, bool, Progress], dict[str, Any]]


FORMATS = (Format("swsusp", describe_swsusp),)


def describe(readable: Readable, resume_offset: int = 0, check: bool = False, progress: Progress = SILENT) -> dict[str, Any]:
    """What is in ``readable``, as JSON, by the first format that knows it; its key ``format`` names that.

    Raises NotFound if none does, with the cause that the last one gave, and Refused or Damaged for an image of a format
    that is known and cannot be read.
    """
    missing = NotFound("image", "no format that is known is in it.")
    for one in FORMATS:
        try:
            return one.describe(readable, resume_offset, check, progress)
        except NotFound as error:
            missing = error
    raise missing
