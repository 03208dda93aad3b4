# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariant 5, the writer lock: one holder, also after crashes, other boots and hibernation."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from fuse_store.errors import Locked, Refused
from fuse_store.repository import locks
from fuse_store.repository.atomic import remove_partials
from fuse_store.repository.backends import Lock
from fuse_store.repository.locks import WriterLock
from fuse_store.repository.manifest import image_name
from fuse_store.store import Label, Store
from tests.store.conftest import content, fork, run, wait


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "locks"
    path.mkdir()
    return path


def holder(**changes: object) -> str:
    """A lock of this process, with some things otherwise."""
    return json.dumps({**locks.this_process(), "token": "00", **changes})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def hold(directory: Path) -> int:
    """A process that has the lock, and sleeps; its pid."""
    reader, writer = os.pipe()

    def work() -> None:
        with WriterLock(directory):
            os.write(writer, b"x")
            time.sleep(60)

    child = fork(work)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    wait(child)


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
    assert names(directory) == ["free", "lock"]


def test_a_second_writer_is_told_who_has_it(directory: Path) -> None:
    with WriterLock(directory) as lock:
        with pytest.raises(Locked, match=rf"process {os.getpid()} on {socket.gethostname()}.*Wait") as caught, WriterLock(directory):
            pass
        assert caught.value.exit_code == 6
        lock.check()
        assert names(directory) == ["lock", "writer"]
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
    assert names(directory) == ["free", "lock"]


