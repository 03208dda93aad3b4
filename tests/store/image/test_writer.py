# SPDX-License-Identifier: GPL-3.0-or-later
"""A put of a sound source makes a version that can be read, whatever happened to what it shares, or fails; and memory is not trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuse_store.errors import Damaged, StoreError
from fuse_store.image.put import block_writer, page_table
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository.pack import Table, pack_name
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, content, index_rows, packs_of, read_whole, replace_content, write_sparse

DATA = content(range(1, 400))
HOUR = 3600


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none", encryption=request.param)


def put(store: Store, data: bytes, machine: str = "m", replace: bool = False) -> str:
    return store.put(str(write_sparse(store.path.parent / "source", data)), Label(machine), replace=replace).id


def flip(store: Store, rows: list[int]) -> None:
    """One bit in the body of each of these blocks, by their rows in the index."""
    index = index_rows(store)
    for pack, offset, stored in map(index.place, rows):
        path = store.path / pack_name(pack)
        data = bytearray(path.read_bytes())
        data[offset + stored // 2] ^= 1
        replace_content(path, bytes(data))
    store.close()


def damages() -> dict[str, Callable[[Store], None]]:
    def every_block(store: Store) -> None:
        flip(store, list(range(len(index_rows(store)))))

    def one_block(store: Store) -> None:
        flip(store, [len(index_rows(store)) // 2])

    def no_pack(store: Store) -> None:
        for pack in packs_of(store.path):
            (store.path / pack_name(pack)).unlink()

    def zeros(store: Store) -> None:
        for pack in packs_of(store.path):
            path = store.path / pack_name(pack)
            replace_content(path, bytes(path.stat().st_size))

    def cut(store: Store) -> None:
        for pack in packs_of(store.path):
            path = store.path / pack_name(pack)
            replace_content(path, path.read_bytes()[: path.stat().st_size // 2])

    def zeros_but_for_the_table(store: Store) -> None:
        for pack in packs_of(store.path):
            path = store.path / pack_name(pack)
            end = max(sum(index_rows(store).place(row)[1:]) for row in range(len(index_rows(store))))
            replace_content(path, bytes(end) + path.read_bytes()[end:])

    return {each.__name__: each for each in (every_block, one_block, no_pack, zeros, cut, zeros_but_for_the_table)}


@pytest.mark.parametrize("machine", ["m", "other"])
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("damage", damages().values(), ids=damages())
def test_what_is_damaged_or_gone_is_stored_again(store: Store, damage: Callable[[Store], None], replace: bool, machine: str) -> None:
    """Pages that a base has, and whole blocks that the index knows, also those of another machine."""
    first = put(store, DATA)
    damage(store)
    store.close()
    with Store.open(store.path) as again:
        with pytest.raises(Damaged):
            read_whole(again, first)
        changed = DATA[: 20 * PAGE] + content([1000]) + DATA[21 * PAGE :]
        new = put(again, changed, machine, replace)
        assert read_whole(again, new) == changed
        image = again.open_image(new)
        assert all(image.page_digests(place).any(axis=1).all() for place in image.places(0, image.head.pages))
        if damage.__name__ in ("every_block", "one_block", "no_pack"):  # else the table of a pack is damaged too
            assert verify(again, [new], 100, SILENT)[0].problems == []
        size = sum((store.path / pack_name(pack)).stat().st_size for pack in packs_of(store.path))
        last = put(again, DATA, machine, replace)
        assert read_whole(again, last) == DATA
        grown = sum((store.path / pack_name(pack)).stat().st_size for pack in packs_of(store.path)) - size
        assert grown < len(DATA) // 4  # the next put shares what the last one stored again
        repair(again, SILENT)
        assert read_whole(again, last) == DATA


def test_of_several_copies_of_a_block_the_readable_one_is_shared_and_kept(store: Store) -> None:
    first = put(store, DATA)
    flip(store, list(range(len(index_rows(store)))))
    put(store, DATA, "other")
    assert read_whole(store, first) == DATA  # the same blocks
    packs = packs_of(store.path)
    put(store, DATA, "third")
    assert packs_of(store.path) == packs
    for number in range(6):  # merges the index
        put(store, content([5000 + number]), f"more{number}")
    assert read_whole(store, first) == DATA
    image = store.open_image(first)
    assert all(image.page_digests(place).any(axis=1).all() for place in image.places(0, image.head.pages))


@pytest.mark.parametrize("step", [HOUR, 7 * 24 * HOUR], ids=["hourly", "weekly"])
def test_of_a_large_base_a_part_is_opened_each_time(store: Store, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Another one each time, and all of them in 31 puts: then nothing damaged is shared any more."""
    monkeypatch.setattr(page_table, "ALL_OPENED", 0)
    data = content(range(1, 1600))
    image_id = put(store, data)
    blocks = len(index_rows(store))
    opened: list[bytes] = []
    is_readable = page_table.Bases._is_readable
    now = 1_800_000_000

    def seen(bases: page_table.Bases, block: tuple[Table, int]) -> bool:
        opened.append(block[0].digests[16 * block[1] : 16 * block[1] + 16])
        return is_readable(bases, block)

    monkeypatch.setattr(page_table.Bases, "_is_readable", seen)
    monkeypatch.setattr("fuse_store.image.put.page_table.time.time", lambda: now)
    counts = []
    for _night in range(page_table.PARTS):
        put(store, data)
        counts.append(len(opened))
        now += step
    assert len(opened) == len(set(opened)) == blocks and max(np.diff(counts)) < blocks // 4
    assert store.put(str(store.path.parent / "source"), Label("m"), replace=True).stored == 0
    monkeypatch.setattr(page_table.Bases, "_is_readable", is_readable)
    flip(store, [3, blocks // 2])
    for _night in range(page_table.PARTS):
        last = put(store, data)
        now += step
    assert read_whole(store, last) == data == read_whole(store, image_id)


@pytest.mark.parametrize("damage", damages().values(), ids=damages())
def test_of_a_large_base_all_is_read_that_a_replacing_put_shares(
    store: Store, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Store], None]
) -> None:
    """It removes the version that may be sound."""
    monkeypatch.setattr(page_table, "ALL_OPENED", 0)
    monkeypatch.setattr(page_table, "PARTS", 1 << 40)  # of which none is opened
    put(store, DATA)
    damage(store)
    store.close()
    changed = DATA[: 20 * PAGE] + content([1000]) + DATA[21 * PAGE :]
    with Store.open(store.path) as again:
        new = put(again, changed, replace=True)
        assert again.ids() == [new] and read_whole(again, new) == changed


