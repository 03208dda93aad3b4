# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets: files that are replaced whole, directories, block devices that are written, compared, and refused if in use."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.image import restore
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, content, fork, loop_device, run, umask, wait, write_sparse

SIZE = 4 << 20
OLD = content([*range(1, 500), *[0] * 200, *range(1000, 1200)])
NEW = content([*range(1, 490), *range(2000, 2010), *[0] * 190, *range(3000, 3010), *range(1000, 1190), *[0] * 10])
DIFFERENT = sum(OLD[at : at + PAGE] != NEW[at : at + PAGE] for at in range(0, len(NEW), PAGE))


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> list[str]:
    return [store.put(str(write_sparse(tmp_path / "source", data)), Label("m")).id for data in (OLD, NEW)]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk", SIZE) as made:
        yield made


def get(store: Store, image_id: str, target: Path, **options: bool) -> int:
    return restore.get(store.open_image(image_id), str(target), SILENT, **options)


# files ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 300_001])
def test_a_file_of_any_size(store: Store, tmp_path: Path, size: int) -> None:
    data = content(range(1, 80))[:size]
    made = store.put(str(write_sparse(tmp_path / "source", data)), Label("m"))
    assert get(store, made.id, tmp_path / "got") == size
    assert (tmp_path / "got").read_bytes() == data


def test_a_file_that_is_there_keeps_its_mode_and_owner_and_is_replaced_whole(store: Store, versions: list[str], tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 1234, 2345)
    before = target.stat()
    with open(target, "rb") as opened:
        get(store, versions[1], target)
        assert opened.read() == b"old"  # who has it open keeps what was there
    after = target.stat()
    assert target.read_bytes() == NEW and after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


@pytest.mark.parametrize(("kind", "mode"), [("memory", 0o600), ("hibernation", 0o600), ("file", 0o644)])
def test_a_new_file_has_the_mode_of_the_source_unless_it_is_a_memory(store: Store, tmp_path: Path, kind: str, mode: int) -> None:
    source = write_sparse(tmp_path / "source", b"x")
    source.chmod(0o644)
    get(store, store.put(str(source), Label("m", kind=kind)).id, tmp_path / "got")
    assert stat.S_IMODE((tmp_path / "got").stat().st_mode) == mode


def test_a_name_with_a_slash_at_the_end_is_a_directory(store: Store, versions: list[str], tmp_path: Path) -> None:
    """As for cp; the name of a machine or a date may be missing after it."""
    (tmp_path / "old").write_bytes(b"old")
    for name in ("new/", "old/", "old//"):
        with pytest.raises(NotFound, match=f"target .*{name}: no such directory"):
            restore.get(store.open_image(versions[0]), f"{tmp_path}/{name}", SILENT)
    assert (tmp_path / "old").read_bytes() == b"old" and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("kind", "mode"), [("file", 0o640), ("memory", 0o600)])
def test_a_new_file_heeds_the_umask(store: Store, tmp_path: Path, kind: str, mode: int) -> None:
    (tmp_path / "sources").mkdir()
    for name in ("a", "sources/a", "sources/b"):
        write_sparse(tmp_path / name, b"x").chmod(0o666)
    one, several = (store.put(str(tmp_path / name), Label("m", kind=kind)).id for name in ("a", "sources"))
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o604)
    with umask(0o027):
        get(store, one, tmp_path / "new")
        get(store, several, tmp_path / "directory")
        get(store, one, tmp_path / "old")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "directory/a", "directory/b")] == [mode] * 3
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604, "one that is replaced keeps its mode"


def kill_after(store: Path, image_id: str, target: Path, written: int, **options: bool) -> None:
    """A get in a child that is killed when it has written so many bytes."""

    def work() -> None:
        write, left = os.pwrite, written

        def count(descriptor: int, data: memoryview, at: int) -> int:
            nonlocal left
            number = write(descriptor, data, at)
            left -= number
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        os.pwrite = count  # type: ignore[assignment]
        with Store.open(store) as opened:
            get(opened, image_id, target, **options)

    assert wait(fork(work)) == -signal.SIGKILL


