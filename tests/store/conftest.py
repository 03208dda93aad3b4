# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the store have in common: images of numbered pages, limits made small, children, real filesystems."""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from fuse_store.image import block_cache, segments
from fuse_store.image.inputs import reading
from fuse_store.image.put import block_writer, segment_writer
from fuse_store.repository import pack
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.index import Rows, merge
from fuse_store.repository.state_log import StateEntry
from fuse_store.store import Store

PAGE = 4096
FAILED = 99  # exit code of a child that raised


@dataclass
class Done:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The one JSON object on standard error."""
        assert self.err.count("\n") == 1
        return json.loads(self.err)["error"]


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Key files go there, and nowhere else."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FUSE_STORE_KEY_FILE", raising=False)
    return tmp_path / "config"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store, for tests that need no other."""
    with Store.create(tmp_path / "store", durability="none") as made:
        yield made


def make_small(monkeypatch: pytest.MonkeyPatch, full: int = 64 << 10) -> None:
    """Limits so small that a few hundred pages make several batches, packs, segments, and merges of the index."""
    monkeypatch.setattr(pack, "PACK_SIZE", full)
    monkeypatch.setattr(reading, "BATCH_SIZE", 256 << 10)
    monkeypatch.setattr(block_writer, "MAX_GROUPS", 2)
    monkeypatch.setattr(segment_writer, "MAX_EXTENTS", 8)
    monkeypatch.setattr(segments, "MAX_OPEN_SEGMENTS", 2)
    monkeypatch.setattr(block_cache, "CACHE_SIZE", 512 << 10)
    monkeypatch.setattr(merge, "PART_ROWS", 64)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def page(number: int, size: int = PAGE) -> bytes:
    """The page with this number: zeros for 0, else an eighth of noise of its own, and the rest text."""
    if not number:
        return bytes(size)
    noise = np.random.default_rng(number).bytes(size // 8)
    return (noise + b"page %8d " % number * size)[:size]


def content(numbers: Sequence[int], size: int = PAGE, cut: int = 0) -> bytes:
    """The pages with these numbers, one after the other, without the last ``cut`` bytes."""
    whole = b"".join(page(number, size) for number in numbers)
    return whole[: len(whole) - cut]


def write_sparse(path: Path, data: bytes) -> Path:
    """A file in which pages of zeros are holes."""
    with open(path, "wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), PAGE):
            if any(data[at : at + PAGE]):
                file.seek(at)
                file.write(data[at : at + PAGE])
    return path


def read_whole(store: Store, image_id: str) -> bytes:
    """An image's bytes, read in pieces that do not fit its pages."""
    opened = store.open_image(image_id)
    return b"".join(opened.read(at, 100_001) for at in range(0, opened.size, 100_001))


def entries_of(store: Store, image_id: str) -> list[StateEntry]:
    """The state log of a version."""
    return store.state_log.read(store.open_image(image_id).head.content).entries_of(image_id)


def state_of(store: Store, image_id: str) -> str:
    return store.state_log.read(store.open_image(image_id).head.content).state(image_id)


def index_rows(store: Store) -> Rows:
    """The whole index, in the order of the digests."""
    fragments = store.index.fragments().values()
    whole = merge.Merge([fragment.part(0, len(fragment)) for fragment in fragments])
    parts = list(whole.parts())
    names = ("high", "low", "offset", "pack", "stored", "length")
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}, packs=whole.packs)


def packs_of(path: Path) -> set[bytes]:
    """The ids of the packs of a store in a directory."""
    return {pack for pack, _size in pack.all_packs(PosixBackend(path))}


def packs_with(store: Store, image_id: str) -> set[bytes]:
    """The packs that the blocks of a version are in."""
    return {pack for _digests, located, _first_pages in store.open_image(image_id).blocks() for pack in located.packs}


def read_store(path: Path) -> dict[str, bytes]:
    """The content of every version of a store, by id."""
    with Store.open(path) as store:
        return {image_id: read_whole(store, image_id) for image_id in store.ids()}


def clone(store: Path, target: Path, fresh: Sequence[str] = ()) -> Path:
    """A store with the same files, by hard links (nothing in a store is changed in place); ``fresh`` are real copies."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(store, target, copy_function=os.link)
    for name in fresh:
        (target / name).unlink()
        shutil.copy2(store / name, target / name)
    return target


def replace_content(path: Path, data: bytes) -> None:
    """Other content under the same name; a clone's original keeps its own."""
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


def fork(work: Callable[[], object]) -> int:
    """Do ``work`` in a child, which starts as warm as this process is; its pid. The child ends with 0, or FAILED."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def busy(act: Callable[[], object]) -> Iterator[int]:
    """Another process, which has done something and stays."""
    reader, writer = os.pipe()

    def work() -> None:
        kept = act()
        os.write(writer, b"x")
        signal.pause()
        del kept

    child = fork(work)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x"
        yield child
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        wait(child)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def opened(path: Path) -> BinaryIO:
    return open(path, "r+b", buffering=0)


def opened_to_read(path: Path) -> BinaryIO:
    return open(path, "rb")


def mapped(path: Path) -> mmap.mmap:
    """A file or device that is mapped and closed, as the memory of a virtual machine may be."""
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), PAGE)


def run(*command: str) -> str:
    """What a command prints; if it fails, so does the test."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("this test mounts a filesystem or sets up a loop device: run it as root")


@contextlib.contextmanager
def loop_device(file: Path, size: int) -> Iterator[Path]:
    """A block device of ``size`` bytes that is kept in ``file``."""
    needs_root()
    with open(file, "ab") as out:
        out.truncate(size)
    try:
        device = run("losetup", "--find", "--show", str(file)).strip()
    except AssertionError as error:
        pytest.fail(f"there are no loop devices here, and block devices can't be tested without: {error}")
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def small_filesystem(directory: Path, size: int) -> Iterator[Path]:
    """A filesystem with ``size`` bytes: ext4 on a loop device, or a tmpfs where there are no loop devices."""
    needs_root()
    directory.mkdir()
    backing = directory.with_suffix(".ext4")
    with open(backing, "wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-m", "0", "-b", "4096", "-O", "^has_journal", str(backing))
    mounted = subprocess.run(["mount", "-o", "loop", str(backing), str(directory)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
        second = subprocess.run(tmpfs, capture_output=True, text=True, check=False)
        if second.returncode:
            pytest.fail(f"neither ext4 on a loop device ({mounted.stderr}) nor a tmpfs ({second.stderr}) can be mounted")
    try:
        yield directory
    finally:
        gc.collect()  # what a failed test's traceback holds may have files of it mapped
        run("umount", str(directory))
