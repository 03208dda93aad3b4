# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsers of stored bytes, fed with bytes that were changed: what comes out is right, or a ValueError or StoreError.

Encrypted content is also changed before it is encrypted: that needs the key, and even then a reader must neither fail with another
error nor use unbounded memory.
"""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lz4.block
import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_store.columns import halves
from fuse_store.errors import Locked, StoreError
from fuse_store.hibernation.lzo_chunks.layout import ROW, Layout, columns
from fuse_store.hibernation.lzo_chunks.transform import LzoTransform
from fuse_store.image.kind import open_transform
from fuse_store.repository import block, extents, locks, manifest, pack
from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import Mapped, PosixBackend
from fuse_store.repository.block import BODY, HEADER, HEADER_SIZE, encrypt_units, pack_block, parse_header, unpack_block
from fuse_store.repository.entries import MAX_TIME, ImageDirectory, ImageLink
from fuse_store.repository.extents import MAX_SEGMENT_SIZE, Extents, no_rows, pack_extents, parse_extents, read_segment
from fuse_store.repository.index import fragment
from fuse_store.repository.index.merge import Merge
from fuse_store.repository.keys.keyfile import read_key
from fuse_store.repository.manifest import Head, ImageFile, Segment, parse_head, read_head
from fuse_store.repository.pack import pack_table, parse_table
from fuse_store.repository.state_log import STATES, StateLog, Usage
from fuse_store.store import Label, Store
from tests.store.conftest import content, write_sparse

ENCRYPTED, PLAIN = (Aead(bytes(16), bytes(32), encrypted) for encrypted in (True, False))
BOUND = 64 << 20  # bytes that a parser may take for a few hundred bytes of input
DIGESTS = bytes(range(48))
few = settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
fewer = settings(few, max_examples=40)


@st.composite
def changed(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with some bytes otherwise, missing, twice, or something else altogether."""
    data = bytearray(whole)
    for _change in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["bit", "cut", "delete", "insert", "ones", "zeros", "copy"]))
        end = min(len(data), at + draw(st.sampled_from([1, 2, 4, 8, 16, 64])))
        if how == "bit" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "delete":
            del data[at:end]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif how in ("ones", "zeros"):
            data[at:end] = (b"\xff" if how == "ones" else b"\0") * (end - at)
        else:
            data[at:at] = data[at:end]
    return bytes(data)


def bounded(parse: Callable[[], Any]) -> Any:
    """The result, or None if it was refused as it should be; never another exception, never memory without bounds."""
    tracemalloc.start()
    try:
        return parse()
    except (ValueError, StoreError):
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < BOUND


# extents -------------------------------------------------------------------------------------------------------------------


def head_of(pages: int, layout: Layout | None = None) -> Head:
    """Of a version with one file of ``pages`` pages of 4 KiB."""
    file = ImageFile("image", pages * 4096, 0)
    computed = layout.computed(2) if layout is not None else None
    return Head("m", "system", "file", "", {}, 0, 1, file.size, 0, 0, 0, 4096, (), (file,), (), computed)


def some_extents() -> Extents:
    columns = ([0, 5, 100, 1000], [3, 20, 64, 1], [0, 1, 2, 0], [0, 4, 0, 63])
    page, count, block_, slot = (np.array(column, np.int64) for column in columns)
    return Extents(page, count, block_, slot, DIGESTS, no_rows())


def right(found: Extents, pages: int, slots: int) -> None:
    """What a reader relies on."""
    assert (found.count > 0).all() and (found.page[1:] >= found.page[:-1] + found.count[:-1]).all()
    if len(found.page):
        assert found.page[0] >= 0 and found.page[-1] + found.count[-1] <= pages
        assert int(found.block.max()) < len(found.digests) // 16 and int((found.slot + found.count).max()) <= slots
    total = found.between(0, pages)[0]
    assert len(total) == found.count.sum()


def test_extents_are_parsed_as_they_were_packed() -> None:
    found = parse_extents(pack_extents(some_extents()), head_of(1001))
    for name in ("page", "count", "block", "slot"):
        assert (getattr(found, name) == getattr(some_extents(), name)).all()
    assert found.digests == DIGESTS


