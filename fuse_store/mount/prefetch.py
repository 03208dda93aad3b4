# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that read windows of images into memory they share with the one that answers the kernel. Used by ``content``.

A process has an interpreter of its own: opening blocks and answering requests then go on at once, where threads of one
process would wait for each other. They are forked before the mount answers, while there is no other thread, know the
store as it was then, and end with the process that they work for. Nothing depends on one: what it could not read, or had
not read when it was killed, whoever wants it reads himself, and is told what is wrong by that.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import struct
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fuse_store import streams
from fuse_store.errors import StoreError

if TYPE_CHECKING:
    from fuse_store.image.reader import Image
    from fuse_store.store import Store

log = logging.getLogger(__name__)

MOST = 4  # processes
OPEN = 4  # images that each of them has open
_JOB = struct.Struct("<IQ16s")  # slab, offset in the image, id of the image
_DONE = struct.Struct("<IB")  # slab, how it ended
_FILLED, _ZEROS, _FAILED = range(3)


class _Reader:
    """One of the processes: its end of the line, and what it was asked for and has not answered, by slab."""

    def __init__(self, line: socket.socket, process: int) -> None:
        self.line, self.process = line, process
        self.asked: dict[int, Future[memoryview]] = {}
        self.alive = True


class Readers:
    """The processes, and the ``slabs`` of ``window`` bytes into which they read. Threads may share it."""

    @classmethod
    def start(cls, store: Store, window: int, slabs: int) -> Readers | None:
        """Forks: no other thread may run. None if the store's backend does not stand that, or the system does not let it."""
        if not store.backend.survives_fork:
            return None
        try:
            return cls(store, window, slabs)
        except OSError as error:
            log.warning("no process can be had that reads ahead (%s); it goes on without", error.strerror)
            return None

    def __init__(self, store: Store, window: int, slabs: int) -> None:
        """``start`` makes one. Raises OSError."""
        import fuse_store.image.reader  # noqa: F401  (once, for all of them)

        memory = mmap.mmap(-1, window * slabs)
        self._slabs = [np.frombuffer(memory, np.uint8, window, number * window) for number in range(slabs)]
        self._zeros = memoryview(bytes(window))
        self._free = deque(range(slabs))  # the one that was used last is the next: it is in the processor's caches
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []
        self._closed = False
        try:
            for _number in range(min(MOST, os.cpu_count() or 1)):
                self._readers.append(self._fork(store))
        except OSError:
            if not self._readers:
                raise
        self._threads = [
            threading.Thread(target=self._receive, args=(reader,), name="reader", daemon=True) for reader in self._readers
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, image_id: str, offset: int) -> Future[memoryview] | None:
        """The bytes of an image from ``offset``, a multiple of the window, and zeros after its end. The result may raise
        StoreError; its slab is used again when nothing refers to it. None if all slabs are in use, or all processes gone."""
        with self._lock:
            reader = min((one for one in self._readers if one.alive), key=lambda one: len(one.asked), default=None)
            if reader is None or not self._free:
                return None
            slab = self._free.pop()
            future = reader.asked[slab] = Future()
            try:
                reader.line.send(_JOB.pack(slab, offset, bytes.fromhex(image_id)))
            except OSError:
                pass  # who receives from it finds out
        return future

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            for reader in self._readers:
                if reader.alive:
                    os.kill(reader.process, signal.SIGKILL)  # it has nothing to lose
        for thread in self._threads:
            thread.join()

    def _fork(self, store: Store) -> _Reader:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            process = os.fork()
            if process:
                return _Reader(own, process)
            try:
                store.backend.close()
                _alone(other.fileno())
                _read(store, self._slabs, other)
            finally:
                os._exit(0)

    def _receive(self, reader: _Reader) -> None:
        """In a thread: pass on what a process has done, until it is gone."""
        while True:
            try:
                message = reader.line.recv(_DONE.size)
            except OSError:
                break
            if not message:
                break
            slab, how = _DONE.unpack(message)
            with self._lock:
                future = reader.asked.pop(slab)
            self._answer(future, slab, how)
        with self._lock:
            reader.alive = False
            lost = reader.asked.values()
            if not self._closed:
                log.warning("process %d, which read ahead, is gone; it goes on without", reader.process)
        os.waitpid(reader.process, 0)
        reader.line.close()
        for future in lost:
            future.set_exception(StoreError("window", "the process that read it is gone."))
        self._free.extend(reader.asked)

    def _answer(self, future: Future[memoryview], slab: int, how: int) -> None:
        if how == _FILLED:
            window: NDArray[np.uint8] = self._slabs[slab].view()
            weakref.finalize(window, self._free.append, slab).atexit = False
            future.set_result(window.data)
            return
        self._free.append(slab)
        if how == _ZEROS:
            future.set_result(self._zeros)
        else:
            future.set_exception(StoreError("window", "it could not be read ahead."))


def _alone(line: int) -> None:
    """In a new process: keep nothing of what it was forked from but ``line``, and end only with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.disable()
    streams.let_go()
    os.closerange(3, line)
    os.closerange(line + 1, os.sysconf("SC_OPEN_MAX"))


def _read(store: Store, slabs: Sequence[NDArray[np.uint8]], line: socket.socket) -> None:
    """In a new process: fill slabs as asked."""
    images: OrderedDict[bytes, Image] = OrderedDict()
    while job := line.recv(_JOB.size):
        slab, offset, name = _JOB.unpack(job)
        try:
            image = images.get(name)
            if image is None:
                image = images[name] = store.open_image(name.hex())
                if len(images) > OPEN:
                    images.popitem(last=False)
            images.move_to_end(name)
            how = _FILLED if image.read_into(offset, slabs[slab]) else _ZEROS
        except Exception:  # who asked finds out why
            images.pop(name, None)
            how = _FAILED
        line.send(_DONE.pack(slab, how))
