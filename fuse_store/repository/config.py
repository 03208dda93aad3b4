# SPDX-License-Identifier: GPL-3.0-or-later
"""``store.json``: how a store stores. Written once, when the store is created; byte map: docs/format.md, "store.json".

An attacker who can write to the store can replace the file: ``mac`` authenticates it with the key of the store, and
``keys.known_stores`` tells a store from another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from fuse_store.errors import Refused
from fuse_store.repository.manifest import PAGE_SIZES

FORMAT = 1
NAME = "store.json"
COMPRESSIONS = ("zstd", "lz4", "none")  # block.CODECS, which is not imported for a list of versions
LEVELS, LEVEL = (*range(-7, 0), *range(1, 20)), -2  # of zstd, and the default
DURABILITY = ("full", "batch", "none")
ENCRYPTIONS = ("aes-256-gcm", "none")
_DIGEST, _KEY = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_TEXTS = {"id": _DIGEST, "check": _DIGEST, "mac": _DIGEST}


@dataclass(frozen=True)
class Config:
    """``page_size`` is in bytes. ``check`` tells a wrong key; ``root`` is there only if the store is not encrypted. ``mac`` is over all
    else."""

    format: int
    id: str
    page_size: int
    compression: str
    level: int
    encryption: str
    durability: str
    check: str
    root: str = ""
    mac: str = ""

    @property
    def encrypted(self) -> bool:
        return self.encryption != "none"

    def signed(self, mac: Callable[[bytes], bytes]) -> Config:
        """The Config with the ``mac`` that it has to have. ``mac``: of the store's Aead."""
        content = {name: value for name, value in asdict(self).items() if name != "mac"}
        return replace(self, mac=mac(_one_line(content)).hex())

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def to_line(self) -> bytes:
        """The same without line breaks, for the key file."""
        return _one_line(asdict(self))


def _one_line(values: dict[str, object]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def parse(content: bytes, store: str) -> Config:
    """The Config in ``store.json``; its ``mac`` is not checked. Raises Refused for another format, ValueError and its like for one that
    cannot be."""
    values = json.loads(content.decode())
    if values["format"] != FORMAT:
        raise Refused(f"store {store}", f"format {values['format']!r} is unknown.", "Use a newer fuse-store.")
    config = Config(**values)
    possible = (
        (config.format, (FORMAT,)), (config.page_size, PAGE_SIZES), (config.compression, COMPRESSIONS),
        (config.durability, DURABILITY), (config.encryption, ENCRYPTIONS), (config.level, LEVELS),
    )  # fmt: skip
    for value, choice in possible:
        if value not in choice or type(value) is not type(choice[0]):  # True is equal to 1
            raise ValueError(f"{value!r} is not possible")
    for name, text in {**_TEXTS, "root": re.compile("") if config.encrypted else _KEY}.items():
        if not text.fullmatch(values.get(name, "")):
            raise ValueError(f"{name} is not possible")
    return config
