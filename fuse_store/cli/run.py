# SPDX-License-Identifier: GPL-3.0-or-later
"""One command from its arguments to its exit code. Used by ``main``.

Whatever goes wrong becomes one line on standard error, or one JSON object with ``--json``; ``FUSE_STORE_DEBUG=1`` shows the
traceback before it. SIGTERM and SIGHUP end a command as Ctrl-C does, so that what it had begun is cleaned up.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from fuse_store.cli.context import Context
from fuse_store.cli.parser import PROGRAM, SAFE, Verb, build
from fuse_store.cli.text import printable
from fuse_store.errors import Damaged, StoreError

BROKEN_PIPE = 128 + signal.SIGPIPE
REPORT = "This is a defect of fuse-store: please report it, with what FUSE_STORE_DEBUG=1 shows."


class Terminated(KeyboardInterrupt):
    """Another signal than SIGINT wants this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run(arguments: list[str]) -> int:
    """The exit code of the command."""
    with _whole_output():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    context: Context | None = None
    verb: Verb | None = None
    before = _catch_signals()
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that the terminal can't show is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        from fuse_store.cli.verbs import load, wanted

        options = build(wanted(arguments)).parse_args(arguments)
        (verb,) = load(options.verb)
        context = Context(options)
        code = verb.run(context)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # argparse, after --help and --version
        sys.stdout.flush()
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # what is cleaned up now must not be interrupted again
        _finish(context)
        number = getattr(interrupt, "number", signal.SIGINT)
        _debug()
        _tell(
            as_json,
            {"type": "interrupted", "exit_code": 128 + number},
            f"interrupted. {verb.interrupted if verb else SAFE}",
        )
        return 128 + number
    except Exception as error:
        _finish(context)
        if _is_broken_pipe(error):
            _abandon_stdout()
            return BROKEN_PIPE
        _debug()
        return _explain(error, as_json)
    finally:
        _finish(context)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _whole_output() -> Iterator[None]:
    """Have standard output buffered. It is not under PYTHONUNBUFFERED, and then a write that a full disk cuts short is no
    error: the rest would be missing and nobody told."""
    old = sys.stdout
    raw = getattr(old, "buffer", None)
    if not isinstance(old, io.TextIOWrapper) or not isinstance(raw, io.RawIOBase):
        yield
        return
    buffered = io.BufferedWriter(raw)
    sys.stdout = io.TextIOWrapper(buffered, encoding=old.encoding, errors=old.errors, newline="")
    try:
        yield
    finally:
        text, sys.stdout = sys.stdout, old
        with contextlib.suppress(OSError):  # _run has flushed, or told why it could not
            text.detach()
            buffered.detach()  # else it would close what is not its own


def _explain(error: Exception, as_json: bool) -> int:
    """Say what happened; the exit code."""
    if isinstance(error, StoreError):
        record: dict[str, Any] = {
            "type": _snake(type(error).__name__), "exit_code": error.exit_code,
            "thing": error.thing, "cause": error.cause, "remedy": error.remedy,
        }  # fmt: skip
        if isinstance(error, Damaged):
            record |= {"image": error.image, "extent": error.extent, "pack": error.pack}
        _tell(as_json, record, str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        _abandon_stdout()  # if that is what can't be written, it must not be tried again
        places = [str(place) for place in (error.filename, error.filename2) if place is not None]
        text = ": ".join([" → ".join(places) or "input or output", os.strerror(error.errno)])
        _tell(as_json, {"type": "os_error", "exit_code": 1, "errno": error.errno, "cause": text}, text)
        return 1
    if isinstance(error, MemoryError):
        _tell(as_json, {"type": "memory", "exit_code": 1, "cause": "memory is exhausted"}, "memory is exhausted.")
        return 1
    text = f"{type(error).__name__}: {error}"
    _tell(as_json, {"type": "defect", "exit_code": 1, "cause": text, "remedy": REPORT}, f"{text}. {REPORT}")
    return 1


def _tell(as_json: bool, record: dict[str, Any], text: str) -> None:
    try:
        print(
            json.dumps({"error": record}) if as_json else f"{PROGRAM}: {printable(text)}", file=sys.stderr, flush=True
        )
    except OSError:
        pass  # nobody is there to be told


def _debug() -> None:
    if os.environ.get("FUSE_STORE_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _finish(context: Context | None) -> None:
    if context is not None:
        context.progress.finish()


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _is_broken_pipe(error: BaseException | None) -> bool:
    """Whether all of it came from a reader that went away, as in ``fuse-store get IMAGE - | head``."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__context__
    return False


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, if standard output is what failed."""
    try:
        sys.stdout.flush()
    except OSError:
        if isinstance(sys.stdout, io.TextIOWrapper):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def _catch_signals() -> dict[int, Any]:
    """Have SIGTERM and SIGHUP raise, if nobody has set them otherwise; the handlers that were there."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler is None:
                continue  # it is not Python's
            before[number] = handler
            if number != signal.SIGINT and handler == signal.SIG_DFL:
                signal.signal(number, _terminate)
    return before


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
