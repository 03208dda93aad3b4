# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariant 5, the writer lock: one holder, also after crashes, other boots and hibernation."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from fuse_store.errors import Locked
from fuse_store.repository import locks
from fuse_store.repository.backends import Lock
from fuse_store.repository.locks import WriterLock
from fuse_store.store import Label, Store
from tests.store.conftest import content, fork, wait


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "locks"
    path.mkdir()
    return path


def holder(**changes: object) -> str:
    """A lock of this process, with some things otherwise."""
    return json.dumps({**locks.this_process(), "token": "00", **changes})


def ended_process() -> int:
    child = fork(lambda: None)
    wait(child)
    return child


def test_the_lock_is_there_while_it_is_held_and_private(directory: Path) -> None:
    with WriterLock(directory) as lock:
        lock.check()
        named = json.loads((directory / "writer").read_text())
        assert named["pid"] == os.getpid() and named["host"] == socket.gethostname() and named["boot"] and named["start"]
        assert stat.S_IMODE((directory / "writer").stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == ["free"]


def test_a_second_writer_is_told_who_has_it(directory: Path) -> None:
    with WriterLock(directory) as lock:
        with pytest.raises(Locked, match=rf"process {os.getpid()} on {socket.gethostname()}.*Wait") as caught, WriterLock(directory):
            pass
        assert caught.value.exit_code == 6
        lock.check()
        assert [path.name for path in directory.iterdir()] == ["writer"]
    with WriterLock(directory):
        pass


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"boot": "00000000-0000-0000-0000-000000000000"}, id="another boot"),
        pytest.param({"pid": "ended"}, id="a process that ended"),
        pytest.param({"start": 1}, id="a process number that was used again"),
    ],
)
def test_the_lock_of_a_holder_that_ended_is_taken_over(directory: Path, changes: dict[str, object]) -> None:
    if changes.get("pid") == "ended":
        changes = {"pid": ended_process()}
    (directory / "writer").write_text(holder(**changes))
    with WriterLock(directory) as lock:
        lock.check()
    assert [path.name for path in directory.iterdir()] == ["free"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(holder(), id="a live process"),
        pytest.param(holder(machine="another", host="elsewhere", boot="other", pid=1, start=1), id="another machine"),
        pytest.param("", id="empty"),
        pytest.param("{", id="no JSON"),
        pytest.param("[]", id="no object"),
        pytest.param("{}", id="names no process"),
    ],
)
def test_the_lock_of_who_may_be_there_is_left_alone(directory: Path, text: str) -> None:
    (directory / "writer").write_text(text)
    with pytest.raises(Locked, match=r"remove .*writer"), WriterLock(directory):
        pass
    assert (directory / "writer").read_text() == text
    assert len(list(directory.iterdir())) == 1


def test_who_lost_the_lock_neither_commits_nor_removes_the_new_ones(directory: Path) -> None:
    with WriterLock(directory) as sleeper:
        (directory / "writer").write_text(holder(token="new"))
        with pytest.raises(Locked, match="taken over by another process"):
            sleeper.check()
    assert json.loads((directory / "writer").read_text())["token"] == "new"


