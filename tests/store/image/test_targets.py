# SPDX-License-Identifier: GPL-3.0-or-later
"""What a target is in use by, what a device holds, where a link leads, and what an interrupted get leaves."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.image import devices, restore
from fuse_store.progress import SILENT, Silent
from fuse_store.store import Label, Store
from tests.store.conftest import (
    PAGE,
    busy,
    content,
    fork,
    loop_device,
    mapped,
    needs_root,
    opened,
    opened_to_read,
    run,
    wait,
    write_sparse,
)

SIZE = 4 << 20
DATA = content([*range(1, 500), *[0] * 200, *range(1000, 1200)])


@pytest.fixture
def image_id(store: Store, tmp_path: Path) -> str:
    return store.put(str(write_sparse(tmp_path / "source", DATA)), Label("m")).id


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk", SIZE) as made:
        yield made


def get(store: Store, image_id: str, target: Path | str, **options: bool) -> int:
    return restore.get(store.open_image(image_id), str(target), SILENT, **options)


# what a device holds ---------------------------------------------------------------------------------------------------------


def on(device: Path) -> bytes:
    with open(device, "rb") as file:
        return file.read()


def filesystem(path: Path, uuid: str) -> Path:
    if not path.exists():
        write_sparse(path, bytes(SIZE))
    run("mkfs.ext4", "-q", "-F", "-U", uuid, str(path))
    return path


OWN, OTHER = (f"{digit * 8}-1111-4111-8111-111111111111" for digit in "12")


def test_changed_only_over_another_filesystem_is_refused(store: Store, image_id: str, device: Path, tmp_path: Path) -> None:
    filesystem(device, OTHER)
    before = on(device)
    disk = store.put(str(filesystem(tmp_path / "own", OWN)), Label("disk")).id
    for version in (image_id, disk):
        with pytest.raises(Refused, match=r"holds ext4, and no earlier version") as caught:
            get(store, version, device, changed_only=True)
        assert caught.value.exit_code == 5 and on(device) == before
    get(store, disk, device, changed_only=True, force=True)
    assert on(device) == (tmp_path / "own").read_bytes()


def test_changed_only_over_the_same_filesystem(store: Store, device: Path, tmp_path: Path) -> None:
    disk = store.put(str(filesystem(tmp_path / "own", OWN)), Label("disk")).id
    filesystem(device, OWN)
    get(store, disk, device, changed_only=True)
    assert on(device) == (tmp_path / "own").read_bytes()


@pytest.mark.parametrize(("on_device", "allowed"), [("dos", False), ("gpt", False), ("own gpt", True)])
def test_changed_only_over_a_partition_table(store: Store, device: Path, tmp_path: Path, on_device: str, allowed: bool) -> None:
    scripts = {"own gpt": f"label: gpt\nlabel-id: {OWN}\n,1M\n", "gpt": "label: gpt\n,1M\n", "dos": "label: dos\n,1M\n"}
    disk = tmp_path / "own"
    disk.write_bytes(bytes(SIZE))
    for path, script in ((disk, scripts["own gpt"]), (device, scripts[on_device])):
        subprocess.run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(path)], input=script, text=True, check=True)
    version = store.put(str(disk), Label("disk")).id
    if allowed:
        get(store, version, device, changed_only=True)
        assert on(device) == disk.read_bytes()
    else:
        with pytest.raises(Refused, match=f"holds {on_device}"):
            get(store, version, device, changed_only=True)


def test_changed_only_over_a_swap_area(store: Store, image_id: str, device: Path, tmp_path: Path) -> None:
    run("mkswap", str(device))
    swap = tmp_path / "swap"
    swap.write_bytes(bytes(SIZE))
    run("mkswap", str(swap))
    with pytest.raises(Refused, match="holds swap"):
        get(store, image_id, device, changed_only=True)
    get(store, store.put(str(swap), Label("swap")).id, device, changed_only=True)
    assert on(device) == swap.read_bytes()


@pytest.mark.parametrize("script", ["exit 4", "echo 'error: no such device' >&2; exit 2", "kill -9 $$", "echo NAME=x", "exit 0"])
def test_what_blkid_cannot_tell_is_not_taken_for_empty(
    store: Store, image_id: str, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "blkid").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bin" / "blkid").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for options in ({}, {"changed_only": True}):
        with pytest.raises(Refused, match="blkid"):
            get(store, image_id, device, **options)
    assert not any(on(device))


def test_nor_is_a_device_where_there_is_no_blkid(
    store: Store, image_id: str, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_words: object, **_options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch, pytest.raises(Refused, match=r"blkid cannot be run.*Install util-linux"):
        patch.setattr(subprocess, "run", missing)
        get(store, image_id, device)


@pytest.mark.parametrize("at", [0, 1 << 20, SIZE - 4096])
def test_a_device_that_cannot_be_read_is_not_taken_for_empty(
    store: Store, image_id: str, device: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real = devices.read_at

    def fails(descriptor: int, start: int, length: int) -> bytes:
        if start <= at < start + length:
            raise OSError(5, "Input/output error")
        return real(descriptor, start, length)

    monkeypatch.setattr(devices, "read_at", fails)
    with pytest.raises(StoreError, match="Input/output error"):
        get(store, image_id, device)


# what has a device in use ----------------------------------------------------------------------------------------------------


def refused(store: Store, image_id: str, target: Path, match: str) -> None:
    for options in ({}, {"force": True}, {"force": True, "changed_only": True}) if target.is_block_device() else ({},):
        with pytest.raises(Refused, match=match) as caught:
            get(store, image_id, target, **options)
        assert caught.value.exit_code == 5


def test_a_device_that_a_loop_device_stands_on(store: Store, image_id: str, device: Path, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", str(device))
    before = on(device)
    second = run("losetup", "--find", "--show", str(device)).strip()
    try:
        refused(store, image_id, device, f"{Path(second).name} stands on it")
        (tmp_path / "mounted").mkdir()
        run("mount", second, str(tmp_path / "mounted"))
        try:
            refused(store, image_id, device, f"{Path(second).name} stands on it")
        finally:
            run("umount", str(tmp_path / "mounted"))
    finally:
        run("losetup", "--detach", second)
    run("fsck.ext4", "-fn", str(device))
    assert on(device)[:PAGE] != DATA[:PAGE] and len(before) == SIZE


def test_a_second_loop_device_on_the_same_file(store: Store, image_id: str, device: Path, tmp_path: Path) -> None:
    os.rename(tmp_path / "disk", tmp_path / "moved")
    second = run("losetup", "--find", "--show", str(tmp_path / "moved")).strip()
    try:
        refused(store, image_id, device, f"{Path(second).name} stands on it")
    finally:
        run("losetup", "--detach", second)
    get(store, image_id, device)


@pytest.fixture
def partition(device: Path) -> Iterator[Path]:
    subprocess.run(["delpart", str(device), "1"], capture_output=True, check=False)  # the loop device may have one of an earlier file
    run("addpart", str(device), "1", "8", "2048")
    try:
        yield Path(f"{device}p1")
    finally:
        run("delpart", str(device), "1")


def test_a_disk_of_which_a_partition_is_mounted_and_the_other_way_round(
    store: Store, image_id: str, device: Path, partition: Path, tmp_path: Path
) -> None:
    small = store.put(str(write_sparse(tmp_path / "small", DATA[: 10 * PAGE])), Label("small")).id
    (tmp_path / "mounted").mkdir()
    for used, target in ((partition, device), (device, partition)):
        run("mkfs.ext4", "-q", "-F", str(used))
        run("mount", str(used), str(tmp_path / "mounted"))
        try:
            refused(store, small, target, "exclusively")
        finally:
            run("umount", str(tmp_path / "mounted"))
        second = run("losetup", "--find", "--show", str(used)).strip()
        try:
            refused(store, small, target, f"{Path(second).name} stands on it")
        finally:
            run("losetup", "--detach", second)
        with busy(partial(opened, used)):
            refused(store, small, target, "open for writing in")
    get(store, small, partition, force=True)


def test_a_device_that_a_virtual_machine_may_have_as_its_disk(store: Store, image_id: str, device: Path) -> None:
    """QEMU opens a disk without O_EXCL."""
    with busy(lambda: opened(device)) as child:
        refused(store, image_id, device, rf"open for writing in .*\(process {child}\)")
    with busy(lambda: mapped(device)) as child:
        refused(store, image_id, device, rf"\(process {child}\)")
    with busy(lambda: opened_to_read(device)):  # as udev does
        get(store, image_id, device)


def test_without_sysfs_a_device_is_refused(
    store: Store, image_id: str, device: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fuse_store.image.targets.usage._SYS_NUMBERS", tmp_path)
    with pytest.raises(Refused, match="/sys"):
        get(store, image_id, device, force=True)


# what has a file in use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [opened, mapped])
def test_a_file_that_a_program_would_go_on_with_is_not_replaced(
    store: Store, image_id: str, tmp_path: Path, act: Callable[[Path], object]
) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(bytes(SIZE))
    with busy(lambda: act(target)):
        refused(store, image_id, target, "open in ")
    assert target.read_bytes() == bytes(SIZE)
    get(store, image_id, target)
    assert target.read_bytes() == DATA


def test_a_program_that_opens_the_file_meanwhile(store: Store, image_id: str, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(bytes(SIZE))
    kept = []

    class Opens(Silent):
        def finish(self) -> None:
            kept.append(opened(target))

    with pytest.raises(Refused, match="open in "):
        restore.get(store.open_image(image_id), str(target), Opens())
    assert target.read_bytes() == bytes(SIZE) and [path.name for path in tmp_path.glob(".*")] == []
    for file in kept:
        file.close()


@pytest.mark.parametrize("options", [(), ("--read-only",)])
def test_a_file_behind_a_loop_device_is_not_replaced(store: Store, image_id: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    needs_root()
    target = tmp_path / "disk.raw"
    target.write_bytes(bytes(SIZE))
    loop = run("losetup", "--find", "--show", *options, str(target)).strip()
    try:
        os.rename(target, tmp_path / "moved")
        refused(store, image_id, tmp_path / "moved", f"behind the loop device {Path(loop).name}")
    finally:
        run("losetup", "--detach", loop)
    assert (tmp_path / "moved").read_bytes() == bytes(SIZE)


# where a target is -----------------------------------------------------------------------------------------------------------


def test_a_link_is_written_through(store: Store, image_id: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "real").write_bytes(b"old")
    (tmp_path / "images" / "second").symlink_to("real")
    (tmp_path / "first").symlink_to("images/second")
    before = (tmp_path / "images" / "real").stat()
    with open(tmp_path / "images" / "real", "rb") as opened:
        get(store, image_id, tmp_path / "first")
        assert opened.read() == b"old"  # atomically, too
    assert os.readlink(tmp_path / "first") == "images/second" and os.readlink(tmp_path / "images" / "second") == "real"
    assert (tmp_path / "images" / "real").read_bytes() == DATA
    assert (tmp_path / "images" / "real").stat().st_mode == before.st_mode
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"real", "second"}


def test_a_link_to_nothing_and_links_in_a_circle(store: Store, image_id: str, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(NotFound, match="nothing, which does not exist"):
        get(store, image_id, tmp_path / "dangling")
    with pytest.raises(StoreError, match="symbolic links"):
        get(store, image_id, tmp_path / "circle")
    assert (tmp_path / "dangling").is_symlink() and not (tmp_path / "nothing").exists()


def test_a_link_to_a_device(store: Store, image_id: str, device: Path, tmp_path: Path) -> None:
    (tmp_path / "by-name").symlink_to(device)
    get(store, image_id, tmp_path / "by-name")
    assert on(device)[: len(DATA)] == DATA


@pytest.mark.parametrize("name", ["target", "./target", "sub/../target"])
def test_relative_names(store: Store, image_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    get(store, image_id, name)
    assert (tmp_path / "target").read_bytes() == DATA
    for folder in (".", "..", "sub/", "sub/."):
        with pytest.raises(UsageError, match="directory"):
            get(store, image_id, folder)


PLACES = {
    "/dev/no-such-device": NotFound, "/dev/mapper/no-such-device": NotFound, "/dev/null": UsageError, "/dev/fd/1": Refused,
    "/proc/self/fd/1": Refused, "/proc/sys/kernel/hostname": UsageError, "/proc/nothing": UsageError,
    "/sys/power/resume": UsageError, "/sys/nothing": UsageError, "/proc/self/root/sys/nothing": UsageError,
}  # fmt: skip


@pytest.mark.parametrize("name", ["../out", "sub/../../out", "sub/..", "..", ".", "", "/tmp/out", "sub//out", "sub/./out", "sub/", "a\0b"])
def test_names_of_files_that_lead_out_of_the_directory(store: Store, image_id: str, tmp_path: Path, name: str) -> None:
    """From who has the key."""
    image = store.open_image(image_id)
    image.files = (replace(image.files[0], name=name),)
    with pytest.raises(Damaged, match="leads out of the target"):
        restore.get(image, str(tmp_path / "folder"), SILENT)
    assert not (tmp_path / "out").exists() and not (tmp_path / "folder").exists()


@pytest.mark.parametrize("mtime", [-1, 1 << 66, 1 << 100, -(1 << 100)])
def test_times_that_no_file_has(store: Store, image_id: str, tmp_path: Path, mtime: int) -> None:
    image = store.open_image(image_id)
    image.files = (replace(image.files[0], name="sub/x", mtime=mtime),)
    restore.get(image, str(tmp_path / "folder"), SILENT)
    assert (tmp_path / "folder" / "sub" / "x").read_bytes() == DATA


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_no_files_where_the_kernel_has_its_own(store: Store, image_id: str, tmp_path: Path, name: str, several: bool) -> None:
    if several:
        (tmp_path / "several").mkdir()
        for part in ("a", "b"):
            (tmp_path / "several" / part).write_bytes(b"x")
        image_id = store.put(str(tmp_path / "several"), Label("several")).id
    existed = os.path.lexists(name)
    with pytest.raises(PLACES[name], match=name):
        get(store, image_id, name)
    assert os.path.lexists(name) == existed


def test_a_link_to_standard_output_is_no_target(store: Store, image_id: str, tmp_path: Path) -> None:
    """As /dev/stdout, which is not put at risk here."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    with pytest.raises(Refused, match="- for standard output"):
        get(store, image_id, tmp_path / "stdout")
    assert os.readlink(tmp_path / "stdout") == "/proc/self/fd/1"


