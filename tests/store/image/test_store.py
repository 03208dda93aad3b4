# SPDX-License-Identifier: GPL-3.0-or-later
"""The store as a whole: what is put comes back; it is immutable, rebuildable, bounded and private (invariants 3, 4, 6, 7)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fuse_store.errors import Damaged, NotFound, Refused, UsageError, WrongKey
from fuse_store.image.put import page_table
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository import pack
from fuse_store.repository.backends.posix import DIRECTORIES
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, content, packs_of, read_store, read_whole, write_sparse

MOST = 400 << 20  # bytes of memory, for any verb


def put(store: Store, folder: Path, data: bytes, **options: object) -> str:
    return store.put(str(write_sparse(folder / "source", data)), Label("m"), **options).id  # type: ignore[arg-type]


# what is put comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
@pytest.mark.parametrize("encryption", [True, False])
def test_every_kind_of_store_gives_back_what_was_put(
    tmp_path: Path, small: None, encryption: bool, compression: str, page_size: int
) -> None:
    versions = [
        content([*range(1, 90), *[0] * 40, *range(50, 70)], cut=1),
        content([5, *range(1, 60), 200, 201, *range(70, 90), 0, 0, 300]),
        b"",
        b"x",
        content([1], cut=1),
        content([1]) + b"y",
    ]
    with Store.create(tmp_path / "s", encryption=encryption, compression=compression, page_size=page_size, durability="none") as store:
        ids = [put(store, tmp_path, data) for data in versions]
        for image_id, data in zip(ids, versions, strict=True):
            assert read_whole(store, image_id) == data
        assert all(verdict.state == "sound" for verdict in verify(store, ids, 100, SILENT))
    with Store.open(tmp_path / "s") as store:
        assert [one.id for one in store.summaries()] == ids and [one.size for one in store.summaries()] == list(map(len, versions))
        assert [read_whole(store, image_id) for image_id in ids] == versions


def test_a_next_version_stores_what_is_new_wherever_the_rest_stands(tmp_path: Path, small: None) -> None:
    numbers = list(range(1, 257))
    with Store.create(tmp_path / "s", durability="none") as store:
        first = store.find(put(store, tmp_path, content(numbers)))
        moved = [*range(1000, 1004), *numbers[100:], *numbers[:100]]
        second = store.find(put(store, tmp_path, content(moved)))
        third = store.find(put(store, tmp_path, content(moved)))
        assert (first.new, first.allocated) == (256 * PAGE, 256 * PAGE)
        assert (second.new, second.allocated) == (4 * PAGE, 260 * PAGE) and second.stored < 5 * PAGE
        assert (third.new, third.stored) == (0, 0)
        assert read_whole(store, third.id) == content(moved)


def test_equal_units_of_other_machines_are_stored_once(tmp_path: Path, small: None) -> None:
    data = content(range(1, 129))
    with Store.create(tmp_path / "s", durability="none") as store:
        source = str(write_sparse(tmp_path / "source", data))
        store.put(source, Label("a"))
        assert store.put(source, Label("b")).stored == 0


def test_zeros_are_not_stored(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        (tmp_path / "source").write_bytes(bytes(1 << 20))
        made = store.put(str(tmp_path / "source"), Label("m"))
        assert (made.size, made.allocated, made.stored) == (1 << 20, 0, 0)
        assert packs_of(store.path) == set()


def test_versions_are_found_by_id_place_and_time(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        ids = [put(store, tmp_path, content([number])) for number in (1, 2)]
        taken = store.find(ids[0]).taken.isoformat()
        assert store.find(ids[1][:10]).id == store.find("m/system/latest").id == ids[1]
        assert store.find(f"m/system@{taken}").id == store.find(f"m/system/{store.find(ids[0]).version}").id == ids[0]
        assert store.find(f"m/system@{taken[:4]}").id == ids[1]
        for wrong in ("0" * 33, "m/system@1999", "m/other/latest", "x/system/latest", "../../etc/passwd", "*", ""):
            with pytest.raises((NotFound, UsageError)):
                store.find(wrong)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "n" * 201, "ü" * 101, "a@b", "a\nb", "a\0b", " a", "\udc80", "\u202ex"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        (tmp_path / "source").write_bytes(b"x")
        for options in ({"machine": name}, {"machine": "m", "application": name}, {"machine": "m", "tags": {name: "v"}}):
            with pytest.raises(UsageError) as caught:
                store.put(str(tmp_path / "source"), Label(**options))
            assert caught.value.exit_code == 2 and caught.value.remedy
        assert store.ids() == []


def test_a_version_that_is_not_there_can_not_be_removed(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        kept = put(store, tmp_path, b"x")
        with pytest.raises(NotFound):
            store.remove(["0" * 32])
        assert store.ids() == [kept]


# invariant 3: immutable ----------------------------------------------------------------------------------------------------


def test_what_was_written_never_changes(tmp_path: Path, small: None) -> None:
    """Later puts, removals and collections leave every file of packs and images as it was, or remove it."""
    with Store.create(tmp_path / "s", durability="none") as store:

        def files() -> dict[str, bytes]:
            return {path.name: path.read_bytes() for part in ("packs", "images") for path in (store.path / part).rglob("*.*")}

        def same() -> None:
            after = files()
            for name, data in before.items():
                assert after.get(name, data) == data, name

        put(store, tmp_path, content(range(1, 100)))
        before = files()
        second = put(store, tmp_path, content(range(50, 300)))
        assert set(before) < set(files())
        same()
        before = files()
        put(store, tmp_path, content(range(60, 120)), replace=True)
        same()
        assert f"{second}.img" not in files()
        collect(store, dry_run=False, progress=SILENT)
        same()
        repair(store, SILENT)
        same()


def test_replace_commits_the_new_one_before_the_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        old = put(store, tmp_path, b"old")
        seen: list[dict[str, bytes]] = []
        monkeypatch.setattr("fuse_store.store.fault_point", lambda step: seen.append(read_store(store.path)) if step == "remove" else None)
        new = put(store, tmp_path, b"new", replace=True)
        assert seen == [{old: b"old", new: b"new"}], "both can be read before the old one is removed"
        assert store.ids() == [new]


def test_a_replace_that_fails_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        old = put(store, tmp_path, b"old")
        monkeypatch.setattr("fuse_store.store.write_manifest", lambda *args: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(Exception, match="none was lost"):
            put(store, tmp_path, b"new", replace=True)
        assert read_store(store.path) == {old: b"old"}


# invariant 4: rebuildable --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["files", "folder"])
def test_a_lost_index_is_made_anew(tmp_path: Path, small: None, how: str) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        for number in range(4):
            put(store, tmp_path, content(range(1 + 40 * number, 150 + 40 * number)))
    before = read_store(store.path)
    if how == "folder":
        shutil.rmtree(store.path / "index")
    else:
        for path in (store.path / "index").iterdir():
            path.unlink()
    with Store.open(store.path) as store:
        assert [one.id for one in store.summaries()] and set(store.ids()) == set(before)
        with pytest.raises(Damaged, match=r"repair"):
            read_whole(store, store.ids()[0])
        with pytest.raises(Exception, match="Nothing was freed"):
            collect(store, dry_run=False, progress=SILENT)
        repaired = repair(store, SILENT)
        assert repaired.packs_found > 3 and not repaired.packs_bad and not repaired.lost
    assert read_store(store.path) == before
    with Store.open(store.path) as store:
        assert collect(store, dry_run=True, progress=SILENT).packs_removed == 0


def test_a_put_between_the_loss_of_the_index_and_the_repair_loses_nothing(tmp_path: Path, small: None) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        first = put(store, tmp_path, content(range(1, 200)))
    before = read_store(store.path)
    for path in (store.path / "index").iterdir():
        path.unlink()
    with Store.open(store.path) as store:
        second = put(store, tmp_path, content([7, *range(1, 200)]))
        assert read_whole(store, second) == content([7, *range(1, 200)])
        repair(store, SILENT)
        before[second] = content([7, *range(1, 200)])
    assert read_store(store.path) == before
    with Store.open(store.path) as store:
        collect(store, dry_run=False, progress=SILENT)
        assert read_whole(store, first) == before[first]
    assert read_store(store.path) == before


# invariant 6: bounded ------------------------------------------------------------------------------------------------------

PEAK = """
import re
import sys
from fuse_store.image import restore
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store

