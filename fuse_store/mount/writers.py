# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process that writes a file is about to do, as far as /proc tells. Functions of thread ids; racy by nature, so that no
answer means "goes on".

The kernel closes the files of a process that a signal ends, or that exits, and a program that catches the signal closes them
itself: to the file system that looks as if the file were complete. The difference:

- a process that ends has PF_EXITING, and PF_SIGNALED or its exit code, when its files are closed (do_exit);
- a program that catches a signal to clean up takes the handler away first, so that a second one ends it: dd (SA_RESETHAND),
  rsync (ignores SIGUSR1 and SIGUSR2 from then on).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

PF_EXITING, PF_SIGNALED = 0x4, 0x400  # in the flags of /proc/PID/stat (include/linux/sched.h)
_FLAGS, _EXIT_CODE = 6, 49  # fields of it, counted after the name
_ENDING = sum(
    1 << number - 1
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
)


def same_process(thread: int, other: int) -> bool:
    """Whether two threads belong to one process."""
    return thread == other or os.path.exists(f"/proc/{thread}/task/{other}")


def process_of(thread: int) -> int:
    """The id of its process; its own if that is not known."""
    for line in _read(thread, "status").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    return thread


def handlers(thread: int) -> int:
    """The signals that its process catches, of those that programs end with; a bit each."""
    for line in _read(thread, "status").splitlines():
        if line.startswith(b"SigCgt:"):
            return int(line.split()[1], 16) & _ENDING
    return 0


def fails(thread: int) -> bool:
    """Whether its process is being ended by a signal, or exits with another code than 0."""
    fields = _read(thread, "stat").rpartition(b")")[2].split()
    if len(fields) <= _EXIT_CODE:
        return False
    flags = int(fields[_FLAGS])
    return bool(flags & PF_SIGNALED) or bool(flags & PF_EXITING and int(fields[_EXIT_CODE]))


def _read(thread: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{thread}/{name}").read_bytes()
    except OSError:
        return b""
