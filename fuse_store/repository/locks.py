# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer lock of a store in a local directory: one writer at a time. Not for threads; readers need no lock, because no file
is changed in place and removed files go to the trash first.

The lock is a file that names its holder: host, boot, process and start time of the process. Machines that use the store may
hibernate while they hold the lock. A holder of an earlier boot of this machine has ended, and its lock is taken over. A holder
whose lock was taken over while it was hibernated must not continue; it finds out by ``check``, right before each commit.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from fuse_store.errors import Locked


class WriterLock:
    """``with WriterLock(directory) as lock``. Raises Locked, OSError."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "writer"
        self._free = directory / "free"  # the file of the last lock: a full disk has no space for a new one
        self._content = json.dumps({**this_process(), "token": os.urandom(8).hex()}, sort_keys=True)

    def __enter__(self) -> WriterLock:
        for _attempt in range(8):
            partial = self._path.with_name(f"writer.{os.urandom(4).hex()}.partial")
            try:
                try:
                    os.rename(self._free, partial)
                except FileNotFoundError:
                    pass
                with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
                    file.write(self._content)
                    file.truncate()
                os.link(partial, self._path)  # fails if the lock exists, unlike a rename
                return self
            except FileExistsError:
                self._take_over()
            finally:
                partial.unlink(missing_ok=True)
        raise self._locked(self._holder())

    def __exit__(self, *error: object) -> None:
        if self._holder_text() == self._content:
            os.rename(self._path, self._free)

    def check(self) -> None:
        """Raises Locked if another process took the lock over."""
        if self._holder_text() != self._content:
            raise lost_lock()

    def _take_over(self) -> None:
        """Remove the lock of a holder that has certainly ended; raises Locked otherwise."""
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One at a time, or the second would remove the lock that the first has just taken. Only processes of this machine do it.
            fcntl.flock(directory, fcntl.LOCK_EX)
            if self._holder_text() is None:
                return
            holder = self._holder()
            if not has_ended(holder):
                raise self._locked(holder)
            self._path.unlink(missing_ok=True)
        finally:
            os.close(directory)

    def _holder_text(self) -> str | None:
        try:
            return self._path.read_text(errors="replace")
        except FileNotFoundError:
            return None

    def _holder(self) -> dict[str, Any]:
        return parse_holder(self._holder_text() or "{}")

    def _locked(self, holder: dict[str, Any]) -> Locked:
        remedy = f"Wait until it is done; if that machine no longer exists, remove {self._path}."
        return held_by(str(self._path.parent.parent), holder, remedy)


def this_process() -> dict[str, Any]:
    """The holder of a lock, as a lock file names it."""
    return {"host": os.uname().nodename, "machine": _machine_id(), "boot": _boot_id(), "pid": os.getpid(), "start": _start(os.getpid())}


def parse_holder(content: str | bytes) -> dict[str, Any]:
    """The holder that a lock names; empty if the content is not of a lock."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def held_by(store: str, holder: dict[str, Any], remedy: str) -> Locked:
    """The error if another process holds the lock."""
    process = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return Locked(f"store {store}", f"locked by {process}.", remedy)


def lost_lock() -> Locked:
    """The error if another process took the lock over."""
    return Locked("writer lock", "taken over by another process while this one was stopped.", "Nothing was changed. Run the command again.")


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether a holder cannot continue: its process, or its boot of this machine, has ended."""
    if not holder or holder.get("machine") != _machine_id():
        return False  # a lock held by another machine must not be broken
    if holder.get("boot") != _boot_id():
        return True
    return holder.get("start") != _start(holder.get("pid", 0))


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or os.uname().nodename
    except OSError:
        return os.uname().nodename


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start(pid: Any) -> int | None:
    """The start of a process, in clock ticks since boot (proc_pid_stat(5), field 22); None if it does not exist."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text()
        return int(text.rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, TypeError, OverflowError, IndexError):
        return None
