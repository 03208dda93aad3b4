# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions that no reader would accept, damaged manifests, wrong clocks: no version may be lost, and ``latest`` is right."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, Refused
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.mount.tree import Directory, Link, Tree
from fuse_store.progress import SILENT
from fuse_store.repository import manifest
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.entries import MAX_TIME
from fuse_store.repository.manifest import (
    Head,
    ImageFile,
    image_name,
    machine_tag,
    pack_head,
    read_head,
    write_manifest,
)
from fuse_store.store import Label, Store
from tests.store.cli.conftest import Run, image, put
from tests.store.conftest import Done, replace_content

YEAR = 365 * 86400 * 10**9  # ns


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSE_STORE", str(tmp_path / "store"))
    with Store.create(tmp_path / "store", durability="none") as made:
        return made.path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def command(*arguments: str) -> Done:
        capfd.readouterr()
        return Done(main(arguments), *capfd.readouterr())

    return command


def opened(path: Path) -> Store:
    return Store.open(path)


def ids(path: Path) -> set[str]:
    with opened(path) as store:
        return set(store.ids())


def newest(path: Path, machine: str = "web01") -> str:
    with opened(path) as store:
        return store.find(f"{machine}/system/latest").id


def break_manifest(path: Path, image_id: str) -> None:
    """One bit of its head."""
    name = path / image_name(image_id)
    content = bytearray(name.read_bytes())
    content[40] ^= 1
    replace_content(name, bytes(content))
    shutil.rmtree(path / "summaries", ignore_errors=True)


# what no reader would accept is not written -------------------------------------------------------------------------------


def test_more_names_than_a_manifest_may_have(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = put(run, image(tmp_path / "a"))
    monkeypatch.setattr(manifest, "MAX_HEAD_SIZE", 64 << 10)
    (tmp_path / "many").mkdir()
    for number in range(400):
        (tmp_path / "many" / f"{number:03}{'n' * 200}").write_bytes(b"x")
    done = run("put", str(tmp_path / "many"), "--machine", "web01", "--replace")
    assert done.code == 5 and "cannot be stored" in done.err and "No version was created" in done.err
    assert ids(store) == {good} and newest(store) == good
    assert run("gc").code == 0 and run("verify").code == 0


def test_130_000_files_with_long_names() -> None:
    files = tuple(ImageFile(f"{number:06}{'n' * 600}", 1, number * 4096) for number in range(130_000))
    head = Head("m", "system", "file", "", {}, 0, 1, 130_000, 0, 0, 0, 4096, (), files, ())
    with pytest.raises(Refused, match="MiB of names"):
        pack_head(head, "m/system")


def test_a_sparse_file_of_two_pebibytes(run: Run, store: Path, tmp_path: Path) -> None:
    good = put(run, image(tmp_path / "a"))
    source = Path("/dev/shm") / f"sparse.{os.getpid()}"
    try:
        with open(source, "wb") as file:
            try:
                file.truncate(2 << 50)
            except OSError:
                pytest.skip("no file system here holds such a file")
        done = run("put", str(source), "--machine", "web01", "--replace")
        assert done.code == 5 and "more than 1 PiB" in done.err
    finally:
        source.unlink(missing_ok=True)
    assert ids(store) == {good} and run("gc").code == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"taken": -1}, {"taken": MAX_TIME + 1}, {"number": -1}, {"number": 1 << 63}, {"size": 1 << 70}, {"page_size": 512},
        {"files": (ImageFile("a", 1, 0, mtime=MAX_TIME + 1),)}, {"files": (ImageFile("a", 1, 0, mode=-1),)},
        {"files": (ImageFile("a\ud800", 1, 0),)}, {"files": (ImageFile("a", 1, 0, mtime=1 << 70),)}, {"tags": {"a": "x" * (1 << 17)}},
        {"files": (ImageFile("a", 1 << 50, 0), ImageFile("b", 1, 1 << 50))}, {"tags": {str(number): "" for number in range(2000)}},
    ],
)  # fmt: skip
def test_values_that_no_reader_would_accept_are_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    head = Head("m", "system", "file", "", {}, 0, 1, 1, 0, 0, 0, 4096, (), (ImageFile("image", 1, 0),), ())
    pack_head(head, "m/system")
    with pytest.raises(Refused, match="cannot be stored"):
        pack_head(replace(head, **changes), "m/system")


