# SPDX-License-Identifier: GPL-3.0-or-later
"""What the manifest of a directory names besides its files: directories and symbolic links. Byte map: docs/format.md, "Manifest"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FILE, DIRECTORY, LINK = "file", "directory", "link"  # what a name in an image is
MAX_TARGET_SIZE = 4095  # bytes of what a link leads to: PATH_MAX without its NUL
MAX_TIME = (1 << 63) - 1  # ns since 1970: in the year 2262, the last that 64 bits hold


@dataclass(frozen=True)
class ImageDirectory:
    """A directory of an image, ``""`` the one that was stored: permissions and mtime (ns)."""

    name: str
    mode: int
    mtime: int


@dataclass(frozen=True)
class ImageLink:
    """A symbolic link of an image. ``target`` is what it says, and leads to anything or to nothing."""

    name: str
    target: str
    mtime: int


def check(files: Sequence[str], directories: Sequence[ImageDirectory], links: Sequence[ImageLink]) -> None:
    """Raises ValueError unless all these names make one tree, whose every directory is named."""
    _check_values(directories, links)
    parents = {one.name for one in directories}
    if "" not in parents:
        raise ValueError("the directory that was stored is missing")
    seen = set()
    for name in (*files, *(one.name for one in directories), *(one.name for one in links)):
        if name in seen:
            raise ValueError(f"the name {name!r} is there twice")
        seen.add(name)
        if not name:
            continue
        above, _slash, last = name.rpartition("/")
        if above not in parents:
            raise ValueError(f"{name!r} is in no directory")
        if last in ("", ".", "..") or "\0" in last:
            raise ValueError(f"the name {name!r} is impossible")


def _check_values(directories: Sequence[ImageDirectory], links: Sequence[ImageLink]) -> None:
    numbers = [number for one in directories for number in (one.mode, one.mtime)] + [one.mtime for one in links]
    texts = [one.name for one in directories] + [text for one in links for text in (one.name, one.target)]
    if not all(type(number) is int for number in numbers) or not all(isinstance(text, str) for text in texts):
        raise ValueError("directories or links have values of the wrong type")
    if not all(-MAX_TIME <= time <= MAX_TIME for time in [one.mtime for one in directories] + [one.mtime for one in links]):
        raise ValueError("the time of a directory or link is impossible")
    if not all(0 <= one.mode < 1 << 16 for one in directories):
        raise ValueError("the mode of a directory is impossible")
    for link in links:
        if not link.target or "\0" in link.target or len(link.target.encode()) > MAX_TARGET_SIZE:
            raise ValueError(f"what link {link.name!r} leads to is impossible")
