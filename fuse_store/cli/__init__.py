# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line ``fuse-store``. Imports next to nothing, so that even an early Ctrl-C ends in one line.

``main`` turns whatever can happen into an exit code and one line on standard error (docs/fuse-store.md, "Exit codes").
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def command() -> NoReturn:
    """The program. It ends at once: all is closed by then, and to take the interpreter and its modules apart takes as long as
    loading a third of them did."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # ``run`` has flushed what it printed, or told why it could not
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        from fuse_store.cli.process import prepare

        prepare()
        from fuse_store.cli.run import run
    except KeyboardInterrupt:
        return 130
    return run(list(sys.argv[1:] if arguments is None else arguments))
