# SPDX-License-Identifier: GPL-3.0-or-later
"""The place of the identity on a device with slots: text behind a sector with its checksum (docs/slots.md)."""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import replace
from pathlib import Path

from fuse_store.errors import Damaged, failed
from fuse_store.hibernation.slots.layout import MACHINE
from fuse_store.hibernation.slots.manage import Slots
from fuse_store.hibernation.slots.text import framed, unframed
from fuse_store.snapshot.golden.identity import Identity, parse, text

NAME = "fuse-store-identity 1"


def write(path: Path | str, identity: Identity) -> Identity:
    """Have the machine that has this device take an identity, with a seed of its own for the kernel's random numbers unless it has one;
    what was written. Raises NotFound, UsageError, Refused, Locked, Damaged, StoreError."""
    identity = replace(identity, seed=identity.seed or secrets.token_hex(32))
    with Slots(path) as slots:
        slots.device.write_checked(MACHINE[0], framed(NAME, text(identity).encode(), MACHINE[1]))
    return identity


def remove(path: Path | str) -> None:
    """Raises NotFound, UsageError, Refused, Locked, Damaged, StoreError."""
    with Slots(path) as slots:
        slots.device.write_checked(MACHINE[0], bytes(MACHINE[1]))


def read(path: Path | str) -> Identity | None:
    """The identity on a device, which may be in use; past the kernel's cache, which in a restored system is that of another time. None
    without one. Raises Damaged, StoreError."""
    try:
        content = _direct(path)
    except OSError as error:
        raise failed(f"device {path}", error, what="reading its identity failed") from None
    if not any(content):
        return None
    try:
        return parse(unframed(NAME, content).rstrip(b"\n") + b"\n")
    except ValueError as error:
        cause = "not text" if isinstance(error, UnicodeError) else str(error).replace("no table begins here", "no identity begins there")
        raise Damaged(
            f"device {path}", f"its identity is damaged: {cause}.", "Write it again with 'fuse-store slots identity DEVICE FILE'.",
        ) from None  # fmt: skip


def _direct(path: Path | str) -> bytes:
    at, size = MACHINE
    for flags in (os.O_DIRECT, 0):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(-1, size) as buffer:
                count = os.preadv(descriptor, [buffer], at)
                return buffer[:count]
        except OSError:
            if not flags:  # also without O_DIRECT
                raise
        finally:
            os.close(descriptor)
    raise AssertionError
