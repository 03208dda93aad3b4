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
    """What stands at a known offset in the first map of a section: text of the field → (offset, size)."""
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
    (path,) = store.glob("packs/*/*.pack")
    content = path.read_bytes()
    assert f'"{value(content, "Pack", "magic").decode()}"' in next(
        text for text in fields("Pack") if text.startswith("magic")
    )
    assert value(content, "Pack", "pack id").hex() == path.stem
    at, pages, blocks = 24, b"", []
    length = int.from_bytes(content[-16:-8], "little")
    while at < len(content) - 16 - length:
        assert value(content, "Block", "magic", at) == b"FSBK"
        assert number(content, "Block", "codec", at) == 0 == number(content, "Block", "0", at)
        encrypted, plain = (
            number(content, "Block", "u32: length of E", at),
            number(content, "Block", "u32: length of the", at),
        )
        blocks.append((value(content, "Block", "block digest", at), at, 32 + encrypted, plain))
        pages += content[at + 32 : at + 32 + plain]
        assert encrypted == plain + 16  # and its checksum
        at += 32 + encrypted
    assert at == len(content) - 16 - length and content[-8:] == b"FSPKEND1"
    assert sorted(pages[i : i + 4096] for i in range(0, len(pages), 4096)) == sorted(
        PAGES[i : i + 4096] for i in range(0, len(PAGES), 4096)
    )
    table = content[at : at + length - 16]
    assert int.from_bytes(table[:4], "little") == len(blocks)
    for row, (digest, offset, stored, plain) in enumerate(blocks):
        entry = table[4 + 32 * row : 36 + 32 * row]
        assert entry[:16] == digest
        assert [int.from_bytes(entry[a:b], "little") for a, b in ((16, 24), (24, 28), (28, 32))] == [
            offset,
            stored,
            plain,
        ]
    assert len(table) == 4 + 32 * len(blocks) + 16 * len(PAGES) // 4096


def test_index(store: Path) -> None:
    (path,) = store.glob("index/*.idx")
    content = path.read_bytes()
    assert value(content, "Index", "magic") == b"FSINDEX1"
    header, begin = number(content, "Index", "u32: H"), number(content, "Index", "u32: B")
    assert begin % 8 == 0 and 16 + header <= begin < 16 + header + 8
    rows, rest = divmod(len(content) - begin, 36)
    (pack,) = store.glob("packs/*/*.pack")
    assert rest == 0 and rows == int.from_bytes(pack.read_bytes()[-16 - _table(pack) :][:4], "little")


def _table(pack: Path) -> int:
    return int.from_bytes(pack.read_bytes()[-16:-8], "little")
