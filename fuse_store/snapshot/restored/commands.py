# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of the machine, each with a time limit: one that hangs is killed with all that it has started, and not waited for."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT = 15.0  # seconds for a program that has no limit of its own
OUTPUT = 4096  # bytes of the end of what it prints that are kept
NOT_STARTED = 127
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_GRACE = 1.0  # seconds for a killed process to end: the kernel may not let it
_PROC = Path("/proc")


@dataclass(frozen=True)
class Done:
    """``code``: as a shell has it, negative for a signal; None if it was killed at its limit. ``output``: the end of what it printed."""

    code: int | None
    output: bytes
    limit: float

    @property
    def problem(self) -> str:
        """Why it failed, without a full stop; empty if it did not."""
        if self.code == 0:
            return ""
        lines = self.output.decode("utf-8", "replace").strip().splitlines()
        last = "".join(char for char in lines[-1] if char.isprintable())[:300] if lines else ""
        if self.code is None:
            return f"killed after {self.limit:g} seconds"
        if self.code == NOT_STARTED:
            return last or "cannot be started"
        how = f"ended by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"{how}: {last}" if last else how


def run(
    command: Sequence[str], limit: float = LIMIT, *, environment: Mapping[str, str] | None = None, keep: int = OUTPUT, given: bytes = b""
) -> Done:
    """Run a program until it has ended, whatever it has left in the background. ``keep``: bytes of its output that are returned;
    ``given``: its input."""
    with contextlib.ExitStack() as stack:
        stdin = os.memfd_create("input", os.MFD_CLOEXEC)
        stack.callback(os.close, stdin)
        os.write(stdin, given)
        os.lseek(stdin, 0, os.SEEK_SET)
        output, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, output)
        os.set_blocking(end, True)
        try:
            process = subprocess.Popen(
                command, stdin=stdin, stdout=end, stderr=end, env={**ENVIRONMENT, **(environment or {})}, cwd="/", start_new_session=True
            )  # fmt: skip
        except OSError as error:
            return Done(NOT_STARTED, f"{command[0]}: {error.strerror}".encode(), limit)
        finally:
            os.close(end)
        ended = os.pidfd_open(process.pid)
        stack.callback(os.close, ended)
        printed, code = _followed(process, ended, output, limit, keep)
        return Done(code, printed, limit)


def _followed(process: subprocess.Popen[bytes], ended: int, output: int, limit: float, keep: int) -> tuple[bytes, int | None]:
    """(the end of what it printed, exit code or None) of a process that was started."""
    printed, deadline, killed = b"", time.monotonic() + limit, False
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            ready = {key.fd for key, _mask in selector.select(max(0, left))}
            if output in ready:
                with contextlib.suppress(BlockingIOError):
                    part = os.read(output, 65536)
                    printed = (printed + part)[-keep:]
                    if not part:
                        selector.unregister(output)
            if ended in ready:
                return printed, None if killed else process.wait()
            if left <= 0:
                if killed:  # it waits in the kernel, which does not let it end
                    return printed, None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                killed, deadline = True, time.monotonic() + _GRACE


def start(command: Sequence[str]) -> str:
    """Start a program that goes on in the background; why it could not be, or empty."""
    try:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/",
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return ""


def running(name: str) -> list[tuple[int, list[str]]]:
    """(process id, command line) of the programs with this name that use the network of this process, oldest first."""
    found = []
    for directory in sorted(_PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # it has ended
            if (directory / "comm").read_text().rstrip("\n") != name[:15]:  # TASK_COMM_LEN of the kernel
                continue
            if os.readlink(directory / "ns/net") == os.readlink("/proc/self/ns/net"):
                words = (directory / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if b"/" in words[0] and not words[0].startswith(b"/"):  # of another directory
                    words[0] = os.fsencode(os.readlink(directory / "exe"))
                found.append((int(directory.name), [os.fsdecode(word) for word in words]))
    return found
