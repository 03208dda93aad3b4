# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks that stand near each other in a pack, read at once: what is damaged among them, and the readers of many at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fuse_store.errors import Damaged
from fuse_store.image import block_cache, page_io, restore
from fuse_store.image.block_cache import MAX_GAP, MAX_NEIGHBOURS, NEIGHBOURS_SIZE, BlockCache, neighbours
from fuse_store.image.segments import Place
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository import pack
from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.block import BLOCK_SIZE, HEADER_SIZE, MAX_STORED, Pages, open_block
from fuse_store.repository.index import Located
from fuse_store.repository.pack import pack_name
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, replace_content, write_sparse

BLOCKS = 40
DATA = np.random.default_rng(5).bytes(BLOCKS * BLOCK_SIZE)  # does not compress: eight blocks to a read


def located(*places: tuple[int, int, int]) -> Located:
    """The places of blocks: (number of the pack, offset, length stored) of each."""
    number, offset, stored = np.array(places, np.int64).reshape(-1, 3).T
    return Located(number, offset, stored, np.zeros(len(places), np.int64), (b"0" * DIGEST, b"1" * DIGEST))


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([], []),
        ([(0, 64, 640)], [(0, 1)]),
        ([(0, 64, 640), (0, 704, 64), (0, 768, 64)], [(0, 3)]),
        ([(0, 64, 640), (1, 704, 64)], [(0, 1), (1, 2)]),
        ([(-1, 0, 0), (0, 0, 64), (0, 64, 64)], [(0, 1), (1, 3)]),
        ([(0, 0, 64), (0, 64 + MAX_GAP, 64), (0, 128 + MAX_GAP + 1 + MAX_GAP, 64)], [(0, 2), (2, 3)]),
        ([(0, 0, 128), (0, 64, 64), (0, 64, 64)], [(0, 1), (1, 2), (2, 3)]),  # one over the other: a wrong index
        ([(0, 0, NEIGHBOURS_SIZE), (0, NEIGHBOURS_SIZE, 64)], [(0, 1), (1, 2)]),
        ([(0, 0, 2**32 - 1), (0, 2**32 - 1, 64)], [(0, 1), (1, 2)]),
        ([(0, 64 * at, 64) for at in range(MAX_NEIGHBOURS + 1)], [(0, MAX_NEIGHBOURS), (MAX_NEIGHBOURS, MAX_NEIGHBOURS + 1)]),
    ],
)  # fmt: skip
def test_which_blocks_are_read_at_once(places: list[tuple[int, int, int]], wanted: list[tuple[int, int]]) -> None:
    parts = neighbours(located(*places), np.arange(len(places)))
    assert [(part.start, part.stop) for part in parts] == wanted


