# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/hibernation-image.md is checked: its example is run and compared, its offsets are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fuse_store.formats.swsusp import HibernationImage, layout
from tests.store.formats.test_swsusp_read import Memory

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "hibernation-image.md").read_text()


@pytest.fixture(scope="module")
def device() -> bytes:
    names: dict[str, bytearray] = {}
    exec(re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1], names)  # type: ignore[index]
    return bytes(names["device"])


def hexdump(content: bytes) -> str:
    """As ``hexdump -C`` writes it."""
    lines: list[str] = []
    before = b""
    for at in range(0, len(content), 16):
        row = content[at : at + 16]
        if row == before:
            if lines[-1] != "*":
                lines.append("*")
            continue
        before = row
        digits = "  ".join(" ".join(f"{byte:02x}" for byte in half) for half in (row[:8], row[8:]))
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {digits}  |{letters}|")
    return "\n".join([*lines, f"{len(content):08x}", ""])


def test_example_gives_the_bytes_that_are_shown(device: bytes) -> None:
    shown = re.search(r"```\n(00000000 .*?)```", DOCUMENT, re.DOTALL)
    assert shown is not None
    assert hexdump(device) == shown[1]


def test_each_field_of_the_example_is_where_it_is_said_to_be(device: bytes) -> None:
    table = DOCUMENT.split("## Example")[1].split("## Who hibernated")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) > 20
    for at, length, name, value in rows:
        content = device[int(at) : int(at) + int(length)]
        assert value in (str(int.from_bytes(content, "little")), content.hex(), content.decode("ascii", "replace")), name


def test_example_is_an_image(device: bytes) -> None:
    with HibernationImage(Memory(device)) as image:
        assert image.header.state == "armed"
        assert image.info.architecture == "x86"
        assert (image.pages.count, image.pages.zeros) == (3, 1)
        assert image.memory(5 * 4096, 9) == b"page five"


def test_header_is_where_the_document_says() -> None:
    table = DOCUMENT.split("## Header")[1].split("## Swap map")[0]
    said = {name: (int(at), int(length)) for at, length, name in re.findall(r"\| PS \W \d+ \| (\d+) \| (\d+) \| `(\w+)`", table)}
    sizes = {"I": 4, "Q": 8, "10s": 10}
    at, expected = 4096 - layout.TAIL.size, {}
    names = ("hw_sig", "crc32", "image", "flags", "orig_sig", "sig")
    for name, kind in zip(names, re.findall(r"10s|[IQ]", layout.TAIL.format), strict=True):
        expected[name] = (at, sizes[kind])
        at += sizes[kind]
    assert said == expected
    flags = {int(bit): name for bit, name in re.findall(r"^\| (\d+) \| `SF_(\w+)`", table, re.MULTILINE)}
    assert flags == {bit: name.upper() for bit, name in layout.FLAGS.items()}


def test_info_is_where_the_document_says() -> None:
    table = DOCUMENT.split("### swsusp_info")[1].split("### Lists")[0]
    said = {name: int(at) for at, name in re.findall(r"^\| (\d+) \| \d+ \| `(\w+)`", table, re.MULTILINE)}
    assert said == {
        "uts": 0, "version_code": 392, "num_physpages": 400, "cpus": 408, "image_pages": 416, "pages": 424, "size": 432,
    }  # fmt: skip
    page = bytearray(4096)
    for number, (name, at) in enumerate(said.items()):
        page[at : at + 4] = number.to_bytes(4, "little")
        assert name
    assert layout.INFO.unpack_from(page, layout.INFO_AT) == (1, 2, 3, 4, 5, 6)
