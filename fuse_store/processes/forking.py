# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes that this one forks share with it: memory, and channels for what is pickled."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pickle
import select
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

MAX_PROCESSES = 4
PATIENCE = 10.0  # seconds for which a process is waited for that has a thousandth of one to do: then it counts as stopped
_LENGTH = struct.Struct("<Q")
_RANGE = struct.Struct("<II")  # first, end; a size of which a page is a multiple
_MOST_AT_ONCE = 1 << 20  # bytes
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
    first, prctl = os.getpid(), ctypes.CDLL(None).prctl
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        pid = os.fork()
        if not pid:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # first of all: one that is stopped before keeps what it has open, as a lock
            if os.getppid() != first:
                os._exit(0)
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def end_process(pid: int) -> None:
    """Kill a forked process, and wait until it has ended."""
    with suppress(ProcessLookupError, ChildProcessError):  # it ended where SIGCHLD is ignored
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class _Pipe:
    """Each process closes the end that it does not use."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._source, self._target = os.pipe()

    def close_source(self) -> None:
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def close_target(self) -> None:
        if self._target >= 0:
            os.close(self._target)
            self._target = -1

    def close(self) -> None:
        self.close_source()
        self.close_target()

    def is_ready(self, seconds: float = 0) -> bool:
        """Whether reading will not wait, now or so many seconds later: there is something, or nothing can come any more."""
        waiting = select.poll()
        waiting.register(self._source, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))


class Channel(_Pipe):
    """From one process to another: what is pickled."""

    def send(self, message: object) -> None:
        """Raises OSError."""
        content = pickle.dumps(message)
        rest = memoryview(_LENGTH.pack(len(content)) + content)
        while rest:
            rest = rest[os.write(self._target, rest) :]

    def receive(self, seconds: float | None = None) -> Any:
        """Raises one of ENDED, also if nothing comes for so many seconds."""
        if seconds is not None and not self.is_ready(seconds):
            raise TimeoutError
        return pickle.loads(self._read(*_LENGTH.unpack(self._read(_LENGTH.size))))

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            parts.append(os.read(self._source, min(length, _MOST_AT_ONCE)))
            if not parts[-1]:
                raise EOFError
            length -= len(parts[-1])
        return b"".join(parts)


class Numbers(_Pipe):
    """Numbers that several processes take, each once: one process fills it, all take. What one reads from a pipe is read by no other."""

    def fill(self, count: int, takers: int) -> None:
        """Have 0 to ``count`` - 1 in it, for so many processes; it is empty. Never waits."""
        most = fcntl.fcntl(self._target, fcntl.F_GETPIPE_SZ) // _RANGE.size - takers  # a user of many pipes gets small ones
        step = -(-count // most)
        ranges = [(at, min(at + step, count)) for at in range(0, count, step)] + [(0, 0)] * takers
        os.write(self._target, b"".join(_RANGE.pack(*each) for each in ranges))

    def clear(self) -> None:
        """Take out what was left for processes that are gone; no other one may be taking."""
        while self.is_ready():
            os.read(self._source, _MOST_AT_ONCE)

    def taken(self) -> Iterator[int]:
        """Numbers for this process, until there are no more; waits for ``fill``. Raises EOFError if no process can fill it any more."""
        while content := os.read(self._source, _RANGE.size):
            first, end = _RANGE.unpack(content)
            if first == end:
                return
            yield from range(first, end)
        raise EOFError