@pytest.mark.parametrize(
    ("columns", "valid"),
    [
        (([0, 5], [5, 1], [0, 2], [0, 0]), True), (([0, 4], [5, 1], [0, 2], [0, 0]), False), (([0, 5], [0, 1], [0, 2], [0, 0]), False),
        (([0], [1], [2], [0]), True), (([0], [1], [3], [0]), False), (([1000], [1], [0], [0]), True), (([1000], [2], [0], [0]), False),
        (([1001], [1], [0], [0]), False), (([0], [1], [0], [63]), True), (([0], [1], [0], [64]), False), (([0], [64], [0], [0]), True),
        (([0], [65], [0], [0]), False), (([], [], [], []), True),
    ],
)  # fmt: skip
def test_extents_at_their_bounds(columns: tuple[list[int], ...], valid: bool) -> None:
    """Of an image of 1001 pages and three blocks of up to 64 pages."""
    page, count, block_, slot = (np.array(column, np.int64) for column in columns)
    parsed = bounded(partial(parse_extents, pack_extents(Extents(page, count, block_, slot, DIGESTS, no_rows())), head_of(1001)))
    assert (parsed is not None) == valid


@few
@given(data=st.data(), pages=st.sampled_from([1001, 1000, 1, 1 << 38]))
def test_extents_that_were_changed(data: st.DataObject, pages: int) -> None:
    raw = zstandard.ZstdDecompressor().decompress(pack_extents(some_extents()))
    compressed = zstandard.ZstdCompressor().compress(data.draw(changed(raw)))
    for stored in (compressed, data.draw(changed(compressed))):
        found = bounded(partial(parse_extents, stored, head_of(pages)))
        if found is not None:
            right(found, pages, 64)


def some_computed() -> tuple[Extents, Layout]:
    """Two blocks, and two LZO chunks of pages of 4 KiB, which stand in three and two of them."""
    columns = ([0, 5, 100, 103, 1000], [3, 20, 2, 1, 2], [0, 1, 2, 2, 3], [0, 4, 0, 2, 0])
    rows = np.array([(0, 9000, 32, 0), (5, 4089, 7, 3)], ROW).view(np.uint8).reshape(2, -1)
    page, count, block_, slot = (np.array(column, np.int64) for column in columns)
    return Extents(page, count, block_, slot, bytes(range(64)), rows), Layout(4096, 4096, 2048, 6)


