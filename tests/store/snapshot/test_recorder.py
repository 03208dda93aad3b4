# SPDX-License-Identifier: GPL-3.0-or-later
"""What the recorder writes is an image that the parser, and so the kernel, understands, wherever on the device it is."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import Damaged, Refused
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage, layout
from fuse_store.snapshot.recorder import Recorder
from tests.fuzz.swsusp_encoder import machine, stream_of, swap_header

PAGE = 4096
BLOCKS = 2500


def reader(stream: Sequence[bytes]) -> Callable[[Sequence[memoryview]], int]:
    """Gives pages as /dev/snapshot does."""
    left = list(stream)

    def read(pages: Sequence[memoryview]) -> int:
        number = min(len(pages), len(left))
        for page in pages[:number]:
            page[:] = left.pop(0)
        return number * PAGE

    return read


def recorded(path: Path, stream: list[bytes], runs: list[tuple[int, int]]) -> Recorder:
    """An image in a new file, with the header in block 0."""
    path.write_bytes(bytes(BLOCKS * PAGE))
    descriptor = os.open(path, os.O_RDWR)
    try:
        recorder = Recorder(descriptor, PAGE, [(0, 1), *runs])
        recorder.write(reader(stream), len(stream))
        page = swap_header(PAGE, BLOCKS, bytes(16))
        tail = layout.TAIL.pack(0, 0, recorder.first_map, layout.NOCOMPRESS, b"SWAPSPACE2", b"S1SUSPEND\0")
        os.pwrite(descriptor, page[: -len(tail)] + tail, 0)
    finally:
        os.close(descriptor)
    return recorder


@pytest.mark.parametrize("runs", [
    [(1, BLOCKS - 1)],
    [(5, 1), (7, 2), (100, 700), (900, 3), (1000, 1400)],
    [(at, 3) for at in range(3, BLOCKS - 3, 4)],
])  # fmt: skip
@pytest.mark.parametrize("pages", [10, 511 - 5, 511, 512, 1300])
def test_an_image_is_what_was_read(tmp_path: Path, runs: list[tuple[int, int]], pages: int) -> None:
    memory = machine(PAGE, "x86", pages, seed=pages)
    stream = stream_of(memory)
    recorder = recorded(tmp_path / "device", stream, runs)
    allowed = {block for first, length in runs for block in range(first, first + length)}
    with File(tmp_path / "device") as file:
        with HibernationImage(file) as image:
            content = image.map.read(0, image.map.count)
            assert content.tobytes() == b"".join(stream)
            at = image.header.image
            for pfn, page in memory.items():
                assert image.memory(pfn * PAGE, PAGE) == page
        every = b"".join(file.read(block * PAGE, length * PAGE) for block, length in recorder.place.runs(1, recorder.place.blocks - 1))
        checksum, sums = recorder.read_back(file.read, b"header")
        assert (checksum, sums.sha256) == (recorder.checksum, hashlib.sha256(b"header" + every).hexdigest())
        parts = hashlib.sha256(b"%08x\n" % zlib.crc32(b"header" + every))
        assert sums.tags == {"crc32": f"16777216 {parts.hexdigest()}"}
        assert at in allowed
        written = np.frombuffer(file.read(0, BLOCKS * PAGE), np.uint8).reshape(-1, PAGE).any(axis=1)
    assert set(np.flatnonzero(written).tolist()) <= allowed | {0}


@pytest.mark.parametrize("blocks", [2, 511, 512, 513, 1023, 1024, 1025, 1026, 2000])
def test_capacity_is_what_fits(tmp_path: Path, blocks: int) -> None:
    (tmp_path / "device").write_bytes(bytes(BLOCKS * PAGE))
    descriptor = os.open(tmp_path / "device", os.O_RDWR)
    recorder = Recorder(descriptor, PAGE, [(0, 1 + blocks)])
    pages = [struct.pack("<Q", number) * (PAGE // 8) for number in range(recorder.capacity)]
    recorder.write(reader(pages), len(pages))
    assert not any(os.pread(descriptor, PAGE, (1 + blocks) * PAGE)), "written behind the room"
    with pytest.raises(Refused, match=f"has {len(pages) + 1} pages, and there is space for {len(pages)}"):
        recorder.write(reader(pages), len(pages) + 1)
    os.close(descriptor)


def test_an_image_that_ends_early_is_an_error(tmp_path: Path) -> None:
    stream = stream_of(machine(PAGE, "x86", 300))
    (tmp_path / "device").write_bytes(bytes(BLOCKS * PAGE))
    descriptor = os.open(tmp_path / "device", os.O_RDWR)
    with pytest.raises(Damaged, match="ended early"):
        Recorder(descriptor, PAGE, [(0, BLOCKS)]).write(reader(stream), len(stream) + 1)
    os.close(descriptor)


def test_a_changed_page_is_noticed(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "device", stream_of(machine(PAGE, "x86", 300)), [(1, BLOCKS - 1)])
    with open(tmp_path / "device", "r+b") as file:
        file.seek(50 * PAGE)
        file.write(b"another")
    with File(tmp_path / "device") as file:
        assert recorder.read_back(file.read, b"")[0] != recorder.checksum
