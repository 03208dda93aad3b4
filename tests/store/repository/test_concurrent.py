# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariant 5: any number of readers beside one writer, in other processes, while versions come, go and are moved."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from fuse_store.errors import Locked, NotFound, StoreError
from fuse_store.image import restore
from fuse_store.maintenance import gc, packs
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.trash import GRACE_PERIOD
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository.index import lookup
from fuse_store.repository.pack import pack_name
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, content, fork, packs_of, read_whole, wait, write_sparse


def version(number: int) -> bytes:
    """A version shares a half of its pages with the one before."""
    numbers = list(range(1 + 40 * number, 81 + 40 * number))
    random.Random(number).shuffle(numbers)
    return content([number + 100_000, *numbers, 0, 0])


def put(store: Store, directory: Path, number: int) -> str:
    source = str(write_sparse(directory / f"source{number}", version(number)))
    return store.put(source, Label("m", event=str(number))).id


@pytest.fixture
def path(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packs, "MIN_USED_RATIO", 1.0)  # every collection copies every pack
    with Store.create(tmp_path / "store", durability="none") as store:
        for number in range(3):
            put(store, tmp_path, number)
    return tmp_path / "store"


def collect(store: Store, grace: float = GRACE_PERIOD) -> gc.Collected:
    return gc.collect(store, dry_run=False, progress=SILENT, grace=grace)


def test_the_second_of_two_writers_is_told_at_once(path: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def hold() -> None:
        with Store.open(path) as store, store.writing():
            os.write(writer, b"x")
            time.sleep(30)

    child = fork(hold)
    try:
        os.read(reader, 1)
        with Store.open(path) as store:
            ids = store.ids()
            for act in (
                lambda: put(store, tmp_path, 9), lambda: store.remove(ids), lambda: collect(store),
                lambda: repair(store, SILENT), lambda: store.record(ids, "verified"),
            ):  # fmt: skip
                began = time.monotonic()
                with pytest.raises(Locked, match=f"process {child} ") as caught:
                    act()
                assert caught.value.exit_code == 6 and time.monotonic() - began < 2
            assert sorted(store.ids()) == sorted(ids)
            for number, summary in enumerate(store.summaries()):  # reading needs no lock
                assert read_whole(store, summary.id) == version(number)
            assert [verdict.state for verdict in verify(store, ids, 100, SILENT)] == ["sound"] * 3
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child)
    with Store.open(path) as store:
        put(store, tmp_path, 9)  # the lock of one that was killed is taken over


def read_for(path: Path, seconds: float) -> None:
    """Read whatever is there, with one store that stays open, until the time is over."""
    until = time.monotonic() + seconds
    read = 0
    with Store.open(path) as store:
        while time.monotonic() < until or not read:
            for summary in store.summaries():
                try:
                    image = store.open_image(summary.id)
                except NotFound:
                    continue  # removed since the list was made
                data = b"".join(image.read(at, 30_000) for at in range(0, image.size, 30_000))
                assert data == version(int(summary.event)), summary.event
                read += 1


def test_readers_beside_a_writer(path: Path, tmp_path: Path) -> None:
    """Two processes and two threads read, while versions are put, replaced, removed, moved to other packs, and the index is rebuilt."""
    children = [fork(lambda: read_for(path, 5)) for _number in range(2)]
    failures: list[BaseException] = []
    moved = 0

    def in_thread() -> None:
        try:
            read_for(path, 5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=in_thread)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 4.5
    number = 3
    with Store.open(path) as store:
        while time.monotonic() < until:
            put(store, tmp_path, number)
            number += 1
            every = store.summaries()
            if len(every) > 4:
                store.remove([every[0].id, every[2].id])
            moved += collect(store).packs_copied
            if number % 4 == 0:
                repair(store, SILENT)
    for thread in threads:
        thread.join()
    assert [wait(child) for child in children] == [0, 0] and not failures
    assert number > 6 and moved


def test_a_dry_run_beside_a_writer_waits_for_nothing_and_fails_not(path: Path, tmp_path: Path) -> None:
    stop, tried = threading.Event(), 0

    def work() -> None:
        number = 3
        with Store.open(path) as store:
            while not stop.is_set():
                put(store, tmp_path, number)
                store.remove([store.summaries()[0].id])
                collect(store)
                number += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with Store.open(path) as store:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                gc.collect(store, dry_run=True, progress=SILENT)
                tried += 1
    finally:
        stop.set()
        thread.join()
    assert tried > 3


