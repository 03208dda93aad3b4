# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of new blocks, compressed and encrypted by others than the thread that reads and compares pages: by processes, or by threads where
processes cannot be forked. What a process does not do, because it was killed, is done where its result is waited for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np

from fuse_store.processes.forking import ENDED, Channel, end_process, fork, shared, useful_processes
from fuse_store.repository.block import MAX_ADDED
from fuse_store.repository.pack import NewBlock

GROUP = 8  # blocks that are compressed and encrypted in one go
MAX_GROUPS = 8  # that wait or are being compressed

Encrypted = tuple[list[bytes], list[NewBlock]]  # the digest of each block, and those that are to be written


class Group:
    """Blocks with their pages one after the other, in memory that processes share and that is used again and again: the first use of new
    memory takes as long as compressing what is in it."""

    def __init__(self, number: int, slots: int, page_size: int) -> None:
        pages = GROUP * slots
        sizes = pages * page_size, pages * 24, GROUP * (slots * page_size + MAX_ADDED)
        memory = shared(sum(sizes))
        self.number, self.capacity = number, GROUP
        self.pages = np.frombuffer(memory, np.uint8, sizes[0]).reshape(pages, page_size)
        self.digests = np.frombuffer(memory, np.uint64, pages * 3, sizes[0]).reshape(pages, 3)  # their halves, and sums
        self.stored = memory[sizes[0] + sizes[1] :]  # the blocks as they will be in a pack
        self.ordinals: list[int] = []
        self.ends = [0]  # of the pages of each block, after a first 0

    def clear(self) -> None:
        self.ordinals, self.ends = [], [0]


def groups_of(slots: int, page_size: int) -> list[Group]:
    """One that is filled, and those that wait or are being compressed."""
    return [Group(number, slots, page_size) for number in range(MAX_GROUPS + 1)]


Encrypt = Callable[[Group], Encrypted]


class Workers(Protocol):
    """Has groups encrypted, several at a time."""

    def begin(self, group: Group) -> None: ...

    def next(self) -> Encrypted:
        """What came of the group that was begun longest ago. Raises what encrypting it raises."""

    def close(self) -> None: ...


def workers(encrypt: Encrypt, groups: Sequence[Group], *, forked: bool) -> Workers:
    """Processes if they are of use, ``forked`` says that they may be, and the system allows them; else threads."""
    count = useful_processes() - 1 if forked else 0
    if count:
        try:
            return _Processes(encrypt, groups, count)
        except OSError:
            pass
    return _Threads(encrypt)


class _Threads:
    def __init__(self, encrypt: Encrypt) -> None:
        self._encrypt = encrypt
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "encrypt")
        self._begun: deque[Future[Encrypted]] = deque()

    def begin(self, group: Group) -> None:
        self._begun.append(self._pool.submit(self._encrypt, group))

    def next(self) -> Encrypted:
        return self._begun.popleft().result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Process:
    pid: int
    tasks: Channel  # (number of a group, the ends of its blocks)
    results: Channel  # Encrypted, or None if that failed


class _Processes:
    """Each has its groups in turn; results come in the order of the tasks."""

    def __init__(self, encrypt: Encrypt, groups: Sequence[Group], count: int) -> None:
        """Raises OSError if there can be none."""
        self._encrypt, self._groups = encrypt, groups
        self._processes: list[_Process | None] = []
        self._begun: deque[tuple[Group, int]] = deque()  # and the number of its process
        self._turn = 0
        try:
            while len(self._processes) < count:
                self._processes.append(self._fork())
        except OSError:
            if not self._processes:
                raise

    def begin(self, group: Group) -> None:
        self._turn = (self._turn + 1) % len(self._processes)
        process = self._processes[self._turn]
        if process is not None:
            try:
                process.tasks.send((group.number, group.ends))
            except OSError:
                self._lose(self._turn)
        self._begun.append((group, self._turn))

    def next(self) -> Encrypted:
        group, number = self._begun.popleft()
        process = self._processes[number]
        if process is not None:
            try:
                encrypted: Encrypted | None = process.results.receive()
            except ENDED:
                self._lose(number)
            else:
                if encrypted is not None:
                    return encrypted
        return self._encrypt(group)

    def close(self) -> None:
        for number in range(len(self._processes)):
            self._lose(number)

    def _lose(self, number: int) -> None:
        process, self._processes[number] = self._processes[number], None
        if process is not None:
            end_process(process.pid)
            process.tasks.close()
            process.results.close()

    def _fork(self) -> _Process:
        tasks, results = Channel.create(), Channel.create()
        try:
            pid = fork()
        except OSError:
            tasks.close()
            results.close()
            raise
        if not pid:
            self._serve(tasks, results)
        tasks.source.close()
        results.target.close()
        return _Process(pid, tasks, results)

    def _serve(self, tasks: Channel, results: Channel) -> NoReturn:
        """In a new process: until the one that forked it is gone."""
        try:
            for earlier in self._processes:
                if earlier is not None:
                    earlier.tasks.close()  # nobody else keeps them open when the first process is gone
            tasks.target.close()
            results.source.close()
            while True:
                number, ends = tasks.receive()
                group = self._groups[number]
                group.ends = ends
                results.send(self._try(group))
        finally:
            os._exit(0)

    def _try(self, group: Group) -> Encrypted | None:
        try:
            return self._encrypt(group)
        except Exception:  # it is done again, and says what is wrong, where the result is waited for
            return None
