# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed hibernation images whose chunks are stored as the pages they hold: what is read is what was captured, to the
byte, and versions share what they have in common."""

from __future__ import annotations

import functools
import io
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from fuse_store.errors import Damaged, StoreError
from fuse_store.formats.swsusp import HibernationImage, layout
from fuse_store.hibernation.lzo_chunks import encode as lzo_encode
from fuse_store.hibernation.lzo_chunks import layout as lzo_layout
from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.image import diff, page_io, restore
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository.atomic import FAULT_POINT
from fuse_store.repository.block import HEADER_SIZE
from fuse_store.repository.extents import read_segment
from fuse_store.repository.manifest import Summary, image_name, read_head
from fuse_store.repository.pack import all_packs, pack_name
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import Encoded, encode, kernel_lzo, machine, other_lzo
from tests.store.conftest import clone, fork, make_small, read_store, read_whole, replace_content, wait
from tests.store.hibernation.cases import make_case

PAGE = 4096
PIECE = 64 << 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", encryption=False, durability="none") as made:
        yield made


def put(store: Store, encoded: Encoded, path: Path, kind: str = "hibernation", **tags: str) -> Summary:
    path.write_bytes(encoded.device)
    return store.put(str(path), Label("m", kind=kind, tags=tags))


def whole(store: Store, version: Summary, device: bytes) -> None:
    """Everything that reads a version gives what was captured."""
    assert read_whole(store, version.id) == device
    opened = store.open_image(version.id)
    source = random.Random(3)
    for _read in range(50):
        at, length = source.randrange(len(device)), source.randrange(1, 20_000)
        assert opened.read(at, length) == device[at : at + length]
    parts = bytearray(len(device))
    for at, length in opened.data_ranges(0, len(device)):
        parts[at : at + length] = device[at : at + length]
    assert parts == device
    target = store.path.parent / "target"
    restore.get(store.open_image(version.id), str(target), SILENT)
    assert target.read_bytes() == device
    target.unlink()
    (verdict,) = verify(store, [version.id], 100, SILENT)
    assert verdict.state == "sound", verdict.problems
    filled = np.frombuffer(device.ljust(-(-len(device) // store.config.page_size) * store.config.page_size, b"\0"), np.uint8)
    assert version.allocated == filled.reshape(-1, store.config.page_size).any(axis=1).sum() * store.config.page_size


# what is stored, and how -------------------------------------------------------------------------------------------------


LAYOUTS: dict[str, dict[str, Any]] = {
    "one run": {},
    "an odd last chunk": {"pages": 333},
    "one chunk": {"pages": 40},
    "scattered": {"scattered": 5},
    "one thread": {"threads": 1, "pages": 900},
    "three threads": {"threads": 3, "pages": 900},
    "three threads, scattered": {"threads": 3, "pages": 900, "scattered": 2},
    "a swap file": {"resume_offset": 77, "threads": 2},
    "before 6.6": {"zero_flags": False},
    "disarmed": {"armed": False},
    "7.3": {"extra_empty": False},
    "arm64, 16 KiB": {"page_size": 16384, "architecture": "arm64", "threads": 3, "pages": 200},
    "arm64, 64 KiB": {"page_size": 65536, "architecture": "arm64", "threads": 2, "pages": 90},
    "more than a group": {"pages": 3000, "threads": 3},
}


@pytest.mark.parametrize("layout_", LAYOUTS)
def test_every_layout_comes_back_to_the_byte(store: Store, tmp_path: Path, layout_: str) -> None:
    options: dict[str, Any] = {"pages": 400, **LAYOUTS[layout_]}
    size, architecture = options.get("page_size", PAGE), options.get("architecture", "x86")
    memory = machine(size, architecture, options.pop("pages"))
    encoded = encode(memory, compression="lzo", **options)
    version = put(store, encoded, tmp_path / "source", resume_offset=str(options.get("resume_offset", 0)))
    assert version.chunks == len(encoded.chunks) > 0
    whole(store, version, bytes(encoded.device))


@pytest.mark.parametrize(("page_size", "stored"), [(16384, True), (65536, False)])
def test_stores_with_larger_pages(tmp_path: Path, page_size: int, stored: bool) -> None:
    """An image's page must be whole pages of the store."""
    encoded = encode(machine(16384, "arm64", 300), 16384, "arm64", "lzo", threads=3)
    with Store.create(tmp_path / "store", encryption=False, page_size=page_size) as store:
        version = put(store, encoded, tmp_path / "source")
        assert bool(version.chunks) == stored
        whole(store, version, bytes(encoded.device))


