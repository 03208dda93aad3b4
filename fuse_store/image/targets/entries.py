# SPDX-License-Identifier: GPL-3.0-or-later
"""The directories and symbolic links of an image of a directory, made in the target.

Links come after the files, so that none is on the way to one; permissions and times of directories come last, from the inside out,
because what is made in a directory changes its time, and may need its permissions. A ``get`` that goes on makes what is missing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from fuse_store.errors import Refused
from fuse_store.image.targets.directory import Directory
from fuse_store.repository.entries import ImageDirectory, ImageLink


def make_links(root: Directory, links: Sequence[ImageLink]) -> None:
    """Raises Refused if something else has the name of one, OSError."""
    for link in links:
        with _above(root, link.name) as (directory, name):
            try:
                os.symlink(link.target, name, dir_fd=directory.descriptor)
            except FileExistsError:
                if not _says(directory, name, link.target):
                    raise Refused(f"target {directory.path / name}", "is there already.", "Name a new or empty directory.") from None
            _set_time(name, directory, link.mtime)


def make_directories(root: Directory, directories: Sequence[ImageDirectory]) -> None:
    """All of them, also those without files; permissions are for their owner alone yet. Raises Refused, OSError."""
    for one in directories:
        with root.below(_parts(one.name)):
            pass


def finish_directories(root: Directory, directories: Sequence[ImageDirectory], allowed: int) -> None:
    """Give those below ``root`` their permissions, as far as they are ``allowed``, and times. Raises OSError."""
    for one in sorted(directories, key=lambda one: one.name.count("/"), reverse=True):
        if one.name:
            with _above(root, one.name) as (above, name):
                with Directory(name, above, flags=os.O_NOFOLLOW) as directory:
                    _set_mode(directory, one, allowed)
                _set_time(name, above, one.mtime)


def finish_root(root: Directory, directories: Sequence[ImageDirectory], allowed: int | None) -> None:
    """The same for the directory itself; with None it keeps its permissions. Raises OSError."""
    for one in directories:
        if not one.name:
            if allowed is not None:
                _set_mode(root, one, allowed)
            _set_time(".", root, one.mtime)


def _set_mode(directory: Directory, one: ImageDirectory, allowed: int) -> None:
    """With the bits that mean something on directories: who owns what is made there, and who may remove it."""
    os.fchmod(directory.descriptor, one.mode & (allowed | stat.S_ISGID | stat.S_ISVTX))


@contextlib.contextmanager
def _above(root: Directory, name: str) -> Iterator[tuple[Directory, str]]:
    """The directory that a name is in, and the last part of the name."""
    *parts, last = _parts(name)
    with root.below(tuple(parts)) as directory:
        yield directory, last


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("/")) if name else ()


def _says(directory: Directory, name: str, target: str) -> bool:
    """Whether it is a link to ``target``."""
    try:
        return os.readlink(name, dir_fd=directory.descriptor) == target
    except OSError:
        return False


def _set_time(name: str, directory: Directory, mtime: int) -> None:
    with contextlib.suppress(OverflowError):  # a time that no file of this system has
        os.utime(name, ns=(mtime, mtime), dir_fd=directory.descriptor, follow_symlinks=False)