def slots_of(extents: Extents) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The pages that extents name of each computed block."""
    computed = extents.block >= extents.stored
    slots = np.zeros(len(extents.rows), np.int64)
    np.maximum.at(slots, extents.block[computed] - extents.stored, (extents.slot + extents.count)[computed])
    return slots


def parse_computed(stored: bytes, layout: Layout, pages: int = 1002) -> Extents:
    """What a reader does."""
    extents = parse_extents(stored, head_of(pages, layout))
    LzoTransform(layout).check(extents.rows, slots_of(extents))
    return extents


def test_computed_blocks_are_parsed_as_they_were_packed() -> None:
    wanted, layout = some_computed()
    found = parse_computed(pack_extents(wanted), layout)
    for name in ("page", "count", "block", "slot", "rows"):
        assert (getattr(found, name) == getattr(wanted, name)).all()
    assert found.digests == wanted.digests and found.stored == 2


def test_computed_blocks_in_a_version_that_has_none() -> None:
    wanted, _layout = some_computed()
    with pytest.raises(ValueError, match="length"):
        parse_extents(pack_extents(wanted), head_of(1002))


@few
@given(data=st.data(), pages=st.sampled_from([1002, 1000, 1 << 38]), size=st.sampled_from([4096, 16384, 65536]))
def test_computed_blocks_that_were_changed(data: st.DataObject, pages: int, size: int) -> None:
    wanted, layout = some_computed()
    layout = replace(layout, image_page_size=size)
    raw = zstandard.ZstdDecompressor().decompress(pack_extents(wanted))
    compressed = zstandard.ZstdCompressor().compress(data.draw(changed(raw)))
    for stored in (compressed, data.draw(changed(compressed))):
        found = bounded(partial(parse_computed, stored, layout, pages))
        if found is not None:
            right(found, layout.first + layout.pages, 35 * size // 4096)
            rows = columns(found.rows)
            assert len(rows) <= len(found.digests) // 16
            assert (rows["number"] < layout.chunks).all() and (rows["tail"] <= rows["number"]).all()
            assert (rows["pages"] >= 1).all() and (rows["pages"] <= 32).all() and (rows["length"] <= 35 * size).all()
            computed = found.block >= found.stored
            assert ((found.page + found.count)[computed] <= layout.first).all()
            last = layout.first_page(layout.chunks - 1) + 32 * size // 4096
            assert last <= layout.tail_page(0) < layout.first + layout.pages


def test_a_block_cannot_be_computed_from_itself() -> None:
    wanted, layout = some_computed()
    stored = pack_extents(wanted)
    parse_computed(stored, replace(layout, first=1002))
    with pytest.raises(ValueError, match="from itself"):
        parse_computed(stored, replace(layout, first=1001), 1001)


@pytest.mark.parametrize(
    ("column", "low", "high"), [("number", 3, 5), ("length", 4089, 7 * 4096 * 17 // 16 + 69), ("pages", 1, 32), ("tail", 0, 5)]
)
def test_chunks_with_any_number_anywhere(column: str, low: int, high: int) -> None:
    """Of the second of two chunks, number 5, which has the bytes behind chunk 2 and stands in two pages."""
    most = 255 if column in ("pages", "tail") else (1 << 32) - 1
    for value in (value for value in (0, low - 1, low, high, high + 1, 1 << 31, most) if 0 <= value <= most):
        wanted, layout = some_computed()
        rows = columns(wanted.rows).copy()
        rows[column][1] = value
        stored = pack_extents(replace(wanted, rows=rows.view(np.uint8).reshape(2, -1)))

        def parse(stored: bytes = stored, layout: Layout = layout) -> bool:
            parse_computed(stored, layout)
            return True

        assert (bounded(parse) is True) == (low <= value <= high), value


@pytest.mark.parametrize("size", [1 << 40, MAX_SEGMENT_SIZE + 1, (1 << 64) - 2])
def test_extents_that_claim_to_be_huge(size: int) -> None:
    stored = frame_of(size)
    assert bounded(lambda: parse_extents(stored, head_of(1000))) is None


def frame_of(size: int) -> bytes:
    """The start of a zstd frame (RFC 8878) that says its content has ``size`` bytes, and an end."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


def test_extents_that_grow_without_end() -> None:
    stored = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    assert bounded(lambda: parse_extents(stored, head_of(1000))) is None


# heads ---------------------------------------------------------------------------------------------------------------------


def some_head() -> dict[str, Any]:
    files = (ImageFile("a", 5000, 0), ImageFile("b", 70000, 8192, 0o644, 10**18))
    segments = (Segment(0, 2, 0, 100, DIGESTS[:16]), Segment(2, 20, 100, 80, DIGESTS[16:32]))
    head = Head("m", "system", "file", "e", {"k": "v"}, 10**18, 1, 75000, 75000, 1, 1, 4096, ("0" * 32,), files, segments)
    return unpacked(head)


def unpacked(head: Head) -> dict[str, Any]:
    """What is in the manifest for a head."""
    value: dict[str, Any] = msgpack.unpackb(manifest.pack_head(head, "m"))
    return value


def a_head_of_a_directory() -> dict[str, Any]:
    files = (ImageFile("a", 5000, 0), ImageFile("sub/b", 10, 8192))
    directories = (ImageDirectory("", 0o755, 10**18), ImageDirectory("empty", 0o700, -5), ImageDirectory("sub", 0o555, 10**18))
    links = (ImageLink("sub/link", "../../nowhere", 10**18),)
    segments = (Segment(0, 2, 0, 100, DIGESTS[:16]),)
    return unpacked(
        Head("m", "system", "file", "", {}, 1, 1, 5010, 5010, 1, 1, 4096, (), files, segments, directories=directories, links=links)
    )