@pytest.mark.parametrize("limits", ["small", "runs"])
def test_many_segments_and_limits(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: str) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(lzo_encode, "BATCH_SIZE", 512 << 10)
    if limits == "runs":
        monkeypatch.setattr(lzo_encode, "MAX_CHUNK_RUNS", 100)
    encoded = encode(machine(pages=3000), compression="lzo", scattered=4, threads=3)
    version = put(store, encoded, tmp_path / "source")
    assert version.chunks == (32 if limits == "runs" else len(encoded.chunks))
    assert len(store.open_image(version.id).head.segments) > 20
    whole(store, version, bytes(encoded.device))


def test_more_chunks_than_there_may_be(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lzo_encode, "MAX_CHUNKS", 5)
    encoded = encode(machine(pages=900), compression="lzo")
    version = put(store, encoded, tmp_path / "source")
    assert version.chunks == 5 < len(encoded.chunks)
    whole(store, version, bytes(encoded.device))


def test_chunks_of_another_compressor_stay_as_they_are(store: Store, tmp_path: Path) -> None:
    calls = iter(range(1000))

    def compressor(raw: bytes) -> bytes:
        return other_lzo(raw) if next(calls) % 3 == 1 else kernel_lzo(raw)

    encoded = encode(machine(pages=1500), compression="lzo", threads=3, compressor=compressor)
    version = put(store, encoded, tmp_path / "source")
    assert version.chunks == len(encoded.chunks) - len(range(1, len(encoded.chunks), 3))
    whole(store, version, bytes(encoded.device))


@pytest.mark.parametrize("what", ["its bytes", "no length", "too long"])
def test_a_damaged_chunk_stays_as_it_is(store: Store, tmp_path: Path, what: str) -> None:
    encoded = encode(machine(pages=1500), compression="lzo", threads=1)
    number = len(encoded.chunks) - 4
    at = encoded.stream[encoded.chunks[number]] * PAGE
    if what == "its bytes":
        encoded.device[at + 8 : at + 108] = bytes(100)
        expected = len(encoded.chunks) - 1
    else:  # nobody knows where the next begins
        encoded.device[at : at + 8] = struct.pack("<Q", 0 if what == "no length" else 1 << 40)
        expected = number
    version = put(store, encoded, tmp_path / "source")
    assert version.chunks == expected
    whole(store, version, bytes(encoded.device))


def test_a_last_page_that_is_all_zeros(store: Store, tmp_path: Path) -> None:
    """The last bytes of LZO are zeros: a chunk may end with a page of them, which is then a hole like others."""
    noise = np.random.default_rng(5).bytes(32 * PAGE)
    tries = (bytes(32 * PAGE - size) + noise[:size] for size in range(1, 2 * PAGE))
    raw = next(raw for raw in tries if (8 + len(kernel_lzo(raw))) % PAGE in (1, 2))
    pages = [*machine(pages=40).values()][:31] + [raw[at : at + PAGE] for at in range(0, len(raw), PAGE)]  # first is the list
    encoded = encode(dict(enumerate(pages, 1)), compression="lzo", zero_flags=False)
    last = slice(encoded.stream[-1] * PAGE, (encoded.stream[-1] + 1) * PAGE)
    encoded.device[last] = encoded.device[last].rstrip(b"\xa5").ljust(PAGE, b"\0")
    assert not any(encoded.device[last])
    version = put(store, encoded, tmp_path / "source")
    assert version.chunks == len(encoded.chunks)
    whole(store, version, bytes(encoded.device))
    plain = put(store, encoded, tmp_path / "source", kind="file")
    assert not list(diff.diff(store.open_image(plain.id), store.open_image(version.id), SILENT))


