# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer lock of a store in a local directory: one writer at a time. Not for threads; readers need no lock, because no file
is changed in place and removed files go to the trash first.

Two things make it. A kernel lock (flock(2)) on ``lock``, a file that stays: it is true for all processes of this kernel, whatever
namespace, container or copy of the store they see, and ends with its holder. And the file ``writer``, which names the holder
for people, for machines whose kernels do not see each other's locks, and for a machine that hibernates while it holds the lock:
a lock of an earlier boot is taken over, and its holder, once resumed, finds out by ``check``, right before each commit.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import weakref
from pathlib import Path
from typing import Any

from fuse_store.errors import Locked, Refused
from fuse_store.repository.atomic import PARTIAL_SUFFIX, rename_new

ATTEMPTS = 8  # to write the holder's name, while other machines do the same
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system without flock(2)


class KernelLock:
    """A flock(2) on a file that stays. A process that is forked does not hold it."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if another one holds it, OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise
        _HELD.add(self)

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_HELD: weakref.WeakSet[KernelLock] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked process: close what it inherited, so that a lock ends with the process that took it."""
    for lock in list(_HELD):
        lock.release()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


class WriterLock:
    """``with WriterLock(directory) as lock``. Raises Locked, Refused, OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "writer"
        self._free = directory / "free"  # the file of the last holder: a full disk has no space for a new one
        self._process = this_process()
        self._content = json.dumps({**self._process, "token": os.urandom(8).hex()}, sort_keys=True)

    def __enter__(self) -> WriterLock:
        try:
            self._kernel = KernelLock(self._directory / "lock")
        except BlockingIOError:
            raise self._locked_by_kernel() from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            remedy = "Mount it with locks, or use another file system."
            raise Refused(f"store {self._directory.parent}", "its file system has no locks (flock).", remedy) from None
        try:
            self._name_holder()
        except BaseException:
            self._kernel.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if os.getpid() == self._process["pid"] and self._holder_text() == self._content:
                os.rename(self._path, self._free)
        finally:
            self._kernel.release()

    def check(self) -> None:
        """Raises Locked if another process took the lock over."""
        if os.getpid() != self._process["pid"] or self._holder_text() != self._content:
            raise lost_lock()

    def _name_holder(self) -> None:
        """Write ``writer``. Another machine may do the same: then one of them does it. Raises Locked, OSError."""
        for _attempt in range(ATTEMPTS):
            text = self._holder_text()
            if text is not None:
                holder = parse_holder(text)
                # Unreadable text is what a power cut left: a file appears under this name when it is whole.
                if holder and not has_ended(holder, kernel_lock=True):
                    break
            partial = self._path.with_name(f"writer.{os.urandom(4).hex()}{PARTIAL_SUFFIX}")
            try:
                if text is not None:
                    os.rename(self._path, self._free)
                try:
                    os.rename(self._free, partial)
                except FileNotFoundError:
                    pass
                with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
                    file.write(self._content)
                    file.truncate()
                rename_new(partial, self._path)
                return
            except (FileExistsError, FileNotFoundError):
                continue  # another machine was here in between; it removes partial files as well
            finally:
                partial.unlink(missing_ok=True)
        remedy = f"Wait until it is done; if that machine no longer exists, remove {self._path}."
        raise held_by(str(self._directory.parent), parse_holder(self._holder_text() or ""), remedy)

    def _holder_text(self) -> str | None:
        try:
            with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _locked_by_kernel(self) -> Locked:
        holder = parse_holder(self._holder_text() or "")
        if holder and has_ended(holder):
            holder = {}  # its successor, or a program that copies the store, has not written its own name
        remedy = "Wait until it is done, or use --wait."
        if _is_stopped(holder):
            remedy = f"It is stopped: run 'kill -CONT {holder['pid']}' to have it go on."
        return held_by(str(self._directory.parent), holder, remedy)


def this_process() -> dict[str, Any]:
    """The holder of a lock, as a lock file names it."""
    return {
        "host": os.uname().nodename, "machine": _machine_id(), "boot": _boot_id(), "namespace": _pid_namespace(),
        "pid": os.getpid(), "start": _start(os.getpid()),
    }  # fmt: skip


def parse_holder(content: str | bytes) -> dict[str, Any]:
    """The holder that a lock names; empty if the content is not of a lock."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def held_by(store: str, holder: dict[str, Any], remedy: str) -> Locked:
    """The error if another process holds the lock."""
    process = f"process {holder['pid']} on {holder.get('host', '?')}" if holder.get("pid") else "another process"
    return Locked(f"store {store}", f"locked by {process}.", remedy)


def lost_lock() -> Locked:
    """The error if another process took the lock over."""
    return Locked("writer lock", "taken over by another process while this one was stopped.", "Nothing was changed. Run the command again.")


def _is_stopped(holder: dict[str, Any]) -> bool:
    """Whether a holder, which has not ended, is a process of this machine that a signal has stopped."""
    own, pid = this_process(), holder.get("pid")
    if not isinstance(pid, int) or any(holder.get(key) != own[key] for key in ("machine", "boot", "namespace")):
        return False  # the file may say anything, and it becomes part of a command
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])


def has_ended(holder: dict[str, Any], *, kernel_lock: bool = False) -> bool:
    """Whether a holder cannot continue: its process, or its boot of this machine, has ended. ``kernel_lock``: this process has the
    kernel lock that a holder of the same boot had. False where that is unknown."""
    own = this_process()

    def same(*keys: str) -> bool:
        return all(key in holder and holder[key] == own[key] for key in keys)

    if same("boot"):
        return kernel_lock or (same("namespace") and holder.get("start") != _start(holder.get("pid")))
    return same("machine", "host") and "boot" in holder  # copies of a machine may share its id, and rarely its name


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or os.uname().nodename
    except OSError:
        return os.uname().nodename


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> int:
    """The namespace in which a process number has its meaning."""
    return os.stat("/proc/self/ns/pid").st_ino


def _start(pid: Any) -> int | None:
    """The start of a process, in clock ticks since boot (proc_pid_stat(5), field 22); None if it does not exist."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text()
        return int(text.rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, TypeError, OverflowError, IndexError):
        return None
