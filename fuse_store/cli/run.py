# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one command, from its arguments to its exit code. For the main thread.

Every error becomes one line on standard error, or one JSON object with ``--json``; with ``FUSE_STORE_DEBUG=1`` after its traceback.
SIGTERM and SIGHUP end a command as Ctrl-C does, so that partial files are removed.
"""

from __future__ import annotations

import _thread
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from fuse_store.cli.context import Context
from fuse_store.cli.output import STDOUT, explain, flush_or_abandon_stdout, flush_stdout, print_error
from fuse_store.cli.parser import SAFE, Verb, build, reject_empty, split_command, without_ambiguity
from fuse_store.cli.verbs import load, needed

BROKEN_PIPE = 128 + signal.SIGPIPE


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP was received."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run(arguments: list[str]) -> int:
    """The exit code of the command."""
    with _buffered_stdout():
        return _Command(arguments).run()


class _Command:
    """One command. ``verb`` and ``context`` are None until the arguments are parsed."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.json = "--json" in arguments
        self.verb: Verb | None = None
        self.context: Context | None = None

    def run(self) -> int:
        handlers = _catch_signals()
        sys.unraisablehook = _interrupt_again
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # ``main`` has blocked it
            code = self._execute()
            flush_stdout()
            return code
        except KeyboardInterrupt as interrupt:
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
            return self._interrupted(interrupt)
        except Exception as error:
            self._stop_progress()
            if interrupted := _cause(error, KeyboardInterrupt):  # in the middle of an import, or of the creation of a class
                return self._interrupted(interrupted)
            if _cause(error, BrokenPipeError):  # the reader exited, as in ``fuse-store get IMAGE - | head``
                flush_or_abandon_stdout()
                if self._done:
                    cause = "its reader has ended."
                    record = {"type": "os_error", "exit_code": BROKEN_PIPE, "thing": STDOUT, "cause": cause, "remedy": self._done}
                    print_error(self.json, record, f"{STDOUT}: {cause} {self._done}")
                return BROKEN_PIPE
            _print_traceback()
            if self.context is not None:
                for note in getattr(error, "__notes__", ()):
                    self.context.warn(note)
            return explain(error, self.json, self._done)
        finally:
            self._stop_progress()
            sys.unraisablehook = sys.__unraisablehook__
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _execute(self) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # print names that the terminal's encoding lacks as escapes
                stream.reconfigure(errors="backslashreplace")
        try:
            verbs = needed(without_ambiguity(self.arguments))
            words, command = split_command(verbs, self.arguments)
            options = build(verbs).parse_args(without_ambiguity(words))
            if command:
                options.command = command
        except SystemExit as end:  # argparse, after --help and --version
            return int(end.code or 0)
        (self.verb,) = load(options.verb)
        reject_empty(self.verb, options)
        self.json = options.json  # not that of a command in the arguments
        self.context = Context(options)
        return self.verb.run(self.context)

    def _interrupted(self, interrupt: BaseException) -> int:
        self._stop_progress()
        _print_traceback()
        code = 128 + getattr(interrupt, "number", signal.SIGINT)
        left = " ".join((self._done or (self.verb.interrupted if self.verb else SAFE), *getattr(interrupt, "__notes__", [])))
        record = {"type": "interrupted", "exit_code": code, "thing": "command", "cause": "interrupted.", "remedy": left}
        print_error(self.json, record, f"interrupted. {left}")
        return code

    @property
    def _done(self) -> str:
        return self.context.done if self.context else ""

    def _stop_progress(self) -> None:
        if self.context is not None:
            self.context.progress.finish()


@contextlib.contextmanager
def _buffered_stdout() -> Iterator[None]:
    """Buffer standard output. With PYTHONUNBUFFERED it is not, and a write that a full disk cuts short raises no error: the rest
    of the output would be lost without notice."""
    original = sys.stdout
    raw = getattr(original, "buffer", None)
    if not isinstance(original, io.TextIOWrapper) or not isinstance(raw, io.RawIOBase):
        yield
        return
    buffered = io.BufferedWriter(raw)
    sys.stdout = io.TextIOWrapper(buffered, encoding=original.encoding, errors=original.errors, newline="")
    try:
        yield
    finally:
        text, sys.stdout = sys.stdout, original
        with contextlib.suppress(OSError):  # the command has flushed it, or reported the failure
            text.detach()
            buffered.detach()  # else it would close the original's file


def _print_traceback() -> None:
    if os.environ.get("FUSE_STORE_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The error, or one that it followed from, that is of this kind. An error may follow from itself: ``raise error from error``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _catch_signals() -> dict[int, Any]:
    """Have SIGTERM and SIGHUP raise Terminated, unless they are ignored or handled; the previous handlers."""
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler is None:
                continue  # set by C code; Python can't restore it
            handlers[number] = handler
            if number != signal.SIGINT and handler == signal.SIG_DFL:
                signal.signal(number, _terminate)
    return handlers


def _interrupt_again(unraisable: Any) -> None:
    """Ctrl-C came while Python was in a place that cannot raise, such as a callback of the garbage collection, and would only print it:
    have it raised a moment later. In a thread, because it would otherwise be raised here."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _thread.start_new_thread(_thread.interrupt_main, (getattr(unraisable.exc_value, "number", signal.SIGINT),))
    else:
        sys.__unraisablehook__(unraisable)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