def test_a_get_that_was_killed_goes_on_where_it_was(store: Store, versions: list[str], tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    kill_after(store.path, versions[0], target, len(OLD) // 2)
    assert target.read_bytes() == b"old"
    partial = [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert len(partial) == 1 and stat.S_IMODE(partial[0].stat().st_mode) == 0o600
    with open(partial[0], "r+b") as file:  # what is there is not believed
        file.seek(3 * PAGE)
        file.write(b"garbage")
        file.seek(len(OLD) - 300 * PAGE)
        file.write(b"garbage in a hole")
    assert get(store, versions[0], target) < len(OLD) * 2 // 3
    assert target.read_bytes() == OLD
    assert not partial[0].exists()


def test_two_gets_to_one_place(store: Store, versions: list[str], tmp_path: Path) -> None:
    import fcntl

    kill_after(store.path, versions[0], tmp_path / "target", 1 << 20)
    (partial,) = (path for path in tmp_path.iterdir() if path.name.endswith(".partial"))
    with open(partial, "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Locked) as caught:
            get(store, versions[0], tmp_path / "target")
    assert caught.value.exit_code == 6
    get(store, versions[0], tmp_path / "target")


def test_an_interrupted_get_of_a_directory_can_be_run_again(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, name in enumerate(("a", "b", "c")):
        (source / name).write_bytes(content(range(1 + 100 * number, 101 + 100 * number)))
    made = store.put(str(source), Label("m"))
    kill_after(store.path, made.id, tmp_path / "got", 150 * PAGE)
    assert get(store, made.id, tmp_path / "got") < 250 * PAGE
    assert {path.name: path.read_bytes() for path in (tmp_path / "got").iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }


def test_a_whole_file_of_an_interrupted_get_is_not_believed(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(content(range(1, 101)))
    made = store.put(str(source), Label("m"))
    kill_after(store.path, made.id, tmp_path / "got", 150 * PAGE)
    whole = (tmp_path / "got" / "a").stat()
    with open(tmp_path / "got" / "a", "r+b") as file:
        file.write(b"garbage")
    os.utime(tmp_path / "got" / "a", ns=(whole.st_mtime_ns, whole.st_mtime_ns))
    get(store, made.id, tmp_path / "got")
    assert (tmp_path / "got" / "a").read_bytes() == (tmp_path / "got" / "b").read_bytes() == content(range(1, 101))


def test_targets_that_are_refused(store: Store, versions: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    source = tmp_path / "several"
    source.mkdir()
    (source / "a").write_text("a")
    (source / "b").write_text("b")
    several = store.put(str(source), Label("n")).id
    for image_id, target, error, options in (
        (versions[0], "folder", UsageError, {}),
        (versions[0], "fifo", UsageError, {}),
        (versions[0], "gone/x", NotFound, {}),
        (versions[0], "folder/mine/x", StoreError, {}),
        (versions[0], "new", UsageError, {"changed_only": True}),
        (several, "folder", Refused, {}),
        (several, "fifo", StoreError, {}),
    ):
        with pytest.raises(error, match=target.split("/")[0] if not options else "changed-only"):
            get(store, image_id, tmp_path / target, **options)
    assert (tmp_path / "folder" / "mine").read_text() == "x" and not (tmp_path / "new").exists()


# block devices -------------------------------------------------------------------------------------------------------------


def on(device: Path, length: int = len(NEW)) -> bytes:
    with open(device, "rb") as file:
        return file.read(length)


def test_a_device_is_written_whole_zeros_too_and_read_back(store: Store, versions: list[str], device: Path) -> None:
    with open(device, "wb") as file:
        file.write(b"\xaa" * SIZE)
    assert get(store, versions[0], device, force=True) == len(OLD)
    assert on(device, len(OLD)) == OLD
    with open(device, "rb") as file:
        file.seek(len(OLD))
        assert file.read() == b"\xaa" * (SIZE - len(OLD))  # what lies behind it is not touched


def test_only_what_differs_is_written(store: Store, versions: list[str], device: Path) -> None:
    get(store, versions[0], device, force=True)
    assert 20 < DIFFERENT < 60
    assert get(store, versions[1], device, changed_only=True) == DIFFERENT * PAGE
    assert on(device) == NEW
    assert get(store, versions[1], device, changed_only=True) == 0
    with open(device, "r+b") as file:
        file.seek(5 * PAGE + 17)
        file.write(b"\x00\x01")
        file.seek(600 * PAGE)  # where the image has zeros
        file.write(b"x")
    assert get(store, versions[1], device, changed_only=True) == 2 * PAGE
    assert on(device) == NEW


def test_an_interrupted_get_to_a_device_goes_on_with_changed_only(store: Store, versions: list[str], device: Path) -> None:
    kill_after(store.path, versions[0], device, len(OLD) // 2, force=True)
    assert on(device, len(OLD)) != OLD
    assert 0 < get(store, versions[0], device, changed_only=True) < len(OLD) * 2 // 3
    assert on(device, len(OLD)) == OLD


def test_a_device_that_does_not_keep_what_was_written_is_found(
    store: Store, versions: list[str], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, bytes(data)[:-1] + b"\xee", at) if at < PAGE else write(fd, data, at))
    with pytest.raises(Damaged, match=r"reads back differently") as caught:
        get(store, versions[0], device, force=True)
    assert caught.value.exit_code == 4 and str(device) in str(caught.value)


def test_a_device_with_a_filesystem_is_refused(store: Store, versions: list[str], device: Path) -> None:
    run("mkfs.ext4", "-q", str(device))
    before = on(device, SIZE)
    with pytest.raises(Refused, match=r"ext4.*--force") as caught:
        get(store, versions[0], device)
    assert caught.value.exit_code == 5 and on(device, SIZE) == before
    get(store, versions[0], device, force=True)
    assert on(device, len(OLD)) == OLD


@pytest.mark.parametrize("label", ["swap", "partitions", "LUKS"])
def test_a_device_with_something_else_on_it_is_refused(store: Store, versions: list[str], device: Path, label: str) -> None:
    if label == "swap":
        run("mkswap", str(device))
    else:
        partition = bytes([0, 0, 2, 0, 0x83, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0, 0])
        start = b"LUKS\xba\xbe\x00\x01" + bytes(500) if label == "LUKS" else bytes(446) + partition + bytes(48) + b"\x55\xaa"
        with open(device, "wb") as file:
            file.write(start)
    before = on(device, SIZE)
    with pytest.raises(Refused, match="--force"):
        get(store, versions[0], device)
    assert on(device, SIZE) == before


def test_a_device_that_is_mounted_is_refused_even_with_force(store: Store, versions: list[str], device: Path, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", str(device))
    (tmp_path / "mounted").mkdir()
    run("mount", str(device), str(tmp_path / "mounted"))
    try:
        for options in ({}, {"force": True}, {"changed_only": True}, {"force": True, "changed_only": True}):
            with pytest.raises(Refused, match=device.name) as caught:
                get(store, versions[0], device, **options)
            assert caught.value.exit_code == 5
    finally:
        run("umount", str(tmp_path / "mounted"))
    run("fsck.ext4", "-fn", str(device))


def test_a_device_that_is_too_small_is_refused(store: Store, tmp_path: Path, device: Path) -> None:
    made = store.put(str(write_sparse(tmp_path / "source", bytes(SIZE) + b"x")), Label("m"))
    with pytest.raises(Refused, match=str(SIZE)):
        get(store, made.id, device)
    assert on(device, SIZE) == bytes(SIZE)


def test_a_device_as_large_as_the_image_to_the_byte(store: Store, tmp_path: Path, device: Path) -> None:
    data = content(range(1, SIZE // PAGE + 1))
    made = store.put(str(write_sparse(tmp_path / "source", data)), Label("m"))
    get(store, made.id, device)
    assert on(device, SIZE) == data


def test_a_device_name_that_does_not_exist_does_not_become_a_file(store: Store, versions: list[str]) -> None:
    for name in ("/dev/no-such-device", "/dev/../dev/mapper/no-such-device"):
        with pytest.raises(NotFound, match="no such device"):
            get(store, versions[0], Path(name))
        assert not Path(name).exists()


def test_several_files_do_not_go_to_standard_output(store: Store, tmp_path: Path) -> None:
    (tmp_path / "several").mkdir()
    for name in ("a", "b"):
        (tmp_path / "several" / name).write_bytes(name.encode())
    made = store.put(str(tmp_path / "several"), Label("several"))
    with pytest.raises(UsageError, match="image of a directory"):
        restore.get(store.open_image(made.id), "-", SILENT)


def test_a_negative_offset_is_an_error(store: Store, versions: list[str]) -> None:
    with pytest.raises(ValueError, match="negative"):
        store.open_image(versions[0]).read(-1, 10)
