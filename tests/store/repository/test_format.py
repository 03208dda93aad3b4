# SPDX-License-Identifier: GPL-3.0-or-later
"""A second reader, written from docs/format.md alone: it shares no code with the store, and reads what the store wrote."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
import msgpack
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import encode, machine

SIZE = 3 << 20


class SecondReader:
    """Reads versions from the files of a store. Every digest and seal on the way is checked."""

    def __init__(self, directory: Path, key_file: Path | None) -> None:
        self.directory = directory
        config = json.loads((directory / "store.json").read_text())
        assert config["format"] == 1
        self.store_id = bytes.fromhex(config["id"])
        if key_file is None:
            root = bytes.fromhex(config["root"])
        else:
            head, store, copy, key = key_file.read_text().splitlines()
            assert head == "fuse-store key 1" and store == f"store {config['id']}"
            root = bytes.fromhex(key.removeprefix("key "))
            assert json.loads(copy.removeprefix("store.json ")) == config
        self.encrypted = config["encryption"] == "aes-256-gcm"
        self.keys = {
            purpose: blake3(root + self.store_id, derive_key_context=f"fuse_store 2026-11-24 {purpose}").digest()
            for purpose in ("digest", "encrypt", "page digest", "check", "store.json")
        }
        assert self.keys["check"][:16].hex() == config["check"]
        content = json.dumps({name: value for name, value in config.items() if name != "mac"}, sort_keys=True, separators=(",", ":"))
        assert blake3(content.encode(), key=self.keys["store.json"]).digest(16).hex() == config["mac"]
        self.where = {}
        for fragment in directory.glob("index/*.idx"):
            self.where.update(self._fragment(fragment.stem, fragment.read_bytes()))

    def digest(self, content: bytes) -> bytes:
        return blake3(content, key=self.keys["digest"]).digest(16)

    def page_digest(self, page: bytes) -> bytes:
        key = self.keys["page digest"]
        return AESGCM(key).encrypt(bytes(12), b"", page) if self.encrypted else blake3(page, key=key).digest(16)

    def open(self, name: bytes, encrypted: bytes) -> bytes:
        if not self.encrypted:
            content, tag = encrypted[:-16], encrypted[-16:]
            assert blake3(name + content, key=self.keys["encrypt"]).digest(16) == tag
            return content
        salt = encrypted[:16]
        key = blake3(salt + name, key=self.keys["encrypt"]).digest(32)
        content = AESGCM(key).decrypt(bytes(12), encrypted[16:], self.store_id + name)
        assert self.digest(content) == salt
        return content

    def _fragment(self, name: str, content: bytes) -> dict[bytes, tuple[bytes, int, int]]:
        magic, length, begin = struct.unpack_from("<8sII", content)
        assert magic == b"FSINDEX1"
        packed = self.open(b"index", content[16 : 16 + length])
        salt = self.digest(packed)
        header = msgpack.unpackb(packed)
        assert name == salt.hex() and len(content) == begin + 32 * header["rows"]
        high, low, values = (content[begin + at * header["rows"] : begin + to * header["rows"]] for at, to in ((0, 8), (8, 16), (16, 32)))
        if self.encrypted:
            key = blake3(salt + b"index values", key=self.keys["encrypt"]).digest(32)
            values = Cipher(AES(key), CTR(bytes(16))).decryptor().update(values)
        assert header["digests"] == self.digest(high) + self.digest(low) + self.digest(values)
        digests = list(zip(struct.unpack(f"<{header['rows']}Q", high), struct.unpack(f"<{header['rows']}Q", low), strict=True))
        assert digests == sorted(digests)
        return {
            struct.pack("<QQ", *digest): (header["packs"][16 * pack : 16 * pack + 16], offset, stored)
            for digest, (pack, offset, stored, _length) in zip(digests, struct.iter_unpack("<IIII", values), strict=True)
        }

    def block(self, digest: bytes) -> bytes:
        pack, offset, stored = self.where[digest]
        content = (self.directory / "packs" / pack.hex()[:2] / f"{pack.hex()}.pack").read_bytes()
        assert content[:8] == b"FSPACK01" and content[24:64] == bytes(40)
        self._check_table(content, pack, digest, offset, stored)
        assert offset % 64 == stored % 64 == 0
        name, length = struct.unpack_from("<16sI", self.open(b"header", content[offset : offset + 64]))
        assert name == digest and stored == 64 + length
        opened = self.open(b"block" + digest, content[offset + 64 : offset + 64 + length])
        codec, size, compressed = struct.unpack_from("<III", opened)
        assert not any(opened[12 + compressed :])
        packed = opened[12 : 12 + compressed]
        decompress: dict[int, Callable[[], bytes]] = {
            0: lambda: packed,
            1: lambda: zstandard.ZstdDecompressor().decompress(packed),
            2: lambda: lz4.block.decompress(packed, uncompressed_size=size),
        }
        pages = decompress[codec]()
        assert len(pages) == size and self.digest(pages) == digest
        return bytes(pages)

    def _check_table(self, content: bytes, pack: bytes, digest: bytes, offset: int, stored: int) -> None:
        owner, length = struct.unpack_from("<16sQ", self.open(b"trailer", content[-64:]))
        assert owner == pack
        table = self.open(b"table" + pack, content[-64 - length : -64])
        count, pages = struct.unpack_from("<II", table)
        rows = [struct.unpack_from("<16sQII", table, 8 + 32 * row) for row in range(count)]
        assert (digest, offset, stored) in [row[:3] for row in rows]
        end = 8 + 32 * count + 16 * pages
        assert not any(table[end:]) and self.digest(b"pack" + content[8:24] + table[:end]) == pack
        self.page_digests = table[8 + 32 * count : end]

    def image(self, image_id: str) -> dict[str, bytes]:
        content = (self.directory / "images" / image_id[-4:] / f"{image_id}.img").read_bytes()
        magic, length = struct.unpack_from("<8sI", content)
        assert magic == b"FSIMAGE1"
        packed = self.open(b"image" + bytes.fromhex(image_id), content[12 : 12 + length])
        head = msgpack.unpackb(packed)
        machine = self.digest(b"machine" + head["machine"].encode())
        assert (self.digest(packed)[:14] + machine[:2]).hex() == image_id
        assert self.open(b"machine" + machine, (self.directory / "machines" / machine.hex()).read_bytes()).decode() == head["machine"]
        size, computed = head["page_size"], head["computed"]
        tree = {"directories", "links"} & head.keys()
        assert (head["format"], len(tree)) in ((1, 0), (2, 2))
        self.directories = {one["name"]: one["mode"] for one in head.get("directories", ())}
        self.links = {one["name"]: one["target"] for one in head.get("links", ())}
        end = max(file["offset"] + file["size"] for file in head["files"])
        if computed is not None:
            assert computed["transform"] == "lzo" and len(head["files"]) == 1 and end <= computed["first"] * size
            end = (computed["first"] + computed["pages"]) * size
            parameters = computed["parameters"]
            assert computed["row_size"] == 10
            assert computed["pages"] * size == -(-parameters["chunks"] // 32) * 32 * 33 * parameters["page_size"]
        space = bytearray(end + size)
        made: list[tuple[int, int, int, bytes, tuple[int, int, int, int]]] = []
        for segment in head["segments"]:
            start = 12 + length + segment["offset"]
            raw = self.open(b"segment" + segment["digest"], content[start : start + segment["length"]])
            assert self.digest(raw) == segment["digest"]
            made += self._place(zstandard.ZstdDecompressor().decompress(raw), space, size)
        for page, count, slot, name, row in made:
            chunk = self._chunk(space, computed, size, row)
            assert self.digest(chunk) == name
            space[page * size : (page + count) * size] = chunk[slot * size : (slot + count) * size]
        self.chunks = len({name for _page, _count, _slot, name, _row in made})
        assert computed is None or self.chunks == computed["count"]
        return {file["name"]: bytes(space[file["offset"] : file["offset"] + file["size"]]) for file in head["files"]}

    def _chunk(self, space: bytearray, computed: dict[str, Any], size: int, row: tuple[int, int, int, int]) -> bytes:
        """The bytes of a chunk on the device, made of its pages."""
        number, length, pages, threads = row
        first, unit = computed["first"] * size, computed["parameters"]["page_size"]

        def own(number: int, pages: int) -> bytes:
            at = first + (number // 32 * 32 * 33 + number % 32 * 32) * unit
            raw = bytes(space[at : at + pages * unit])
            out, got = ctypes.create_string_buffer(len(raw) * 2), ctypes.c_size_t(len(raw) * 2)
            work = ctypes.create_string_buffer(8 << 15)
            ctypes.CDLL("liblzo2.so.2").lzo1x_1_15_compress(raw, ctypes.c_size_t(len(raw)), out, ctypes.byref(got), work)
            return struct.pack("<Q", got.value) + out.raw[: got.value]

        content = own(number, pages)
        assert len(content) == 8 + length
        end = -(-len(content) // unit) * unit
        if threads:
            for before in range(number - threads, number - 33, -threads):
                content += own(before, 32)[len(content) : end] if len(content) < end else b""
        else:
            at = first + (number // 32 * 32 * 33 + 32 * 32 + number % 32) * unit
            content += bytes(space[at + unit - (end - len(content)) : at + unit])
        return content

    def _place(
        self, segment: bytes, space: bytearray, size: int
    ) -> list[tuple[int, int, int, bytes, tuple[int, int, int, int]]]:
        """Put the pages of blocks where they belong; (page, count, page in the chunk, digest, row) of those of chunks."""
        extents, blocks, chunks = struct.unpack_from("<III", segment)
        at = 12
        columns = []
        for kind, width in (("Q", 8), ("I", 4), ("I", 4), ("H", 2)):
            columns.append(struct.unpack_from(f"<{extents}{kind}", segment, at))
            at += extents * width
        names = [segment[at + 16 * number : at + 16 * number + 16] for number in range(blocks)]
        at += 16 * blocks
        rows = [struct.unpack_from("<IIBB", segment, at + 10 * number) for number in range(chunks)]
        assert at + 10 * chunks == len(segment)
        made = []
        page = 0
        for step, count, block, slot in zip(*columns, strict=True):
            page += step
            if block >= blocks - chunks:
                made.append((page, count, slot, names[block], rows[block - blocks + chunks]))
                continue
            pages = self.block(names[block])
            space[page * size : (page + count) * size] = pages[slot * size : (slot + count) * size].ljust(count * size, b"\0")
        return made


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
@pytest.mark.parametrize("encryption", [True, False])
def test_a_reader_made_from_the_document_reads_the_store(tmp_path: Path, encryption: bool, compression: str) -> None:
    key_file = tmp_path / "key"
    source = tmp_path / "source"
    source.mkdir()
    noise = os.urandom(SIZE // 3)
    (source / "a").write_bytes(noise + bytes(SIZE // 3) + noise[: SIZE // 3 - 5])
    (source / "b c").write_bytes(b"text " * 5000)
    (source / "empty").mkdir(mode=0o711)
    (source / "empty" / "link").symlink_to("../a")
    page_size = 16384 if compression == "lz4" else 4096
    with Store.create(
        tmp_path / "store", key_file=key_file, durability="none", encryption=encryption, compression=compression, page_size=page_size
    ) as store:
        first = store.put(str(source), Label("m"))
        (source / "b c").write_bytes(b"other text " * 5000)
        second = store.put(str(source), Label("m"))
    reader = SecondReader(tmp_path / "store", key_file if encryption else None)
    content = {name: (source / name).read_bytes() for name in ("a", "b c")}
    assert reader.image(second.id) == content
    assert reader.directories == {"": source.stat().st_mode & 0o777, "empty": 0o711} and reader.links == {"empty/link": "../a"}
    assert reader.image(first.id) == {**content, "b c": b"text " * 5000}
    page = noise[:page_size]
    tables = []
    for digest in reader.where:
        reader.block(digest)
        tables.append(reader.page_digests)
    assert any(reader.page_digest(page) in table for table in tables)


@pytest.mark.parametrize("page_size", [4096, 16384])
def test_it_reads_compressed_hibernation_images(tmp_path: Path, page_size: int) -> None:
    memory = machine(page_size, "arm64", 1500 if page_size == 4096 else 400)
    encoded = encode(memory, page_size, "arm64", "lzo", threads=3, scattered=9)
    (tmp_path / "source").write_bytes(encoded.device)
    with Store.create(tmp_path / "store", encryption=False, durability="none") as store:
        version = store.put(str(tmp_path / "source"), Label("m", kind="hibernation"))
    reader = SecondReader(tmp_path / "store", None)
    assert reader.image(version.id) == {"image": bytes(encoded.device)}
    assert reader.chunks == version.chunks == len(encoded.chunks)
