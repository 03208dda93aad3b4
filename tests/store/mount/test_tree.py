# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of a mounted store, walked without FUSE."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.hibernation import metadata
from fuse_store.image.kind import KINDS, RIGHT, Kind
from fuse_store.mount import content, ranges, tree
from fuse_store.mount.content import ImageContent, WindowCache, offset_of
from fuse_store.mount.tree import Directory, File, Link, Tree, attributes
from fuse_store.repository.backends.posix import CLOCK_TICK
from fuse_store.repository.manifest import Summary
from fuse_store.store import Label, Store
from tests.store.bench import corpus
from tests.store.bench.versions import fill
from tests.store.conftest import PAGE
from tests.store.conftest import content as pages
from tests.store.hibernation.cases import E820, make_case

MB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none")


@pytest.fixture
def shown(store: Store) -> Any:
    shown = Tree(store)
    yield shown
    shown.close()


def put(store: Store, directory: Path, data: bytes, machine: str = "web01", **options: Any) -> Summary:
    source = directory / "source"
    source.write_bytes(data)
    return store.put(str(source), Label(machine, **options))


def at(shown: Tree, path: str) -> tree.Node:
    return shown.node(tuple(path.split("/")) if path else ())


def names(shown: Tree, path: str) -> list[str]:
    node = at(shown, path)
    assert isinstance(node, Directory)
    found = []
    for name, kind in node.names():
        assert type(at(shown, f"{path}/{name}".lstrip("/"))) is kind, "a name's type is that of its node"
        found.append(name)
    return found


def read(shown: Tree, path: str) -> bytes:
    node = at(shown, path)
    assert isinstance(node, File)
    opened = node.open()
    assert opened.size == node.size
    data = bytes(opened.read(0, node.size + 100))
    assert len(data) == node.size, "the size told is the size read"
    return data


def target(shown: Tree, path: str) -> str:
    """Where a link leads, from the root."""
    node = at(shown, path)
    assert isinstance(node, Link)
    return os.path.normpath(os.path.join(os.path.dirname(path), node.target))


def test_layout(store: Store, shown: Tree, tmp_path: Path) -> None:
    assert names(shown, "") == ["ids", "kinds", "machines"]
    assert names(shown, "machines") == names(shown, "ids") == names(shown, "kinds") == []
    first = put(store, tmp_path, pages([1, 0, 2]), kind="disk", event="nightly")
    second = put(store, tmp_path, pages([1, 3, 2]), kind="disk")
    other = put(store, tmp_path, pages([4]), machine="db 01é", application="pg")
    assert names(shown, "machines") == sorted(["db 01é", "web01"])
    assert names(shown, "machines/web01") == ["system"]
    directory = "machines/web01/system"
    assert names(shown, directory) == [first.version, second.version, "latest"]
    assert names(shown, f"{directory}/{first.version}") == ["image", "info.json", "B3SUMS"]
    assert sorted(names(shown, "ids")) == sorted([first.id, second.id, other.id])
    assert target(shown, f"ids/{first.id}") == f"{directory}/{first.version}"
    assert names(shown, "kinds") == ["disk", "file"]
    assert target(shown, f"kinds/disk/web01-system-{second.version}") == f"{directory}/{second.version}"
    assert target(shown, f"kinds/file/db 01é-pg-{other.version}") == f"machines/db 01é/pg/{other.version}"
    assert read(shown, f"{directory}/{first.version}/image") == pages([1, 0, 2])
    image = at(shown, f"{directory}/{first.version}/image")
    assert isinstance(image, File) and image.allocated == 2 * PAGE and image.fixed
    assert attributes(image) == attributes(at(shown, f"{directory}/{first.version}")) == {
        "user.fuse_store.id": first.id.encode(), "user.fuse_store.digest": first.id.encode(), "user.fuse_store.kind": b"disk",
        "user.fuse_store.event": b"nightly", "user.fuse_store.base": b"", "user.fuse_store.state": b"captured",
    }  # fmt: skip
    assert attributes(at(shown, f"{directory}/{second.version}"))["user.fuse_store.base"] == first.id.encode()
    assert attributes(at(shown, directory)) == {}
    info = json.loads(read(shown, f"{directory}/{first.version}/info.json"))
    told = tuple(info[key] for key in ("id", "digest", "size", "event", "state"))
    assert told == (first.id, first.id, 3 * PAGE, "nightly", "captured")
    assert datetime.fromisoformat(info["taken"]).replace(microsecond=0) == first.taken.replace(microsecond=0)
    digest = blake3(pages([1, 0, 2])).hexdigest()
    assert read(shown, f"{directory}/{first.version}/B3SUMS") == f"{digest}  image\n".encode()