with Store.open(sys.argv[1]) as store:
    store.put(sys.argv[2], Label("m"))
    store.put(sys.argv[2], Label("m"))
    restore.get(store.open_image(store.ids()[0]), sys.argv[3], SILENT)
    assert [one.state for one in verify(store, store.ids(), 100, SILENT)] == ["sound"] * 2
    collect(store, dry_run=False, progress=SILENT)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10)
"""


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """64 GiB, 64 MiB of them scattered in it, twice: the second time every page is looked for in the first."""
    noise = np.random.default_rng(1)
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.truncate(64 << 30)
        for at in range(0, 64 << 30, 4 << 30):
            for stretch in range(8):
                file.seek(at + (stretch << 28) + 12345 * PAGE)
                file.write(noise.bytes(512 << 10))
        file.seek((64 << 30) - PAGE)
        file.write(b"end")
    Store.create(tmp_path / "s", durability="none").close()
    got = tmp_path / "got"
    command = [sys.executable, "-c", PEAK, str(tmp_path / "s"), str(source), str(got)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 20 << 20 < int(done.stdout) < MOST
    assert got.stat().st_size == 64 << 30 and got.stat().st_blocks * 512 < 80 << 20
    with open(got, "rb") as one, open(source, "rb") as other:
        for at in (0, 12345 * PAGE, (4 << 30) + (7 << 28) + 12345 * PAGE, (64 << 30) - PAGE):
            one.seek(at)
            other.seek(at)
            assert one.read(512 << 10) == other.read(512 << 10)


def test_the_table_of_pages_stops_at_its_cap_and_nothing_is_wrong(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_table, "MAX_PAGES", 100)
    tables: list[page_table.PageTable] = []
    initialise = page_table.PageTable.__init__

    def remembered(table: page_table.PageTable, *space: int) -> None:
        initialise(table, *space)
        tables.append(table)

    monkeypatch.setattr(page_table.PageTable, "__init__", remembered)
    numbers = [*range(1, 300), *range(1, 300), 0, *range(250, 320)]
    with Store.create(tmp_path / "s", durability="none") as store:
        ids = [put(store, tmp_path, content(numbers)), put(store, tmp_path, content([3, *numbers]))]
        assert all(sum(len(run[0]) for run in table._runs) <= 100 for table in tables) and len(tables) == 6  # three a put
        assert read_whole(store, ids[0]) == content(numbers) and read_whole(store, ids[1]) == content([3, *numbers])


def test_a_pack_has_not_more_blocks_than_its_table_may(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that compress to almost nothing: a pack would hold millions before it has its bytes."""
    monkeypatch.setattr(pack, "PACK_SIZE", 1 << 30)
    monkeypatch.setattr(pack, "MAX_BLOCKS_PER_PACK", 3)
    with Store.create(tmp_path / "s", durability="none") as store:
        image_id = put(store, tmp_path, content(range(1, 1000)))
        assert len(packs_of(store.path)) >= 5
        assert read_whole(store, image_id) == content(range(1, 1000))