def a_head_with_computed_blocks() -> dict[str, Any]:
    head = some_head()
    computed = Layout(4096, 4096, 32, 40).computed(7)
    segments = [asdict(Segment(0, 18, 0, 100, DIGESTS[:16])), asdict(Segment(64, 2000, 100, 80, DIGESTS[16:32]))]
    return {**head, "files": [asdict(ImageFile("image", 75000, 0))], "segments": segments, "computed": asdict(computed)}


@pytest.mark.parametrize(
    ("part", "row", "changes", "valid"),
    [
        ("files", 0, {"size": 8192}, True), ("files", 0, {"size": 8193}, False), ("files", 0, {"size": -1}, False),
        ("files", 0, {"size": 0}, True), ("files", 1, {"offset": 8191}, False), ("files", 1, {"offset": 4096}, False),
        ("files", 1, {"size": manifest.MAX_IMAGE_SIZE - 8192}, True), ("files", 1, {"size": manifest.MAX_IMAGE_SIZE - 8191}, False),
        ("segments", 0, {"last": 0}, False), ("segments", 1, {"first": 1}, False), ("segments", 1, {"first": 3}, True),
        ("segments", 1, {"last": 3}, True), ("segments", 1, {"last": 2}, False), ("segments", 1, {"last": 21}, False),
        ("segments", 0, {"offset": -1}, False), ("segments", 0, {"length": -1}, False), ("segments", 0, {"length": 0}, True),
    ],
)  # fmt: skip
def test_heads_at_their_bounds(part: str, row: int, changes: dict[str, int], valid: bool) -> None:
    """Of two files and two segments, which cover 20 pages."""
    head = some_head()
    head[part][row].update(changes)
    assert (bounded(partial(parse_head, msgpack.packb(head))) is not None) == valid


def test_the_address_space_ends_with_the_last_file() -> None:
    assert parse_head(msgpack.packb(some_head())).pages == 20 and head_of(1001).pages == 1001


def use(head: Head) -> None:
    """What readers do with a head."""
    shown = manifest.summary("0" * 32, head)
    assert shown.as_dict() and shown.version and head.pages >= 0
    json.dumps(shown.as_dict())
    for segment in head.segments:
        assert b"segment" + segment.digest and 0 <= segment.first < segment.last <= head.pages
    for file in head.files:
        assert file.name.encode() is not None
    np.array([segment.first for segment in head.segments], np.int64)


@few
@given(data=st.data())
def test_a_head_that_was_changed(data: st.DataObject) -> None:
    head = bounded(lambda: parse_head(data.draw(changed(msgpack.packb(some_head())))))
    if head is not None:
        use(head)


@few
@given(data=st.data())
def test_a_head_of_a_directory_that_was_changed(data: st.DataObject) -> None:
    head = bounded(lambda: parse_head(data.draw(changed(msgpack.packb(a_head_of_a_directory())))))
    if head is not None:
        use(head)


@pytest.mark.parametrize(
    ("part", "row", "changes", "valid"),
    [
        ("directories", 1, {"name": "other"}, True), ("directories", 1, {"name": "sub"}, False),
        ("directories", 1, {"name": "a"}, False), ("directories", 1, {"name": "a/b"}, False),
        ("directories", 1, {"name": "sub/x"}, True), ("directories", 1, {"name": "no/x"}, False),
        ("directories", 0, {"name": "root"}, False), ("directories", 1, {"name": "/"}, False),
        ("directories", 1, {"name": ".."}, False), ("directories", 2, {"name": "other"}, False),
        ("directories", 1, {"mode": 1 << 16}, False), ("directories", 1, {"mode": True}, False),
        ("directories", 1, {"mtime": MAX_TIME + 1}, False), ("directories", 1, {"name": 5}, False),
        ("directories", 1, {"extra": 5}, False), ("links", 0, {"name": "a"}, False), ("links", 0, {"name": "sub/b"}, False),
        ("links", 0, {"name": "sub"}, False), ("links", 0, {"name": "."}, False), ("links", 0, {"name": "sub/x\0"}, False),
        ("links", 0, {"target": ""}, False), ("links", 0, {"target": "x" * 4095}, True),
        ("links", 0, {"target": "é" * 2048}, False), ("links", 0, {"target": "a\0b"}, False), ("links", 0, {"target": None}, False),
        ("links", 0, {"mtime": 0.5}, False), ("files", 1, {"name": "../b"}, False), ("files", 1, {"name": "sub/link/b"}, False),
        ("files", 1, {"name": "link/b"}, False),
    ],
)  # fmt: skip
def test_heads_of_directories_at_their_bounds(part: str, row: int, changes: dict[str, object], valid: bool) -> None:
    head = a_head_of_a_directory()
    head[part][row].update(changes)
    assert (bounded(partial(parse_head, msgpack.packb(head))) is not None) == valid


