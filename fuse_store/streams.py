# SPDX-License-Identifier: GPL-3.0-or-later
"""The standard streams of a process: opened when they are closed, and redirected to /dev/null in the background."""

from __future__ import annotations

import os
import sys

closed: set[str] = set()  # the standard streams that open_closed has found closed


def open_closed() -> None:
    """Connect closed standard streams to /dev/null. Otherwise the next file that is opened gets the descriptor of one, and a
    library that writes to standard error would write into it: into a pack, or into the mount."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is that of the stream
            setattr(sys, name, open(null, mode))  # noqa: SIM115
            closed.add(name)


def redirect_to_null() -> None:
    """Connect all standard streams to /dev/null, so that a process that waits for their end does not wait for this one."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
