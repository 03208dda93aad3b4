# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line ``fuse-store``: ``run`` executes one command, ``verbs`` holds one module for each verb, ``parser`` what they have
in common, ``output`` what is printed. ``main`` turns every result and error into an exit code (docs/fuse-store.md, "Exit codes").

This module imports nothing that is not loaded already, so that Ctrl-C right after the start of the interpreter gives no traceback.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # built in, and already loaded; signal is not
import os
import sys

TYPE_CHECKING = False  # typing would take longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

INTERRUPTED = 130
MESSAGE = "fuse-store: interrupted. The store is consistent."
JSON_MESSAGE = (
    '{"error": {"type": "interrupted", "exit_code": 130, "thing": "command", "cause": "interrupted.", '
    '"remedy": "The store is consistent."}}'
)
SIGINT = 2


def command() -> NoReturn:
    """The program. It exits without the interpreter's clean-up, which takes a third of the time of a short command: everything is
    closed and flushed by then."""
    try:
        code = main()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # ``run`` has flushed what it printed, or reported the failure
                pass
    except KeyboardInterrupt:
        code = INTERRUPTED
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Ctrl-C waits until ``run`` can answer it: modules that are being imported turn it into errors of
    their own. If the command is that of the package, the file ``fuse-store``, it has waited since that began."""
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (SIGINT,))
        from fuse_store.cli.process import prepare

        prepare()
        from fuse_store.cli.run import run

        return run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # before or after ``run``
        text = JSON_MESSAGE if "--json" in (arguments or sys.argv) else MESSAGE
        try:
            os.write(2, f"{text}\n".encode())
        except OSError:  # nobody reads it
            pass
        return INTERRUPTED
