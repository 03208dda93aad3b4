# SPDX-License-Identifier: GPL-3.0-or-later
"""What the mount derives from a hibernation image: dumps of memory that tools for them read, and what says what is in it."""

from __future__ import annotations

import json
import random
import struct
import threading

import pytest

from fuse_store.errors import NotFound
from fuse_store.formats.swsusp.views import DerivedFile, derived, source
from tests.fuzz import swsusp_encoder as encoder
from tests.fuzz.swsusp_encoder import encode, machine
from tests.store.formats.test_swsusp_read import Memory


def files(device: bytes | bytearray, note: int | None = None) -> dict[str, DerivedFile]:
    return {file.name: file for file in derived(Memory(device), note=note)}


def whole(file: DerivedFile, step: int = 70_001) -> bytes:
    """The file, read piece by piece, and as long as it says."""
    content = b"".join(file.read(at, step) for at in range(0, file.size(), step))
    assert len(content) == file.size()
    assert file.read(file.size(), 10) == b""
    return content


def segments(core: bytes) -> list[tuple[int, int, int, int, int]]:
    """(type, virtual, physical, offset, size) of an ELF core's program headers, checked as crash and Volatility do."""
    ident, kind, _machine, version = struct.unpack_from("<16sHHI", core)
    assert ident[:7] == b"\x7fELF\x02\x01\x01"
    assert (kind, version) == (4, 1)
    begin, _sections, _flags, size, entry, count = struct.unpack_from("<QQIHHH", core, 32)
    assert (begin, size, entry) == (64, 64, 56)
    rows = []
    for number in range(count):
        type_, _rights, offset, virtual, physical, in_file, in_memory, align = struct.unpack_from("<IIQQQQQQ", core, begin + 56 * number)
        assert in_file == in_memory
        assert align == 0
        assert offset + in_file <= len(core)
        rows.append((type_, virtual, physical, offset, in_file))
    assert rows[0][0] == 4, "the first is the note"
    assert {row[0] for row in rows[1:]} == {1}
    assert len(rows) >= 3, "with one PT_LOAD crash takes it for something else"
    ends = [row[2] + row[4] for row in rows[1:]]
    assert all(row[2] >= end for row, end in zip(rows[2:], ends, strict=False)), "segments overlap"
    return [row for row in rows if row[0] == 1] + [row for row in rows if row[0] == 4]


