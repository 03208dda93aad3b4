# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes that this one forks share with it: memory, and channels for what is pickled."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_PROCESSES = 4
ENDED = (OSError, EOFError, pickle.UnpicklingError)  # what is raised where the process at the other end of a channel is gone
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_HARMLESS = {"MainThread", "lease"}  # threads that hold no lock which a new process needs


def shared(size: int) -> memoryview:
    """So many zero bytes, which processes that are forked later see and change as well."""
    return memoryview(mmap.mmap(-1, size)) if size else memoryview(bytearray())


def useful_processes() -> int:
    """How many processes, this one included, can work at a time: one if another thread runs, whose locks would stay locked in a new
    process."""
    if {thread.name for thread in threading.enumerate()} - _HARMLESS:
        return 1
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)))


def fork() -> int:
    """As os.fork(). The new process ignores the signals that end the first one, from its first instruction on: else it would do what the
    first one does when it is ended. It is killed when the first one is gone."""
    first = os.getpid()
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        pid = os.fork()
        if not pid:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != first:
                os._exit(0)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def end_process(pid: int) -> None:
    """Kill a forked process, and wait until it has ended."""
    with suppress(ProcessLookupError, ChildProcessError):  # it ended where SIGCHLD is ignored
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@dataclass(frozen=True)
class Channel:
    """From one process to another: what is pickled."""

    source: BinaryIO
    target: BinaryIO

    @classmethod
    def create(cls) -> Channel:
        source, target = os.pipe()
        return cls(os.fdopen(source, "rb"), os.fdopen(target, "wb"))

    def send(self, message: object) -> None:
        """Raises OSError."""
        pickle.dump(message, self.target)
        self.target.flush()

    def receive(self) -> Any:
        """Raises one of ENDED."""
        return pickle.load(self.source)

    def close(self) -> None:
        for end in (self.source, self.target):
            with suppress(OSError):  # what could not be sent
                end.close()