def test_a_head_has_the_keys_of_its_format() -> None:
    directory = a_head_of_a_directory()
    assert directory["format"] == 2 and some_head()["format"] == 1 and not {"directories", "links"} & some_head().keys()
    refused = [{**directory, "format": 1}, {**directory, "directories": []}, {**directory, "format": 3}]
    for key in ("directories", "links"):
        refused += [{**directory, key: None}, {**some_head(), key: directory[key]}]
        refused.append({name: value for name, value in directory.items() if name != key})
    for head in refused:
        assert bounded(partial(parse_head, msgpack.packb(head))) is None


def test_a_head_with_computed_blocks() -> None:
    head = parse_head(msgpack.packb(a_head_with_computed_blocks()))
    use(head)
    assert head.computed is not None and head.pages == 32 + 2 * 32 * 33 and manifest.summary("0" * 32, head).chunks == 7


@few
@given(data=st.data())
def test_a_head_with_computed_blocks_that_was_changed(data: st.DataObject) -> None:
    head = bounded(lambda: parse_head(data.draw(changed(msgpack.packb(a_head_with_computed_blocks())))))
    if head is not None:
        use(head)


def test_a_head_with_computed_blocks_that_cannot_be() -> None:
    wrong: dict[str, list[object]] = {
        "transform": ["lz4", "", None, 1], "first": [-1, 18, 1 << 60, None, 0.5], "pages": [0, -1, 1 << 60, 2113, None],
        "count": [0, 41, -1, None], "row_size": [-1, 9, 257, None], "other": [1], "parameters": [None, [], {}, {"a": "b"}],
    }  # fmt: skip
    for key, values in wrong.items():
        for value in values:
            head = a_head_with_computed_blocks()
            head["computed"][key] = value
            assert bounded(partial(opened, head)) is None, (key, value)
    for key, values in {"page_size": [0, 2048, 65537, "4096", None], "chunks": [0, 6, 1 << 21, -1, "x"]}.items():
        for value in values:
            head = a_head_with_computed_blocks()
            head["computed"]["parameters"][key] = value
            assert bounded(partial(opened, head)) is None, (key, value)
    changes: list[dict[str, object]] = [{"format": 0}, {"format": 2}, {"computed": []}, {"page_size": 16384}, {"files": []}]
    for changed_ in changes:
        head = a_head_with_computed_blocks() | changed_
        assert bounded(partial(opened, head)) is None, changed_
    without = {key: value for key, value in some_head().items() if key != "computed"}
    assert bounded(lambda: parse_head(msgpack.packb(without))) is None


def opened(value: dict[str, Any]) -> Head:
    """What a reader of an image does with a head."""
    head = parse_head(msgpack.packb(value))
    open_transform(head)
    return head


VALUES: list[object] = [
    None, True, -1, 0, 1 << 40, (1 << 64) - 1, -(1 << 63), 0.5, float("nan"), "", "x", b"x", [], [1], {}, {"a": 1}, [[]]
]  # fmt: skip