def test_what_is_stored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = machine(pages=600)
    with Store.create(tmp_path / "store", encryption=False) as store:
        for compression, compressor in (("lz4", None), ("none", None), ("lzo", other_lzo)):
            version = put(store, encode(memory, compression=compression, compressor=compressor), tmp_path / "source")
            assert version.chunks == 0 and read_whole(store, version.id) == (tmp_path / "source").read_bytes()
        encoded = encode(memory, compression="lzo")
        assert put(store, encoded, tmp_path / "source", kind="file").chunks == 0
        assert put(store, encoded, tmp_path / "source", resume_offset="5").chunks == 0
        assert put(store, encoded, tmp_path / "source", resume_offset="nonsense").chunks == 0
        with open(tmp_path / "source", "rb") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(stream))
            assert store.put("-", Label("m", kind="hibernation")).chunks == 0
        with monkeypatch.context() as patch:
            patch.setattr(lzo, "_function", lambda: None)
            assert put(store, encoded, tmp_path / "source").chunks == 0
        assert put(store, encoded, tmp_path / "source").chunks == len(encoded.chunks)


@pytest.mark.parametrize(("compression", "stored"), [("zstd", True), ("lz4", True), ("none", False)])
def test_what_would_take_more_room_is_stored_as_it_is(tmp_path: Path, compression: str, stored: bool) -> None:
    text = {pfn: (b"line %d of a text that compresses well; " % pfn * 200)[:PAGE] for pfn in range(1, 600)}
    with Store.create(tmp_path / "store", encryption=False, compression=compression) as store:
        version = put(store, encode(text, compression="lzo"), tmp_path / "source")
        assert bool(version.chunks) == stored


def test_the_images_of_the_other_tests_are_of_both_sorts(tmp_path: Path) -> None:
    """So those of stage, arm, preflight and views are tests of chunks, too."""
    case = make_case(tmp_path / "case")
    assert [one.chunks > 0 for one in sorted(case.store.summaries(), key=lambda one: one.taken)] == [True, False, False]
    case.store.close()