@pytest.mark.parametrize("damage", ["the manifest", "a segment", "the end", "the index"])
def test_what_cannot_be_read_back_replaces_nothing(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """As a disk or a memory that returns another bit than was written."""
    good = put(run, image(tmp_path / "a"))
    real = PosixBackend.write

    def flipping(self: PosixBackend, name: str, content: bytes, *more: Any, **named: Any) -> None:
        changed = bytearray(content)
        if name.endswith(".img"):
            changed[{"the manifest": 30, "a segment": -20, "the end": -1}[damage]] ^= 1
        real(self, name, bytes(changed), *more, **named)

    with monkeypatch.context() as broken:
        if damage == "the index":
            broken.setattr("fuse_store.repository.index.Index.add", lambda *_given: None)
        else:
            broken.setattr(PosixBackend, "write", flipping)
        done = run("put", str(image(tmp_path / "b", seed=2)), "--machine", "web01", "--replace")
    assert done.code == 4 and "cannot be read back" in done.err and "none was removed" in done.err
    assert ids(store) == {good} and newest(store) == good
    assert run("get", good, str(tmp_path / "back")).code == 0 and (tmp_path / "back").read_bytes() == (tmp_path / "a").read_bytes()


# manifests that cannot be read ----------------------------------------------------------------------------------------------


def test_a_damaged_head_is_damage_not_absence(run: Run, store: Path, tmp_path: Path) -> None:
    only = put(run, image(tmp_path / "a"))
    break_manifest(store, only)
    for reference in ("web01/system/latest", "web01/system@2026", only, only[:9]):
        done = run("get", reference, str(tmp_path / "back"), "--json")
        assert done.code == 4 and done.error["image"] == only, reference
    assert run("get", "web02/system/latest", str(tmp_path / "back")).code == 3  # another machine has none, for sure


def test_replace_removes_no_older_version_when_the_newest_cannot_be_read(run: Run, store: Path, tmp_path: Path) -> None:
    older, broken = put(run, image(tmp_path / "a")), put(run, image(tmp_path / "b", seed=2))
    break_manifest(store, broken)
    done = run("put", str(image(tmp_path / "c", seed=3)), "--machine", "web01", "--replace")
    assert done.code == 0 and "no version was replaced" in done.err and broken in done.err
    new = done.out.strip()
    assert ids(store) == {older, broken, new} and newest(store) == new
    assert run("remove", "--damaged", broken).code == 0
    done = run("put", str(image(tmp_path / "d", seed=4)), "--machine", "web01", "--replace")
    assert ids(store) == {older, done.out.strip()}


def test_an_unreadable_version_is_removed_by_its_whole_id_and_a_flag(run: Run, store: Path, tmp_path: Path) -> None:
    good, broken = put(run, image(tmp_path / "a")), put(run, image(tmp_path / "b", seed=2))
    removed = put(run, image(tmp_path / "c", seed=3))
    assert run("remove", removed).code == 0
    break_manifest(store, broken)
    packs = sorted(store.glob("packs/*/*.pack"))
    done = run("gc", "--now")
    assert done.code != 0 and f"remove --damaged {broken}" in done.err and sorted(store.glob("packs/*/*.pack")) == packs
    for command in (["remove", broken], ["remove", "--damaged", broken[:12]], ["remove", "--damaged", good, "0" * 32]):
        assert run(*command).code in (3, 4), command
    assert ids(store) == {good, broken}
    done = run("remove", "--damaged", broken, "--json")
    assert done.code == 0 and done.json["removed"] == [
        {"id": broken, "version": None, "machine": None, "application": None, "taken": None}
    ]
    assert run("gc", "--now").code == 0 and ids(store) == {good}
    assert len(list(store.glob("packs/*/*.pack"))) < len(packs)
    assert run("verify").code == 0


def test_a_manifest_under_the_name_of_another_version_is_damaged(run: Run, store: Path, tmp_path: Path) -> None:
    """By a holder of the key, for whom encryption is no hindrance: id and machine belong to the head."""
    put(run, image(tmp_path / "a"))
    with opened(store) as there:
        (image_id,) = there.ids()
        head, _start = read_head(there.backend, image_id, there.aead)
        other = f"{'0' * 28}{image_id[-4:]}"
        content = there.aead.encrypt(b"image" + bytes.fromhex(other), pack_head(head, ""))
        there.backend.write(image_name(other), manifest._FILE.pack(manifest._MAGIC, len(content)) + content, False)
        with pytest.raises(Damaged, match="of another version"):
            there.find(other)


# clocks ------------------------------------------------------------------------------------------------------------------


def at(monkeypatch: pytest.MonkeyPatch, real: Callable[[], int], ahead: int) -> None:
    monkeypatch.setattr("fuse_store.store.time.time_ns", lambda: real() + ahead)


@pytest.mark.parametrize("wrong", [10 * YEAR, -10 * YEAR])
def test_one_put_with_a_wrong_clock(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    real = time.time_ns
    first = put(run, image(tmp_path / "a", 4))
    at(monkeypatch, real, wrong)
    done = run("put", str(image(tmp_path / "a", 4, 2)), "--machine", "web01")
    odd = done.out.strip()
    assert ("clock" in done.err) == (wrong < 0)
    at(monkeypatch, real, 0)
    after = []
    for seed in (3, 4, 5):
        done = run("put", str(image(tmp_path / "a", 4, seed)), "--machine", "web01")
        after.append(done.out.strip())
        assert ("clock" in done.err) == (wrong > 0 and seed == 3)
        assert newest(store) == after[-1]
    done = run("list", "--json")
    listed = done.json["versions"]
    assert ("1 version taken in the future" in done.err) == (wrong > 0)
    assert [one["id"] for one in listed] == [first, odd, *after] and [one["number"] for one in listed] == [1, 2, 3, 4, 5]
    shown = Tree(opened(store))
    link = shown.node(("machines", "web01", "system", "latest"))
    assert isinstance(link, Link) and link.target.endswith(after[-1][:6])
    shown.close()
    assert run("select", "--machine", "web01").out.strip() == after[-1]
    dry = run("prune", "--keep-within", "1m", "--dry-run", "--json").json
    assert {one["id"] for one in dry["kept"]} >= {first, *after}
    assert run("prune", "--keep-last", "1").code == 0
    assert ids(store) == {after[-1]}


def test_the_newest_of_all_with_a_clock_ahead_does_not_end_the_others(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [put(run, image(tmp_path / "a", 4, seed)) for seed in (1, 2)]
    at(monkeypatch, time.time_ns, 10 * YEAR)
    made.append(put(run, image(tmp_path / "a", 4, 3)))
    assert run("prune", "--keep-within", "7d").code == 0
    assert ids(store) == set(made)


def test_two_clones_that_store_the_same_number(store: Path) -> None:
    """The order is defined, the same for every reader, and ends with the next put."""
    with opened(store) as there:
        made: list[str] = []
        for taken in (5000, 5000, 3000):
            head = Head("m", "system", "file", str(len(made)), {}, taken, 7, 0, 0, 0, 0, 4096, (), (ImageFile("image", 0, 0),), ())
            made.append(write_manifest(there.backend, head, [], there.aead, False))
        expected = [made[2], *sorted(made[:2])]
        assert [version.id for version in there.summaries()] == expected and there.find("m/system/latest").id == expected[-1]
        version = there.put(str(store / "store.json"), Label("m"))
        assert version.number == 8 and there.find("m/system/latest").id == version.id


# the directories of machines ------------------------------------------------------------------------------------------------


def test_two_machines_of_one_directory(store: Path, tmp_path: Path) -> None:
    with opened(store) as there:
        tags: dict[str, str] = {}
        for number in range(100_000):
            name = f"m{number}"
            tag = machine_tag(name, there.aead)
            if tag in tags:
                break
            tags[tag] = name
        pair = (tags[tag], name)
        made = {machine: [there.put(str(image(tmp_path / "a", 4, seed)), Label(machine)).id for seed in (1, 2)] for machine in pair}
        assert len(list(store.glob("images/*"))) == 1
        assert [version.id for version in there.summaries()] == [one for machine in sorted(pair) for one in made[machine]]
        for machine in pair:
            assert there.find(f"{machine}/system/latest").id == made[machine][1]
            assert [version.number for version in there.versions.of(machine)] == [1, 2]
        new = there.put(str(image(tmp_path / "a", 4, 3)), Label(pair[0]), replace=True)
        assert set(there.ids()) == {made[pair[0]][0], new.id, *made[pair[1]]}
        assert there.versions.machines() == sorted(pair)
        there.remove([made[pair[0]][0], new.id])
        shown = Tree(there)
        assert shown.node(("machines", pair[1], "system", "latest"))
        there_is = shown.node(("machines", pair[0]))  # it has a name, and shares its directory
        assert isinstance(there_is, Directory) and list(there_is.names()) == []
        shown.close()


@pytest.mark.parametrize("lost", ["all names", "one name", "another name", "the caches"])
def test_versions_do_not_depend_on_the_names_of_machines(store: Path, tmp_path: Path, lost: str) -> None:
    with opened(store) as there:
        made = {machine: there.put(str(image(tmp_path / "a", 4)), Label(machine)).id for machine in ("a", "b", "c")}
    records = sorted(store.glob("machines/*"))
    another = records[1].read_bytes()
    for record in records[: {"all names": 3, "one name": 1, "another name": 1, "the caches": 0}[lost]]:
        record.unlink()
        if lost == "another name":
            record.write_bytes(another)
    if lost == "the caches":
        shutil.rmtree(store / "summaries", ignore_errors=True)
    with opened(store) as there:
        assert {version.machine: version.id for version in there.summaries()} == made
        assert there.versions.machines() == ["a", "b", "c"] and all(map(there.versions.has_machine, "abc"))
        repair(there, SILENT)
        collect(there, dry_run=False, progress=SILENT)
    assert sorted(store.glob("machines/*")) == records
    with opened(store) as there:
        assert [version.machine for version in there.summaries()] == ["a", "b", "c"]
