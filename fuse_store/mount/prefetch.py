# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that read windows of images ahead, into memory that they share with the process that serves the mount.

Each has a Python interpreter of its own: decompressing blocks and answering the kernel then run in parallel, where threads of
one process would wait for each other. The processes are forked before the mount answers, while there is no other thread;
they know the store as it was then, and end with their parent. Nothing depends on them: what they could not read, or had not
read when they were killed or stopped, the serving process reads itself, and reports the errors of that read.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import struct
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fuse_store import streams
from fuse_store.errors import StoreError
from fuse_store.processes.forking import fork

if TYPE_CHECKING:
    from fuse_store.image.reader import Image
    from fuse_store.store import Store

log = logging.getLogger(__name__)

MAX_PREFETCH_PROCESSES = 4  # processes
MAX_OPEN_IMAGES_PER_PROCESS = 4  # images that each process keeps open
PATIENCE = 2.0  # seconds until a window is read without the process that was asked to
UPKEEP_INTERVAL = 2.0  # seconds between two looks for files that were removed and are still open
_REQUEST = struct.Struct("<IQ16s")  # slab, offset in the image, id of the image
_REPLY = struct.Struct("<IB")  # slab, status
_FILLED, _ZEROS, _FAILED = range(3)  # values of the status


class _PrefetchProcess:
    """A process: the socket to it, and the requests that it has not answered yet, by slab."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection, self.pid = connection, pid
        self.pending: dict[int, Future[memoryview]] = {}
        self.alive = True
        self.stopped = False  # it did not answer in time: nothing is asked of it until it does


class PrefetchProcesses:
    """The processes, and the ``slabs`` into which they read, buffers of ``window`` bytes. Threads may share it."""

    @classmethod
    def start(cls, store: Store, window: int, slabs: int) -> PrefetchProcesses | None:
        """Forks: no other thread may run. None if the store's backend does not survive a fork, or the system refuses one."""
        if not store.backend.survives_fork:
            return None
        try:
            return cls(store, window, slabs)
        except OSError as error:
            log.warning("cannot start prefetch processes: %s. Reading without them.", error.strerror)
            return None

    def __init__(self, store: Store, window: int, slabs: int) -> None:
        """Use ``start`` instead. Raises OSError."""
        from fuse_store.image.reader import zeros  # imported once, before the forks

        memory = mmap.mmap(-1, window * slabs)
        self._slabs = [np.frombuffer(memory, np.uint8, window, slab * window) for slab in range(slabs)]
        self._zeros = zeros(window)
        self._free = deque(range(slabs))  # a stack: the slab that was used last is still in the processor's caches
        self._lock = threading.Lock()
        self._processes: list[_PrefetchProcess] = []
        self._closed = False
        try:
            for _ in range(min(MAX_PREFETCH_PROCESSES, os.cpu_count() or 1)):
                self._processes.append(self._fork(store))
        except OSError:
            if not self._processes:
                raise
        self._threads = [
            threading.Thread(target=self._receive, args=(process,), name="prefetch", daemon=True) for process in self._processes
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, image_id: str, offset: int) -> Future[memoryview] | None:
        """Begin to read the window at ``offset`` of an image, a multiple of the window size; after the end of the image come
        zeros. The result may raise StoreError; its slab is free again when nothing refers to it any more. None if all slabs are
        in use, or no process is left."""
        with self._lock:
            able = (process for process in self._processes if process.alive and not process.stopped)
            process = min(able, key=lambda candidate: len(candidate.pending), default=None)
            if process is None or not self._free:
                return None
            slab = self._free.pop()
            future = process.pending[slab] = Future()
            try:
                process.connection.send(_REQUEST.pack(slab, offset, bytes.fromhex(image_id)))
            except OSError:
                pass  # its process has ended, and the thread that receives from it sees that too
        return future

    def give_up(self, future: Future[memoryview]) -> bool:
        """Do not ask the process that should set ``future`` until it answers; whether there is one."""
        with self._lock:
            for process in self._processes:
                if future in process.pending.values():
                    if not process.stopped:
                        log.warning("prefetch process %d does not answer. Reading without it.", process.pid)
                    process.stopped = True
                    return True
        return False

    def kill(self) -> None:
        """End the processes; does not wait until they have."""
        self._closed = True
        for process in self._processes:
            if process.alive:
                os.kill(process.pid, signal.SIGKILL)  # it has written nothing that could be lost

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self.kill()
        for thread in self._threads:
            thread.join()

    def _fork(self, store: Store) -> _PrefetchProcess:
        parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with child_end:
            pid = fork()
            if pid:
                return _PrefetchProcess(parent_end, pid)
            try:
                store.backend.close()
                _detach(child_end.fileno())
                _serve_requests(store, self._slabs, child_end)
            finally:
                os._exit(0)

    def _receive(self, process: _PrefetchProcess) -> None:
        """In a thread: pass on the replies of a process until it ends."""
        while True:
            try:
                message = process.connection.recv(_REPLY.size)
            except OSError:
                break
            if not message:
                break
            slab, status = _REPLY.unpack(message)
            with self._lock:
                future = process.pending.pop(slab)
                process.stopped = False
            self._reply(future, slab, status)
        with self._lock:
            process.alive = False
            lost = process.pending.values()
            if not self._closed:
                log.warning("prefetch process %d has ended. Reading without it.", process.pid)
        os.waitpid(process.pid, 0)
        process.connection.close()
        for future in lost:
            future.set_exception(StoreError("prefetch", "the process that read the window has ended."))
        self._free.extend(process.pending)

    def _reply(self, future: Future[memoryview], slab: int, status: int) -> None:
        if status == _FILLED:
            window: NDArray[np.uint8] = self._slabs[slab].view()
            weakref.finalize(window, self._free.append, slab).atexit = False
            future.set_result(window.data)
            return
        self._free.append(slab)
        if status == _ZEROS:
            future.set_result(self._zeros)
        else:
            future.set_exception(StoreError("prefetch", "the window could not be read."))


def close_removed(store: Store) -> None:
    """Close the files that a collection has removed, so that their disk space is freed while the store is mounted."""
    if store.backend.close_removed() and "index" in vars(store):  # made when it was first needed
        store.index.close()  # it is opened again as it is now


def _detach(connection: int) -> None:
    """In a new process: close all inherited descriptors but ``connection``."""
    logging.disable()
    streams.redirect_to_null()
    os.closerange(3, connection)
    os.closerange(connection + 1, os.sysconf("SC_OPEN_MAX"))


def _serve_requests(store: Store, slabs: Sequence[NDArray[np.uint8]], connection: socket.socket) -> None:
    """In a new process: fill slabs as requested."""
    images: OrderedDict[bytes, Image] = OrderedDict()
    connection.settimeout(UPKEEP_INTERVAL)
    looked = time.monotonic()
    while True:
        if time.monotonic() - looked >= UPKEEP_INTERVAL:
            looked = time.monotonic()
            close_removed(store)
        try:
            request = connection.recv(_REQUEST.size)
        except TimeoutError:
            continue
        if not request:
            return
        slab, offset, image_id = _REQUEST.unpack(request)
        try:
            image = images.get(image_id)
            if image is None:
                image = images[image_id] = store.open_image(image_id.hex())
                if len(images) > MAX_OPEN_IMAGES_PER_PROCESS:
                    images.popitem(last=False)
            images.move_to_end(image_id)
            status = _FILLED if image.read_into(offset, slabs[slab]) else _ZEROS
        except Exception:  # the serving process reads again, and reports the error
            images.pop(image_id, None)
            status = _FAILED
        connection.send(_REPLY.pack(slab, status))