def test_an_image_is_not_scattered_over_ever_more_blocks(store: Store) -> None:
    """An eighth of its pages are new in each version. Pages of blocks of which little is used are stored again, in bounds, and are
    not counted as new."""
    random, pages = np.random.default_rng(1), 640
    now, fresh = np.arange(1, pages + 1), pages + 1
    wanted: dict[str, bytes] = {}
    changed = pages // 8
    for _version in range(33):
        data = content(now.tolist())
        made = store.put(str(write_sparse(store.path.parent / "source", data)), Label("m"))
        wanted[made.id] = data
        if len(wanted) > 1:
            assert made.new == changed * PAGE and made.stored <= (changed + pages // page_table.AGAIN + 1) * (PAGE + 64)
        now[random.choice(pages, changed, replace=False)] = np.arange(fresh, fresh + changed)
        fresh += changed
    image = store.open_image(made.id)
    blocks = sum(len(digests) // 16 for digests, _located, _first_pages in image.blocks())
    assert blocks <= 2.15 * pages / 32, "2.2 if a block were little used below a quarter, and more than 3.5 without"
    for image_id in list(wanted)[::16]:
        assert read_whole(store, image_id) == wanted[image_id]
    last = store.put(str(store.path.parent / "source"), Label("m"), replace=True)
    assert read_whole(store, last.id) == data


def test_a_table_that_says_other_digests_of_pages_teaches_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bit makes it that flips in memory: neither is it shared, nor do verify and repair say that all is well."""
    right, wrong = content([50]), content([1050])
    page_digests = type(store.aead).page_digests

    def lie(aead: object, pages: list[bytes]) -> bytes:
        return page_digests(store.aead, [wrong if bytes(page) == right else page for page in pages])

    with monkeypatch.context() as patched:
        patched.setattr(type(store.aead), "page_digests", lie)
        first = put(store, DATA)
    assert read_whole(store, first) == DATA
    (verdict,) = verify(store, [first], 100, SILENT)
    assert len(verdict.problems) == 1 and "its pages have other digests than the pack table says" in verdict.problems[0]
    (verdict,) = verify(store, [first], 99.999, SILENT)
    assert verdict.state == "damaged"
    changed = DATA[: 49 * PAGE] + wrong + DATA[50 * PAGE :]
    assert read_whole(store, put(store, changed)) == changed
    done = repair(store, SILENT)
    assert len(done.packs_bad) == done.packs_rescued == 1 and not done.lost
    assert [found.problems for found in verify(store, store.ids(), 100, SILENT)] == [[]] * 2
    assert read_whole(store, put(store, changed)) == changed


@pytest.mark.parametrize("page", [0, 31, 70, 398], ids=["first", "last of a block", "in a block of its own", "scattered"])
@pytest.mark.parametrize("when", ["before the digests", "after the digests", "in the copy"])
def test_a_bit_that_flips_in_memory_fails_the_put(store: Store, monkeypatch: pytest.MonkeyPatch, page: int, when: str) -> None:
    """Between the reading of a page and the encryption of its block. Before the sum is taken nothing can know."""
    data = np.frombuffer(bytearray(DATA), np.uint8)
    add, encrypt, page_digests = block_writer.BlockWriter.add, block_writer.BlockWriter._encrypt, type(store.aead).page_digests

    def flipped(pages: bytes) -> bytes:
        at = pages.find(content([page + 1])[:64])
        return pages if at < 0 else pages[: at + 99] + bytes([content([page + 1])[99] ^ 4]) + pages[at + 100 :]

    def flip_before(aead: object, pages: list[memoryview]) -> bytes:
        return page_digests(store.aead, [flipped(bytes(each)) for each in pages])

    def flip_after(blocks: block_writer.BlockWriter, pages: Any, rows: Any, *rest: Any) -> Any:
        changed = np.frombuffer(flipped(rows.tobytes()), np.uint8).reshape(rows.shape)
        return add(blocks, pages, changed, *rest)

    def encrypt_flipped(blocks: block_writer.BlockWriter, number: int, ends: list[int]) -> Any:
        group = blocks._groups[number]
        group.pages[:] = np.frombuffer(flipped(group.pages.tobytes()), np.uint8).reshape(group.pages.shape)
        return encrypt(blocks, number, ends)

    if when == "before the digests":  # a digest of the flipped page: what is stored is right, but not what the table says of it
        monkeypatch.setattr(type(store.aead), "page_digests", flip_before)
        image_id = put(store, data.tobytes())
        monkeypatch.undo()
        assert read_whole(store, image_id) == DATA and verify(store, [image_id], 100, SILENT)[0].state == "damaged"
        return
    if when == "after the digests":
        monkeypatch.setattr(block_writer.BlockWriter, "add", flip_after)
    else:
        monkeypatch.setattr(block_writer.BlockWriter, "_encrypt", encrypt_flipped)
    with pytest.raises(StoreError, match=r"memory: changed a page of the source.*No version was created"):
        put(store, data.tobytes())
    monkeypatch.undo()
    assert store.ids() == [] and not packs_of(store.path)
    assert read_whole(store, put(store, DATA)) == DATA
