# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores on file systems that can do less than ext4: exFAT, SMB, mounts of remote storage."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from fuse_store.errors import Refused
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.verify import verify
from fuse_store.mount.versions import VersionIndex
from fuse_store.progress import SILENT
from fuse_store.repository import atomic
from fuse_store.repository.backends import PosixBackend
from fuse_store.store import Label, Store
from tests.store.conftest import content, needs_root, read_store, read_whole
from tests.store.repository.backends.passthrough import mounted

DATA = content(range(1, 300))


def use(place: Path, source: Path) -> None:
    """Everything that a store does."""
    source.write_bytes(DATA)
    with Store.create(place) as store:
        first = store.put(str(source), Label("m")).id
        source.write_bytes(DATA[: len(DATA) // 2])
        second = store.put(str(source), Label("m"), replace=True).id
        store.record([second], "verified")
        collect(store, dry_run=False, progress=SILENT, grace=0.0)
        assert first not in store.ids() and read_whole(store, second) == DATA[: len(DATA) // 2]
        assert verify(store, [second], 100, SILENT)[0].state == "sound"
        with pytest.raises(FileExistsError):
            store.backend.write("store.json", b"", True, create=True)
    assert read_store(place) == {second: DATA[: len(DATA) // 2]}
    assert not list(place.rglob("*.partial"))


@pytest.mark.parametrize("lacks", [("link",), ("link", "noreplace"), ("noreplace",), ("link", "noreplace", "seconds")], ids="-".join)
def test_a_store_needs_neither_hard_links_nor_a_rename_with_flags(tmp_path: Path, lacks: tuple[str, ...]) -> None:
    needs_root()
    with mounted(tmp_path / "behind", tmp_path / "point", *lacks) as point:
        if "link" in lacks:
            (point / "a").touch()
            with pytest.raises(PermissionError):
                os.link(point / "a", point / "b")
        use(point / "store", tmp_path / "source")


def test_a_version_is_seen_at_once_where_times_are_in_whole_seconds(tmp_path: Path) -> None:
    needs_root()
    (tmp_path / "source").write_bytes(DATA)
    with mounted(tmp_path / "behind", tmp_path / "point", "seconds") as point, Store.create(point / "store") as store:
        shown = VersionIndex(store)
        for number in range(1, 12):
            store.put(str(tmp_path / "source"), Label("m", event=str(number)))
            assert len(list(shown.machine("m"))) == number
            shown.machine("m")


@pytest.mark.parametrize(("lacks", "words"), [("fsyncdir", "sync files and directories"), ("utimens", "replace, move")])
def test_what_a_store_relies_on_is_tried_before_it_is_created(tmp_path: Path, lacks: str, words: str, config_home: Path) -> None:
    needs_root()
    with mounted(tmp_path / "behind", tmp_path / "point", lacks) as point:
        with pytest.raises(Refused, match=f"its file system cannot {words}"):
            Store.create(point / "store")
        assert not list((point / "store").iterdir()) and not list(config_home.rglob("*.key"))
        if lacks == "fsyncdir":
            Store.create(point / "store", durability="none").close()


def test_a_file_system_whose_locks_lock_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    with pytest.raises(Refused, match="cannot lock files"):
        Store.create(tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())


def test_a_file_system_that_overwrites_what_it_should_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_rename_noreplace", os.rename)
    with pytest.raises(Refused, match=r"cannot (lock files|create files without replacing others)"):
        Store.create(tmp_path / "store")


def test_a_full_disk_is_not_taken_for_one_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    there = PosixBackend(tmp_path)
    there.prepare()
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        there.probe(True)


def test_on_fat(tmp_path: Path) -> None:
    """Where the kernel has it."""
    needs_root()
    image, point = tmp_path / "image", tmp_path / "point"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    point.mkdir()
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no FAT")
    try:
        use(point / "store", tmp_path / "source")
    finally:
        subprocess.run(["umount", str(point)], check=True)
