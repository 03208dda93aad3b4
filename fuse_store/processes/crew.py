# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that forked processes share. Threads of one interpreter wait for each other so often, where a step takes a twentieth of a
millisecond, that two of them take longer than one.

All processes run the same code, from ``Crew.start`` to the end of its ``with``, and so come to the same calls of ``each``: there each does
a part of the work, the next item whenever it is done with one, and all get all results. Only the first one, which called ``start``, goes on
behind the ``with``. What a process changes in memory is seen by the others only where that is ``forking.shared``; what it writes to files
stays.

Nothing depends on the others: what they could not do, or had not done when they were killed or stopped, the first one does itself, and
gets the errors of that. They end with the ``with``, and with the first one if that is killed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from zlib import crc32

from fuse_store.processes.forking import ENDED, PATIENCE, Channel, Numbers, end_process, fork, useful_processes

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Other:
    """Another process. It reports its results to the first one, which tells it those of all."""

    pid: int
    reports: Channel
    results: Channel

    def close(self) -> None:
        self.reports.close()
        self.results.close()


class Crew:
    """See the module. Not thread-safe."""

    @classmethod
    def start(cls, wanted: bool) -> Crew:
        """Fork as many times as is useful, if it is ``wanted``, and as the system allows."""
        crew = cls()
        if wanted:
            crew.count = useful_processes()
        with suppress(OSError):
            if crew.count > 1:
                crew._turns = Numbers()
            for number in range(1, crew.count):
                crew._fork(number)
                if crew.number:
                    break
        if not crew._others:  # none could be forked: threads are better than one process that takes all parts
            crew.count = 1
        return crew

    def __init__(self) -> None:
        """Use ``start`` instead."""
        self.number, self.count = 0, 1  # of this process, and how many there were at the start
        self._first = os.getpid()
        self._others: dict[int, _Other] = {}  # those that are there, by number; in one of them: itself
        self._turns: Numbers | None = None  # of the items that no process has begun

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if self.number:
            _end()  # whatever it was: the first one does what was not reported
        for number in list(self._others):
            self._dismiss(number)
        if self._turns is not None:
            self._turns.close()

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Do ``work`` with every item, once in one of the processes; what it returns, in any order. Items and results can be pickled.
        When this has ended, all is done with these items. Raises what ``work`` raises."""
        if not items:
            return
        if self._turns is None or self.is_alone:
            yield from map(work, items)
            return
        agreed = crc32(pickle.dumps(items))
        if self.number:
            yield from self._report(work, items, agreed)
            return
        self._turns.fill(len(items), 1 + len(self._others))
        done = {}
        for at in self._turns.taken():
            done[at] = work(items[at])
            yield done[at]
        for number in range(1, self.count):
            for at, result in self._reported(number, agreed):
                done[at] = result
                yield result
        for at in set(range(len(items))) - done.keys():  # of a process that is gone
            done[at] = work(items[at])
            yield done[at]
        self._turns.clear()  # while the others wait for what comes now
        results = list(done.values())
        for number, other in list(self._others.items()):
            try:
                other.results.send(results)
            except OSError:
                self._dismiss(number)

    def _fork(self, number: int) -> None:
        """Raises OSError."""
        other = _Other(0, Channel(), Channel())
        try:
            pid = fork()
        except OSError:
            other.close()
            raise
        if pid:
            other.reports.close_target()
            other.results.close_source()
            self._others[number] = _Other(pid, other.reports, other.results)
            return
        for earlier in self._others.values():
            earlier.close()
        if self._turns is not None:
            self._turns.close_target()  # so that it ends with the first one
        other.reports.close_source()
        other.results.close_target()
        self.number, self._others = number, {number: other}

    def _reported(self, number: int, agreed: int) -> list[tuple[int, Any]]:
        """The results of another process, by number of the item; none if it failed. One that has come to another list of items, because
        it read the index at another time, is dismissed."""
        if number not in self._others:
            return []
        results: list[tuple[int, Any]]
        try:
            there, results = self._others[number].reports.receive(PATIENCE)
        except ENDED:
            there, results = None, []
        if there != agreed:
            self._dismiss(number)
            return []
        return results

    def _report(self, work: Callable[[T], R], items: Sequence[T], agreed: int) -> Iterator[R]:
        """``each`` in another process than the first."""
        own = self._others[self.number]
        assert self._turns is not None
        done: list[tuple[int, R]]
        try:
            done = [(at, work(items[at])) for at in self._turns.taken() if self._is_led()]
        except Exception:  # the first one does it again, and says what is wrong
            done = []
        try:
            own.reports.send((agreed, done))
            everything = own.results.receive()
        except ENDED:  # the first one is gone, or has dismissed this one
            _end()
        yield from everything

    def _is_led(self) -> bool:
        """Whether the first one is there; else this one ends."""
        return os.getppid() == self._first or _end()

    def _dismiss(self, number: int) -> None:
        other = self._others.pop(number)
        end_process(other.pid)
        other.close()


def _end() -> NoReturn:
    os._exit(0)