@pytest.mark.parametrize("where", ["", "files", "segments"])
def test_a_head_with_any_value_of_any_kind_anywhere(where: str) -> None:
    names = some_head() if not where else some_head()[where][0]
    for name in names:
        for value in VALUES:
            head = some_head()
            (head if not where else head[where][1])[name] = value
            found = bounded(partial(parse_head, msgpack.packb(head)))
            if found is not None:
                use(found)
        head = some_head()
        del (head if not where else head[where][1])[name]
        if name not in ("mode", "mtime"):
            assert bounded(partial(parse_head, msgpack.packb(head))) is None
    for value in VALUES:
        assert bounded(partial(parse_head, msgpack.packb(value))) is None


def test_a_head_that_is_deep_or_claims_to_be_huge() -> None:
    huge = [start + b"\xff" * 4 for start in (b"\xdd", b"\xdf", b"\xc6", b"\xdb")]  # array, map, bin, str
    for content_ in (b"\x91" * 100_000, *huge):
        assert bounded(partial(parse_head, content_)) is None


# packs ---------------------------------------------------------------------------------------------------------------------


def some_table() -> bytes:
    return pack_table([(DIGESTS[:16], 24, 1000, 8192), (DIGESTS[16:32], 1024, 500, 4096)], DIGESTS)


@few
@given(data=st.data())
def test_a_table_that_was_changed(data: st.DataObject) -> None:
    found = bounded(lambda: parse_table(data.draw(changed(some_table())), bytes(16)))
    if found is not None:
        rows = found.rows()
        assert len(rows) == len(found.offset) == len(found.digests) // 16 and found.pages.shape[1] == 2
        assert len(found.length) == 0 or int(found.length.max()) <= block.MAX_BLOCK_SIZE


def test_a_table_that_claims_to_be_huge() -> None:
    for count in (pack.MAX_BLOCKS_PER_PACK, pack.MAX_BLOCKS_PER_PACK + 1, (1 << 32) - 1):
        assert bounded(partial(parse_table, count.to_bytes(4, "little") + bytes(64), bytes(16))) is None
        assert bounded(partial(parse_table, bytes(4) + count.to_bytes(4, "little") + bytes(64), bytes(16))) is None


# the index -----------------------------------------------------------------------------------------------------------------


def some_fragment(aead: Aead) -> tuple[str, bytes]:
    """A fragment: its name, and what is in the file."""
    merge = Merge([parse_table(some_table(), bytes(range(16))).rows()])
    with tempfile.TemporaryDirectory() as directory:
        name = fragment.write_fragment(PosixBackend(Path(directory)), aead, merge.parts, merge.packs, 1, sync=False)
        assert name is not None
        return name[:32], (Path(directory) / "index" / name).read_bytes()


def read_fragment(name: str, content: bytes, aead: Aead, check: bool) -> fragment.Fragment:
    """Raises ValueError."""
    found = fragment.Fragment(name, Mapped(memoryview(content)), aead)
    if check:
        for _part in Merge([found.checked()]).parts():
            pass
    return found


@few
@given(data=st.data(), check=st.booleans(), aead=st.sampled_from([ENCRYPTED, PLAIN]))
def test_a_fragment_that_was_changed(data: st.DataObject, check: bool, aead: Aead) -> None:
    name, content = some_fragment(aead)
    found = bounded(lambda: read_fragment(name, data.draw(changed(content)), aead, check))
    if found is not None:
        high, low = halves(DIGESTS)
        for row in found.find(high, low).tolist():
            if row >= 0:
                pack, offset, stored = found.place(row)
                assert len(pack) in (0, 16) and offset >= 0 and stored >= 0
                if check:
                    assert len(pack) == 16