def test_lists_open_no_pack_and_no_index(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        ids = [put(store, tmp_path, content(range(number, number + 50))) for number in range(1, 6)]
    for part in ("packs", "index"):
        (store.path / part).rename(store.path / f"{part} away")
    with Store.open(store.path) as store:
        assert [one.id for one in store.summaries()] == ids
        assert store.find("m/system/latest").id == ids[-1]
        assert store.open_image(ids[0]).size == 50 * PAGE
        assert not store.blocks._blocks


# invariant 7: private ------------------------------------------------------------------------------------------------------

SECRET = b"correct horse battery staple"


def every_file(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()]


def test_nothing_in_the_store_or_the_key_is_open_to_others(tmp_path: Path, small: None, config_home: Path) -> None:
    before = os.umask(0)  # the worst there is
    try:
        with Store.create(tmp_path / "s", durability="none") as store:
            ids = [put(store, tmp_path, content(range(number, number + 100))) for number in range(1, 40, 2)]
            store.record(ids[:3], "verified")
            store.summaries()
            store.remove(ids[:2])
            collect(store, dry_run=False, progress=SILENT)
            with store.writing():
                everything = [store.path, *store.path.rglob("*"), config_home / "fuse-store" / "keys", *config_home.rglob("*.key")]
                modes = {path: stat.S_IMODE(path.stat().st_mode) for path in everything}
    finally:
        os.umask(before)
    kinds = {path.parent.name if path.suffix in (".img", ".idx", ".log") else path.suffix or path.name for path in modes}
    assert {"images", "index", "states", ".pack", ".json", ".key", "writer", "trash", "summaries"} <= kinds
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_neither_content_nor_names_stand_in_the_files(tmp_path: Path, compression: str) -> None:
    source = tmp_path / "a-telling-name"
    source.mkdir()
    (source / "salaries-of-all").write_bytes(SECRET + np.random.default_rng(2).bytes(PAGE) + SECRET * 200)
    label = Label("webserver-of-acme", "payroll-run", event="before-merger", tags={"owner-x": "alice-b"})
    with Store.create(tmp_path / "s", compression=compression, durability="none") as store:
        made = store.put(str(source), label)
        store.record([made.id], "verified", "by-the-auditor")
        for number in range(20):
            store.put(str(source), Label("webserver-of-acme", event=f"again-{number}"))
        store.summaries()
        key = (tmp_path / "config" / "fuse-store" / "keys" / f"{store.config.id}.key").read_text().split()[-1]
    names_in_it = [b"salaries", b"acme", b"payroll", b"merger", b"owner-x", b"alice", b"auditor", b"telling"]
    words = [SECRET, *names_in_it, bytes.fromhex(key), key.encode()]
    files = every_file(store.path)
    assert len(files) > 24 and list(store.path.glob("summaries/*"))
    for path in files:
        stored = path.read_bytes()
        for word in words:
            assert word not in stored and word not in str(path.relative_to(store.path)).encode(), (path, word)


def test_the_search_for_secrets_finds_them_where_they_are_open(tmp_path: Path) -> None:
    """The test above could fail: without encryption and compression the content is there for all to see."""
    (tmp_path / "source").write_bytes(SECRET * 200)
    with Store.create(tmp_path / "s", encryption=False, compression="none", durability="none") as store:
        store.put(str(tmp_path / "source"), Label("acme"))
    assert any(SECRET in path.read_bytes() for path in every_file(store.path))
    assert any(b"acme" in path.read_bytes() for path in every_file(store.path))


def test_the_same_content_in_two_stores_has_nothing_in_common(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content(range(1, 200)))
    stored = []
    for name in ("a", "b"):
        with Store.create(tmp_path / name, durability="none") as store:
            store.put(str(tmp_path / "source"), Label("m"))
        stored.append([path for part in ("packs", "images") for path in every_file(store.path / part)])
    whole = [[path.read_bytes() for path in files] for files in stored]
    chunks = [{data[at : at + 16] for data in files for at in range(40, len(data) - 15)} for files in whole]
    assert all(len(part) > 10_000 for part in chunks)
    framing = (b"FSI", bytes(6))  # of manifests
    common = {chunk for chunk in chunks[0] & chunks[1] if not any(part in chunk for part in framing)}
    assert not common
    assert not {path.name for path in stored[0]} & {path.name for path in stored[1]}


def test_the_same_pages_stored_twice_are_not_sealed_alike_under_another_name(tmp_path: Path) -> None:
    """What stands for an object depends on its name: no keystream is used for two contents."""
    with Store.create(tmp_path / "s", durability="none") as store:
        one, other = (store.aead.encrypt(name, SECRET) for name in (b"one", b"other"))
        assert one[:16] == other[:16] and one[16:] != other[16:]
        assert store.aead.encrypt(b"one", SECRET[:-1] + b"x")[16:32] != one[16:32]
        with pytest.raises(ValueError, match="decryption failed"):
            store.aead.decrypt(b"other", one)


@pytest.mark.parametrize("wrong", ["missing", "of another store", "changed", "no key", "empty", "binary"])
def test_without_its_key_a_store_can_not_be_opened_and_nothing_is_created(tmp_path: Path, wrong: str, config_home: Path) -> None:
    with Store.create(tmp_path / "s", durability="none") as store:
        put(store, tmp_path, b"x")
    Store.create(tmp_path / "other", durability="none", key_file=tmp_path / "other.key").close()
    key = next(config_home.rglob("*.key"))
    text = key.read_text()
    key.unlink()
    if wrong != "missing":
        key.touch(0o600)
    if wrong == "of another store":
        shutil.copy(tmp_path / "other.key", key)
    elif wrong == "changed":
        key.write_text(text[:-3] + ("00\n" if text[-3:-1] != "00" else "11\n"))
    elif wrong != "missing":
        key.write_bytes({"no key": text[:50].encode(), "empty": b"", "binary": b"\xff\xfe\x00" * 40}[wrong])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((Refused, WrongKey)) as caught:
        Store.open(tmp_path / "s")
    assert caught.value.exit_code == (5 if wrong == "missing" else 4)
    assert "--key-file" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_key_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("precious")
    with pytest.raises(Refused) as caught:
        Store.create(tmp_path / "s", key_file=tmp_path / "key")
    assert caught.value.exit_code == 5 and (tmp_path / "key").read_text() == "precious"
    assert not (tmp_path / "s").exists()


def test_a_store_that_could_not_be_made_leaves_no_key(tmp_path: Path, config_home: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Exception, match="store"):
        Store.create(tmp_path / "file" / "s")
    assert list(config_home.rglob("*.key")) == []


def test_a_store_is_made_only_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    (tmp_path / "s" / "mine").write_text("x")
    with pytest.raises(Refused, match="not empty"):
        Store.create(tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["mine"]
    with pytest.raises(NotFound) as caught:
        Store.open(tmp_path / "s")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "config").exists()


def test_a_file_may_be_a_store_opened_from_a_copy(tmp_path: Path, small: None) -> None:
    """``cp -a`` and ``rsync`` copy a store; folders that were empty may be lost on the way."""
    with Store.create(tmp_path / "s", durability="none") as store:
        image_id = put(store, tmp_path, content(range(1, 100)))
    shutil.copytree(store.path, tmp_path / "copy")
    for name in DIRECTORIES:
        folder = tmp_path / "copy" / name
        if not any(folder.iterdir()):
            folder.rmdir()
    with Store.open(tmp_path / "copy") as store:
        assert read_whole(store, image_id) == content(range(1, 100))
        put(store, tmp_path, content(range(1, 120)))
        store.remove([image_id])
        collect(store, dry_run=False, progress=SILENT)
        assert len(store.ids()) == 1
