# SPDX-License-Identifier: GPL-3.0-or-later
"""One writer per store. Used by ``store`` around everything that writes.

A lock is a file that names its holder: host, boot, process and the process's start. Machines that use this store
hibernate, also while they hold the lock: a holder of another boot on this host is gone for ever and its lock is taken
over; and a holder whose lock was taken over while it slept must not go on, which it finds out by ``check`` right before
each commit. Readers need no lock: nothing they use is changed, and what is removed goes to the trash first.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from fuse_store.errors import Locked


class WriterLock:
    """``with WriterLock(folder) as lock``. Raises Locked, OSError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "writer"
        self._free = folder / "free"  # the file of the last lock: on a full disk there is no room for a new one
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
                os.link(partial, self._path)  # fails if it exists, which a rename would not
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
        """Raise Locked if the lock is no longer ours."""
        if self._holder_text() != self._content:
            raise Locked(
                "the writer's lock", "somebody else took it while this process slept.", "Nothing was changed. Run it again."
            )

    def _take_over(self) -> None:
        """Remove the lock of a holder that is gone for certain; Locked otherwise."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One at a time, or the second would remove what the first has just taken. Only this machine's processes do it.
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self._holder_text() is None:
                return
            holder = self._holder()
            if not is_gone(holder):
                raise self._locked(holder)
            self._path.unlink(missing_ok=True)
        finally:
            os.close(folder)

    def _holder_text(self) -> str | None:
        try:
            return self._path.read_text(errors="replace")
        except FileNotFoundError:
            return None

    def _holder(self) -> dict[str, Any]:
        return holder_in(self._holder_text() or "{}")

    def _locked(self, holder: dict[str, Any]) -> Locked:
        remedy = f"Wait until it is done; if that machine is gone for ever, remove {self._path}."
        return held(str(self._path.parent.parent), holder, remedy)


def this_process() -> dict[str, Any]:
    """What a lock says of who holds it."""
    return {"host": os.uname().nodename, "machine": _machine_id(), "boot": _boot_id(), "pid": os.getpid(), "start": _start(os.getpid())}


def holder_in(content: str | bytes) -> dict[str, Any]:
    """Who holds a lock, by what stands in it; empty if that is nothing of ours."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def held(store: str, holder: dict[str, Any], remedy: str) -> Locked:
    """The error for who finds a store locked."""
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return Locked(f"store {store}", f"{who} is writing to it.", remedy)


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder can't go on: its process, or its boot of this machine, has ended."""
    if not holder or holder.get("machine") != _machine_id():
        return False  # of another machine nothing can be known
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
    """When a process began, in clock ticks since boot (proc_pid_stat(5), field 22); None if there is none."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text()
        return int(text.rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, TypeError, OverflowError, IndexError):
        return None
