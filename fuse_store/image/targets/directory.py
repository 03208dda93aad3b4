# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory that a target is in, open, so that no one can put another in its place, and names in it.

Who owns the directory may put links there, or take files away, at any time. So every name is looked up in an open directory, one step
at a time, and a link below a target is never followed. Directorys belong to one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType

from fuse_store.errors import NotFound, Refused

NEW_MODE = 0o700  # of a directory, until all that is below it is there
MAX_LINKS = 40  # as many as the kernel follows
_SYSTEM = tuple(Path(name) for name in ("/dev", "/proc", "/sys"))
_FOR_FILES = (Path("/dev/shm"),)  # a file system of its own, in memory


class Directory:
    """An open directory; a context manager. Functions raise OSError."""

    def __init__(self, path: str, parent: Directory | None = None, *, flags: int = 0) -> None:
        flags |= os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.descriptor: int = os.open(path, flags, dir_fd=None if parent is None else parent.descriptor)

    @property
    def path(self) -> Path:
        """Where it is now, for messages."""
        return Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))

    @property
    def is_trusted(self) -> bool:
        """Whether root and this user alone can have put there what is in it."""
        status = os.fstat(self.descriptor)
        return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022

    @cached_property
    def names(self) -> list[str]:
        """What is in it, at the first look."""
        return os.listdir(self.descriptor)

    def status(self, name: str) -> os.stat_result | None:
        """Of a name itself; None if there is none."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor of what has a name, if that is no link. A pipe does not block."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def below(self, parts: tuple[str, ...]) -> Directory:
        """A directory below this one; it is made if there is none. Raises Refused if a link is on the way."""
        directory = Directory(".", self)
        for part in parts:
            with directory:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, NEW_MODE, dir_fd=directory.descriptor)
                try:
                    directory = Directory(part, directory, flags=os.O_NOFOLLOW)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    cause = "a link or a file, where a directory is needed."
                    raise Refused(f"target {directory.path / part}", cause, "Name another target, or remove it.") from None
        return directory

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.descriptor)


@contextlib.contextmanager
def find(target: str) -> Iterator[tuple[Directory, str]]:
    """The directory that a target is in, or will be in, and its name there. If it is a link, the directory and name of what that leads
    to, as with cp; but not the link of another user, who could lead a write of root's to any file.

    Raises NotFound if the link leads to nothing, Refused, OSError.
    """
    directory, name = _split(target, None, target)
    try:
        for followed in range(MAX_LINKS):
            status = directory.status(name)
            if status is None and followed:
                cause = f"a link to {directory.path / name}, which does not exist."
                raise NotFound(f"target {target}", cause, "Name another target, or remove the link.")
            if status is None or not stat.S_ISLNK(status.st_mode):
                yield directory, name
                return
            if system_directory(str(directory.path)) == "/proc":
                raise Refused(f"target {target}", "a link of the kernel's.", "Name a file, or - for standard output.")
            last = directory
            directory, name = _split(_read_link(last, name, target), last, target)
            os.close(last.descriptor)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
    finally:
        os.close(directory.descriptor)


def _read_link(directory: Directory, name: str, target: str) -> str:
    """Where a link leads. Raises Refused if it may be another user's."""
    link = directory.open(name, os.O_PATH)  # it is the same for both questions
    try:
        status = os.fstat(link)
        if status.st_uid not in (0, os.geteuid()) or status.st_nlink != 1:  # another name of a link of root's is not root's
            cause = f"a symbolic link of the user {status.st_uid}" + (", with several names." if status.st_nlink != 1 else ".")
            raise Refused(f"target {target}", cause, "Name the file that it leads to.")
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _split(path: str, parent: Directory | None, target: str) -> tuple[Directory, str]:
    """The directory that a path is in, and its name there."""
    head, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return _opened(path, parent, target), "."
    return _opened(head, parent, target), name


def _opened(path: str, parent: Directory | None, target: str) -> Directory:
    """A directory, looked up step by step, as the kernel does, but not through the link of another user. Raises Refused, OSError."""
    directory = Directory("/", flags=os.O_PATH) if path.startswith("/") else Directory(".", parent, flags=os.O_PATH)
    parts = _parts(path)
    followed = 0
    while parts:
        with directory:
            name = parts.pop(0)
            status = directory.status(name)
            if status is not None and stat.S_ISLNK(status.st_mode):
                followed += 1
                if followed > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
                link = _read_link(directory, name, target)
                parts = _parts(link) + parts
                directory = Directory("/" if link.startswith("/") else ".", directory, flags=os.O_PATH)
                continue
            try:
                directory = Directory(name, directory, flags=os.O_PATH | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    with directory:
        return Directory(".", directory)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def system_directory(path: str) -> str:
    """/dev, /proc or /sys if a path is below it, where files of users have no place; else empty."""
    place = Path(os.path.realpath(path))
    if any(place.is_relative_to(directory) for directory in _FOR_FILES):
        return ""
    return next((str(directory) for directory in _SYSTEM if place.is_relative_to(directory)), "")