def test_a_put_that_lost_its_lock_makes_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that hibernates during a put, and another process of the next boot takes the lock over."""
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 200)))
    with Store.create(tmp_path / "store", durability="none") as store:
        lock = store.path / "locks" / "writer"

        class Sleeps:
            def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
                lock.write_text(holder(token="new"))

            def at(self, done: int) -> None: ...

            def finish(self) -> None: ...

        with pytest.raises(Locked) as caught:
            store.put(str(source), Label("m"), progress=Sleeps())
        assert caught.value.exit_code == 6
        assert store.ids() == [] and not list((store.path / "images").iterdir())
        assert json.loads(lock.read_text())["token"] == "new"
        lock.unlink()
        store.put(str(source), Label("m"))
        assert len(store.ids()) == 1


def test_who_loses_the_lock_while_removing_removes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 20)))
    with Store.create(tmp_path / "store", durability="none") as store:
        ids = [store.put(str(source), Label("m")).id for _number in range(3)]
        lock = store.path / "locks" / "writer"
        monkeypatch.setattr(store.state_log, "forget", lambda image_id: lock.write_text(holder(token="new")))
        with pytest.raises(Locked, match=f"{ids[1]} was not removed"):
            store.remove(ids)
        assert sorted(store.ids()) == sorted(ids[1:])
        lock.unlink()
        newest = store.path / "images" / f"{ids[2]}.img"
        before_commit = store.before_commit

        def lost_then(own: Lock) -> None:
            before_commit(own)
            lock.write_text(holder(token="new"))  # right before the manifest appears

        monkeypatch.setattr(store, "before_commit", lost_then)
        with pytest.raises(Locked, match=f"{ids[2]} was not removed"):
            store.put(str(source), Label("m"), replace=True)
        assert newest.exists() and len(store.ids()) == 3


def test_of_many_that_find_a_stale_lock_one_gets_it_at_a_time(directory: Path) -> None:
    inside = directory.parent / "inside"
    log = directory.parent / "log"

    def work() -> None:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                with WriterLock(directory) as lock:
                    descriptor = os.open(inside, os.O_CREAT | os.O_EXCL)  # fails if two are in here
                    lock.check()
                    os.close(descriptor)
                    os.unlink(inside)
                    with open(log, "a") as file:
                        file.write("x")
                    # Half of the time the holder dies instead of giving it back.
                    if os.urandom(1)[0] & 1:
                        (directory / "writer").write_text(holder(boot="earlier"))
            except Locked:
                time.sleep(0.001)

    children = [fork(work) for _number in range(4)]
    assert [wait(child) for child in children] == [0] * 4
    assert len(log.read_text()) > 20


def test_two_that_find_a_stale_lock_do_not_both_take_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second must not remove the lock that the first has just taken, though it saw the stale one."""
    (directory / "writer").write_text(holder(boot="earlier"))
    seen = threading.Event()
    has_ended = locks.has_ended
    taken: list[str] = []

    def slowly(held: dict[str, object]) -> bool:
        ended = has_ended(held)
        if threading.current_thread().name == "slow":
            seen.set()
            time.sleep(0.3)
        return ended

    def take() -> None:
        try:
            with WriterLock(directory) as lock:
                taken.append(threading.current_thread().name)
                time.sleep(0.6)
                lock.check()
        except Locked:
            taken.append("locked")

    monkeypatch.setattr(locks, "has_ended", slowly)
    slow, quick = threading.Thread(target=take, name="slow"), threading.Thread(target=take, name="quick")
    slow.start()
    assert seen.wait(10)
    quick.start()
    slow.join()
    quick.join()
    assert len(taken) == 2 and taken[1] == "locked" and taken[0] in ("slow", "quick")
    assert [path.name for path in directory.iterdir()] == ["free"]


def test_the_lock_of_a_process_with_an_odd_name_is_left_alone(directory: Path) -> None:
    """In proc_pid_stat(5) the name stands in parentheses, and may have some itself."""
    reader, writer = os.pipe()

    def work() -> None:
        Path("/proc/self/comm").write_text("a) S 1 (b) 2")
        with WriterLock(directory):
            os.write(writer, b"x")
            time.sleep(30)

    child = fork(work)
    try:
        os.read(reader, 1)
        assert json.loads((directory / "writer").read_text())["start"] == locks._start(child)
        with pytest.raises(Locked, match=f"process {child} "), WriterLock(directory):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child)
    with WriterLock(directory) as lock:
        lock.check()


def test_a_lock_has_nothing_of_the_longer_one_before(directory: Path) -> None:
    """The file of the last lock is written again."""
    (directory / "free").write_text("x" * 5000)
    number = (directory / "free").stat().st_ino
    with WriterLock(directory) as lock:
        lock.check()
        assert json.loads((directory / "writer").read_text())["pid"] == os.getpid()
        assert (directory / "writer").stat().st_ino == number  # no new file, for which a full disk has no space
    assert (directory / "free").stat().st_ino == number


def test_a_machine_without_an_id_is_known_by_its_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text
    for text in ("\n", "0123\n", None):

        def read(path: Path, *given: str, text: str | None = text, **named: str) -> str:
            if str(path) != "/etc/machine-id":
                return read_text(path, *given, **named)
            if text is None:
                raise FileNotFoundError
            return text

        monkeypatch.setattr(Path, "read_text", read)
        assert locks.this_process()["machine"] == ("0123" if text == "0123\n" else socket.gethostname())
        with WriterLock(directory) as lock:
            lock.check()


def test_a_lock_that_is_taken_again_and_again_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of holders that have all ended, each time another."""
    attempts: list[int] = []

    def refuse(source: Path, target: Path) -> None:
        attempts.append(1)
        (directory / "writer").write_text(holder(boot="earlier", pid=len(attempts)))
        raise FileExistsError

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(Locked), WriterLock(directory):
        pass
    assert 2 <= len(attempts) < 100 and not list(directory.glob("*.partial"))
