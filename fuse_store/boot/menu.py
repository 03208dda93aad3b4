# SPDX-License-Identifier: GPL-3.0-or-later
"""The slots as entries of GRUB's menu, in a file that the submenu of ``files/grub`` reads."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from fuse_store import times
from fuse_store.errors import NotFound, failed
from fuse_store.hibernation.slots.layout import GOOD, Table

PLACES = ("boot/grub", "boot/grub2")
NAME = "fuse-store.cfg"
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._:/+-]")  # what means something to GRUB, or is not in its fonts


def text(table: Table) -> str:
    """A line for each slot that may be resumed, the newest first."""
    lines = ["# The slots, for the submenu 'Boot images'. Written by 'fuse-store boot menu'."]
    for slot in sorted(table.slots, key=lambda slot: slot.staged, reverse=True):
        if slot.state in GOOD:
            name = _UNSAFE.sub("?", " ".join(filter(None, (slot.application, slot.event))))[:60]
            taken = times.at(slot.taken)
            lines.append(f"fuse_store_slot 'Slot {slot.number}: {name}, {taken:%Y-%m-%d %H:%M:%S} UTC' {slot.number}")
    return "".join(f"{line}\n" for line in lines)


def write(table: Table, root: Path | str = "/") -> tuple[Path, bool]:
    """Replace the file if it differs: its path, and whether it did. Raises NotFound without GRUB, StoreError."""
    directory = next((Path(root) / place for place in PLACES if (Path(root) / place).is_dir()), None)
    if directory is None:
        raise NotFound("GRUB", f"{' and '.join(f'/{place}' for place in PLACES)} do not exist.", "Install GRUB, or mount /boot.")
    return directory / NAME, replace_file(directory / NAME, text(table).encode("ascii"), 0o644)


def replace_file(path: Path, content: bytes, mode: int, *, dry_run: bool = False) -> bool:
    """Have a file with this content and mode, atomically; whether it was another. Raises StoreError."""
    with contextlib.suppress(OSError):
        if not path.is_symlink() and path.read_bytes() == content and path.stat().st_mode & 0o7777 == mode:
            return False
    if dry_run:
        return True
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise failed(f"file {path}", error, outcome="It is as it was.") from None
    return True