def test_the_lock_of_another_machine_is_left_alone(directory: Path) -> None:
    for changes in ({"machine": "another"}, {"host": "a machine that was copied, with its id"}):
        text = holder(**changes, boot="other", pid=1, start=1)
        (directory / "writer").write_text(text)
        with pytest.raises(Locked, match=r"process 1 on .*remove .*writer"), WriterLock(directory):
            pass
        assert (directory / "writer").read_text() == text and names(directory) == ["lock", "writer"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0" * 400, "[" * 100_000])
def test_what_a_power_cut_left_of_a_lock_does_not_lock_for_ever(directory: Path, text: str) -> None:
    (directory / "writer").write_text(text)
    with WriterLock(directory) as lock:
        lock.check()
        assert json.loads((directory / "writer").read_text())["pid"] == os.getpid()
    assert names(directory) == ["free", "lock"]


def test_unreadable_text_of_a_live_holder_does_not_free_its_lock(directory: Path) -> None:
    child = hold(directory)
    try:
        for text in ("", holder(boot="earlier"), holder(pid=ended_process())):
            (directory / "writer").write_text(text)
            with pytest.raises(Locked, match=r"locked by another process.*Wait") as caught, WriterLock(directory):
                pass
            assert "remove" not in str(caught.value)
    finally:
        kill(child)


def test_a_live_process_is_named_and_nothing_has_to_be_removed(directory: Path) -> None:
    child = hold(directory)
    try:
        with pytest.raises(Locked, match=rf"locked by process {child} on .*Wait until it is done, or use --wait") as caught:
            WriterLock(directory).__enter__()
        assert "remove" not in str(caught.value)
    finally:
        kill(child)
    with WriterLock(directory) as lock:
        lock.check()


def test_the_text_of_a_live_process_without_the_lock_is_a_copy(directory: Path, tmp_path: Path) -> None:
    """Of a store that was copied while a process of this machine wrote to it."""
    child = hold(directory)
    copy = tmp_path / "copy"
    try:
        shutil.copytree(directory, copy)
        with WriterLock(copy) as lock:
            lock.check()
    finally:
        kill(child)


def test_two_containers_do_not_write_at_once(directory: Path) -> None:
    """In another PID namespace the holder's number means nothing, though machine and boot are the same."""
    child = hold(directory)
    script = (
        "import sys\nfrom pathlib import Path\nfrom fuse_store.errors import Locked\nfrom fuse_store.repository.locks import WriterLock\n"
        "try:\n    with WriterLock(Path(sys.argv[1])): print('both')\nexcept Locked: print('locked')\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script, str(directory)]
    try:
        assert run(*command) == "locked\n"
    finally:
        kill(child)
    assert run(*command) == "both\n"
    with WriterLock(directory) as lock:
        lock.check()


def test_a_process_number_of_another_container_means_nothing_without_a_kernel_lock() -> None:
    """In a bucket there is none."""
    own = locks.this_process()
    gone = {**own, "pid": ended_process()}
    assert locks.has_ended(gone) and not locks.has_ended(own)
    assert not locks.has_ended({**gone, "namespace": own["namespace"] + 1})
    assert locks.has_ended({**own, "boot": "earlier"}) and not locks.has_ended({**own, "boot": "earlier", "host": "another"})
    assert not locks.has_ended({})


def test_a_forked_process_does_not_keep_the_lock(directory: Path) -> None:
    reader, writer = os.pipe()

    def sleep() -> None:
        os.write(writer, b"x")
        time.sleep(60)

    def work() -> None:
        with WriterLock(directory) as lock:
            child = fork(sleep)
            os.read(reader, 1)
            pids.write_text(str(child))
            lock.check()
            os._exit(7)  # without giving it back

    pids = directory.parent / "pid"
    assert wait(fork(work)) == 7
    try:
        with WriterLock(directory) as lock:
            lock.check()
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_forked_process_does_not_act_as_the_holder(directory: Path) -> None:
    with WriterLock(directory) as lock:
        def work() -> None:
            with pytest.raises(Locked):
                lock.check()
            lock.__exit__(None, None, None)

        assert wait(fork(work)) == 0
        lock.check()
        with pytest.raises(Locked), WriterLock(directory):
            pass


def test_many_processes_get_the_lock_or_are_told_that_it_is_held(directory: Path) -> None:
    """Nothing else, and never two at once; partial files are removed by each holder, as a writer does."""
    inside, counts = directory.parent / "inside", directory.parent / "counts"
    counts.mkdir()

    def work() -> None:
        until, got, refused = time.monotonic() + 2, 0, 0
        while time.monotonic() < until:
            try:
                with WriterLock(directory) as lock:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    remove_partials(directory)
                    lock.check()
                    os.unlink(inside)
                    got += 1
            except Locked:
                refused += 1
        (counts / str(os.getpid())).write_text(f"{got} {refused}")

    children = [fork(work) for _number in range(8)]
    assert [wait(child) for child in children] == [0] * 8
    got, refused = (sum(column) for column in zip(*(map(int, path.read_text().split()) for path in counts.iterdir()), strict=True))
    assert got > 100 and refused > 100
    assert names(directory) == ["free", "lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(Refused, match="no locks"), WriterLock(directory):
        pass
    assert names(directory) == ["lock"]


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
        assert store.ids() == [] and not list((store.path / "images").glob("**/*.*"))
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
        monkeypatch.setattr(store.state_log, "forget", lambda *_version, **_usable: lock.write_text(holder(token="new")))
        with pytest.raises(Locked, match=f"{ids[1]} was not removed"):
            store.remove(ids)
        assert sorted(store.ids()) == sorted(ids[1:])
        lock.unlink()
        newest = store.path / image_name(ids[2])
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
                        (directory / "writer").write_text(holder(boot="earlier"))  # it is not its own then, and stays
            except Locked:
                time.sleep(0.001)

    children = [fork(work) for _number in range(4)]
    assert [wait(child) for child in children] == [0] * 4
    assert len(log.read_text()) > 20


def test_the_start_of_a_process_with_an_odd_name() -> None:
    """In proc_pid_stat(5) the name stands in parentheses, and may have some itself."""
    reader, writer = os.pipe()

    def work() -> None:
        before = locks._start(os.getpid())
        Path("/proc/self/comm").write_text("a) S 1 (b) 2")
        assert locks._start(os.getpid()) == before
        os.write(writer, b"x")
        time.sleep(30)

    child = fork(work)
    try:
        os.read(reader, 1)
        held = {**locks.this_process(), "pid": child, "start": locks._start(child)}
        assert held["start"] and not locks.has_ended(held) and locks.has_ended({**held, "start": 1})
    finally:
        kill(child)
    assert locks.has_ended(held)


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


def test_a_lock_that_other_machines_take_again_and_again_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines whose kernel locks this one does not see, and which have all ended."""
    attempts: list[int] = []

    def refuse(source: Path, target: Path) -> None:
        attempts.append(1)
        (directory / "writer").write_text(holder(boot="earlier", pid=len(attempts)))
        raise FileExistsError

    monkeypatch.setattr(locks, "rename_new", refuse)
    with pytest.raises(Locked), WriterLock(directory):
        pass
    assert 2 <= len(attempts) < 100 and not list(directory.glob("*.partial"))