@pytest.mark.parametrize("key", ["rows", "packs", "number", "nonce", "digests"])
def test_a_fragment_with_any_value_of_any_kind_in_its_header(key: str) -> None:
    columns = bytes(2 * fragment.ROW_SIZE)
    sound = {"rows": 2, "packs": bytes(16), "number": 1, "nonce": bytes(16), "digests": bytes(48)}
    for value in [*({**sound, key: value} for value in [*VALUES, 3, 1 << 60, bytes(17)]), *VALUES]:
        header = msgpack.packb(value)
        encrypted = PLAIN.encrypt(b"index", header)
        begin = -(-(16 + len(encrypted)) // 8) * 8
        whole = fragment.START.pack(fragment.MAGIC, len(encrypted), begin) + encrypted + bytes(begin - 16 - len(encrypted)) + columns
        assert bounded(partial(read_fragment, PLAIN.digest(header).hex(), whole, PLAIN, check=True)) is None
        bounded(partial(read_fragment, PLAIN.digest(header).hex(), whole, PLAIN, check=False))


# blocks --------------------------------------------------------------------------------------------------------------------


@few
@given(data=st.data(), codec=st.sampled_from(["zstd", "lz4", "none"]), aead=st.sampled_from([ENCRYPTED, PLAIN]))
def test_a_block_that_was_changed(data: st.DataObject, codec: str, aead: Aead) -> None:
    pages = content([1, 2])
    block = pack_block(pages, aead.digest(pages), aead, codec, 1)
    found = bounded(lambda: unpack_block(data.draw(changed(block.stored[HEADER_SIZE:])), block.digest, aead))
    assert found is None or found == pages


def body_of(number: int, compressed: bytes, length: int, named: int) -> bytes:
    """The body of a block as it is stored, whatever is in it, with every tag right."""
    return b"".join(encrypt_units(b"block" + DIGESTS[:16], PLAIN, BODY.pack(number, length, named), compressed))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 255])
def test_a_block_whose_content_is_not_what_it_says(number: int) -> None:
    """Only with the key such a block can be made. None of them has the digest that it is stored under."""
    zstd = zstandard.ZstdCompressor()
    bombs = [zstd.compress(bytes(200 << 20)), lz4.block.compress(bytes(100 << 20), store_size=False), frame_of(1 << 40), frame_of(0)]
    for compressed in (*bombs, b"", b"x", bytes(4096), zstd.compress(bytes(4096)) * 2):
        if len(compressed) > block.MAX_BLOCK_SIZE:
            compressed = compressed[: block.MAX_BLOCK_SIZE]
        for length in (0, 1, 4096, 8192, block.MAX_BLOCK_SIZE, block.MAX_BLOCK_SIZE + 1, (1 << 32) - 1):
            for named in (len(compressed), 0, len(compressed) + 1000, (1 << 32) - 1):
                assert bounded(partial(unpack_block, body_of(number, compressed, length, named), DIGESTS[:16], PLAIN)) is None
    assert bounded(partial(unpack_block, PLAIN.encrypt(b"block" + DIGESTS[:16], b"short"), DIGESTS[:16], PLAIN)) is None


@fewer
@given(data=st.data(), length=st.integers(0, (1 << 32) - 1), aead=st.sampled_from([ENCRYPTED, PLAIN]))
def test_a_header_of_a_block(data: st.DataObject, length: int, aead: Aead) -> None:
    header = b"".join(encrypt_units(b"header", aead, HEADER.pack(DIGESTS[:16], length)))
    assert len(header) == HEADER_SIZE
    found = bounded(lambda: parse_header(data.draw(changed(header)), aead))
    assert found in (None, (DIGESTS[:16], length)) and (found is None or 0 < length < block.MAX_STORED)


@pytest.mark.parametrize("aead", [ENCRYPTED, PLAIN])
def test_encrypted_content_is_decrypted_only_unchanged(aead: Aead) -> None:
    encrypted = aead.encrypt(b"name", b"content")
    assert aead.decrypt(b"name", encrypted) == b"content"
    for at in range(len(encrypted)):
        for bit in range(8):
            bent = bytearray(encrypted)
            bent[at] ^= 1 << bit
            with pytest.raises(ValueError, match=r"decryption failed|checksum mismatch"):
                aead.decrypt(b"name", bytes(bent))
        with pytest.raises(ValueError, match=r"decryption failed|checksum mismatch"):
            aead.decrypt(b"name", encrypted[:at])


# small files ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directory:
    path: Path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    return Directory(tmp_path_factory.mktemp("parsers"))


