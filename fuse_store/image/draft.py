# SPDX-License-Identifier: GPL-3.0-or-later
"""A version that is in the store but for its manifest, to be read before it is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from fuse_store.repository.backends import Backend


class Draft:
    """Stands for the backend where a manifest is written and read: keeps it in memory."""

    def __init__(self) -> None:
        self._content = b""

    @property
    def backend(self) -> Backend:
        return cast(Backend, self)

    def write(self, name: str, content: bytes, sync: bool, before: Callable[[], None] | None = None, **_more: bool) -> None:
        self._content = content

    def read_range(self, name: str, offset: int, length: int, **_more: bool) -> bytes:
        return self._content[offset : offset + length]
