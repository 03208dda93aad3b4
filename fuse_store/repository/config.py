# SPDX-License-Identifier: GPL-3.0-or-later
"""``store.json``: how a store stores. Written once, when the store is created; byte map: docs/format.md, "store.json"."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from fuse_store.errors import Refused
from fuse_store.repository.manifest import PAGE_SIZES

FORMAT = 1
NAME = "store.json"
COMPRESSIONS = ("zstd", "lz4", "none")  # block.CODECS, which is not imported for a list of versions
LEVELS, LEVEL = (*range(-7, 0), *range(1, 20)), -2  # of zstd, and the default
DURABILITY = ("full", "batch", "none")
ENCRYPTIONS = ("aes-256-gcm", "none")


@dataclass(frozen=True)
class Config:
    """``page_size`` is in bytes. ``check`` tells a wrong key; ``root`` is there only if the store is not encrypted."""

    format: int
    id: str
    page_size: int
    compression: str
    level: int
    encryption: str
    durability: str
    check: str
    root: str = ""

    @property
    def encrypted(self) -> bool:
        return self.encryption != "none"

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def parse(content: bytes, store: str) -> Config:
    """The Config in ``store.json``. Raises Refused for another format, ValueError and its like for one that cannot be."""
    values = json.loads(content.decode())
    if values["format"] != FORMAT:
        raise Refused(f"store {store}", f"format {values['format']!r} is unknown.", "Use a newer fuse-store.")
    config = Config(**values)
    possible = (
        (config.page_size, PAGE_SIZES), (config.compression, COMPRESSIONS), (config.durability, DURABILITY),
        (config.encryption, ENCRYPTIONS), (config.level, LEVELS),
    )  # fmt: skip
    for value, choice in possible:
        if value not in choice:
            raise ValueError(f"{value!r} is not possible")
    return config
