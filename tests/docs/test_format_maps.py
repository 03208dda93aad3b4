# SPDX-License-Identifier: GPL-3.0-or-later
"""The byte maps of docs/format.md fit what a store writes: fields are read from where the maps say."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.console import ROOT

DOCUMENT = (ROOT / "docs/format.md").read_text()
PAGES = b"".join(bytes([number]) * 4096 for number in range(1, 81))


def fields(section: str) -> dict[str, tuple[int, int]]:
    """What stands at a known offset in the first map of a section: text of the field → (offset, size). In that of blocks those of the
    body replace those of the header."""
    fence = re.search(rf"^## {section}$.*?^```\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert fence is not None
    return {
        text: (int(at), int(size)) for at, size, text in re.findall(r"^ +(\d+) +(\d+)  (.+)$", fence[1], re.MULTILINE)
    }


def value(content: bytes, section: str, begins: str, start: int = 0) -> bytes:
    ((at, size),) = (place for text, place in fields(section).items() if text.startswith(begins))
    return content[start + at : start + at + size]


def number(content: bytes, section: str, begins: str, start: int = 0) -> int:
    return int.from_bytes(value(content, section, begins, start), "little")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("maps")
    (home / "image").write_bytes(PAGES)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "FUSE_STORE": str(home / "store")}
    for words in (["init", "--no-encryption", "--compression", "none"], ["put", str(home / "image"), "--machine", "m"]):
        subprocess.run(
            [ROOT / ".venv/bin/fuse-store", "--quiet", *words], env=environment, check=True, capture_output=True
        )
    return home / "store"


def test_pack_and_block(store: Path) -> None:
    """Without encryption, an E is its content and a checksum of 16 bytes."""
    (path,) = store.glob("packs/*/*.pack")
    content = path.read_bytes()
    assert f'"{value(content, "Pack", "magic").decode()}"' in next(
        text for text in fields("Pack") if text.startswith("magic")
    )
    assert value(content, "Pack", "nonce") != bytes(16) and value(content, "Pack", "0") == bytes(40)
    assert content[-64:-48].hex() == path.stem
    table = _table(path)
    at, pages, blocks = 64, b"", []
    while at < len(content) - 64 - len(table) - 16:
        digest, length = content[at : at + 16], int.from_bytes(content[at + 16 : at + 20], "little")
        codec, plain, compressed = (
            number(content, "Block", text, at + 64) for text in ("u32: codec", "u32: length of the pages", "u32: n")
        )
        assert codec == 0 and plain == compressed
        blocks.append((digest, at, 64 + length, plain))
        pages += content[at + 76 : at + 76 + plain]
        assert -64 < 12 + plain + 16 - length <= 0 == length % 64
        at += 64 + length
    assert at == len(content) - 64 - len(table) - 16
    assert sorted(pages[i : i + 4096] for i in range(0, len(pages), 4096)) == sorted(
        PAGES[i : i + 4096] for i in range(0, len(PAGES), 4096)
    )
    assert [int.from_bytes(table[at : at + 4], "little") for at in (0, 4)] == [len(blocks), len(PAGES) // 4096]
    for row, (digest, offset, stored, plain) in enumerate(blocks):
        entry = table[8 + 32 * row : 40 + 32 * row]
        assert entry[:16] == digest
        assert [int.from_bytes(entry[a:b], "little") for a, b in ((16, 24), (24, 28), (28, 32))] == [
            offset,
            stored,
            plain,
        ]
    assert not any(table[8 + 32 * len(blocks) + 16 * len(PAGES) // 4096 :])


def test_index(store: Path) -> None:
    (path,) = store.glob("index/*.idx")
    content = path.read_bytes()
    assert value(content, "Index", "magic") == b"FSINDEX1"
    header, begin = number(content, "Index", "u32: H"), number(content, "Index", "u32: B")
    assert begin % 8 == 0 and 16 + header <= begin < 16 + header + 8
    rows, rest = divmod(len(content) - begin, 32)
    (pack,) = store.glob("packs/*/*.pack")
    table = _table(pack)
    assert rest == 0 and rows == int.from_bytes(table[:4], "little")
    blocks = {table[at : at + 16]: table[at + 16 : at + 32] for at in range(8, 8 + 32 * rows, 32)}
    for row in range(rows):
        digest = b"".join(content[begin + 8 * rows * half + 8 * row :][:8] for half in (0, 1))
        values = begin + 16 * rows + 16 * row
        block = blocks[digest]
        for name, wanted in (("pack", bytes(4)), ("offset", block[:4]), ("stored", block[8:12]), ("length", block[12:])):
            assert value(content, "Index", f"u32 {name}", values) == wanted


def _table(pack: Path) -> bytes:
    content = pack.read_bytes()
    return content[-64 - int.from_bytes(content[-48:-40], "little") : -64 - 16]