@pytest.mark.parametrize("compression", ["none", "lzo", "lz4"])
def test_core_has_all_memory_and_the_note(compression: str) -> None:
    memory = machine(pages=1500)
    core = whole(files(encode(memory, compression=compression).device)["memory.elf"])
    *loads, note = segments(core)
    content = core[note[3] : note[3] + note[4]]
    assert content.startswith(struct.pack("<I", 11))
    assert content[12:24] == b"VMCOREINFO\0\0"
    assert f"OSRELEASE={encoder.RELEASE}\n".encode() in content
    assert struct.unpack_from("<H", core, 18)[0] == 62
    left = dict(memory)
    for _type, virtual, physical, offset, size in loads:
        assert virtual - physical == encoder.DIRECT_MAP
        for page in range(size // 4096):
            assert core[offset + page * 4096 : offset + (page + 1) * 4096] == left.pop(physical // 4096 + page, bytes(4096))
    assert not left


@pytest.mark.parametrize("architecture", ["arm64", "riscv", "generic"])
def test_cores_of_other_architectures(architecture: str) -> None:
    core = whole(files(encode(machine(architecture=architecture), architecture=architecture).device)["memory.elf"])
    *loads, note = segments(core)
    number = {"arm64": 183, "riscv": 243, "generic": 258}[architecture]
    assert struct.unpack_from("<H", core, 18)[0] == number
    base = {"arm64": 0xFFFF000000000000, "riscv": 0xFFFFFFD600000000, "generic": 0xFFFF888000000000}[architecture]
    assert {virtual - physical for _type, virtual, physical, *_ in loads} == {base}
    assert note[4] > 100


def test_lime_has_all_memory() -> None:
    memory = machine(pages=1500)
    dump, left, at, last = whole(files(encode(memory, compression="lz4").device)["memory.lime"]), dict(memory), 0, -1
    while at < len(dump):
        magic, version, start, end = struct.unpack_from("<IIQQ8x", dump, at)
        assert (magic, version) == (0x4C694D45, 1)
        assert start > last
        at, last = at + 32, end
        for address in range(start, end + 1, 4096):
            assert dump[at : at + 4096] == left.pop(address // 4096, bytes(4096))
            at += 4096
    assert not left


@pytest.mark.parametrize("name", ["memory.elf", "memory.lime", "pages.tsv"])
def test_any_part_is_that_part_of_the_whole(name: str) -> None:
    file = files(encode(machine(pages=800), compression="lzo").device)[name]
    content, chance = whole(file, 1 << 20), random.Random(4)
    for _try in range(400):
        offset, length = chance.randrange(len(content) + 10), chance.choice((1, 31, 33, 4096, 50_000, 400_000))
        assert file.read(offset, length) == content[offset : offset + length]


def test_scattered_memory_is_joined_to_few_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_RANGES", 20)
    memory = machine(pages=1500)
    there = files(encode(memory).device)
    core = whole(there["memory.elf"])
    *loads, _note = segments(core)
    assert len(loads) <= 20
    for _type, _virtual, physical, offset, size in loads:
        for page in range(size // 4096):
            assert core[offset + page * 4096 : offset + (page + 1) * 4096] == memory.get(physical // 4096 + page, bytes(4096))
    assert sum(size for *_, size in loads) >= len(memory) * 4096
    assert len(whole(there["memory.lime"])) == sum(32 + size for *_, size in loads)


def test_memory_in_one_piece_has_two_segments() -> None:
    core = whole(files(encode({pfn: bytes([pfn]) * 4096 for pfn in range(5, 50)}).device)["memory.elf"])
    loads = [row for row in segments(core) if row[0] == 1]
    assert [(row[2], row[4]) for row in loads] == [(5 * 4096, 4096), (6 * 4096, 44 * 4096)]


def test_table_of_pages() -> None:
    memory = machine(pages=600)
    head, *lines = whole(files(encode(memory).device)["pages.tsv"], 1001).decode().splitlines()
    assert head.split("\t") == ["pfn", "content", "number"]
    number, expected = 0, []
    for pfn in sorted(memory):
        kept = any(memory[pfn])
        expected.append((pfn, "stored" if kept else "zeroes", number if kept else None))
        number += kept
    rows = [line.split("\t") for line in lines]
    assert [(int(pfn, 16), kind, None if at[0] == "-" else int(at)) for pfn, kind, at in rows] == expected


def test_header_json() -> None:
    told = json.loads(whole(files(encode(machine()).device)["header.json"]))
    assert (told["format"], told["host"], told["kernel"]) == ("swsusp", encoder.HOST, encoder.RELEASE)


def test_listing_does_not_search_the_image() -> None:
    """``size`` reads header, map and lists; the search for the note is left until the head of the core is read."""
    memory = {pfn: bytes([1 + pfn % 200]) * 4096 for pfn in range(8000)}
    memory.update({**machine(pages=10), 7998: memory[7998]})
    readable = Memory(encode(memory).device)
    read = 0

    class Counting(Memory):
        def read(self, offset: int, length: int) -> bytes:
            nonlocal read
            read += length
            return super().read(offset, length)

    there = {file.name: file for file in derived(Counting(readable.content))}
    for name in ("memory.elf", "memory.lime", "pages.tsv"):
        there[name].size()
    assert read < readable.size / 50
    there["memory.elf"].read(1 << 20, 4096)
    assert read < readable.size / 50


def test_note_that_is_known_is_not_searched() -> None:
    encoded = encode(machine(pages=1500))
    page = json.loads(whole(files(encoded.device)["header.json"]))["vmcoreinfo_page"]
    told = whole(files(encoded.device)["memory.elf"])
    assert whole(files(encoded.device, note=page)["memory.elf"]) == told
    assert whole(files(encoded.device, note=page + 1)["memory.elf"]) == told  # a wrong one is not believed


def test_threads_share_the_files() -> None:
    there = files(encode(machine(pages=1200), compression="lz4").device)
    expected = {name: whole(file) for name, file in files(encode(machine(pages=1200), compression="lz4").device).items()}
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _try in range(60):
            name = chance.choice(list(expected))
            offset = chance.randrange(len(expected[name]))
            if there[name].read(offset, 9000) != expected[name][offset : offset + 9000]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_image_is_not_found() -> None:
    for file in derived(Memory(bytes(1 << 20))):
        with pytest.raises(NotFound):
            file.size()


def test_names_in_the_mount() -> None:
    assert [file.name for file in derived(Memory(b""))] == ["memory.elf", "memory.lime", "header.json", "pages.tsv"]
