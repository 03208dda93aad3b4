# SPDX-License-Identifier: GPL-3.0-or-later
"""The partial file of a ``get``: it takes the name of the target when it is whole.

It is beside the target, under a name that no one can know before, and a ``get`` that was killed or interrupted leaves it: the next
one of the same version goes on with it, of another version removes it. What others could have put there is not touched: a
file of another user, a link, a file with two names; and what others may open, or have open, is removed, not adopted. The content
is not believed either: the ``get`` that adopts it compares every page. For one thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Locked, Refused
from fuse_store.image.targets import usage
from fuse_store.image.targets.directory import Directory

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ENDING = r"\.[0-9a-f]{12}\.[0-9a-f]{8}\.[0-9a-f]{8}\.partial"  # version, boot, random
_MAX_NAME = 200  # bytes of the name of a target in that of its partial file


@dataclass(frozen=True)
class Partial:
    """An open partial file, locked. ``resumed``: a ``get`` of the same version, killed in this boot, began it."""

    directory: Directory
    name: str
    descriptor: int
    resumed: bool

    @property
    def path(self) -> Path:
        return self.directory.path / self.name

    def remove(self) -> None:
        self.directory.remove(self.name)

    def take_name(self, name: str) -> None:
        """The name of the target, from now on. Raises Refused if someone exchanged the file, OSError."""
        os.rename(self.name, name, src_dir_fd=self.directory.descriptor, dst_dir_fd=self.directory.descriptor)
        status = self.directory.status(name)
        if status is None or not os.path.samestat(status, os.fstat(self.descriptor)):
            raise Refused(f"target {self.directory.path / name}", "another file was put in its place.", "Choose a directory of your own.")


def begun_in(directory: Directory, image_id: str) -> bool | None:
    """Whether a ``get`` of this version, in this boot, began to write the directory; None if one of another version, or boot, did."""
    markers = [name for name in directory.names if re.fullmatch(r"\." + _ENDING, name)]
    return any(name.startswith(_start("", image_id)) for name in markers) or (None if markers else False)


@contextlib.contextmanager
def open_partial(directory: Directory, target: str, image_id: str) -> Iterator[Partial]:
    """A partial file for a target in a directory; ``target`` is empty for the directory itself. Earlier ones of the target are adopted
    or removed. Raises Locked if another process writes the same version there, OSError."""
    start = _start(target, image_id)
    partial = _earlier(directory, target, start)
    while partial is None:
        partial = _locked(directory, f"{start}{os.urandom(4).hex()}.partial", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        yield partial
    finally:
        os.close(partial.descriptor)


@contextlib.contextmanager
def replacement(directory: Directory, target: str, image_id: str) -> Iterator[Partial]:
    """A partial file that is removed if writing it fails. If it is interrupted, what was written stays, which the exception notes."""
    with open_partial(directory, target, image_id) as partial:
        try:
            yield partial
        except KeyboardInterrupt as interrupt:
            if os.fstat(partial.descriptor).st_blocks and directory.status(partial.name):
                interrupt.add_note(f"The next get of this version to this target goes on with {partial.path}.")
            else:
                partial.remove()
            raise
        except BaseException:
            partial.remove()
            raise


def _start(target: str, image_id: str) -> str:
    """What the name of the partial file begins with. The boot is in it because after a power cut nothing is known of such a file."""
    return f".{os.fsdecode(os.fsencode(target)[:_MAX_NAME])}.{image_id[:12]}.{_BOOT_ID.read_text()[:8]}."


def _earlier(directory: Directory, target: str, start: str) -> Partial | None:
    """An earlier partial file of a target to go on with; others that are left are removed. Raises Locked."""
    names = re.compile(r"\." + re.escape(os.fsdecode(os.fsencode(target)[:_MAX_NAME])) + _ENDING)
    found = None
    for name in filter(names.fullmatch, directory.names):
        try:
            partial = _locked(directory, name, os.O_RDWR)
        except OSError:  # gone, a link, a file of another user
            continue
        except Locked:
            if name.startswith(start):
                raise
            continue  # of another version, and at work
        if partial is None:
            continue
        if found is None and name.startswith(start) and _is_private(partial.descriptor):
            found = partial
        else:
            partial.remove()
            os.close(partial.descriptor)
    return found


def _locked(directory: Directory, name: str, flags: int) -> Partial | None:
    """A partial file, if it is this user's and still there; its lock lasts until it is closed. Raises Locked, OSError."""
    descriptor = directory.open(name, flags)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        try:
            if is_own(os.fstat(descriptor)):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"target {directory.path / name}", "another process is writing this image there.", "Wait until it has finished."
            ) from None
        if not is_own(os.fstat(descriptor)):  # or it was removed before the lock was taken
            return None
        undo.pop_all()
        return Partial(directory, name, descriptor, not flags & os.O_CREAT)


def is_own(status: os.stat_result) -> bool:
    """Whether a file is this user's, and under one name."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def _is_private(descriptor: int) -> bool:
    """Whether no one else may open a file, or has it open."""
    return not stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077 and usage.is_alone(descriptor)