def test_versions_share_their_pages(store: Store, tmp_path: Path) -> None:
    """A tenth of the pages changed, here and there: in nearly every chunk."""
    memory = machine(pages=6000, zeros=0.1)
    first = put(store, encode(memory, compression="lzo", threads=3), tmp_path / "source")
    source = random.Random(1)
    for pfn in sorted(memory):
        if source.random() < 0.1:
            memory[pfn] = source.randbytes(PAGE // 2) + b"changed " * (PAGE // 16)
    encoded = encode(memory, compression="lzo", threads=3)
    second = put(store, encoded, tmp_path / "source")
    assert second.chunks == len(encoded.chunks) > 100
    assert second.stored < first.stored / 5
    whole(store, second, bytes(encoded.device))
    as_bytes = put(store, encoded, tmp_path / "other", kind="file")
    assert as_bytes.stored > 3 * second.stored


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_left_behind_chunks_is_found_in_those_before(store: Store, tmp_path: Path, threads: int) -> None:
    noise = {pfn: np.random.default_rng(pfn).bytes(PAGE - pfn % 7 * 300).ljust(PAGE, b"\0") for pfn in range(1, 900)}
    encoded = encode(noise, compression="lzo", threads=threads)
    version = put(store, encoded, tmp_path / "source")
    head, start = read_head(store.backend, version.id, store.aead)
    segments = [read_segment(store.backend, version.id, head, number, start, store.aead) for number in range(len(head.segments))]
    rows = np.concatenate([lzo_layout.columns(segment.rows) for segment in segments])
    tails = dict(zip(rows["number"].tolist(), rows["tail"].tolist(), strict=True))
    found = list(tails.values())
    assert found.count(threads) > 14 and found.count(0) < 14  # the others are of a byte or two, and in more than one place
    whole(store, version, bytes(encoded.device))


def test_a_manifest_tells_what_computes_its_blocks(store: Store, tmp_path: Path) -> None:
    encoded = encode(machine(pages=400), compression="lzo")
    for kind, transform in (("file", None), ("hibernation", "lzo")):
        version = put(store, encoded, tmp_path / "source", kind=kind)
        content = (store.path / image_name(version.id)).read_bytes()
        magic, length = struct.unpack_from("<8sI", content)
        head = msgpack.unpackb(store.aead.decrypt(b"image" + bytes.fromhex(version.id), content[12 : 12 + length]))
        assert magic == b"FSIMAGE1" and head["format"] == 1
        assert (head["computed"] and head["computed"]["transform"]) == transform


def test_the_numbers_of_the_format_are_those_of_the_kernel() -> None:
    assert (lzo_layout.CHUNK_PAGES, lzo_layout.LENGTH.size) == (layout.CHUNK_PAGES, layout.CHUNK_HEAD.size)
    for size in (PAGE, 32 * PAGE, 32 * 65536):
        assert lzo_layout.largest(size) == layout.largest_compressed(size)


# reading ---------------------------------------------------------------------------------------------------------------------


def test_changed_only_and_comparison(store: Store, tmp_path: Path) -> None:
    """A target that holds the version before, one that holds this one but for a bit, and zeros."""
    memory = machine(pages=900)
    changed = {**memory, max(memory): b"x" * PAGE}
    first, second = (encode(one, compression="lzo", threads=2) for one in (changed, memory))
    first.device += bytes(len(second.device) - len(first.device))
    put(store, first, tmp_path / "v0")
    version = put(store, second, tmp_path / "v1")
    opened, device = store.open_image(version.id), bytes(second.device)
    flipped = bytearray(device)
    flipped[second.stream[second.chunks[2]] * PAGE + 100] ^= 1
    for before, most in ((bytes(first.device), len(device)), (bytes(flipped), PAGE), (device, 0), (bytes(len(device)), len(device))):
        target = tmp_path / "target"
        target.write_bytes(before)
        with open(target, "r+b") as file:
            written = page_io.write(opened, opened.files[0], file.fileno(), SILENT, compare=True, zeros=True)
        assert target.read_bytes() == device and written <= most


def test_differences_are_those_of_the_bytes(store: Store, tmp_path: Path) -> None:
    memory = machine(pages=900)
    encoded = [encode(one, compression="lzo", threads=2) for one in (memory, {**memory, max(memory): b"x" * PAGE})]
    made = [put(store, one, tmp_path / "source") for one in encoded]
    plain = [put(store, one, tmp_path / "source", kind="file") for one in encoded]
    assert [one.chunks > 0 for one in (*made, *plain)] == [True, True, False, False]
    wanted = list(diff.diff(store.open_image(plain[0].id), store.open_image(plain[1].id), SILENT))
    assert wanted
    for a, b in ((made, made), (made, plain), (plain, made)):
        assert list(diff.diff(store.open_image(a[0].id), store.open_image(b[1].id), SILENT)) == wanted
    assert not list(diff.diff(store.open_image(made[0].id), store.open_image(plain[0].id), SILENT))


def test_memory_and_the_kernels_checksum(store: Store, tmp_path: Path) -> None:
    memory = machine(pages=900)
    version = put(store, encode(memory, compression="lzo", threads=3), tmp_path / "source")
    with HibernationImage(store.open_image(version.id)) as opened:
        assert opened.crc_matches()
        assert all(opened.memory(pfn * PAGE, PAGE) == page for pfn, page in memory.items())


def test_memory_is_read_from_the_pages_that_are_stored(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compressed for it, so it can be had without the library; chunks that are stored as bytes are decompressed."""
    memory = machine(16384, "arm64", 500)
    calls = iter(range(1000))

    def compressor(raw: bytes) -> bytes:
        return other_lzo(raw) if next(calls) % 4 == 1 else kernel_lzo(raw)

    encoded = encode(memory, 16384, "arm64", compression="lzo", threads=2, compressor=compressor, scattered=3)
    version = put(store, encoded, tmp_path / "source")
    assert 0 < version.chunks < len(encoded.chunks)
    monkeypatch.setattr(lzo, "_function", lambda: None)
    with Store.open(store.path) as again, HibernationImage(again.open_image(version.id)) as opened:
        assert opened.crc_matches()
        assert all(opened.memory(pfn * 16384, 16384) == page for pfn, page in memory.items())


def test_threads_and_collections(store: Store, tmp_path: Path) -> None:
    encoded = encode(machine(pages=2000), compression="lzo", threads=3)
    gone = put(store, encode(machine(pages=2000, seed=2), compression="lzo"), tmp_path / "source")
    version = put(store, encoded, tmp_path / "source")
    store.remove([gone.id])
    collect(store, dry_run=False, progress=SILENT, grace=0.0)
    assert not repair(store, SILENT).lost
    device, opened = bytes(encoded.device), store.open_image(version.id)
    with ThreadPoolExecutor(8) as pool:
        places = [random.Random(7).randrange(len(device)) for _read in range(400)]
        for at, found in zip(places, pool.map(lambda at: opened.read(at, 9000), places), strict=True):
            assert found == device[at : at + 9000]
        list(pool.map(lambda at: opened.prefetch(at, 1 << 20), range(0, len(device), 1 << 19)))
    whole(store, version, device)


# damage ----------------------------------------------------------------------------------------------------------------------


def right_or_refused(path: Path, image_id: str, device: bytes) -> int:
    """How many pieces of a version are refused; every other one is right."""
    refused = 0
    with Store.open(path, unencrypted=True) as store:
        try:
            opened = store.open_image(image_id)
        except Damaged:
            return -1
        for at in range(0, len(device), PIECE):
            try:
                assert opened.read(at, PIECE) == device[at : at + PIECE]
            except Damaged as error:
                assert error.image == image_id and error.extent
                refused += 1
        assert (verify(store, [image_id], 100, SILENT)[0].state == "damaged") == bool(refused)
    return refused


def test_a_flipped_bit_in_any_object(store: Store, tmp_path: Path) -> None:
    encoded = encode(machine(pages=700), compression="lzo", threads=2)
    version = put(store, encoded, tmp_path / "source")
    device, source = bytes(encoded.device), random.Random(11)
    name = Path(image_name(version.id))
    content = (store.path / name).read_bytes()
    for at in [source.randrange(len(content)) for _flip in range(40)]:
        path = clone(store.path, tmp_path / "damaged")
        replace_content(path / name, content[:at] + bytes([content[at] ^ 1 << source.randrange(8)]) + content[at + 1 :])
        assert right_or_refused(path, version.id, device)
    ((pack, _size),) = all_packs(store.backend)
    content = (store.path / pack_name(pack)).read_bytes()
    table = store.reader.table(pack)
    for offset, stored in zip(table.offset.tolist(), table.stored.tolist(), strict=True):
        at = source.randrange(offset + HEADER_SIZE, offset + stored)
        path = clone(store.path, tmp_path / "damaged")
        replace_content(path / pack_name(pack), content[:at] + bytes([content[at] ^ 1 << source.randrange(8)]) + content[at + 1 :])
        assert right_or_refused(path, version.id, device) > 0


def test_another_compressor_is_told_from_damage(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(machine(pages=400), compression="lzo")
    version = put(store, encoded, tmp_path / "source")
    monkeypatch.setattr(lzo, "compress", lambda content: other_lzo(content.tobytes()))
    with Store.open(store.path) as again:
        with pytest.raises(Damaged, match="this liblzo2 differs from the one used by 'put'") as caught:
            read_whole(again, version.id)
        assert caught.value.image == version.id and caught.value.extent and "liblzo2 (2.10)" in caught.value.remedy
        assert verify(again, [version.id], 100, SILENT)[0].state == "damaged"
        with pytest.raises(Damaged):
            restore.get(again.open_image(version.id), str(tmp_path / "target"), SILENT)
        assert not (tmp_path / "target").exists()


def test_without_the_library_it_says_what_to_install(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(machine(pages=400), compression="lzo")
    version, plain = put(store, encoded, tmp_path / "source"), put(store, encoded, tmp_path / "source", kind="file")
    monkeypatch.setattr(lzo, "_function", lambda: None)
    with Store.open(store.path) as again:
        assert read_whole(again, plain.id) == bytes(encoded.device)
        with pytest.raises(StoreError, match="liblzo2-2") as caught:
            read_whole(again, version.id)
        assert not isinstance(caught.value, Damaged)
        with pytest.raises(StoreError, match="liblzo2-2"):  # nothing is damaged
            verify(again, [version.id], 100, SILENT)


def test_a_library_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LIBRARY", "libc.so.6"), ("LIBRARY", "libthatisnowhere.so.1"), ("OLDEST", 0x20B0)):
        lzo._function.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(lzo, name, value)
            assert not lzo.available()
    lzo._function.cache_clear()
    assert lzo.available()


def test_a_source_that_changes_while_it_is_read(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "source"
    path.write_bytes(encode(machine(pages=400), compression="lzo").device)
    real = lzo_encode.LzoEncoder.extents

    def changing(self: lzo_encode.LzoEncoder) -> object:
        with open(path, "r+b") as file:
            file.write(b"x")
        return real(self)

    monkeypatch.setattr(lzo_encode.LzoEncoder, "extents", changing)
    with pytest.raises(StoreError, match="changed while being read"):
        store.put(str(path), Label("m", kind="hibernation"))
    assert not store.ids()


def test_killed_at_every_step_of_a_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    memory = machine(pages=300)
    with Store.create(tmp_path / "prepared", durability="none") as store:
        first = put(store, encode(memory, compression="lzo", threads=2), tmp_path / "first")
    encoded = encode({**memory, max(memory): b"x" * PAGE}, compression="lzo", threads=2)
    (tmp_path / "second").write_bytes(encoded.device)
    wanted = {first.id: (tmp_path / "first").read_bytes()}
    path = tmp_path / "store"

    def work(step: int) -> None:
        os.environ[FAULT_POINT] = str(step)
        with Store.open(path) as store:
            store.put(str(tmp_path / "second"), Label("m", kind="hibernation"))

    for step in range(1, 200):
        clone(tmp_path / "prepared", path)
        code = wait(fork(functools.partial(work, step)))
        found = read_store(path)
        assert found.pop(first.id) == wanted[first.id] and list(found.values()) in ([], [bytes(encoded.device)])
        with Store.open(path) as store:
            if not found:
                made = put(store, encoded, tmp_path / "second")
                assert made.chunks == len(encoded.chunks) and read_whole(store, made.id) == bytes(encoded.device)
            collect(store, dry_run=False, progress=SILENT, grace=0.0)
            assert {one.state for one in verify(store, store.ids(), 100, SILENT)} == {"sound"}
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0 and step > 10 and found


# memory ----------------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """A put and a read of 64 and of 256 MiB of memory: the peak of a process is nearly the same."""
    peaks = []
    for pages in (16384, 65536):
        noise = np.random.default_rng(1).bytes(PAGE * 64)
        memory = {pfn: (b"page %d; " % pfn * 300)[: PAGE // 2] + noise[pfn % 64 * PAGE :][: PAGE // 2] for pfn in range(1, pages)}
        source = tmp_path / f"source{pages}"
        source.write_bytes(encode(memory, compression="lzo", threads=3).device)
        del memory
        code = f"""
from pathlib import Path
from fuse_store.store import Label, Store
with Store.create({str(tmp_path / f"store{pages}")!r}, encryption=False, durability="none") as store:
    version = store.put({str(source)!r}, Label("m", kind="hibernation"))
    assert version.chunks > {pages} // 33
    image = store.open_image(version.id)
    for at in range(0, image.size, 1 << 20):
        image.read_view(at, 1 << 20)
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) >> 10)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 20, peaks


def test_digests_of_scattered_chunks_compute_each_chunk_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an image whose pages were written all over the device as in one whose chunks are whole there."""
    memory = machine(PAGE, "x86", 3000, seed=4)
    for scattered in (0, 1):
        encoded = encode(memory, PAGE, "x86", "lzo", scattered=scattered)
        image = store.open_image(put(store, encoded, tmp_path / f"image{scattered}").id)
        computed: list[int] = []
        original = type(image)._computed

        def counted(self: Any, segment: Any, block: int) -> Any:
            computed.append(block)  # noqa: B023
            return original(self, segment, block)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(type(image), "_computed", counted)
            for place in image.places(0, image.size // PAGE):
                digests = image.page_digests(place)
                pages = [bytes(encoded.device[page * PAGE : (page + 1) * PAGE]) for page in place.page.tolist()]
                assert digests.tobytes() == image.aead.page_digests(pages)
        assert computed and len(computed) == len(set(computed))