def test_a_hibernation_image_is_told_in_short(tmp_path: Path) -> None:
    """With what its header.json says, and the kernel's checksum as far as it was compared; nothing of what is no such image."""
    case = make_case(tmp_path / "case", compressions=("lzo", "none"))
    shown = Tree(case.store)
    no_image = put(case.store, tmp_path, pages([1, 2]), kind="hibernation")
    other = put(case.store, tmp_path, pages([1, 2]), kind="disk")

    def told(image_id: str) -> Any:
        return json.loads(read(shown, f"{target(shown, f'ids/{image_id}')}/info.json"))["hibernation"]

    assert told(no_image.id) is told(other.id) is None
    for number, flags, verdict in ((0, ["crc32_mode"], "not checked"), (1, ["nocompress_mode"], "none")):
        header = json.loads(read(shown, f"{target(shown, f'ids/{case.ids[number]}')}/header.json"))
        found = told(case.ids[number])
        assert found == {**{key: header[key] for key in metadata.BRIEF}, "crc": verdict}
        assert (found["kernel"], found["host"], found["memory_size"]) == ("6.12.7-test", "web01", found["memory_pages"] * 4096)
        assert found["flags"] == flags and found["e820_checksum"] == E820
    case.store.record([case.ids[0]], "verified", checksum=RIGHT)
    assert told(case.ids[0])["crc"] == "right", "what was known when it was first looked at"
    shown.close()


