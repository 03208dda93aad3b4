# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder that a target is in, open, so that nobody can put another in its place, and names in it.

Who owns the folder may put links there, or take files away, at any time. So every name is looked up in an open folder, one step
at a time, and a link below a target is never followed. Folders belong to one thread.
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

MAX_LINKS = 40  # as many as the kernel follows
_SYSTEM = tuple(Path(name) for name in ("/dev", "/proc", "/sys"))
_FOR_FILES = (Path("/dev/shm"),)  # a file system of its own, in memory


class Folder:
    """An open directory; a context manager. Functions raise OSError."""

    def __init__(self, path: str, parent: Folder | None = None, *, flags: int = 0) -> None:
        flags |= os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.descriptor: int = os.open(path, flags, dir_fd=None if parent is None else parent.descriptor)

    @property
    def path(self) -> Path:
        """Where it is now, for messages."""
        return Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))

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

    def below(self, parts: tuple[str, ...]) -> Folder:
        """A folder below this one; it is made if there is none. Raises Refused if a link is on the way."""
        folder = Folder(".", self)
        for part in parts:
            with folder:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=folder.descriptor)
                try:
                    folder = Folder(part, folder, flags=os.O_NOFOLLOW)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    raise Refused(f"target {folder.path / part}", "a link or a file, where a directory is needed.", "Remove it.") from None
        return folder

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.descriptor)


@contextlib.contextmanager
def find(target: str) -> Iterator[tuple[Folder, str]]:
    """The folder that a target is in, or will be in, and its name there. If it is a link, the folder and name of what that leads
    to, as with cp; but not the link of another user, who could lead a write of root's to any file.

    Raises NotFound if the link leads to nothing, Refused, OSError.
    """
    folder, name = _split(target, None)
    try:
        for followed in range(MAX_LINKS):
            status = folder.status(name)
            if status is None and followed:
                raise NotFound(f"target {target}", f"a link to {folder.path / name}, which does not exist.", "Remove the link.")
            if status is None or not stat.S_ISLNK(status.st_mode):
                yield folder, name
                return
            if status.st_uid not in (0, os.geteuid()):
                raise Refused(f"target {target}", f"a symbolic link of the user {status.st_uid}.", "Name the file that it leads to.")
            if system_folder(str(folder.path)) == "/proc":
                raise Refused(f"target {target}", "a link of the kernel's.", "Name a file, or - for standard output.")
            last = folder
            folder, name = _split(os.readlink(name, dir_fd=last.descriptor), last)
            os.close(last.descriptor)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
    finally:
        os.close(folder.descriptor)


def _split(path: str, parent: Folder | None) -> tuple[Folder, str]:
    """The folder that a path is in, and its name there."""
    head, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return Folder(path, parent), "."
    return Folder(head or ".", parent), name


def system_folder(path: str) -> str:
    """/dev, /proc or /sys if a path is below it, where files of users have no place; else empty."""
    place = Path(os.path.realpath(path))
    if any(place.is_relative_to(folder) for folder in _FOR_FILES):
        return ""
    return next((str(folder) for folder in _SYSTEM if place.is_relative_to(folder)), "")
