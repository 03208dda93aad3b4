# SPDX-License-Identifier: GPL-3.0-or-later
"""The kind ``core``: core dumps in ELF (``formats.elf_core``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.formats import elf_core
from fuse_store.formats.readable import File, Readable
from fuse_store.image.inputs import InputFile
from fuse_store.image.kind import Kind, Recognised
from fuse_store.image.reader import Image
from fuse_store.progress import Progress

TAGS = ("command", "signal", "architecture")  # those of a process; what is not there has none
MAX_TAG_LENGTH = 64


class CoreInput(Recognised):
    """An input in which a core dump was found, or ``problem`` says why none was. Of a stream it is known when it was stored."""

    def __init__(self, path: Path | None) -> None:
        self.confirms = path is None
        if path is None:
            return
        try:
            with File(path) as file:
                self._found(elf_core.describe(file))
        except StoreError as error:
            self.problem = error.cause

    def _found(self, description: Mapping[str, Any]) -> None:
        self.tags = {name: str(description[name])[:MAX_TAG_LENGTH] for name in TAGS if description[name]}
        if not description["whole"]:
            self.problem = "it is truncated, as by a limit (ulimit -c)."

    def confirm(self, image: Image) -> bool:
        try:
            self._found(elf_core.describe(image))
        except (NotFound, Damaged):
            return False
        return not self.problem


@dataclass(frozen=True)
class Implementation(Kind):
    """Core dumps."""

    def recognise(self, files: Sequence[InputFile], tags: Mapping[str, str], machine_disks: Sequence[Path]) -> Recognised:
        super().recognise(files, tags, machine_disks)
        if len(files) != 1 or (files[0].path is None and files[0].size is not None):
            several = Recognised()
            several.problem = "a core dump is one file, not a directory."
            return several
        return CoreInput(files[0].path)

    def inspect(self, readable: Readable, resume_offset: int, check: bool, progress: Progress) -> dict[str, Any]:
        return elf_core.describe(readable)

    def describe(self, image: Image) -> dict[str, Any] | None:
        if image.head.is_directory:
            return None
        try:
            return elf_core.describe(image)
        except (NotFound, Damaged):
            return None

    def is_in(self, image: Image) -> bool:
        description = self.describe(image)
        return description is not None and bool(description["whole"])
