# SPDX-License-Identifier: GPL-3.0-or-later
"""Inputs that can be read once, and do not tell how long they are: standard input, and the output of a command.

A pipe ends in the same way whether its producer is done or has failed. Whether it was all is known from the exit status of a
command that this process runs itself, from a size that the user gives, or from what is in it (``image.kind.Recognised.confirm``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from fuse_store.errors import NotFound, Refused, StoreError, UsageError, failed
from fuse_store.image.inputs import reading
from fuse_store.image.inputs.input import (
    CONSISTENT,
    NO,
    NOTHING_STORED,
    STANDARD_INPUT,
    UNKNOWN,
    Batch,
    Doubts,
    Input,
    InputFile,
)
from fuse_store.image.inputs.single import changed
from fuse_store.image.inputs.supervisor import SIGNALS

CANNOT_RUN = {  # by errno
    errno.ENOENT: "Check its name and $PATH, and the interpreter in its first line.",
    errno.EACCES: "Name a program that you may execute.",
    errno.ENOEXEC: "If it is a script, begin it with a line such as #!/bin/sh.",
    errno.E2BIG: "Give it fewer or shorter arguments.",
}


class StreamInput(Input):
    """``size``: how many bytes it must have; None for any but 0. A file, which ``<`` gives, must not change while it is read."""

    def __init__(self, descriptor: int, size: int | None = None, name: str = STANDARD_INPUT, doubts: Doubts | None = None) -> None:
        super().__init__(name, doubts)
        self._descriptor, self._size, self._before = descriptor, size, os.fstat(descriptor)
        self.files = [InputFile("image", None, None)]
        self.complete = size is not None

    def batches(self, page_size: int, buffers: Sequence[memoryview] = ()) -> Generator[Batch, None, None]:
        at = 0
        for batch in reading.in_order(self._read_into, page_size, buffers):
            at = batch.end
            if self._size is not None and at > self._size:
                raise Refused(self.name, f"more than {self._size} bytes.", NOTHING_STORED)
            yield batch
        self._ended()
        if self._size is not None and at < self._size:
            raise Refused(self.name, f"ended after {at} of {self._size} bytes.", NOTHING_STORED)
        if not at and self._size is None:
            raise Refused(self.name, "empty.", f"{NOTHING_STORED} To store an empty image, use --size 0.")
        if stat.S_ISREG(self._before.st_mode) and changed(self._before, os.fstat(self._descriptor), times=True):
            self.doubts.differs(self.name)
        self.files[0].size = at

    def _read_into(self, buffer: memoryview) -> int:
        try:
            return os.readv(self._descriptor, [buffer])  # not readinto, which sees no signal while the producer stalls
        except OSError as error:
            raise failed(f"source {self.name}", error, NOTHING_STORED) from None

    def _ended(self) -> None:
        """Nothing more will come. Raises StoreError if that is no good end."""

    @property
    def tags(self) -> Mapping[str, str]:
        return {CONSISTENT: NO if self.doubts.changed else UNKNOWN}  # only the producer knows


class CommandInput(StreamInput):
    """The output of a command, which runs until the input is closed. Its standard input and standard error are ours. Nothing that it
    has started outlives a ``close`` before its end, or the end of this process (``supervisor``)."""

    def __init__(self, command: Sequence[str], size: int | None = None) -> None:
        """Raises NotFound, UsageError, StoreError."""
        name = f"command {command[0]}"
        if any("\0" in word for word in command):
            raise UsageError(name, "an argument cannot contain a NUL character.", "Omit it.")
        own, other = socket.socketpair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the supervisor can answer them
        try:
            with other:
                start = [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py")), str(other.fileno()), *command]
                self._supervisor = subprocess.Popen(start, stdout=subprocess.PIPE, bufsize=0, pass_fds=[other.fileno()])
        except OSError as error:
            own.close()
            raise self._cannot_run(name, error.errno or 0) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._supervisor.stdout is not None
        self._output, self._answers = self._supervisor.stdout, own.makefile("rwb", buffering=0)
        own.close()
        super().__init__(self._output.fileno(), size, name)
        self.complete = True
        try:
            number = self._answer()
            if number:
                raise self._cannot_run(name, number)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _cannot_run(name: str, number: int) -> StoreError:
        kind = NotFound if number == errno.ENOENT else StoreError
        cause = "no such command" if number == errno.ENOENT else f"cannot be run: {os.strerror(number)}"
        return kind(name, f"{cause}.", CANNOT_RUN.get(number, "Run it by hand to see why."))

    def _answer(self) -> int:
        """The next number from the supervisor. Raises StoreError if it was killed."""
        line = self._answers.readline()
        if not line:
            raise StoreError(self.name, "its supervisor was killed.", f"{NOTHING_STORED} Run the command again.")
        return int(line)

    def _ended(self) -> None:
        with contextlib.suppress(OSError):  # if it was killed, there is no answer either
            self._answers.write(b"x")
        code = self._answer()
        if code:
            how = f"ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"failed with exit code {code}"
            raise StoreError(self.name, f"{how}.", f"{NOTHING_STORED} Its own messages are above.")

    def close(self) -> None:
        self._output.close()
        self._answers.close()
        self._supervisor.send_signal(signal.SIGCONT)  # it may have been stopped
        self._supervisor.wait()