def test_no_memory_is_taken_for_an_impossible_length(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the index are not checked before they are used."""
    for method in ("read_range", "read_into"):
        monkeypatch.setattr(store.backend, method, lambda *_arguments, **_keywords: pytest.fail("read"))
    blocks = BlockCache(store.index, store.reader, 1)
    for places in (((0, 64, MAX_STORED + HEADER_SIZE + 1),), ((0, 64, 2**32 - 1),), ((-1, 0, 0),)):
        (found,) = blocks.neighbours([b"d" * DIGEST], located(*places), [0])
        assert isinstance(found, Damaged)
    blocks.close()


@pytest.fixture
def filled(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, str]]:
    """A store with one image, in packs of nine blocks."""
    monkeypatch.setattr(pack, "PACK_SIZE", 10 * BLOCK_SIZE)
    (tmp_path / "source").write_bytes(DATA)
    image_id = store.put(str(tmp_path / "source"), Label("m")).id
    yield store, image_id


def damage(store: Store, image_id: str, number: int, cut: bool = False) -> tuple[str, str]:
    """Flip a bit of a block, or let its pack end in it; (the name of its pack, the offset in the image that it is needed for)."""
    ((_digests, places, first),) = store.open_image(image_id).blocks()
    pack_id, offset = places.packs[int(places.pack[number])], int(places.offset[number])
    path = store.backend.local_dir / pack_name(pack_id)
    content = bytearray(path.read_bytes())
    content[offset + HEADER_SIZE + 1000] ^= 1
    replace_content(path, bytes(content[: offset + 1000]) if cut else bytes(content))
    store.backend.close()
    return pack_id.hex(), f"{int(first[number]) * PAGE:#x}"


def test_a_get_reads_many_blocks_at_once(filled: tuple[Store, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, image_id = filled
    image = store.open_image(image_id)
    assert len(next(image.blocks())[1].packs) > 3
    reads: list[int] = []
    read_into = store.backend.read_into

    def counted(name: str, offset: int, out: memoryview) -> int:
        reads.append(len(out))
        return read_into(name, offset, out)

    monkeypatch.setattr(store.backend, "read_into", counted)
    assert restore.get(image, str(tmp_path / "out"), SILENT) == len(DATA)
    assert (tmp_path / "out").read_bytes() == DATA
    large = [length for length in reads if length > BLOCK_SIZE + PAGE]
    assert len(large) > 3 and len(reads) < BLOCKS // 2 and max(large) <= NEIGHBOURS_SIZE


@pytest.mark.parametrize("cut", [False, True])
def test_one_damaged_block_in_the_middle(filled: tuple[Store, str], tmp_path: Path, cut: bool) -> None:
    """It alone is lost, and named: the image, where in it, and the pack. What is behind the end of a short pack is lost, too."""
    store, image_id = filled
    damaged_pack, extent = damage(store, image_id, 12, cut)
    with pytest.raises(Damaged) as caught:
        restore.get(store.open_image(image_id), str(tmp_path / "out"), SILENT)
    error = caught.value
    assert (error.image, error.pack) == (image_id, damaged_pack) and error.extent
    assert cut or error.extent == extent
    assert ("truncated" if cut else "decryption failed") in str(error)

    (verdict,) = verify(store, [image_id], 100, SILENT)
    problems = [problem for problem in verdict.problems if "extent" in problem]
    assert verdict.state == "damaged" and verdict.blocks == BLOCKS
    assert any(extent in problem and image_id in problem for problem in problems)
    lost = {int(problem.rpartition("extent ")[2].rstrip(")"), 16) for problem in problems}
    assert len(problems) == len(lost) and (len(lost) > 1 if cut else len(lost) == 1)

    image = store.open_image(image_id)
    for at in range(0, len(DATA), BLOCK_SIZE):
        if at not in lost:
            assert image.read(at, BLOCK_SIZE) == DATA[at : at + BLOCK_SIZE]
        else:
            with pytest.raises(Damaged, match=f"{at:#x}"):
                image.read(at, BLOCK_SIZE)


def test_a_block_whose_header_alone_is_damaged(filled: tuple[Store, str], tmp_path: Path) -> None:
    """A reader does not need it; verify compares it."""
    store, image_id = filled
    ((_digests, places, _first),) = store.open_image(image_id).blocks()
    path = store.backend.local_dir / pack_name(places.packs[int(places.pack[5])])
    content = bytearray(path.read_bytes())
    content[int(places.offset[5]) + 20] ^= 1
    replace_content(path, bytes(content))
    store.backend.close()
    restore.get(store.open_image(image_id), str(tmp_path / "out"), SILENT)
    assert (tmp_path / "out").read_bytes() == DATA
    (verdict,) = verify(store, [image_id], 100, SILENT)
    assert len(verdict.problems) == 1 and f"{5 * BLOCK_SIZE:#x}" in verdict.problems[0]


def test_a_pack_that_is_gone(filled: tuple[Store, str], tmp_path: Path) -> None:
    """To the trash, from which a reader still has it; then for good."""
    store, image_id = filled
    image = store.open_image(image_id)
    ((_digests, places, _first),) = image.blocks()
    gone = places.packs[int(places.pack[12])]
    store.backend.to_trash(pack_name(gone))
    restore.get(image, str(tmp_path / "out"), SILENT)
    assert (tmp_path / "out").read_bytes() == DATA
    (store.backend.local_dir / "trash" / f"{gone.hex()}.pack").unlink()
    store.backend.close()
    with pytest.raises(Damaged, match="its pack is missing") as caught:
        restore.get(image, str(tmp_path / "again"), SILENT)
    assert (caught.value.image, caught.value.pack) == (image_id, gone.hex())


def test_many_readers_at_once(filled: tuple[Store, str], tmp_path: Path) -> None:
    """Each gets what is right, or the error, whatever the others do."""
    store, image_id = filled
    _pack, extent = damage(store, image_id, 12)
    image = store.open_image(image_id)
    whole = (12 * BLOCK_SIZE) // PAGE
    results: list[str] = []

    def copied(place: Place, out: NDArray[np.uint8], number: int) -> None:
        def copy(content: memoryview, targets: Sequence[slice], sources: Sequence[slice]) -> None:
            for target, source in zip(targets, sources, strict=True):
                out.data.cast("B")[target] = content[source]

        for _bytes in image.visit(place, place.page, copy, image.each_with() if number % 2 else None):
            pass

    def read(number: int) -> None:
        out = np.empty((BLOCKS * BLOCK_SIZE // PAGE, PAGE), np.uint8)
        for place in image.places(0, len(out)):
            try:
                copied(place, out, number)
                results.append("whole")
            except Damaged as error:
                results.append(str(error.extent))
            part = place.select(place.page < whole)
            copied(part, out, number)
            results.append("same" if out[:whole].tobytes() == DATA[: whole * PAGE] else "other")

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted([extent, "same"] * 6)


def test_scattered_pages_are_copied_piece_by_piece(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of the version before, in another order, some of them more than once."""
    monkeypatch.setattr(block_cache, "MAX_NEIGHBOURS", 3)
    order = np.random.default_rng(6).integers(0, 320, 900)
    pages = np.frombuffer(DATA, np.uint8).reshape(-1, PAGE)[:320]
    (tmp_path / "one").write_bytes(pages.tobytes())
    (tmp_path / "two").write_bytes(pages[order].tobytes())
    store.put(str(tmp_path / "one"), Label("m"))
    image = store.open_image(store.put(str(tmp_path / "two"), Label("m")).id)
    restore.get(image, str(tmp_path / "out"), SILENT)
    assert (tmp_path / "out").read_bytes() == pages[order].tobytes() == image.read(0, image.size)


@pytest.mark.parametrize("size", [0, 1, 64 << 10, (320 << 10) + 5])
def test_an_image_in_order(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Parts, some of them zeros; each is right until the next one."""
    monkeypatch.setattr(page_io, "STREAM_WINDOW", 64 << 10)
    monkeypatch.setattr(page_io, "STREAM_WINDOWS", 3)
    data = bytearray(DATA[:size])
    data[70_000:200_000] = bytes(len(data[70_000:200_000]))
    image = store.open_image(store.put(str(write_sparse(tmp_path / "source", bytes(data))), Label("m")).id)
    parts = [bytes(part) for part in page_io.in_order(image)]
    assert b"".join(parts) == data and {len(part) for part in parts[:-1]} <= {64 << 10}


def test_an_image_in_order_up_to_what_is_damaged(filled: tuple[Store, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store, image_id = filled
    monkeypatch.setattr(page_io, "STREAM_WINDOW", 1 << 20)
    _pack, extent = damage(store, image_id, 12)
    parts = []
    with pytest.raises(Damaged, match=extent):
        for part in page_io.in_order(store.open_image(image_id)):
            parts.append(bytes(part))
    assert b"".join(parts) == DATA[: 1 << 20]


def test_a_get_opens_each_block_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far from each other in the image its pages are, and how many of them."""
    order = np.random.default_rng(7).permutation(len(DATA) // PAGE)
    pages = np.frombuffer(DATA, np.uint8).reshape(-1, PAGE)
    (tmp_path / "one").write_bytes(DATA)
    (tmp_path / "two").write_bytes(pages[order].tobytes() + b"end")
    store.put(str(tmp_path / "one"), Label("m"))
    image = store.open_image(store.put(str(tmp_path / "two"), Label("m")).id)
    opened: list[bytes] = []

    def counted(body: memoryview, digest: bytes, aead: Aead) -> Pages:
        opened.append(digest)
        return open_block(body, digest, aead)

    monkeypatch.setattr(pack, "open_block", counted)
    assert restore.get(image, str(tmp_path / "out"), SILENT) == image.size
    assert (tmp_path / "out").read_bytes() == pages[order].tobytes() + b"end"
    assert len(opened) == len(set(opened)) == BLOCKS + 1


def test_pages_that_were_stored_uncompressed_are_kept_as_they_are(filled: tuple[Store, str]) -> None:
    """Memory in which blocks are decrypted is used again for the next one."""
    store, image_id = filled
    image = store.open_image(image_id)
    ((digests, places, _first),) = image.blocks()
    wanted = [(digests[at * DIGEST : (at + 1) * DIGEST], at, True) for at in range(12)]
    for _time in range(2):  # the second time from the cache
        for at, opened in enumerate(list(store.blocks.open(wanted, places))):
            assert not isinstance(opened, Damaged)
            if _time:
                assert bytes(opened) == DATA[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE]


def test_nothing_is_written_after_an_error(filled: tuple[Store, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that went on would write to a descriptor that belongs to another file by then."""
    store, image_id = filled
    damage(store, image_id, 1)
    image = store.open_image(image_id)
    handled: list[int] = []
    began = threading.Event()

    def slow(content: memoryview, targets: Sequence[slice], sources: Sequence[slice]) -> None:
        if targets[0].start >= 2 * BLOCK_SIZE:
            began.set()
            time.sleep(0.1)
        elif not targets[0].start:
            began.wait(10)  # the other thread is at work when this one meets the damage
        handled.append(targets[0].start)

    (place,) = image.places(0, BLOCKS * BLOCK_SIZE // PAGE)
    with pytest.raises(Damaged), contextlib.closing(image.visit(place, place.page, slow, image.each_with())) as visited:
        list(visited)
    count = len(handled)
    assert began.is_set() and 1 < count < BLOCKS - 2
    time.sleep(0.3)
    assert len(handled) == count
