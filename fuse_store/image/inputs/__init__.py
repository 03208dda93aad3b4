# SPDX-License-Identifier: GPL-3.0-or-later
"""Inputs of ``put``: a file, a block device, a directory of files, standard input, the output of a command.

An input gives its files, and the data of all of them in order; what is left out is a hole, which reads as zeros. It refuses
what it cannot give as it was at one moment, or says that this is not known. ``input`` has the interface, ``holding`` how
others are kept from changing a source; ``single``, ``tree`` and ``stream`` are the inputs, each loaded when it is needed;
``reading`` is what the first two share, ``supervisor`` the program that runs a command.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from fuse_store.errors import NotFound, Refused, StoreError, UsageError, failed
from fuse_store.image.inputs.input import CONSISTENT, STANDARD_INPUT, Batch, Doubts, Input, InputFile
from fuse_store.paths import checked_path

__all__ = ["CONSISTENT", "Batch", "Input", "InputFile", "open_input", "run_command"]


def open_input(text: str, *, size: int | None = None, allow_changing: bool = False) -> Input:
    """The input that a user named; ``-`` is standard input. ``size``: how many bytes it must have. ``allow_changing``: also what
    is in use or changes while it is read; it is marked then. Raises NotFound, Refused, UsageError, StoreError."""
    if text == "-":
        return _standard_input(size, allow_changing)
    path = checked_path("SOURCE", text)
    return _checked(_opened(path, f"source {text}", Doubts(allow_changing)), f"source {text}", size)


def run_command(command: Sequence[str], *, size: int | None = None) -> Input:
    """The output of a command, which is run. Raises NotFound, Refused, UsageError, StoreError."""
    if not command or not command[0]:
        raise UsageError("--command", "no command given.", "Give the command and its arguments after all other options.")
    from fuse_store.image.inputs.stream import CommandInput

    return CommandInput(command, size)


def _standard_input(size: int | None, allow_changing: bool) -> Input:
    try:
        descriptor = sys.stdin.fileno()
        status = os.fstat(descriptor)
    except (AttributeError, OSError, ValueError):
        raise UsageError(STANDARD_INPUT, "closed.", "Pipe an image into it, or name a file.") from None
    if sys.stdin.isatty():
        raise UsageError(STANDARD_INPUT, "is a terminal.", "Pipe an image into it, or name a file.")
    if size is None and stat.S_ISREG(status.st_mode):  # a file tells how much of it is left
        size = max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR)) or None
    from fuse_store.image.inputs.stream import StreamInput

    return StreamInput(descriptor, size, doubts=Doubts(allow_changing))


def _opened(path: Path, what: str, doubts: Doubts) -> Input:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            from fuse_store.image.inputs.tree import TreeInput

            return TreeInput(path, doubts)
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(what, "not a file, block device or directory.", "Name one of these, or - for standard input.")
        from fuse_store.image.inputs.single import SingleInput

        return SingleInput(path, doubts)
    except FileNotFoundError:
        raise NotFound(what, "no such file or directory.", "Check the path.") from None
    except PermissionError:
        raise StoreError(what, "permission denied.", "Run the command as root, or as the owner.") from None
    except OSError as error:
        raise failed(what, error) from None


def _checked(opened: Input, what: str, size: int | None) -> Input:
    total = sum(file.size or 0 for file in opened.files)
    if size is not None and total != size:
        opened.close()
        raise Refused(what, f"has {total} bytes, not the {size} of --size.", "Nothing was stored.")
    return opened
