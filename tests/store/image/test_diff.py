# SPDX-License-Identifier: GPL-3.0-or-later
"""Comparison of versions: against a model that looks at every page, on real stores; holes cost nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import Damaged, UsageError
from fuse_store.image import diff
from fuse_store.image.diff import Range
from fuse_store.maintenance.repair import repair
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.bench.corpus import versions

PAGE = 4096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", encryption=False, durability="none") as made:
        yield made


def compared(store: Store, a: Path, b: Path) -> list[Range]:
    old, new = (store.open_image(store.put(str(one), Label("m")).id) for one in (a, b))
    return list(diff.diff(old, new, SILENT))


def model(a: bytes, b: bytes, page: int = PAGE) -> list[Range]:
    """One page at a time."""
    size = max(len(a), len(b))
    changes = []
    for at in range(0, size, page):
        old, new = a[at : at + page].ljust(page, b"\0"), b[at : at + page].ljust(page, b"\0")
        changes.append("" if old == new else "added" if not any(old) else "gone" if not any(new) else "changed")
    ranges, at = [], 0
    for change, members in groupby(changes):
        length = len(list(members)) * page
        if change:
            ranges.append(Range("image", change, at, min(length, size - at)))
        at += length
    return ranges


def write(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("window", [diff.DIFF_WINDOW, 1000])
def test_versions_of_a_machine(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(diff, "DIFF_WINDOW", window)
    a, b = versions(tmp_path, 2, 40 << 20)
    with open(b, "r+b") as file:
        for at in (0, 5 << 20, 39 << 20):
            file.seek(at)
            file.write(bytes(300 * PAGE))
    expected = model(a.read_bytes(), b.read_bytes())
    assert {one.change for one in expected} == set(diff.CHANGES)
    assert compared(store, a, b) == expected


def test_a_run_that_crosses_windows_is_one_range(store: Store, tmp_path: Path) -> None:
    begin = (diff.DIFF_WINDOW - 2) * PAGE
    for name, content in (("a", b""), ("b", b"1" * 4 * PAGE)):
        with open(tmp_path / name, "wb") as file:
            file.seek(begin)
            file.write(content)
            file.truncate(begin + 9 * PAGE)
    assert compared(store, tmp_path / "a", tmp_path / "b") == [Range("image", "added", begin, 4 * PAGE)]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (b"", b""),
        (b"", b"x"),
        (b"x", b""),
        (b"x" * 5000, b"x" * 5000),
        (b"x" * 5000, b"x" * 4096),
        (b"x" * 5000, b"x" * 5001),
        (bytes(5000), bytes(9000)),
        (b"x" * 4096 + bytes(4096), b"x" * 4096),
        (b"x" * 12288, bytes(4096) + b"y" * 8192 + b"z"),
    ],
)
def test_sizes_and_ends(store: Store, tmp_path: Path, a: bytes, b: bytes) -> None:
    assert compared(store, write(tmp_path / "a", a), write(tmp_path / "b", b)) == model(a, b)


def test_files_are_paired_by_name(store: Store, tmp_path: Path) -> None:
    for name, content in (("a/same", b"s"), ("a/gone", b"g" * 5000), ("a/other", b"1"), ("a/zeros", bytes(10))):
        write_in(tmp_path / name, content)
    for name, content in (("b/0new", b"n"), ("b/same", b"s"), ("b/other", b"2"), ("b/zeros2", bytes(10))):
        write_in(tmp_path / name, content)
    assert compared(store, tmp_path / "a", tmp_path / "b") == [
        Range("0new", "added", 0, 1),
        Range("gone", "gone", 0, 5000),
        Range("other", "changed", 0, 1),
    ]


def write_in(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def test_a_sparse_image_of_64_gib_is_compared_in_little_memory(store: Store, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for name in "ab":
        with open(tmp_path / name, "wb") as file:
            file.truncate(64 << 30)
            for at in (0, 20 << 30, (64 << 30) - PAGE):
                file.seek(at)
                file.write(random.bytes(PAGE) if at else b"the same".ljust(PAGE))
    ids = [store.put(str(tmp_path / name), Label("m")).id for name in "ab"]
    a, b = (store.open_image(one) for one in ids)
    tracemalloc.start()
    try:
        ranges = list(diff.diff(a, b, SILENT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ranges == [Range("image", "changed", at, PAGE) for at in (20 << 30, (64 << 30) - PAGE)]
    assert peak < 100 << 20


def test_what_is_lost_is_not_the_same(tmp_path: Path) -> None:
    """A block that is in no pack has no digest; two of them must not count as equal."""
    path = tmp_path / "store"
    random = np.random.default_rng(3)
    with Store.create(path, encryption=False, durability="none") as store:
        ids = [store.put(str(write(tmp_path / name, random.bytes(9 * PAGE))), Label("m")).id for name in "ab"]
    for pack in path.glob("packs/*/*.pack"):
        pack.unlink()
    with Store.open(path) as store:
        repair(store, SILENT)
    with Store.open(path) as store, pytest.raises(Damaged):
        list(diff.diff(store.open_image(ids[0]), store.open_image(ids[1]), SILENT))


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a", b"x" * 70000)
    images = []
    for size in (4096, 65536):
        with Store.create(tmp_path / str(size), encryption=False, durability="none", page_size=size) as store:
            images.append(store.open_image(store.put(str(source), Label("m")).id))
    with pytest.raises(UsageError, match="page sizes differ"):
        list(diff.diff(images[0], images[1], SILENT))


def test_larger_pages(tmp_path: Path) -> None:
    a = np.random.default_rng(1).bytes(300_000)
    b = a[:100_000] + b"!" + a[100_001:]
    with Store.create(tmp_path / "store", encryption=False, durability="none", page_size=16384) as store:
        found = compared(store, write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found == model(a, b, 16384) == [Range("image", "changed", 6 * 16384, 16384)]