@fewer
@given(data=st.data())
def test_a_state_log_that_was_changed(directory: Directory, data: st.DataObject) -> None:
    state_log = StateLog(PosixBackend(directory.path), ENCRYPTED, sync=False)
    name = "0" * 32
    (directory.path / "states" / "00").mkdir(exist_ok=True, parents=True)
    entry = {"state": "verified", "time": 1, "image": name, "detail": "x", "fields": {"checksum": "right"}}
    entries = msgpack.packb([{**entry, "state": "captured"}, entry])
    inner = ENCRYPTED.encrypt(b"state" + bytes(16), data.draw(changed(entries)))
    outer = data.draw(changed(ENCRYPTED.encrypt(b"state" + bytes(16), entries)))
    for stored in (inner, outer):
        (directory.path / "states" / "00" / f"{name}.log").write_bytes(stored)
        log = bounded(lambda: state_log.read(bytes(16)))
        assert log.state(name) in STATES and isinstance(log.verified(name), bool) and isinstance(log.usage, Usage)
        assert bool(log.problem) == (not log.entries) or not log.problem


@pytest.fixture(scope="module")
def store_json(directory: Directory) -> bytes:
    with Store.create(directory.path / "store", encryption=False, durability="none") as store:
        store.put(str(write_sparse(directory.path / "source", b"x")), Label("m"))
    return (directory.path / "store" / "store.json").read_bytes()


@few
@given(data=st.data())
def test_a_store_json_that_was_changed(directory: Directory, store_json: bytes, data: st.DataObject) -> None:
    (directory.path / "store" / "store.json").write_bytes(data.draw(changed(store_json)))

    def read() -> bytes:
        with Store.open(directory.path / "store") as store:
            return bytes(store.open_image(store.ids()[0]).read(0, 1))

    try:
        assert bounded(read) in (None, b"x")
    finally:
        (directory.path / "store" / "store.json").write_bytes(store_json)


@few
@given(data=st.data())
def test_a_key_file_that_was_changed(directory: Directory, data: st.DataObject) -> None:
    path = directory.path / "key"
    path.touch(0o600)
    path.write_bytes(data.draw(changed(f"fuse-store key 1\nstore {bytes(16).hex()}\nkey {'ab' * 32}\n".encode())))
    try:
        assert len(read_key(path, bytes(16))) == 32
    except StoreError as error:
        assert error.exit_code in (3, 4, 5) and error.remedy


@few
@given(data=st.data())
def test_a_lock_file_that_was_changed(directory: Directory, data: st.DataObject) -> None:
    (directory.path / "locks").mkdir(exist_ok=True)
    path = directory.path / "locks" / "writer"
    path.write_bytes(data.draw(changed(json.dumps({**locks.this_process(), "token": "0"}).encode())))
    try:
        with locks.WriterLock(directory.path / "locks") as lock:
            lock.check()
    except Locked:
        path.unlink()
    assert not path.exists()


@pytest.mark.parametrize("key", ["host", "machine", "boot", "pid", "start", "token"])
def test_a_lock_file_with_any_value_of_any_kind(tmp_path: Path, key: str) -> None:
    values: list[object] = [None, True, -1, 0, 10**30, 0.5, "", "x", "\udc80", "../../x", [], {}, [1]]
    for value in values:
        path = tmp_path / "writer"
        path.write_text(json.dumps({**locks.this_process(), "token": "0", key: value}))
        try:
            with locks.WriterLock(tmp_path):
                pass
        except Locked as error:
            assert str(error).isprintable() or key in ("pid", "host")
            path.unlink()
        assert not path.exists()


def test_parsers_of_extents_take_what_capture_makes(tmp_path: Path) -> None:
    """The fuzzed samples are like the real thing: a real segment passes the same checks."""
    with Store.create(tmp_path / "store", durability="none") as store:
        made = store.put(str(write_sparse(tmp_path / "source", content([*range(1, 100), 0, 5]))), Label("m"))
        head, start = read_head(store.backend, made.id, store.aead)
        for number in range(len(head.segments)):
            found = read_segment(store.backend, made.id, head, number, start, store.aead)
            right(found, 101, 64)
            again = extents.parse_extents(pack_extents(found), head_of(101))
            assert (again.page == found.page).all()
