# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that are done by processes, forked for that, while the thread that needs their results goes on; or by threads where processes
cannot be forked.

That thread does a task itself when all processes have enough to do, and so does not wait for them. What a process did not do, because it
failed, was killed or was stopped, is done where its result is needed. A task sees what was there at the fork; what it changes is seen by
others only in ``forking.shared`` memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar

from fuse_store.processes.forking import ENDED, PATIENCE, Channel, end_process, fork, useful_processes

AHEAD = 6  # see Workers

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Result(Protocol[R_co]):
    """Of a task that was begun; as ``concurrent.futures.Future``."""

    def done(self) -> bool: ...

    def result(self) -> R_co:
        """Waits for it. Raises what the task raises."""


class Workers:
    """For one thread."""

    def __init__(self, ahead: int = AHEAD) -> None:
        """``ahead``: tasks that a process has at most. Where results are needed in their order, two: with more, the process has
        all that is needed next, and is waited for."""
        self._ahead = ahead
        self._tasks: list[Callable[..., Any]] = []
        self._processes: list[_Process] = []
        self._pool: ThreadPoolExecutor | None = None

    def task(self, work: Callable[P, R], *, threads: bool) -> Callable[P, Result[R]]:
        """The function that begins ``work``; to be asked for before ``running``. Its arguments and what it returns can be pickled.
        ``threads``: whether threads are of use for it; else it is done at once if there are no processes."""
        number = len(self._tasks)
        self._tasks.append(work)

        def begin(*arguments: P.args, **named: P.kwargs) -> Result[R]:
            able = [process for process in self._processes if process.can_take(self._ahead)]
            if able:
                return min(able, key=_Process.waiting).begin(number, partial(work, *arguments, **named))
            if threads and self._pool is not None:
                return self._pool.submit(work, *arguments, **named)
            return _done(partial(work, *arguments, **named))

        return begin

    @contextmanager
    def running(self, *, forked: bool) -> Iterator[None]:
        """For the time of the block, tasks can be begun. ``forked``: whether there may be processes."""
        try:
            with suppress(OSError):  # the system allows no more
                for _number in range(useful_processes() - 1 if forked else 0):
                    self._processes.append(_Process(self._tasks, self._processes))
            if not self._processes:
                self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "task")
            yield
        finally:
            while self._processes:
                self._processes.pop().end()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _done(work: Callable[[], R]) -> Result[R]:
    """Of a task that is done at once."""
    future: Future[R] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # raised where the result is needed, as that of any other task
        future.set_exception(error)
    return future


class _Awaited(Generic[R]):
    """The result of a task that a process was given."""

    def __init__(self, process: _Process, work: Callable[[], R]) -> None:
        self._process, self._work = process, work
        self._values: list[R] = []  # the one, when it is there

    def take(self, value: R) -> None:
        self._values.append(value)

    def done(self) -> bool:
        self._process.take_results()
        return bool(self._values)

    def result(self) -> R:
        self._process.wait_for(self)
        if not self._values:
            self._values.append(self._work())
        return self._values[0]


class _Process:
    """A process: the channels to it and from it, and the results that are still to come, in the order of the tasks."""

    def __init__(self, tasks: list[Callable[..., Any]], earlier: list[_Process]) -> None:
        """Raises OSError if it cannot be forked."""
        self._orders, self._results = Channel(), Channel()
        self._coming: deque[_Awaited[Any]] = deque()
        self.is_there = True
        try:
            self._pid = fork()
        except OSError:
            self._close()
            raise
        if not self._pid:
            self._serve(tasks, earlier)
        self._orders.close_source()
        self._results.close_target()

    def begin(self, number: int, work: partial[R]) -> Result[R]:
        awaited = _Awaited(self, work)
        self._coming.append(awaited)
        try:
            self._orders.send((number, work.args, work.keywords))
        except OSError:
            self.end()
        return awaited

    def waiting(self) -> int:
        """How many tasks it has whose results were not taken."""
        return len(self._coming)

    def can_take(self, most: int) -> bool:
        """Whether it is there, and has less than ``most`` tasks to do."""
        if len(self._coming) >= most:
            self.take_results()
        return self.is_there and len(self._coming) < most

    def take_results(self) -> None:
        """Those that are there."""
        while self._coming and self._results.is_ready():
            self._take_next()

    def wait_for(self, awaited: _Awaited[Any]) -> None:
        """Until its result is there, or never will be."""
        while awaited in self._coming:
            self._take_next()

    def end(self) -> None:
        """Kill it: what it has not done is done elsewhere."""
        self._coming.clear()
        if self.is_there:
            self.is_there = False
            end_process(self._pid)
            self._close()

    def _take_next(self) -> None:
        try:
            is_done, value = self._results.receive(PATIENCE)
        except ENDED:
            self.end()
            return
        awaited = self._coming.popleft()
        if is_done:
            awaited.take(value)

    def _close(self) -> None:
        self._orders.close()
        self._results.close()

    def _serve(self, tasks: list[Callable[..., Any]], earlier: list[_Process]) -> NoReturn:
        """In the new process: until the one that forked it is gone."""
        try:
            for other in earlier:
                other._close()  # nobody else keeps them open when the first process is gone
            self._orders.close_target()
            self._results.close_source()
            while True:
                number, arguments, named = self._orders.receive()
                self._results.send(self._try(partial(tasks[number], *arguments, **named)))
        finally:
            os._exit(0)

    def _try(self, work: partial[R]) -> tuple[bool, R | None]:
        try:
            return True, work()
        except Exception:  # it is done again, and says what is wrong, where the result is needed
            return False, None
