# SPDX-License-Identifier: GPL-3.0-or-later
"""The process between ``put`` and its command: it starts the command, and ends all that the command has started if ``put`` ends
before the command, be it killed. A program of its own, which imports nothing of this package: ``supervisor.py SOCKET COMMAND …``.

It stays in the process group of ``put``, and so does the command: Ctrl-C and Ctrl-Z of a terminal reach all of them, and the
command may ask for a password. What its processes leave behind becomes a child of this process (PR_SET_CHILD_SUBREAPER, prctl(2)), so
that all of them are found below it.

Over the socket, in lines: to ``put`` 0 when the command runs, or the errno why not; from ``put`` anything when it has read the whole
output, then to it the exit code of the command, negative for a signal. ``put`` is gone when the socket ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PATIENCE = 5.0  # seconds that processes get to end after SIGTERM
INTERVAL = 0.02  # seconds between two looks at what is left
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # for put and the command; this process outlives both


def main(to_put: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # unlike an ignored one, the command has it as if this process were not there
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # put has blocked them until here
    os.set_inheritable(to_put, False)
    try:
        process = os.posix_spawnp(command[0], command, os.environ, setsigdef=IGNORED_BY_PYTHON)
    except OSError as error:
        _tell(to_put, error.errno or errno.EINVAL)
        return
    null = os.open(os.devnull, os.O_RDWR)
    for own in (0, 1):
        os.dup2(null, own)  # the end of the output is that of the command
    ended = _tell(to_put, 0) and _asked(to_put) and _ends_before(process, to_put)
    if not ended or not _tell(to_put, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])):
        _end_all()


def _tell(to_put: int, number: int) -> bool:
    """Whether ``put``, which may be gone at any moment, is told a number."""
    try:
        return os.write(to_put, b"%d\n" % number) > 0
    except OSError:
        return False


def _asked(to_put: int) -> bool:
    """Wait until ``put`` has read the whole output; False if it is gone."""
    try:
        return bool(os.read(to_put, 1))
    except OSError:
        return False


def _ends_before(process: int, to_put: int) -> bool:
    """Wait for the command, or for ``put`` to be gone; whether it was the command."""
    ended = os.pidfd_open(process)
    return ended in select.select([ended, to_put], [], [])[0]


def _end_all() -> None:
    """End every process below this one: ask it to, and kill it if it does not."""
    limit = time.monotonic() + PATIENCE
    asked: set[int] = set()
    while left := _below(os.getpid()):
        late = time.monotonic() > limit
        if late and time.monotonic() > limit + PATIENCE:
            return  # another user's, or in the kernel
        for process in left if late else left - asked:
            try:
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
                os.kill(process, signal.SIGCONT)  # a stopped one would not answer
            except OSError:
                continue
        asked |= left
        time.sleep(INTERVAL)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:  # none is left behind, not even as an entry in the list of processes
            pass
    except ChildProcessError:
        pass


def _below(root: int) -> set[int]:
    """The processes that a process has started, and those that they have, without those that have ended."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # ended
        if state != b"Z":
            children.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    pending = [root]
    while pending:
        inner = [process for process in children.get(pending.pop(), []) if process not in found]
        found.update(inner)
        pending += inner
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
