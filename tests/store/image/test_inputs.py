# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources: files, sparse or not, directories, streams, block devices; and what can go wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuse_store.errors import NotFound, StoreError, UsageError
from fuse_store.image import restore
from fuse_store.image.inputs import InputFile, open_input
from fuse_store.image.inputs.input import Doubts
from fuse_store.image.inputs.stream import StreamInput
from fuse_store.progress import SILENT
from fuse_store.repository.entries import MAX_TIME
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, content, loop_device, read_whole, run, umask, write_sparse


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none")


def batches(source: Path, page_size: int = PAGE) -> list[tuple[int, bytes]]:
    """(page, content) of each page that is read."""
    pages = []
    with open_input(str(source)) as opened:
        for batch in opened.batches(page_size):
            data = bytes(batch.data)
            assert len(data) == len(batch.page) * page_size
            pages += [(int(number), data[at * page_size : (at + 1) * page_size]) for at, number in enumerate(batch.page)]
    return pages


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"x", id="1"),
        pytest.param(content([1], cut=1), id="4095"),
        pytest.param(content([1]), id="4096"),
        pytest.param(content([1]) + b"x", id="4097"),
        pytest.param(content([0] * 300), id="one hole"),
        pytest.param(content([0] * 40 + [1]), id="a hole before"),
        pytest.param(content([1] + [0] * 40, cut=7), id="a hole behind, odd"),
        pytest.param(content([1, *[0] * 40, 2, 0, 3, *[0] * 17, 4, *[0] * 70, *range(5, 150), *[0] * 300, 6], cut=9), id="islands"),
    ],
)
def test_pages_are_those_of_the_file_whatever_its_size_and_holes(tmp_path: Path, small: None, data: bytes, page_size: int) -> None:
    for source in (write_sparse(tmp_path / "sparse", data), tmp_path / "full"):
        if source.name == "full":
            source.write_bytes(data)
        pages = batches(source, page_size)
        numbers = [number for number, _data in pages]
        assert numbers == sorted(set(numbers))
        rebuilt = bytearray(-(-len(data) // page_size) * page_size)
        for number, part in pages:
            rebuilt[number * page_size : (number + 1) * page_size] = part
        assert bytes(rebuilt[: len(data)]) == data and not any(rebuilt[len(data) :])


def test_holes_are_not_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(content([1, 2]))
    assert [number for number, _data in batches(source)] == [(1 << 39) // PAGE, (1 << 39) // PAGE + 1]


def test_a_directory_is_an_image_of_its_files_with_any_names(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "source"
    names = ["a b", "new\nline", "üñí → 語", "語" * 85, "-", "--force", " ", "x" * 255, "sub/deep/er/file", "empty", ".hidden", "*?["]
    names += ['quo"te', "tab\there"]
    for number, name in enumerate(names):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else content([number + 1], cut=number))
        path.chmod(0o600 + number % 8)
        os.utime(path, ns=(1, 1_700_000_000_123_456_789 + number))
    made = store.put(str(source), Label("m"))
    with umask(0):
        restore.get(store.open_image(made.id), str(tmp_path / "got"), SILENT)
    got = sorted(path.relative_to(tmp_path / "got") for path in (tmp_path / "got").rglob("*") if path.is_file())
    assert got == sorted(Path(name) for name in names)
    for name in names:
        one, other = source / name, tmp_path / "got" / name
        assert one.read_bytes() == other.read_bytes()
        assert (one.stat().st_mode, one.stat().st_mtime_ns) == (other.stat().st_mode, other.stat().st_mtime_ns)


@pytest.mark.parametrize("year", [1500, 2400])
def test_a_time_that_cannot_be_stored_is_stored_as_the_nearest(tmp_path: Path, store: Store, year: int) -> None:
    """Whatever the filesystem holds: only tmpfs and XFS hold all of these."""
    source = tmp_path / "source"
    source.mkdir()
    for name in "ab":
        (source / name).write_bytes(b"x")
    far = int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 10**9
    for opened in (open_input(str(source)), open_input(str(source / "a"))):
        with opened:
            opened.files = [replace(file, mtime=far) for file in opened.files]
            warned: list[str] = []
            made = store.put(opened, Label("m"), warn=warned.append)
            assert all(file.mtime == (MAX_TIME if year == 2400 else -MAX_TIME) for file in store.open_image(made.id).files)
            assert warned[0].startswith(f"{source}/a{' and 1 more' if len(opened.files) == 2 else ''}: modified before the year 1677")
            assert "consistent" not in made.tags


def test_a_name_that_is_no_text_is_refused(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
    with pytest.raises(UsageError, match="UTF-8"):
        store.put(str(source), Label("m"))
    assert store.ids() == []


@pytest.mark.parametrize("what", ["fifo", "socket"])
def test_what_is_no_file_is_refused_in_a_directory(tmp_path: Path, store: Store, what: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    other = source / "other"
    if what == "fifo":
        os.mkfifo(other)
    else:
        os.mknod(other, 0o140600)
    with pytest.raises(UsageError, match=rf"other: a {what.replace('fifo', 'FIFO')}, which .* tar makes") as caught:
        store.put(str(source), Label("m"))
    assert caught.value.exit_code == 2 and store.ids() == []


def test_sources_that_are_none(tmp_path: Path, store: Store) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for source, error in (("gone", NotFound), ("empty", UsageError), ("fifo", UsageError), ("empty/../gone/x", NotFound)):
        with pytest.raises(error, match="source"):
            store.put(str(tmp_path / source), Label("m"))
    with pytest.raises(UsageError):
        store.put("/dev/null", Label("m"))
    assert store.ids() == []


class Meanwhile:
    """Progress during which something happens, once."""

    def __init__(self, act: object) -> None:
        self.act = act

    def start(self, label: str, total: int | None, unit: str = "bytes") -> None: ...

    def at(self, done: int) -> None:
        if callable(self.act):
            self.act()
        self.act = None

    def finish(self) -> None: ...


@pytest.mark.parametrize("change", ["written", "longer", "shorter", "replaced by a longer one", "removed"])
@pytest.mark.parametrize("which", ["one file", "the first of several", "the second of several"])
def test_a_source_that_changes_while_it_is_read_makes_no_version(
    tmp_path: Path, store: Store, small: None, change: str, which: str
) -> None:
    source = tmp_path / "source"
    target = source
    if which != "one file":
        source.mkdir()
        (source / "a").write_bytes(content(range(1, 200)))
        (source / "b").write_bytes(content(range(200, 400)))
        target = source / ("a" if "first" in which else "b")
    else:
        source.write_bytes(content(range(1, 400)))
    if change == "removed" and "second" not in which:
        return  # it is open already, and read to its end

    def act() -> None:
        if change in ("written", "longer"):
            with open(target, "r+b" if change == "written" else "ab") as file:
                file.write(b"changed")
        elif change == "shorter":
            os.truncate(target, 100 * PAGE)
        elif change == "removed":
            target.unlink()
        elif "second" in which:
            other = tmp_path / "other"
            other.write_bytes(content(range(500, 900)))
            other.rename(target)
        else:
            with open(target, "r+b") as file:
                file.write(content(range(500, 1000)))

    with pytest.raises(StoreError, match=str(target)):
        store.put(str(source), Label("m"), progress=Meanwhile(act))
    assert store.ids() == []


def test_standard_input(tmp_path: Path, store: Store) -> None:
    code = "import sys\nfrom fuse_store.store import Label, Store\nwith Store.open(sys.argv[1]) as s: print(s.put('-', Label('m')).id)"
    for data in (b"x", content([*range(1, 300), 0, 0, 5], cut=3)):
        done = subprocess.run([sys.executable, "-c", code, str(store.path)], input=data, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        image = store.open_image(done.stdout.decode().strip())
        assert image.size == len(data) and image.read(0, image.size) == data


def test_a_stream_comes_in_small_parts(store: Store) -> None:
    reader, writer = os.pipe()
    data = content(range(1, 40), cut=11)
    if os.fork() == 0:
        for at in range(0, len(data), 1009):
            os.write(writer, data[at : at + 1009])
        os._exit(0)
    os.close(writer)
    before = os.dup(0)
    try:
        os.dup2(reader, 0)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(sys, "stdin", open(0, closefd=False))  # noqa: SIM115
            made = store.put("-", Label("m"))
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reader)
        os.wait()
    assert read_whole(store, made.id) == data


def test_a_block_device_is_read_to_its_end(tmp_path: Path, store: Store) -> None:
    data = content([1, 0, 0, 2, *[0] * 100, *range(3, 30)])
    data += bytes((1 << 20) - len(data))
    (tmp_path / "disk").write_bytes(data)
    with loop_device(tmp_path / "disk", 1 << 20) as device:
        with open_input(str(device)) as opened:
            assert [file.size for file in opened.files] == [1 << 20]
        made = store.put(str(device), Label("m", kind="disk"))
    assert made.size == 1 << 20 and read_whole(store, made.id) == data


def test_a_sparse_file_stays_sparse_both_ways(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.truncate((1 << 27) + 1)
        for at in (0, 1 << 25, (1 << 27) - 1000):
            file.seek(at)
            file.write(content([at + 1]))
    used = source.stat().st_blocks
    made = store.put(str(source), Label("m"))
    assert made.size == source.stat().st_size and made.allocated == 4 * PAGE
    assert sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file()) < 100_000
    assert restore.get(store.open_image(made.id), str(tmp_path / "got"), SILENT) < 5 * PAGE
    assert (tmp_path / "got").stat().st_blocks <= used + 16
    run("cmp", str(source), str(tmp_path / "got"))


def test_a_source_file_of_a_stream_has_no_size_before_it_is_read() -> None:
    assert InputFile("image", None, None).size is None


def test_many_small_files_come_in_few_batches_of_bounded_size(tmp_path: Path, small: None) -> None:
    """A batch and a thread for each made 20,000 of them take 27 s."""
    for number in range(300):
        (tmp_path / f"folder/{number % 7}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"folder/{number % 7}/{number}").write_bytes(f"{number}".encode() * (number % 3))
    before = threading.active_count()
    with open_input(str(tmp_path / "folder")) as opened:
        sizes, most, rebuilt = [], 0, {}
        for batch in opened.batches(PAGE):
            sizes.append(len(batch.data))
            most = max(most, threading.active_count() - before)
            rebuilt.update({int(page): bytes(batch.data[at * PAGE : (at + 1) * PAGE]) for at, page in enumerate(batch.page)})
        assert len(sizes) == -(-200 * PAGE // (256 << 10)) and max(sizes) <= 256 << 10 and most <= 2
        for file, offset in zip(opened.files, opened.offsets(PAGE), strict=True):
            data = (tmp_path / "folder" / file.name).read_bytes()
            assert file.size == len(data) and rebuilt.get(offset // PAGE, b"")[: len(data)] == data
        assert opened.tags == {} and list(opened.warnings) == []


@pytest.mark.parametrize("allowed", [False, True])
def test_a_file_as_standard_input_that_changes(tmp_path: Path, allowed: bool) -> None:
    (tmp_path / "source").write_bytes(content(range(1, 300)))
    with open(tmp_path / "source", "r+b") as file, StreamInput(file.fileno(), 299 * PAGE, doubts=Doubts(allowed)) as opened:
        time.sleep(0.02)  # a tick of the clock that its times are of
        batches = opened.batches(PAGE)
        next(batches)
        os.pwrite(file.fileno(), b"changed", 5 * PAGE)
        if allowed:
            assert not list(batches) and opened.tags == {"consistent": "no"}
        else:
            with pytest.raises(StoreError, match="standard input: changed while being read"):
                next(batches)


def test_standard_input_that_is_a_file_tells_how_long_it_is(tmp_path: Path, store: Store) -> None:
    """So it can replace a version."""
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 30)))
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "-", "--machine", "m", "--replace"]
    for _time in range(2):
        with open(source, "rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and store.ids() == [done.stdout.strip()], done.stderr
    assert read_whole(store, store.ids()[0]) == source.read_bytes()
    with open(source, "rb") as file:
        os.lseek(file.fileno(), 5000, os.SEEK_SET)
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and read_whole(store, done.stdout.strip()) == source.read_bytes()[5000:]


def test_a_pipe_is_marked_and_its_user_may_know_better(tmp_path: Path, store: Store) -> None:
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "--machine", "m"]
    for more, tags in ([], {"consistent": "unknown"}), (["--tag", "consistent=yes"], {"consistent": "yes"}):
        done = subprocess.run([*command, *more, "-"], input="data", capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "warning" not in done.stderr
        assert store.find(done.stdout.strip()).tags == tags