def test_what_cannot_be_read_of_a_hibernation_image_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library that compresses its chunks, or without the server that the store is on."""
    case = make_case(tmp_path / "case", compressions=("lzo",))
    shown = Tree(case.store)
    directory = target(shown, f"ids/{case.ids[0]}")
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "describe", lambda image: raised(StoreError("liblzo2", "it is not there.")))
        info = json.loads(read(shown, f"{directory}/info.json"))
        assert (info["id"], info["hibernation"]) == (case.ids[0], None)
    assert json.loads(read(shown, f"{directory}/info.json"))["hibernation"]["compression"] == "lzo", "it is looked at again"
    shown.close()


def raised(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nothing", FileNotFoundError),
        ("machines/web02", FileNotFoundError),
        ("machines/web01/nothing/latest", FileNotFoundError),
        ("machines/web01/system/nothing", FileNotFoundError),
        ("machines/web01/system/latest-verified", FileNotFoundError),
        ("machines/web01/system/VERSION/nothing", FileNotFoundError),
        ("machines/web01/system/VERSION/image/below", NotADirectoryError),
        ("machines/web01/system/VERSION/B3SUMS/below", NotADirectoryError),
        ("machines/web01/system/latest/image", NotADirectoryError),  # a link is followed by the kernel, not here
        ("ids/0123", FileNotFoundError),
        ("kinds/vm", FileNotFoundError),
        ("kinds/file/nothing", FileNotFoundError),
    ],
)
def test_what_is_not_there(store: Store, shown: Tree, tmp_path: Path, path: str, error: type[OSError]) -> None:
    version = put(store, tmp_path, pages([1]))
    with pytest.raises(error):
        at(shown, path.replace("VERSION", version.version))


def test_always_current(store: Store, shown: Tree, tmp_path: Path) -> None:
    directory = "machines/web01/system"
    first = put(store, tmp_path, pages([1]))
    assert target(shown, f"{directory}/latest") == f"{directory}/{first.version}"
    second = put(store, tmp_path, pages([2]))
    assert target(shown, f"{directory}/latest") == f"{directory}/{second.version}"
    store.record([first.id], "verified")
    assert target(shown, f"{directory}/latest-verified") == f"{directory}/{first.version}"
    assert json.loads(read(shown, f"{directory}/{first.version}/info.json"))["state"] == "verified"
    store.record([second.id], "verified")
    store.record([second.id], "staged")  # which only what was read whole becomes
    assert target(shown, f"{directory}/latest-verified") == f"{directory}/{second.version}"
    store.record([second.id], "failed")
    assert target(shown, f"{directory}/latest-verified") == f"{directory}/{first.version}"
    opened = at(shown, f"{directory}/{second.version}/image")
    assert isinstance(opened, File)
    kept = opened.open()
    assert bytes(kept.read(0, 10)) == pages([2])[:10]
    store.remove([second.id])
    assert target(shown, f"{directory}/latest") == f"{directory}/{first.version}"
    with pytest.raises(FileNotFoundError):
        at(shown, f"{directory}/{second.version}")
    assert bytes(kept.read(0, PAGE)) == pages([2]), "what is open stays readable"
    store.remove([first.id])
    with pytest.raises(FileNotFoundError):
        at(shown, "machines/web01")


def test_ten_thousand_versions_are_listed_without_opening_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with Store.create(tmp_path / "store", durability="none") as store:
        fill(store, 1, 10_000)
        real = store.versions.listed

        def listed(tag: str) -> Any:
            asked.append(tag)
            return real(tag)

        monkeypatch.setattr(store.versions, "listed", listed)
        monkeypatch.setattr(store, "open_image", lambda _id: pytest.fail("an image was opened"))
        shown = Tree(store)
        time.sleep(2 * CLOCK_TICK / 1e9)
        found = names(shown, "machines/machine0/system")
        assert len(found) == 10_001
        for name in found[:-1]:
            node = at(shown, f"machines/machine0/system/{name}/image")
            assert isinstance(node, File) and node.size == 0
        assert len(asked) == 1, "the list is made once"
        store.remove([attributes(at(shown, f"machines/machine0/system/{found[5]}"))["user.fuse_store.id"].decode()])
        time.sleep(2 * CLOCK_TICK / 1e9)
        assert found[5] not in names(shown, "machines/machine0/system") and len(asked) == 2
        shown.close()


def test_a_look_at_all_machines_reads_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "store", durability="none") as store:
        fill(store, 50, 3)
        monkeypatch.setattr("fuse_store.versions.read_head", lambda *_args: pytest.fail("a manifest was read"))
        shown = Tree(store)
        assert len(names(shown, "machines")) == 50
        for name in names(shown, "machines"):
            assert isinstance(at(shown, f"machines/{name}"), Directory)
        ids = at(shown, "ids")
        assert isinstance(ids, Directory) and len(list(ids.names())) == 150
        with pytest.raises(FileNotFoundError):
            at(shown, "machines/another")
        shown.close()


def test_a_change_is_seen_where_times_are_in_whole_seconds(store: Store, shown: Tree, tmp_path: Path) -> None:
    """FAT has every second one: the time of a directory may be that of two changes, two seconds apart."""
    put(store, tmp_path, pages([1]))
    (directory,) = store.path.glob("images/*")
    second = int(time.time())
    os.utime(directory, (second, second))
    time.sleep(0.1)
    assert len(names(shown, "machines/web01/system")) == 2 and names(shown, "kinds") == ["file"]
    put(store, tmp_path, pages([2]), kind="disk")
    os.utime(directory, (second, second))  # in the same second
    assert len(names(shown, "machines/web01/system")) == 3 and names(shown, "kinds") == ["disk", "file"]


def test_names_in_kinds_are_names(store: Store, shown: Tree, tmp_path: Path) -> None:
    version = put(store, tmp_path, pages([1]), machine="é" * 100, application="x" * 200)
    (name,) = names(shown, "kinds/file")
    assert 250 < len(name.encode()) <= 255 and name.endswith(version.version)
    link = at(shown, f"kinds/file/{name}")
    assert isinstance(link, Link) and link.target.endswith(version.version)


def test_image_of_several_files(store: Store, shown: Tree, tmp_path: Path) -> None:
    source = tmp_path / "several"
    (source / "sub" / "deep").mkdir(parents=True)
    files = {"a": b"x" * 5000, "back\\slash": b"", "sub/deep/é\nline": pages([0, 1, 0]), "sub/z": b"1"}
    for name, data in files.items():
        (source / name).write_bytes(data)
    version = store.put(str(source), Label("web01", kind="process"))
    directory = f"machines/web01/system/{version.version}"
    assert names(shown, f"{directory}/image") == ["a", "back\\slash", "sub"]
    assert names(shown, f"{directory}/image/sub") == ["z", "deep"]
    for name, data in files.items():
        assert read(shown, f"{directory}/image/{name}") == data
        node = at(shown, f"{directory}/image/{name}")
        assert isinstance(node, File) and node.changed == (source / name).stat().st_mtime_ns
    node = at(shown, f"{directory}/image/sub/deep/é\nline")
    assert isinstance(node, File) and node.allocated == PAGE
    for path, error in (("a/b", NotADirectoryError), ("sub/y", FileNotFoundError), ("sub/z/y", NotADirectoryError)):
        with pytest.raises(error):
            at(shown, f"{directory}/image/{path}")
    shown_names = ("image/a", "image/back\\\\slash", "image/sub/z", "image/sub/deep/é\\nline")
    sums = [blake3(files[name]).hexdigest() for name in ("a", "back\\slash", "sub/z", "sub/deep/é\nline")]
    lines = [f"{chr(92) if chr(92) in name else ''}{digest}  {name}\n" for digest, name in zip(sums, shown_names, strict=True)]
    assert read(shown, f"{directory}/B3SUMS").decode() == "".join(lines)


class Made:
    def __init__(self, name: str, data: bytes | Exception) -> None:
        self.name, self._data = name, data
        self.asked = 0

    def size(self) -> int:
        self.asked += 1
        if isinstance(self._data, Exception):
            raise self._data
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        assert isinstance(self._data, bytes)
        return self._data[offset : offset + length]


@dataclass(frozen=True)
class Views(Kind):
    """A kind with views."""

    make: Callable[[Any], Sequence[Made]] = lambda image: ()

    def views(self, image: Any) -> Sequence[Made]:
        return self.make(image)


def test_derived_files(
    store: Store, shown: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = Made("good.txt", b"derived"), Made("bad.txt", ValueError("no header"))
    opened: list[str] = []

    def make(image: Any) -> Sequence[Made]:
        opened.append(image.id)
        return [good, bad]

    def broken(image: Any) -> Sequence[Made]:
        raise Damaged("image", "it is something else.")

    kinds = {"vm": Views("vm", make=make), "core": Views("core", make=broken), "hibernation": Kind("hibernation")}
    monkeypatch.setattr("fuse_store.image.kind.load", kinds.__getitem__)
    monkeypatch.setitem(KINDS, "vm", Kind("vm", module="made"))
    monkeypatch.setitem(KINDS, "core", Kind("core", module="made"))
    first = put(store, tmp_path, pages([1]), kind="vm")
    second = put(store, tmp_path, pages([2]), kind="core")
    directory = f"machines/web01/system/{first.version}"
    assert names(shown, "machines/web01/system") and not opened, "a list of versions makes nothing"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert names(shown, directory) == ["image", "info.json", "B3SUMS", "good.txt"]
            assert names(shown, f"machines/web01/system/{second.version}") == ["image", "info.json", "B3SUMS"]
    assert opened == [first.id] and good.asked == 1
    assert read(shown, f"{directory}/good.txt") == b"derived"
    with pytest.raises(FileNotFoundError):
        at(shown, f"{directory}/bad.txt")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "bad.txt" in told[0] and "no header" in told[0] and first.id in told[0]
    assert second.id in told[1] and "it is something else" in told[1]


def test_what_is_no_hibernation_image_has_no_derived_files(store: Store, shown: Tree, tmp_path: Path) -> None:
    version = put(store, tmp_path, pages([1, 2, 3]), kind="hibernation")
    assert names(shown, f"machines/web01/system/{version.version}") == ["image", "info.json", "B3SUMS"]


def test_ranges(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the cells without data are holes, wherever a file begins and the windows end."""
    random = np.random.default_rng(5)
    numbers = np.zeros(900, int)
    for start in random.choice(880, 60, replace=False).tolist():
        numbers[start : start + random.integers(1, 8)] = random.integers(1, 50)
    numbers[300:600] = 0
    data = pages(numbers.tolist(), cut=100)
    version = put(store, tmp_path, data)
    cell = 4 * PAGE
    monkeypatch.setattr(ranges, "RANGE_CELL_SIZE", cell)
    monkeypatch.setattr(ranges, "CELLS_PER_SPAN", 7)
    image = store.open_image(version.id)
    for base, size in ((0, len(data)), (3 * PAGE, len(data) - 10 * PAGE)):
        own = ranges.DataRanges(image, base, size)
        bytes_here = np.frombuffer(data, np.uint8)[base : base + size]
        full = np.array([bytes_here[at : at + cell].any() for at in range(0, size, cell)])
        told = np.zeros(len(full), bool)
        where, runs = 0, 0
        while (begin := own.data(where)) is not None:
            end = own.hole(begin)
            assert where <= begin < end <= size
            assert own.data(begin + 1) == begin + 1 and own.data(end - 1) == end - 1 and own.hole(end) == end
            told[begin // cell : -(-end // cell)] = True
            where, runs = end, runs + 1
        assert (told == full).all() and runs > 10
        assert own.data(size) is None and own.hole(size) == size


def test_reading_in_any_way_gives_the_bytes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "READ_AHEAD_WINDOW", 256 << 10)
    monkeypatch.setattr(content, "MAX_CACHED_WINDOWS", 4)
    monkeypatch.setattr(content, "SEQUENTIAL_THRESHOLD", 64 << 10)
    (path,) = corpus.versions(tmp_path, 1, 8 * MB)
    data = path.read_bytes()
    image = store.open_image(store.put(str(path), Label("m")).id)
    windows = WindowCache()
    for base, size in ((0, len(data)), (5 * PAGE, 3 * MB + 7)):
        own = data[base : base + size]
        opened = ImageContent(image, base, size, windows)
        for length in (1000, 128 << 10, MB):
            assert b"".join(bytes(opened.read(offset, length)) for offset in range(0, size, length)) == own
        random = np.random.default_rng(1)
        for offset, length in zip(random.integers(0, size, 200).tolist(), random.integers(0, 300_000, 200).tolist(), strict=True):
            assert bytes(opened.read(offset, length)) == own[offset : offset + length]
        assert bytes(opened.read(size, 10)) == bytes(opened.read(size + 5, 10)) == b""
    windows.close()


