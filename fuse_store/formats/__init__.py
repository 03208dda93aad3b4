# SPDX-License-Identifier: GPL-3.0-or-later
"""Formats of images that the store understands, one row each in FORMATS.

A format is a package with a function that describes a Readable, or raises NotFound if it holds no image of that format. Other
abilities, such as the derived files of ``swsusp.views``, are used from the package itself. ``readable`` is the interface that
all formats read from.
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
    """``describe`` takes a Readable, the resume offset (0 where it has no meaning), ``check`` and a Progress."""

    name: str
    describe: Callable[[Readable, int, bool, Progress], dict[str, Any]]


FORMATS = (Format("swsusp", describe_swsusp),)


def describe(readable: Readable, resume_offset: int = 0, check: bool = False, progress: Progress = SILENT) -> dict[str, Any]:
    """The description of the image in ``readable``, as JSON, by the first format that recognises it (key ``format``).

    Raises NotFound if none does, with the cause from the last one; Refused or Damaged for an image of a known format that
    cannot be read.
    """
    missing = NotFound("image", "unknown format.")
    for known in FORMATS:
        try:
            return known.describe(readable, resume_offset, check, progress)
        except NotFound as error:
            missing = error
    raise missing
