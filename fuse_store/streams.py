# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard streams: what a process does when it has none, or wants none any more. Used by ``cli`` and ``filesystem``."""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Have those that whoever started it has closed lead nowhere. The next file that is opened would else have their number:
    a pack into which a library writes its complaints, or the mount."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is the stream's
            setattr(sys, name, open(nowhere, mode))  # noqa: SIM115


def let_go() -> None:
    """Have all of them lead nowhere, so that nobody who waits for their end waits for this process."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    if nowhere > 2:
        os.close(nowhere)