def test_a_file_in_devtmpfs_is_no_target(store: Store, image_id: str) -> None:
    needs_root()
    path = Path("/dev/fuse-store-test-file")
    path.write_bytes(b"old")
    try:
        with pytest.raises(NotFound, match="no such device"):
            get(store, image_id, path)
        assert path.read_bytes() == b"old"
    finally:
        path.unlink()


def test_a_file_in_shared_memory_is_one(store: Store, image_id: str) -> None:
    path = Path(f"/dev/shm/fuse-store-test-{os.getpid()}")
    try:
        get(store, image_id, path)
        assert path.read_bytes() == DATA
    finally:
        path.unlink(missing_ok=True)


# what is left ----------------------------------------------------------------------------------------------------------------


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


def interrupted(store: Path, image_id: str, target: Path, number: int = signal.SIGINT) -> str:
    """What a get prints that is interrupted when half of it is written."""
    error = io.StringIO()

    def work() -> None:
        write, left, first = os.pwrite, len(DATA) // 2, os.getpid()

        def count(descriptor: int, data: memoryview, at: int) -> int:
            nonlocal left
            wrote = write(descriptor, data, at)
            left -= wrote * len(os.sched_getaffinity(0))  # other processes write as much
            if left < 0 and os.getpid() == first:
                left = 1 << 60
                os.kill(os.getpid(), number)
            return wrote

        os.pwrite = count  # type: ignore[assignment]
        with contextlib.redirect_stderr(error):
            code = main(["--store", str(store), "get", image_id, str(target)])
        (target.parent / "said").write_text(error.getvalue())
        assert code == 128 + number

    assert wait(fork(work)) == 0
    said = target.parent / "said"
    text = said.read_text()
    said.unlink()
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_an_interrupted_get_leaves_is_named_and_used(store: Store, image_id: str, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "target").write_bytes(b"old")
    said = interrupted(store.path, image_id, folder / "target", number)
    (left,) = partials(folder)
    assert str(left) in said and said.count("\n") == 1 and (folder / "target").read_bytes() == b"old"
    assert get(store, image_id, folder / "target") < len(DATA) * 2 // 3
    assert partials(folder) == [] and (folder / "target").read_bytes() == DATA