def test_a_window_that_cannot_be_read_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad page must not take its window with it."""
    bad = 700_000

    class Image:
        id = "x"

        def read_view(self, offset: int, length: int) -> memoryview:
            if offset <= bad < offset + length:
                raise Damaged("block", "it is damaged.")
            return memoryview(bytes(length))

    windows = WindowCache()
    opened = ImageContent(Image(), 0, 16 * MB, windows)  # type: ignore[arg-type]
    failed = []
    for offset in range(0, 16 * MB, PAGE):
        try:
            assert len(opened.read(offset, PAGE)) == PAGE
        except StoreError:
            failed.append(offset)
    assert failed == [bad // PAGE * PAGE]
    windows.close()


def test_where_in_a_file_a_read_failed() -> None:
    """A read asks for up to a MiB, of an image of several files; the damage is behind its start."""
    windows = WindowCache()
    opened = ImageContent(None, 3 * PAGE, 16 * MB, windows)  # type: ignore[arg-type]
    damage = Damaged("block", "it is damaged.", extent=hex(10 * PAGE))
    assert offset_of(opened, damage, 0) == 7 * PAGE
    assert offset_of(opened, damage, 7 * PAGE + 5) == 7 * PAGE + 5, "in the page itself"
    assert offset_of(opened, StoreError("server", "gone."), 5) == offset_of(opened, Damaged("block", "it is."), 5) == 5
    windows.close()


def test_a_version_that_goes_while_it_is_looked_at(store: Store, shown: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = put(store, tmp_path, pages([1]))
    gone = NotFound(f"image {version.id}", "it is not in the store.")

    def raises(image_id: str) -> None:
        raise gone

    monkeypatch.setattr(store, "open_image", raises)
    with pytest.raises(FileNotFoundError):
        at(shown, f"machines/web01/system/{version.version}/B3SUMS")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), Damaged("block 1", "wrong.", image="ab"), StoreError("server", "gone.")]
)
def test_the_log_says_where_a_read_failed(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """A program that reads the mount is told an errno, and nothing else."""
    from fuse_store.mount import fuse_adapter

    class Failing:
        size = 1 << 20

        def read(self, offset: int, length: int) -> bytes:
            raise error

    operations = fuse_adapter.Operations.__new__(fuse_adapter.Operations)
    operations._contents = {7: Failing()}  # type: ignore[dict-item]
    operations._paths = {7: "/machines/m/system/2026-11-22T02-10-33Z-4f1c9a/image"}
    fuse_adapter.DAMAGE_LOG._logged.clear()
    with pytest.raises(OSError) as caught:
        operations.read(7, 4096, 12345)
    assert caught.value.errno == errno.EIO
    assert "/machines/m/system/2026-11-22T02-10-33Z-4f1c9a/image at offset 12345: " in caplog.text
