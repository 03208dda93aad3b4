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

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PATIENCE = 5.0  # seconds that processes get to end after SIGTERM
INTERVAL = 0.02  # seconds between two looks at what is left
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # for put and the command; this process outlives both


def main(descriptor: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # unlike an ignored one, the command has it as if this process were not there
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # put has blocked them until here
    with socket.socket(fileno=descriptor) as to_put:
        try:
            process = subprocess.Popen(command)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                to_put.sendall(b"%d\n" % (getattr(error, "errno", 0) or errno.EINVAL))
            return
        null = os.open(os.devnull, os.O_RDWR)
        for own in (0, 1):
            os.dup2(null, own)  # the end of the output is that of the command
        with contextlib.suppress(OSError):  # put is gone: it may be at any moment
            to_put.sendall(b"0\n")
            if to_put.recv(1) and _ends_before(process, to_put):
                to_put.sendall(b"%d\n" % process.wait())
                return
    _end_all()


def _ends_before(process: subprocess.Popen[bytes], to_put: socket.socket) -> bool:
    """Wait for the command, or for ``put`` to be gone; whether it was the command."""
    ended = os.pidfd_open(process.pid)
    return ended in select.select([ended, to_put.fileno()], [], [])[0]


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


def _below(root: int) -> set[int]:
    """The processes that a process has started, and those that they have, without those that have ended."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue  # ended
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    pending = [root]
    while pending:
        inner = [process for process in children.get(pending.pop(), []) if process not in found]
        found.update(inner)
        pending += inner
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
