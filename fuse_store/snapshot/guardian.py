# SPDX-License-Identifier: GPL-3.0-or-later
"""Another process, which undoes what this one has begun if it is killed.

When a process ends that has the system stand still, the kernel lets all processes go on. Filesystems that it has frozen, and swap areas
that it has taken out of use, stay so.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn


class Guardian:
    """A context manager: when this process leaves it, the other one ends; if this process ends before, the other one calls each of
    ``undo``, whatever another does."""

    def __init__(self, undo: Iterable[Callable[[], object]], descriptors: Iterable[int] = ()) -> None:
        """``descriptors``: of files that ``undo`` needs; the other process has no others open."""
        ended, self._alive = os.pipe2(os.O_CLOEXEC)
        self._process = os.fork()
        if not self._process:
            self._guard(ended, list(undo), {ended, *descriptors})
        os.close(ended)

    def _guard(self, ended: int, undo: list[Callable[[], object]], keep: set[int]) -> NoReturn:
        """The other process: waits for the end of this one, in which it has done nothing wrong if it says so."""
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.setsid()
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                if descriptor not in keep:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            if not os.read(ended, 1):
                for step in undo:
                    with contextlib.suppress(Exception):
                        step()
        finally:
            os._exit(0)

    def __enter__(self) -> Guardian:
        return self

    def __exit__(self, *_error: object) -> None:
        os.write(self._alive, b"\n")
        os.close(self._alive)
        os.waitpid(self._process, 0)
