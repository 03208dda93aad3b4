# SPDX-License-Identifier: GPL-3.0-or-later
"""What packs tell to a reader of the disk without the key, what a holder of the key can plant in them, and what clones do to them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard

from fuse_store.errors import Damaged
from fuse_store.image import restore
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository.block import BLOCK_SIZE, pack_block
from fuse_store.repository.config import LEVEL
from fuse_store.repository.pack import PACK_HEADER, PackWriter, all_packs, pack_name
from fuse_store.store import Label, Store
from tests.store.conftest import content, read_whole, write_sparse

UNITS = 29


def known_file() -> bytes:
    """A file that an attacker has too: text and noise in another mixture in each unit, as of a program."""
    source = np.random.default_rng(29)
    text = b"".join(b"symbol %8d " % number for number in range(UNITS * BLOCK_SIZE // 16))
    return b"".join(
        text[unit * BLOCK_SIZE : (unit + 1) * BLOCK_SIZE - noise] + source.bytes(noise)
        for unit, noise in enumerate(source.integers(1000, 90_000, UNITS).tolist())
    )


KNOWN = known_file()
LENGTHS = [  # zstd makes the same of the same: everyone can know them
    len(zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(KNOWN[at : at + BLOCK_SIZE]))
    for at in range(0, len(KNOWN), BLOCK_SIZE)
]


def stored(directory: Path, data: bytes, encryption: bool = True) -> list[bytes]:
    """The content of the packs of a store with these data."""
    with Store.create(directory, durability="none", encryption=encryption) as store:
        store.put(str(write_sparse(directory.parent / "source", data)), Label("m"))
        return [(store.path / pack_name(found)).read_bytes() for found, _size in all_packs(store.backend)]


def confirmed(packs: list[bytes]) -> int:
    """For how many units of the known file there is a number in the packs that is its length, or up to 127 more (what is added to it), as
    the next field after such a number would be near the next one: an attacker without the key has nothing else to look for."""
    found = 0
    for length in LENGTHS:
        wanted = {struct.pack("<I", length + more) for more in range(128)}
        found += any(data[at : at + 4] in wanted for data in packs for at in range(0, len(data) - 3, 4))
    return found


def test_known_files_cannot_be_confirmed_by_lengths(tmp_path: Path) -> None:
    assert len(set(LENGTHS)) == UNITS
    assert confirmed(stored(tmp_path / "clear", KNOWN, encryption=False)) == UNITS  # else the next line could not fail
    assert confirmed(stored(tmp_path / "encrypted", KNOWN)) <= 4  # by chance: one in 30 each


def test_where_a_block_ends_cannot_be_seen(tmp_path: Path) -> None:
    """All but the first 64 bytes of a pack looks like noise: no field, no filling, nothing that stands in two places."""
    source = np.random.default_rng(1)
    repeated = b"".join(content([number]) * 3 + content([number]) + bytes(4096) for number in range(1, 400))
    for data in (KNOWN, repeated, source.bytes(1 << 20)):
        (found,) = stored(tmp_path / f"store{len(data)}", data)
        body = found[PACK_HEADER.size :]
        assert found[:8] == b"FSPACK01" and found[24:64] == bytes(40) and len(body) > 20_000
        assert len(zlib.compress(body)) >= len(body)
        parts = [body[at : at + 8] for at in range(0, len(body), 8)]
        assert len(set(parts)) == len(parts)
        seen = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
        assert seen.max() < 1.5 * len(body) / 256 and seen.min() > 0.5 * len(body) / 256
        units = np.frombuffer(body, np.uint8).reshape(-1, 64)  # nor does one place in the units of a pack
        spread = 6 * 73.9 / np.sqrt(len(units))
        assert (abs(units.mean(axis=0) - 127.5) < spread).all()


def test_the_size_of_a_pack_says_little(tmp_path: Path) -> None:
    """Files that differ a little have packs of one size."""
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    for number in range(4):
        for encryption, seen in sizes.items():
            data = KNOWN[: len(KNOWN) - 9000 - number * 3000]
            (found,) = stored(tmp_path / f"store{number}{encryption}", data, encryption=encryption)
            seen.add(len(found))
    assert len(sizes[False]) == 4 and len(sizes[True]) == 1


def planted(store: Store, image_id: str) -> Iterator[bytes]:
    """Under the digest of each block of a version, other pages: valid in all but that."""
    writer = PackWriter(store.backend, store.aead, store.sync)
    for digests, located, _first in store.open_image(image_id).blocks():
        for row, at in enumerate(range(0, len(digests), 16)):
            digest = digests[at : at + 16]
            pages = content([7]) * (int(located.length[row]) // 4096)
            page_digests = store.aead.page_digests([content([7])]) * (len(pages) // 4096)
            writer.add(pack_block(pages, digest, store.aead, "zstd", 1), page_digests)
            yield digest
    rows = writer.finish()
    assert rows is not None
    old = list(store.index.fragments())
    store.index.add([rows], sync=False)
    store.index.drop(old, False, lambda: None)


@pytest.mark.parametrize("encryption", [True, False])
def test_other_content_under_a_digest_is_not_returned(tmp_path: Path, encryption: bool) -> None:
    """A holder of the key, or anyone in a store without encryption, can write any block that is valid in itself."""
    data = content(range(100, 196))
    with Store.create(tmp_path / "store", durability="none", encryption=encryption) as store:
        version = store.put(str(write_sparse(tmp_path / "source", data)), Label("m"))
        assert len(list(planted(store, version.id))) == 3
    with Store.open(tmp_path / "store") as store:
        with pytest.raises(Damaged, match="contains other pages than its digest says"):
            read_whole(store, version.id)
        with pytest.raises(Damaged, match="contains other pages"):
            restore.get(store.open_image(version.id), str(tmp_path / "target"), SILENT)
        assert not (tmp_path / "target").exists()
        (verdict,) = verify(store, [version.id], 100, SILENT)
        assert verdict.state == "damaged" and "contains other pages" in verdict.problems[0]
        again = store.put(str(write_sparse(tmp_path / "source", data)), Label("m"))
        assert read_whole(store, again.id) == data


def test_clones_that_repeat_random_bytes_make_packs_with_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "store", durability="none") as store:
        monkeypatch.setattr("os.urandom", lambda size: b"x" * size)

        def write(numbers: range) -> bytes:
            writer = PackWriter(store.backend, store.aead, store.sync)
            data = content(numbers)
            writer.add(pack_block(data, store.aead.digest(data), store.aead, "zstd", 1), bytes(16 * len(numbers)))
            rows = writer.finish()
            assert rows is not None
            return rows.packs

        first, second, again = write(range(1, 9)), write(range(11, 19)), write(range(1, 9))
        assert len({first, second, again}) == len(list(all_packs(store.backend))) == 3
        monkeypatch.setattr("time.time_ns", lambda: 0)
        same, other = write(range(1, 9)), write(range(1, 8))
        before = (store.path / pack_name(same)).stat()
        with pytest.raises(FileExistsError):
            write(range(1, 9))
        assert (store.path / pack_name(same)).stat() == before
        assert same != other
