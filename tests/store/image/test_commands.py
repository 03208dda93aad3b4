# SPDX-License-Identifier: GPL-3.0-or-later
"""The output of a command as an input: what becomes of the command, and of what it has started."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fuse_store.store import Store


def put_command(store: Store) -> list[str]:
    return [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "--machine", "m", "--command"]


PIPELINE = "echo $$ > $0/first; (trap '' TERM; echo $BASHPID > $0/second; sleep 600 & echo $! > $0/third; wait) | cat; true"


def started(directory: Path) -> list[Path]:
    """The processes of PIPELINE, once they run."""
    files = [directory / name for name in ("first", "second", "third")]
    while not all(file.exists() and file.read_text().strip() for file in files):
        time.sleep(0.02)
    return [Path(f"/proc/{file.read_text().strip()}") for file in files]


def gone(processes: Sequence[Path], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(process.exists() and "State:\tZ" not in (process / "status").read_text() for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_all_that_a_command_started_ends_with_put(tmp_path: Path, store: Store, number: int, code: int) -> None:
    """Also what heeds no SIGTERM, and if no one but put itself is signalled."""
    command = put_command(store)
    start = ["env", "--default-signal=INT", *command, "bash", "-c", PIPELINE, str(tmp_path)]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    processes = started(tmp_path)
    process.send_signal(number)
    assert process.wait(20) == code and store.ids() == []
    assert gone(processes, 10)


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2])
def test_all_that_a_command_started_ends_with_put_whenever_that_is(tmp_path: Path, store: Store, moment: float) -> None:
    """Also while the supervisor or the command is being started."""
    mark = f"{os.getpid()}{tmp_path.name}"
    opening = f"""
import os, signal, sys, threading
from fuse_store.image.inputs import run_command, stream
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
start = stream.subprocess.Popen
def popen(*given, **more):
    threading.Timer({moment}, kill).start()
    return start(*given, **more)
stream.subprocess.Popen = popen
run_command(["sh", "-c", "sleep 600; : {mark}"]).__enter__()
signal.pause()
"""
    done = subprocess.run([sys.executable, "-c", opening], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL and done.stderr in ("", "Terminated\n")  # which the shell says of sleep
    end = time.monotonic() + 10
    while any(mark.encode() in words for words in command_lines()):
        assert time.monotonic() < end
        time.sleep(0.05)


def command_lines() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (process / "cmdline").read_bytes()


def test_what_a_command_leaves_in_the_background_stays(tmp_path: Path, store: Store) -> None:
    """As ssh does with ControlPersist, if the command itself ends well."""
    command = put_command(store)
    script = "sleep 600 > /dev/null 2>&1 & echo $! > $0/left; echo stored"
    done = subprocess.run([*command, "sh", "-c", script, str(tmp_path)], capture_output=True, check=False)
    left = int((tmp_path / "left").read_text())
    os.kill(left, signal.SIGKILL)  # raises if it was ended
    assert done.returncode == 0 and len(store.ids()) == 1


def test_ctrl_c_reaches_a_command(tmp_path: Path, store: Store) -> None:
    """All are in the foreground of the terminal, and the command may ask there."""
    script = (
        "trap 'echo caught > $0/caught' INT; trap '' TERM; "  # which comes a moment later
        "echo asked > /dev/tty; read -r answer < /dev/tty; echo $answer > $0/answer; sleep 600"
    )
    command = put_command(store)
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.execv(command[0], [*command, "bash", "-c", script, str(tmp_path)])
    shown = b""
    while b"asked" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"secret\n")
    while not (tmp_path / "answer").exists() or not (tmp_path / "answer").read_text():
        time.sleep(0.02)
    time.sleep(0.3)
    os.write(terminal, b"\x03")
    while chunk := read_or_nothing(terminal):
        shown += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert (tmp_path / "answer").read_text() == "secret\n" and (tmp_path / "caught").read_text() == "caught\n"
    assert b"interrupted. No version was created" in shown and b"Traceback" not in shown and store.ids() == []


def read_or_nothing(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1000)
    except OSError:  # a terminal that no one has open any more
        return b""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "command ./program: no such command. Check its name and $PATH, and the interpreter in its first line."),
        ("#!/missing\n", "command ./program: no such command. Check its name and $PATH, and the interpreter in its first line."),
        ("text\n", "command ./program: cannot be run: Exec format error. If it is a script, begin it with a line such as #!/bin/sh."),
    ],
)
def test_a_command_that_cannot_be_run(tmp_path: Path, store: Store, script: str | None, words: str) -> None:
    if script is not None:
        (tmp_path / "program").write_text(script)
        (tmp_path / "program").chmod(0o755)
    command = put_command(store)
    done = subprocess.run([*command, "./program"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1 if script == "text\n" else 3, f"fuse-store: {words}\n")


def test_a_command_that_a_realtime_signal_ends(tmp_path: Path, store: Store) -> None:
    command = put_command(store)
    done = subprocess.run([*command, "sh", "-c", "kill -40 $$"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ended by signal 40 (Real-time signal" in done.stderr and done.stderr.count("\n") == 1
