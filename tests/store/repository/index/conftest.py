# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows, fragments and an index to try."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fuse_store.repository.aead import Aead
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.index import Index, Rows
from fuse_store.repository.index.fragment import Fragment, write_fragment
from fuse_store.repository.index.merge import Merge

AEADS = {"encrypted": Aead(bytes(16), bytes(32), True), "plain": Aead(bytes(16), bytes(32), False)}
PACKS = [bytes([number]) * 16 for number in (7, 8, 9)]
END = (1 << 64) - 1
COLUMNS = ("high", "low", "offset", "pack", "stored", "length")


def digest(high: int, low: int) -> bytes:
    return struct.pack("<QQ", high, low)


def make_rows(blocks: list[tuple[int, int, int]], packs: list[bytes] = PACKS[:2], first: int = 0) -> Rows:
    """Rows of (high, low, ordinal of the pack); offset, bytes stored and length follow from the row."""
    columns = list(zip(*sorted(blocks), strict=True)) or [(), (), ()]
    high, low, pack = (np.array(column, kind) for column, kind in zip(columns, ("u8", "u8", "u4"), strict=True))
    row = first + np.arange(len(blocks))
    return Rows(
        high, low, (100 + row).astype("u8"), pack, (200 + row).astype("u4"), (300 + row).astype("u4"), b"".join(packs)
    )


ROWS = make_rows([(1, 5, 0), (2, 1, 1), (2, 3, 0), (2, 9, 1), (4, 0, 0), (END, END, 1)])


def many(seed: int, count: int, packs: list[bytes] = PACKS) -> Rows:
    """So many rows with random digests."""
    random = np.random.default_rng(seed)
    return make_rows(list(zip(*(random.integers(0, END, (2, count), "u8")).tolist(), random.integers(0, len(packs), count).tolist(),
                              strict=True)), packs, first=1000 * seed)  # fmt: skip


def listed(rows: Rows) -> list[tuple[bytes, bytes, int, int, int]]:
    """Each row: digest, pack, offset, bytes stored, length."""
    return [(rows.digest(row), *rows.place(row), int(rows.length[row])) for row in range(len(rows))]


def content_of(fragment: Fragment) -> list[tuple[bytes, bytes, int, int, int]]:
    return listed(fragment.part(0, len(fragment)))


def write(backend: PosixBackend, rows: Rows, aead: Aead, number: int = 1) -> Path:
    """A fragment of these rows alone."""
    merge = Merge([rows])
    name = write_fragment(backend, aead, merge.parts, merge.packs, number, sync=False)
    assert name is not None
    return backend.local_dir / "index" / name


def opened(path: Path, backend: PosixBackend, aead: Aead) -> Fragment:
    return Fragment(path.stem, backend.read_mmap(f"index/{path.name}", check=False), aead)


@pytest.fixture
def backend(tmp_path: Path) -> PosixBackend:
    backend = PosixBackend(tmp_path / "store")
    backend.prepare()
    return backend


@pytest.fixture(params=AEADS)
def aead(request: pytest.FixtureRequest) -> Aead:
    return AEADS[request.param]


@pytest.fixture
def own(backend: PosixBackend, aead: Aead) -> Index:
    return Index(backend, aead)
