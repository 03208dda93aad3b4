# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole, and never in the place of another, whatever the file system can do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fuse_store.repository import atomic
from fuse_store.repository.atomic import NewFile, rename_new, write_file
from tests.store.conftest import fork, wait


def unable(*given: object, **named: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["renameat2", "links", "neither"])
def filesystem(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory whose file system can do that much."""
    if request.param != "renameat2":
        monkeypatch.setattr(atomic, "_rename_noreplace", unable)
    if request.param == "neither":
        monkeypatch.setattr(os, "link", unable)
    return tmp_path


def test_a_rename_does_not_replace(filesystem: Path) -> None:
    one, two = filesystem / "one", filesystem / "two"
    one.write_text("one")
    two.write_text("two")
    with pytest.raises(FileExistsError):
        rename_new(one, two)
    assert (one.read_text(), two.read_text()) == ("one", "two")
    two.unlink()
    rename_new(one, two)
    assert two.read_text() == "one" and [path.name for path in filesystem.iterdir()] == ["two"]
    with pytest.raises(FileNotFoundError):
        rename_new(one, filesystem / "three")


def test_of_many_processes_that_create_one_file_one_does(filesystem: Path) -> None:
    rounds = 60

    def work() -> None:
        for number in range(rounds):
            try:
                write_file(filesystem / f"{number}", b"%d" % os.getpid(), sync=False, create=True)
                (filesystem / f"{number}.by.{os.getpid()}").touch()
            except FileExistsError:
                pass

    children = [fork(work) for _ in range(4)]
    assert [wait(child) for child in children] == [0] * 4
    for number in range(rounds):
        (winner,) = filesystem.glob(f"{number}.by.*")
        assert (filesystem / f"{number}").read_text() == winner.suffix[1:]
    assert not list(filesystem.glob("*.partial"))


def test_missing_directories_are_made_and_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "sync_directory", synced.append)
    write_file(tmp_path / "images/0a0b/a.img", b"content", sync=True, partial_dir=tmp_path / "partial")
    assert set(synced) == {tmp_path, tmp_path / "images", tmp_path / "images/0a0b"}
    synced.clear()
    with NewFile(tmp_path / "partial", sync=True) as new:
        new.file.write(b"content")
        new.create(tmp_path / "packs/ab/a.pack")
    assert set(synced) == {tmp_path, tmp_path / "packs", tmp_path / "packs/ab"}


def test_a_file_that_gets_no_name_is_dropped(tmp_path: Path) -> None:
    with NewFile(tmp_path, sync=False) as new:
        new.file.write(b"content")
    assert not list(tmp_path.iterdir())