def test_a_get_that_is_interrupted_before_it_wrote_leaves_nothing(store: Store, image_id: str, tmp_path: Path) -> None:
    class Interrupts(Silent):
        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            raise KeyboardInterrupt

    (tmp_path / "folder").mkdir()
    with pytest.raises(KeyboardInterrupt) as caught:
        restore.get(store.open_image(image_id), str(tmp_path / "folder" / "target"), Interrupts())
    assert partials(tmp_path / "folder") == [] and not hasattr(caught.value, "__notes__")


def test_what_earlier_gets_left_is_removed(store: Store, image_id: str, tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    folder = tmp_path / "folder"
    folder.mkdir()
    stale = [f".target.{'0' * 12}.{boot}.01234567.partial", f".target.{image_id[:12]}.{'0' * 8}.01234567.partial"]
    kept = [
        f".other.{image_id[:12]}.{boot}.01234567.partial", f".target.{image_id[:12]}.{boot}.partial", ".target.partial",
        f".target.{'1' * 12}.{boot}.01234567.partial", f".xtarget.{image_id[:12]}.{boot}.01234567.partial",
    ]  # fmt: skip
    for name in (*stale, *kept):
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0o600)
    (folder / stale[0]).chmod(0o644)  # killed after it got its mode
    with open(folder / kept[3], "rb") as at_work:
        fcntl.flock(at_work, fcntl.LOCK_EX)
        get(store, image_id, folder / "target")
    assert {path.name for path in folder.iterdir()} == {"target", *kept}


