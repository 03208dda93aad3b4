# SPDX-License-Identifier: GPL-3.0-or-later
"""Images staged in swap files on real filesystems: what a kernel finds on the device with ``resume_offset=`` is the image."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, NotFound, Refused, UsageError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage, layout
from fuse_store.hibernation.arm import disarm
from fuse_store.hibernation.preflight import CODES, TargetMachine
from fuse_store.hibernation.swap_device import SwapDevice, swap_uuid
from fuse_store.hibernation.swap_files import extents
from fuse_store.hibernation.swap_files import stage as staging
from fuse_store.hibernation.swap_files.arm import arm
from fuse_store.hibernation.swap_files.file import PAGE, SwapFile
from fuse_store.hibernation.swap_files.stage import stage
from fuse_store.store import Label
from tests.fuzz.swsusp_encoder import add_symbols, encode, machine
from tests.store.hibernation.cases import FREE, SIZE, Case, make_case, run, uuid_of

MIB = 1 << 20
KINDS = {"ext4": ("-b", "4096", "-m", "0"), "xfs": (), "btrfs": ()}
FORCE = (*FREE, "swap_unknown")
NOWHERE = TargetMachine(None)
FILE = 14 * MIB  # bytes of the swap file
OWN_UUID = "0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
SETFLAGS, NOCOW = 0x40086602, 0x00800000


@dataclass(frozen=True)
class Place:
    """A mounted filesystem with a swap file in several pieces."""

    kind: str
    directory: Path
    device: Path
    file: Path


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("swap-files") / "case")


@contextlib.contextmanager
def mounted(directory: Path, kind: str) -> Iterator[tuple[Path, Path]]:
    image, place = directory / "image", directory / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    run(f"mkfs.{kind}", "-q", *KINDS[kind], image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", device, place)
        try:
            yield place, Path(device)
        finally:
            run("umount", place)
    finally:
        run("losetup", "--detach", device)


def allocate(path: Path, kind: str, size: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if kind == "btrfs":
            fcntl.ioctl(handle, SETFLAGS, struct.pack("<LL", NOCOW, 0))
        os.posix_fallocate(handle, 0, size)
        os.fsync(handle)
    finally:
        os.close(handle)


@pytest.fixture(params=list(KINDS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind: str = request.param
    if os.geteuid() or not shutil.which(f"mkfs.{kind}") or not Path("/dev/loop-control").exists():
        pytest.skip(f"needs root, loop devices and mkfs.{kind}")
    with mounted(tmp_path, kind) as (directory, device):
        for number in range(20):
            allocate(directory / str(number), kind, 2 * MIB)
        if kind != "btrfs":  # what is free then is in pieces
            status = os.statvfs(directory)
            allocate(directory / "rest", kind, status.f_bavail * status.f_frsize - 4 * MIB)
        for number in range(0, 20, 2):
            (directory / str(number)).unlink()
        run("sync", "-f", directory)
        file = directory / "swapfile"
        allocate(file, kind, FILE)
        run("mkswap", "--quiet", "--uuid", OWN_UUID, file)
        yield Place(kind, directory, device, file)


def offset(place: Place) -> int:
    with SwapFile(place.file) as file:
        return file.offset


def on_device(place: Place, count: int = PAGE) -> bytes:
    """The header page, as the next boot reads it."""
    subprocess.run(["blockdev", "--flushbufs", str(place.device)], check=True)
    with place.device.open("rb") as file:
        file.seek(offset(place) * PAGE)
        return file.read(count)


def stream(readable: Path, resume_offset: int = 0) -> bytes:
    with File(readable) as file, HibernationImage(file, resume_offset) as image:
        return bytes(image.map.read(0, image.map.count).tobytes())


def test_the_kernel_finds_the_image_on_the_device(case: Case, place: Place) -> None:
    index = list(KINDS).index(place.kind)  # LZO, plain and LZ4, each on one of them
    with SwapFile(place.file) as opened:
        assert place.kind != "ext4" or len(opened.extents) > 3
    staged = stage(case.image(index), place.file)
    assert (staged.name, staged.offset, staged.uuid, staged.held) == (str(place.file), offset(place), OWN_UUID, "a swap area")
    subprocess.run(["blockdev", "--flushbufs", str(place.device)], check=True)
    assert stream(place.device, staged.offset) == stream(case.sources[index])
    page = on_device(place)
    assert page[-10:] == b"SWAPSPACE2" and swap_uuid(page) == OWN_UUID, "its own swap area, not armed"
    with File(place.device) as file, HibernationImage(file, staged.offset) as image, File(case.sources[index]) as source:
        with HibernationImage(source) as original:
            assert (image.header.flags, image.header.crc32) == (original.header.flags, original.header.crc32)
        assert image.crc_matches() is not False


def test_armed_and_disarmed(case: Case, place: Place, tmp_path: Path) -> None:
    case = case.copied(tmp_path / "copied")
    stage(case.image(0), place.file)
    with pytest.raises(Refused, match="machine_unknown"):
        arm(case.store, place.file, NOWHERE, reference=case.ids[0])
    armed = arm(case.store, place.file, NOWHERE, reference=case.ids[0], force=FORCE)
    assert armed.changed and (armed.offset, armed.id) == (offset(place), case.ids[0])
    assert on_device(place)[-10:] == layout.SIGNATURE and swap_uuid(on_device(place)) == OWN_UUID
    assert stream(place.device, armed.offset) == stream(case.sources[0])
    assert not arm(case.store, place.file, NOWHERE, reference=case.ids[0]).changed
    with pytest.raises(Refused, match="armed hibernation image"):
        stage(case.image(1), place.file)
    assert disarm(place.file).changed
    assert on_device(place)[-10:] == b"SWAPSPACE2"
    assert not disarm(place.file).changed


def test_a_copy_that_differs_is_not_armed(case: Case, place: Place) -> None:
    stage(case.image(1), place.file)
    with place.file.open("r+b") as raw:
        raw.seek(PAGE * 700)
        raw.write(b"another program")
        os.fsync(raw.fileno())
    with pytest.raises(Damaged, match="differs from the staged version"):
        arm(case.store, place.file, NOWHERE, reference=case.ids[1], force=FORCE)
    assert on_device(place)[-10:] == b"SWAPSPACE2"


def test_what_is_refused(case: Case, place: Place) -> None:
    with pytest.raises(NotFound, match="no image to arm"):
        arm(case.store, place.file, NOWHERE, reference=case.ids[0])
    stage(case.image(0), place.file)
    with pytest.raises(Refused, match="another image than version"):
        arm(case.store, place.file, NOWHERE, reference=case.ids[1])
    with pytest.raises(UsageError, match="not a swap file"):
        stage(case.image(0), place.device)
    text = place.directory / "text"
    allocate(text, place.kind, MIB)
    with pytest.raises(Refused, match="holds no swap area"):
        stage(case.image(0), text, force=True)
    small = place.directory / "small"
    allocate(small, place.kind, MIB)
    run("mkswap", "--quiet", small)
    with pytest.raises(Refused, match="too small"):
        stage(case.image(0), small)
    with place.file.open("rb"), pytest.raises(Refused, match="open in"):
        stage(case.image(0), place.file)


@pytest.mark.parametrize("kind", list(KINDS))
def test_files_that_the_kernel_would_not_use(tmp_path: Path, kind: str) -> None:
    if os.geteuid() or not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"needs root and mkfs.{kind}")
    with mounted(tmp_path, kind) as (directory, _device):
        holes = directory / "holes"
        with holes.open("wb") as file:
            file.truncate(MIB)
        with pytest.raises(Refused, match="copied on write" if kind == "btrfs" else "a hole at byte 0"):
            SwapFile(holes)


def test_a_filesystem_without_a_block_device(tmp_path: Path) -> None:
    file = Path("/dev/shm") / f"swap-file-{os.getpid()}"
    file.write_bytes(bytes(MIB))
    try:
        with pytest.raises(Refused, match="on tmpfs"):
            SwapFile(file)
    finally:
        file.unlink()


def test_a_file_that_was_moved_while_it_was_written(case: Case, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = extents.Place(place.device, ((0, 4 * MIB, FILE),))
    sync = SwapFile.sync

    def moved(self: SwapFile) -> None:
        sync(self)
        self._place = elsewhere

    monkeypatch.setattr(SwapFile, "sync", moved)
    monkeypatch.setattr(SwapDevice, "write_checked", lambda self, at, content: self.write(at, content))
    with pytest.raises(Refused, match="was moved"):
        stage(case.image(0), place.file)


def test_an_interrupted_staging_leaves_a_swap_area(case: Case, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for point in ("slots header off", "slots pages", "slots header"):
        def stop(name: str, point: str = point) -> None:
            if name == point:
                raise KeyboardInterrupt

        stage(case.image(1), place.file)
        monkeypatch.setattr("fuse_store.hibernation.slots.writer.fault_point", stop)
        with pytest.raises(KeyboardInterrupt):
            stage(case.image(0), place.file)
        monkeypatch.undo()
        page = on_device(place)
        assert page[-10:] == b"SWAPSPACE2" and layout.TAIL.unpack(page[-layout.TAIL.size :])[2] == 0
        assert swap_uuid(page) == OWN_UUID


def _counted(case: Case, tmp_path: Path, total: int, free: int, uuid: str = "", tags: dict[str, str] | None = None) -> str:
    """A version of a machine whose kernel counted so of its swap."""
    memory = machine(seed=7)
    add_symbols(memory, {"total_swap_pages": total, "nr_swap_pages": free}, True)
    device = encode(memory, compression="lzo").device
    if uuid:
        device[layout.SWAP_AT + 12 : layout.SWAP_AT + 28] = bytes.fromhex(uuid.replace("-", ""))
    source = tmp_path / "counted"
    source.write_bytes(bytes(device).ljust(SIZE, b"\0"))
    return str(case.store.put(str(source), Label("m", kind="hibernation", tags=tags or {})).id)


def test_what_the_image_needs_and_has_in_use(case: Case, place: Place, tmp_path: Path) -> None:
    def refused(version: str, match: str) -> None:
        with pytest.raises(Refused, match=match):
            stage(case.store.open_image(version), place.file, force=True)

    refused(_counted(case, tmp_path, 1000, 900), "100 pages of the machine were swapped out")
    refused(_counted(case, tmp_path, 1000, 1000, OWN_UUID), "used this swap file")
    link = Path("/dev/disk/by-uuid") / uuid_of(place.device)
    if os.path.realpath(link) == str(place.device):  # udev makes them
        refused(_counted(case, tmp_path, 0, 0, tags={f"fs.{link.name}": f"{place.kind} in_use"}), "has the filesystem")
    stage(case.store.open_image(_counted(case, tmp_path, 0, 0)), place.file)


def test_the_commands(case: Case, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")]

    def done(*words: str) -> int:
        return main([*words, *store])

    assert done("stage", case.ids[0], str(place.file), "--swap-file") == 0
    assert f"page {offset(place)} of" in capsys.readouterr().err
    codes = [word for code in CODES for word in ("--force", code)]
    assert done("arm", str(place.file), "--swap-file", *codes) == 0
    assert f"resume_offset={offset(place)}" in capsys.readouterr().out
    assert done("disarm", str(place.file)) == 0
    assert on_device(place)[-10:] == b"SWAPSPACE2"
    table = place.directory / "fstab"
    table.write_text(f"# swap\n{place.file} none swap sw 0 0\n")
    monkeypatch.setattr(staging, "_FSTAB", table)
    assert done("stage", case.ids[0], str(place.file)) == 2
    assert "Add --swap-file" in capsys.readouterr().err
    assert done("stage", case.ids[0], str(place.file), "--swap-file", "--slot") == 2