def test_who_has_an_image_open_reads_it_while_its_packs_are_copied(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as reader, Store.open(path) as writer:
        first, second, third = [summary.id for summary in reader.summaries()]
        images = [reader.open_image(image_id) for image_id in (second, third)]
        half = images[0].size // 2
        start = images[0].read(0, half)
        list(images[1].blocks())  # it knows where its blocks were
        before = packs_of(path)
        writer.remove([first])
        assert collect(writer, grace=0.0).packs_copied
        collect(writer, grace=0.0)
        assert before - packs_of(path)
        assert start + images[0].read(half, half) == version(1)
        assert images[1].read(0, images[1].size) == version(2)


def test_who_reads_a_version_that_is_removed_may_finish(path: Path, tmp_path: Path) -> None:
    """Its manifest and its packs are in the trash for an hour."""
    with Store.open(path) as reader, Store.open(path) as writer:
        newest = reader.summaries()[-1].id
        image = reader.open_image(newest)
        start = image.read(0, PAGE)
        writer.remove(reader.ids())
        done = collect(writer)
        assert done.packs_removed and packs_of(path) == set()
        assert start + image.read(PAGE, image.size) == version(2)
        with pytest.raises(NotFound):
            reader.open_image(newest)
        with pytest.raises(NotFound):
            Store.open(path).open_image(newest)


def test_what_is_in_the_trash_is_not_built_upon(path: Path, tmp_path: Path) -> None:
    """A put after a removal and a collection stores everything again, though the packs are there for a while."""
    with Store.open(path) as store:
        before = read_whole(store, store.summaries()[0].id)
        old_index = {name: name.read_bytes() for name in (path / "index").glob("*.idx")}
        store.remove(store.ids())
        collect(store)
        for name, data in old_index.items():  # not even with the old index restored
            name.write_bytes(data)
        made = put(store, tmp_path, 0)
        for entry in (path / "trash").iterdir():
            entry.unlink()
    with Store.open(path) as store:
        assert read_whole(store, made) == before == version(0)


def test_threads_share_one_image(path: Path) -> None:
    failures: list[BaseException] = []
    with Store.open(path) as store:
        images = [store.open_image(summary.id) for summary in store.summaries()]

        def work(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _time in range(60):
                    number = chance.randrange(3)
                    at, length = chance.randrange(images[number].size), chance.randrange(100_000)
                    images[number].prefetch(at, length)
                    assert images[number].read(at, length) == version(number)[at : at + length]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_new_version_is_seen_by_a_store_that_is_open(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as reader, Store.open(path) as writer:
        for number in range(3, 8):
            made = put(writer, tmp_path, number)
            assert reader.find("m/system/latest").id == made
            assert read_whole(reader, made) == version(number)


@pytest.mark.parametrize("merged", [False, True], ids=["two fragments", "one fragment"])
def test_blocks_of_a_lost_pack_that_are_stored_again(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, merged: bool) -> None:
    """The index has two places for each block, and only one of them is there. Merged or not, readers and collections use that."""
    if not merged:
        monkeypatch.setattr(lookup, "similar", lambda fragments: fragments[:0])
    source = str(write_sparse(tmp_path / "source", version(0)))
    for attempt in range(3):
        with Store.create(tmp_path / f"store{attempt}", durability="none") as store:
            first = store.put(source, Label("m"), bases=[]).id
            for pack in packs_of(store.path):
                (store.path / pack_name(pack)).unlink()
        with Store.open(store.path) as store:
            second = store.put(source, Label("m"), bases=[])
            assert second.stored and (len(store.index.fragments()) == 1) == merged
            assert read_whole(store, second.id) == read_whole(store, first) == version(0)
            done = collect(store, grace=0.0)
            assert done.packs_kept + done.packs_copied == len(packs_of(store.path))
            assert read_whole(store, second.id) == read_whole(store, first) == version(0)


def test_a_collection_of_a_store_with_a_lost_pack_frees_nothing(path: Path, tmp_path: Path) -> None:
    """A pack is lost; a put stores its pages again, in other blocks. What is there stays readable; a repair loses none of it."""
    with Store.open(path) as store:
        newest = store.summaries()[-1]
        store.remove([summary.id for summary in store.summaries()][:-1])
        collect(store)
        data = version(2)
        for pack in packs_of(path):
            (path / pack_name(pack)).unlink()
        store.backend.close()
    with Store.open(path) as store:
        source = str(write_sparse(tmp_path / "source", data))
        made = store.put(source, Label("m"), bases=[]).id
        assert read_whole(store, made) == data
        with pytest.raises(StoreError, match=r"missing, and versions need it\. Nothing was freed"):
            collect(store, grace=0.0)
        assert read_whole(store, made) == data
        repair(store, SILENT)
        assert read_whole(store, made) == data and newest.id in store.ids()


def test_a_get_goes_on_while_packs_are_copied(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"

    class Meanwhile:
        done = False

        def start(self, label: str, total: int | None, unit: str = "bytes") -> None: ...

        def at(self, done: int) -> None:
            if not self.done:
                self.done = True
                with Store.open(path) as writer:
                    writer.remove([writer.summaries()[0].id])
                    collect(writer, grace=0.0)

        def finish(self) -> None: ...

    with Store.open(path) as reader:
        progress = Meanwhile()
        restore.get(reader.open_image(reader.summaries()[1].id), str(target), progress)
        assert progress.done and target.read_bytes() == version(1)


def test_a_collection_that_finds_each_block_in_two_fragments_copies_all_of_them(path: Path) -> None:
    """As after a repair or a collection that was killed when the new index was there and the old one still was."""
    with Store.open(path) as store:
        for fragment in list(store.index.fragments().values()):
            store.index.separate()
            store.index.add([fragment.part(0, len(fragment))], sync=False)
        first, *rest = store.summaries()
        store.remove([first.id])
        assert collect(store, grace=0.0).packs_copied
        for listed in rest:
            assert read_whole(store, listed.id) == version(int(listed.event))
    with Store.open(path) as store:
        assert repair(store, SILENT).lost == {}
        for listed in rest:
            assert read_whole(store, listed.id) == version(int(listed.event))