def test_a_partial_file_that_others_may_open_or_have_open_is_not_gone_on_with(store: Store, image_id: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    whole = sum(any(DATA[at : at + PAGE]) for at in range(0, len(DATA), PAGE)) * PAGE
    for mode in (0o640, 0o604, 0o600):
        interrupted(store.path, image_id, folder / "target")
        (left,) = partials(folder)
        left.chmod(mode)
        with busy(partial(opened, left)) if mode == 0o600 else contextlib.nullcontext():
            assert get(store, image_id, folder / "target") == whole
        assert (folder / "target").read_bytes() == DATA and partials(folder) == []


@pytest.mark.parametrize(("exists", "synced"), [(False, []), (True, ["file", "file", "directory"])])
def test_a_file_that_replaces_another_is_on_the_disk_with_its_name(
    store: Store, image_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, synced: list[str]
) -> None:
    if exists:
        (tmp_path / "target").write_bytes(b"old")
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        assert calls[-1] == "file" or (tmp_path / "target").read_bytes() == DATA
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    get(store, image_id, tmp_path / "target")
    assert calls == synced


def test_a_replaced_file_does_not_hand_on_the_set_user_id_bit(store: Store, image_id: str, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "target").chmod(0o6755)
    get(store, image_id, tmp_path / "target")
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o755
