# SPDX-License-Identifier: GPL-3.0-or-later
"""The derived files of a hibernation image. Threads may share them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp.describe import header_fields, kernel_fields
from fuse_store.formats.swsusp.views.memory_dump import ElfCore, LimeDump
from fuse_store.formats.swsusp.views.page_list import PageList
from fuse_store.formats.swsusp.views.source import Source


class TextFile:
    """A small file that is generated as a whole at its first use."""

    def __init__(self, name: str, generate: Callable[[], str]) -> None:
        self.name, self._generate = name, generate

    @cached_property
    def _content(self) -> bytes:
        return self._generate().encode()

    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


DerivedFile: TypeAlias = ElfCore | LimeDump | TextFile | PageList


def derived(readable: Readable, resume_offset: int = 0, note: int | None = None) -> list[DerivedFile]:
    """The files of a hibernation image. ``note`` is the ``vmcoreinfo_page`` that ``describe`` found; without it, the image is
    searched when memory.elf or header.json is first read, and not before."""
    source = Source(readable, resume_offset, note)

    def header() -> str:
        return json.dumps({**header_fields(source.image()), **kernel_fields(source.kernel())}, indent=1, sort_keys=True) + "\n"

    return [ElfCore("memory.elf", source), LimeDump("memory.lime", source), TextFile("header.json", header), PageList(source)]
