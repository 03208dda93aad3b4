# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine ends with the process that it was made for, however that process ends.

QEMU runs as a daemon, so that any process can drive a machine; nothing ends it when the process that wanted it is killed. So a watcher
starts it, in a session of its own, and waits for the end of both: of QEMU, and of the owner, by file descriptors that stand for the two
processes (pidfd_open(2)). When the owner has ended, the watcher kills QEMU. It is this file, run as a program: it imports nothing of the
laboratory, and starts in no time.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

POLL = 0.2  # seconds between two looks at another process
FATAL = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def process(pid: int) -> str:
    """The name of a process as an owner: its id, and when it started, because ids are used again."""
    return f"{pid} {_started(pid)}"


def lives(owner: str) -> bool:
    """Whether the process that ``process`` named has not ended."""
    pid, _space, started = owner.partition(" ")
    return bool(started) and _started(int(pid)) == started


def command(owner: str, pid_file: Path, qemu: list[str]) -> list[str]:
    """The command that starts ``qemu``, which writes its process id to ``pid_file``, and returns when QEMU runs. To be run in a session
    of its own."""
    return [sys.executable, "-I", "-S", __file__, owner, str(pid_file), *qemu]


def end_with(pid: int) -> None:
    """Send SIGTERM to this process when the process ``pid`` ends, or begins to.

    make forwards SIGTERM alone to what it runs. At SIGINT and SIGHUP it gives up its handler of the signal and waits for its children,
    which a terminal has sent the signal too; where nobody has, they would run on to their end. SIGKILL tells nobody anything.
    """
    threading.Thread(target=_follow, args=(pid, _started(pid), _caught(pid)), daemon=True).start()


def _follow(pid: int, started: str, caught: int) -> None:
    while _started(pid) == started and not caught & ~_caught(pid):
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def _caught(pid: int) -> int:
    """The signals of FATAL that the process catches, as bits; proc_pid_status(5)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
    return caught & sum(1 << number - 1 for number in FATAL)


def _started(pid: int) -> str:
    """When the process started, in clock ticks since boot; "" if it has ended. proc_pid_stat(5): fields behind the name in brackets."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _watch(owner: str, pid_file: str, *qemu: str) -> int:
    """Start QEMU, and leave a process behind that ends it with its owner. Returns in the process that was called."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        owner_ends = os.pidfd_open(int(owner.partition(" ")[0]))
    except ProcessLookupError:
        owner_ends = -1
    if owner_ends < 0 or not lives(owner):
        print("the process that it was made for has ended", file=sys.stderr)
        return 1
    try:
        done = subprocess.run(qemu, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        print(f"{qemu[0]} is not installed; 'make setup' installs what the laboratory needs", file=sys.stderr)
        return 1
    if done.returncode != 0:
        print(f"{qemu[0]} exited with {done.returncode}: {done.stderr.strip()}", file=sys.stderr)
        return 1
    try:
        qemu_ends = os.pidfd_open(int(Path(pid_file).read_text()))
    except ProcessLookupError:
        return 0  # it has ended already
    if os.fork():
        return 0
    nothing = os.open("/dev/null", os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    ended, _writable, _other = select.select([owner_ends, qemu_ends], [], [])
    if qemu_ends not in ended:
        signal.pidfd_send_signal(qemu_ends, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(_watch(*sys.argv[1:]))
