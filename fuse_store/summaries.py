# SPDX-License-Identifier: GPL-3.0-or-later
"""A cache of what the heads of manifests say, and of the newest states, for ``versions``: two encrypted files for each directory of
manifests, below ``summaries/`` in the local directory. What versions exist is told by the names of the manifests alone, and what
state they are in by logs whose stamps are compared, so a file that is old, damaged or gone costs time and nothing else.
``maintenance.needed`` keeps its files there, too.
Threads and processes may share the files: each is replaced as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack

from fuse_store.repository.aead import Aead
from fuse_store.repository.atomic import remove_partials, write_file
from fuse_store.repository.manifest import EPOCH, Summary

DIRECTORY = "summaries"  # below the local directory
MIN_STALE = 16  # manifests that are read anew each time before a file is written again; at most 1/64 of all
_MICROSECOND = timedelta(microseconds=1)
_TAKEN, _BASES = (list(Summary.__dataclass_fields__).index(name) for name in ("taken", "bases"))


class SummaryCache:
    """The summaries of one store, without their states."""

    def __init__(self, local_dir: Path, aead: Aead) -> None:
        self._directory, self._aead = local_dir / DIRECTORY, aead

    def read(self, tag: str) -> dict[str, Summary]:
        """By id, those of the directory ``tag`` that were known when the file was written."""
        try:
            rows = msgpack.unpackb(self._aead.decrypt(_name(tag), (self._directory / tag).read_bytes()))
            known = {}
            for row in rows:
                row[_TAKEN], row[_BASES] = EPOCH + timedelta(microseconds=row[_TAKEN]), tuple(row[_BASES])
                known[row[0]] = Summary(*row)
            return known
        except (OSError, ValueError, TypeError, IndexError, OverflowError, msgpack.UnpackException):
            return {}

    def states(self, tag: str) -> dict[str, tuple[str, str, bool]]:
        """By id: (stamp of the state log, state, whether it was verified)."""
        try:
            packed = self._aead.decrypt(_name(f"{tag}.states"), (self._directory / f"{tag}.states").read_bytes())
            return {str(image_id): (str(stamp), str(state), bool(verified)) for image_id, stamp, state, verified in msgpack.unpackb(packed)}
        except (OSError, ValueError, TypeError, msgpack.UnpackException):
            return {}

    def keep_states(self, tag: str, states: Mapping[str, tuple[str, str, bool]]) -> None:
        """Write the states of a directory. Does nothing where that is not possible: lists are slower then."""
        self._write(f"{tag}.states", [(image_id, *state) for image_id, state in states.items()])

    def keep(self, tag: str, versions: Iterable[Summary]) -> None:
        """Write the summaries of a directory. Does nothing where that is not possible."""
        rows = []
        for version in versions:
            values = list(vars(version).values())
            values[_TAKEN] = (version.taken - EPOCH) // _MICROSECOND
            rows.append(values)
        self._write(tag, rows)

    def names(self) -> list[str]:
        """The names of all files."""
        try:
            return os.listdir(self._directory)
        except OSError:
            return []

    def packed(self, name: str, max_size: int) -> bytes:
        """The content of a file that ``keep_packed`` wrote. Raises ValueError if it is not that, OSError."""
        with open(os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # a FIFO is not waited for
            encrypted = file.read(max_size + self._aead.overhead + 1)
        return self._aead.decrypt(_name(name), encrypted)

    def keep_packed(self, name: str, content: bytes) -> None:
        """Write a file. Does nothing where that is not possible."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_file(self._directory / name, self._aead.encrypt(_name(name), content), sync=False)
        except OSError:
            pass  # a store that is read-only or full

    def remove(self, name: str) -> None:
        """Remove a file. Does nothing where that is not possible."""
        with suppress(OSError):
            (self._directory / name).unlink()

    def _write(self, name: str, rows: list[Any]) -> None:
        self.keep_packed(name, msgpack.packb(rows))

    def remove_partials(self) -> None:
        """Remove what killed processes left. For the holder of the writer lock; a process that is at work writes its file later."""
        remove_partials(self._directory)

    def forget(self) -> None:
        """Remove all files."""
        for path in self._directory.glob("*"):
            path.unlink(missing_ok=True)


def is_stale(fresh: int, gone: int, there: int) -> bool:
    """Whether a file is worth writing again: ``fresh`` manifests were not in it, ``gone`` ones do not exist any more."""
    return fresh + gone > max(MIN_STALE, there // 64)


def _name(name: str) -> bytes:
    """The object that a file is encrypted as."""
    return b"summaries" + name.encode()
