# SPDX-License-Identifier: GPL-3.0-or-later
"""Inputs that can be read once, and do not tell how long they are: standard input, and the output of a command.

A pipe ends in the same way whether its producer is done or has failed. Whether it was all is known from the exit status of a
command that this process runs itself, from a size that the user gives, or from what is in it (``image.kind.Recognised.confirm``).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from fuse_store.errors import NotFound, Refused, StoreError
from fuse_store.image.inputs import reading
from fuse_store.image.inputs.input import CONSISTENT, NOTHING_STORED, UNKNOWN, Batch, Input, InputFile

PATIENCE = 5.0  # seconds that a command gets to end after SIGTERM
STANDARD_INPUT = "standard input"


class StreamInput(Input):
    """``size``: how many bytes it must have; None for any but 0."""

    def __init__(self, descriptor: int, size: int | None = None, name: str = STANDARD_INPUT) -> None:
        super().__init__(name)
        self._descriptor, self._size = descriptor, size
        self.files = [InputFile("image", None, None)]
        self.complete = size is not None

    def batches(self, page_size: int) -> Generator[Batch, None, None]:
        buffer = np.empty(reading.BATCH_SIZE, np.uint8).data
        at, ended = 0, False
        while not ended:
            got = 0
            while got < len(buffer) and not ended:
                number = self._read_into(buffer[got:])
                got, ended = got + number, not number
            if self._size is not None and at + got > self._size:
                raise Refused(self.name, f"more than {self._size} bytes.", NOTHING_STORED)
            if got:
                whole = -(-got // page_size) * page_size
                buffer[got:whole] = bytes(whole - got)
                yield Batch(at // page_size + np.arange(whole // page_size), buffer[:whole], at + got)
                at += got
        self._ended()
        if self._size is not None and at < self._size:
            raise Refused(self.name, f"ended after {at} of {self._size} bytes.", NOTHING_STORED)
        if not at and self._size is None:
            raise Refused(self.name, "empty.", f"{NOTHING_STORED} To store an empty image, use --size 0.")
        self.files[0].size = at

    def _read_into(self, buffer: memoryview) -> int:
        try:
            return os.readv(self._descriptor, [buffer])  # not readinto, which sees no signal while the producer stalls
        except OSError as error:
            raise StoreError(f"source {self.name}", f"{error.strerror}.", NOTHING_STORED) from None

    def _ended(self) -> None:
        """Nothing more will come. Raises StoreError if that is no good end."""

    @property
    def tags(self) -> Mapping[str, str]:
        return {CONSISTENT: UNKNOWN}  # only the producer knows


class CommandInput(StreamInput):
    """The output of a command, which runs until the input is closed. Its standard input and standard error are ours."""

    def __init__(self, command: Sequence[str], size: int | None = None) -> None:
        """Raises NotFound, Refused, StoreError."""
        name = f"command {command[0]}"
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
        except FileNotFoundError:
            raise NotFound(name, "no such command.", "Check its name and $PATH.") from None
        except PermissionError:
            raise StoreError(name, "permission denied.", "Name a program that you may execute.") from None
        except (OSError, ValueError) as error:
            raise StoreError(name, f"cannot be run: {error}.") from None
        assert self._process.stdout is not None
        self._output = self._process.stdout
        super().__init__(self._output.fileno(), size, name)
        self.complete = True

    def _ended(self) -> None:
        code = self._process.wait()
        if code:
            how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
            raise StoreError(self.name, f"{how}.", f"{NOTHING_STORED} Its own messages are above.")

    def close(self) -> None:
        self._output.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
