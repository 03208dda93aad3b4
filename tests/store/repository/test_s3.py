# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores in a bucket, against a real S3-compatible server. What both backends owe is tried on both.

Commands run as processes of their own: a client of the server does not survive a fork.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.atomic import FAULT_POINT
from fuse_store.repository.backends import Backend, PosixBackend, backend, lease, s3
from fuse_store.repository.backends.s3 import S3Backend
from fuse_store.repository.manifest import Head, ImageFile, image_name, write_manifest
from fuse_store.repository.pack import all_packs, pack_name
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, Done, content, make_small, read_whole, write_sparse
from tests.store.hibernation.cases import SIZE, blank, make_case, unarmed
from tests.store.repository import s3_server

pytestmark = pytest.mark.long

MARK = b"page "  # stands in every page of ``content``
FIRST, SECOND = content(range(1, 401)), content([*range(1, 301), *range(1001, 1101)])


@pytest.fixture(params=["posix", "object"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store is yet, of each kind."""
    return str(request.getfixturevalue("url")) if request.param == "object" else str(tmp_path / "store")


def run(place: str, *arguments: str, **environment: str) -> Done:
    command = [sys.executable, "-m", "fuse_store.cli", "--store", place, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120)
    assert "Traceback" not in done.stderr and "defect" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def all_names(place: str) -> set[str]:
    return {entry.name for entry in backend(place).entries("")}


def sources(tmp_path: Path) -> tuple[str, str]:
    return str(write_sparse(tmp_path / "first", FIRST)), str(write_sparse(tmp_path / "second", SECOND))


def prepared(place: str, tmp_path: Path) -> tuple[str, str]:
    """A store with two versions of m/system; their ids."""
    with Store.create(place) as store:
        first, second = (store.put(source, Label("m")).id for source in sources(tmp_path))
    return first, second


def flip(place: str) -> None:
    """Change a bit in the middle of the largest pack."""
    where = backend(place)
    pack, size = max(all_packs(where), key=lambda one: one[1])
    data = bytearray(where.read(pack_name(pack)))
    data[size // 2] ^= 1
    where.write(pack_name(pack), bytes(data), sync=False)


# what both backends owe -----------------------------------------------------------------------------------------------


@pytest.fixture
def there(place: str) -> Backend:
    there = backend(place)
    assert there.is_free()
    there.prepare()
    there.bind("00" * 16)
    return there


def test_what_is_written_is_there_whole(there: Backend) -> None:
    there.write("states/a.log", b"one", sync=True)
    there.write("states/a.log", b"0123456789", sync=True)
    assert there.read("states/a.log") == b"0123456789"
    assert there.size("states/a.log") == 10
    assert there.read_range("states/a.log", 2, 3, trashed=False) == b"234"
    assert there.read_range("states/a.log", 8, 30, trashed=False) == b"89"
    assert there.read_range("states/a.log", 30, 3, trashed=False) == b""
    assert there.read_range("states/a.log", 3, 0, trashed=False) == b""
    assert there.names("states") == ["a.log"]
    assert not there.is_free()


def test_what_is_not_there(there: Backend) -> None:
    questions: list[Callable[[], object]] = [
        lambda: there.read("images/none"), lambda: there.size("images/none"), lambda: there.stream("images/none"),
        lambda: there.read_range("images/none", 0, 1, trashed=True), lambda: there.to_trash("images/none"),
        lambda: there.read_mmap("index/none", check=False),
        lambda: there.read_range("packs/aa/none.pack", 0, 1, trashed=True),
    ]  # fmt: skip
    for ask in questions:
        with pytest.raises(FileNotFoundError):
            ask()
    there.remove("images/none")
    assert there.names("images") == []


def test_a_write_that_is_stopped_before_it_appears(there: Backend) -> None:
    def stop() -> None:
        raise Locked("the lock", "lost.")

    with pytest.raises(Locked):
        there.write("images/a.img", b"content", True, stop)
    with pytest.raises(Locked), there.new("packs", True) as new:
        new.file.write(b"content")
        new.create("packs/ab/a.pack", stop)
    assert [*there.entries("")] == []


@pytest.mark.parametrize("size", [7, 20 << 20], ids=["one request", "in parts"])
def test_nothing_is_overwritten_that_is_created(there: Backend, size: int) -> None:
    content = os.urandom(size)
    with there.new("packs", sync=True) as new:
        new.file.write(content)
        new.create("packs/ab/a.pack")
    with there.new("packs", sync=True) as new, pytest.raises(FileExistsError):
        new.file.write(os.urandom(size))
        new.create("packs/ab/a.pack")
    there.write("images/0a0b/a.img", content[:7], sync=True, create=True)
    with pytest.raises(FileExistsError):
        there.write("images/0a0b/a.img", b"other", sync=True, create=True)
    assert there.read("packs/ab/a.pack") == content and there.read("images/0a0b/a.img") == content[:7]
    assert {entry.name for entry in there.entries("")} == {"packs/ab/a.pack", "images/0a0b/a.img"}


def test_a_request_that_is_sent_again_is_no_other_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client repeats a request whose answer was lost; what it wrote the first time is there."""
    there, real = backend(url), S3Backend.put

    def twice(self: S3Backend, name: str, content: bytes, mode: Any = "overwrite") -> str | None:
        real(self, name, content, mode)
        return real(self, name, content, mode)

    monkeypatch.setattr(S3Backend, "put", twice)
    there.write("images/a.img", b"content", sync=False, create=True)
    with pytest.raises(FileExistsError):
        there.write("images/a.img", b"other", sync=False, create=True)
    with there.lock() as lock:
        lock.check()


def test_of_many_that_create_a_file_one_does(there: Backend) -> None:
    for name in ("images/a.img", "images/b.img"):
        done: list[int] = []

        def create(number: int, name: str = name, done: list[int] = done) -> None:
            try:
                there.write(name, b"%d" % number, sync=False, create=True)
                done.append(number)
            except FileExistsError:
                pass

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [b"%d" % number for number in done] == [there.read(name)]


def test_the_trash(there: Backend) -> None:
    there.write("images/a.img", b"content", sync=False)
    begin = there.now()
    time.sleep(2.1)
    there.to_trash("images/a.img")
    assert there.names("images") == [] and there.names("trash") == ["a.img"]
    assert there.read_range("images/a.img", 3, 2, trashed=True) == b"te"
    with pytest.raises(FileNotFoundError):
        there.read_range("images/a.img", 3, 2, trashed=False)
    (entry,) = there.entries("trash")
    assert (entry.name, entry.size) == ("trash/a.img", 7)
    assert begin + 1 < entry.changed < begin + 20, "the hour in the trash begins when it goes there"
    there.remove(entry.name)
    assert there.names("trash") == []


def test_packs_are_read_in_pieces(there: Backend) -> None:
    """Across the borders of what is asked for at once, by many threads."""
    data = np.random.default_rng(1).bytes(5_000_000)
    with there.new("packs", sync=False) as new:
        new.file.write(data[:100])
        new.file.write(data[100:])
        new.create("packs/ab/a.pack")
    assert [(entry.name, entry.size) for entry in there.entries("packs")] == [("packs/ab/a.pack", len(data))]
    wrong: list[int] = []

    def read(seed: int) -> None:
        numbers = np.random.default_rng(seed)
        for _ in range(40):
            at, length = int(numbers.integers(0, len(data))), int(numbers.integers(1, 300_000))
            if there.read_range("packs/ab/a.pack", at, length, trashed=True) != data[at : at + length]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with there.stream("packs/ab/a.pack") as stream:
        assert stream.seek(-10, os.SEEK_END) == len(data) - 10 and stream.read(20) == data[-10:]
        assert stream.seek(4_000_000) and stream.read(1_000_000) == data[4_000_000:]
    there.close()


def test_changes_of_a_directory_are_seen(there: Backend) -> None:
    def number() -> int:
        there.refresh("images")
        time.sleep(0.02)
        return there.changed("images")[0]

    seen = [number()]
    changes: list[Callable[[], None]] = [
        lambda: there.write("images/a.img", b"a", sync=False), lambda: there.write("images/b.img", b"b", sync=False),
        lambda: there.to_trash("images/a.img"),
    ]  # fmt: skip
    for change in changes:
        change()
        assert number() not in seen
        seen.append(number())


def test_one_holds_the_lock(there: Backend, place: str) -> None:
    with there.lock() as lock:
        lock.check()
        with pytest.raises(Locked, match=rf"process {os.getpid()} on "), backend(place).lock():
            pass
    with backend(place).lock() as lock:
        lock.check()


# every verb -----------------------------------------------------------------------------------------------------------


def test_every_verb(place: str, tmp_path: Path) -> None:
    first, second = sources(tmp_path)
    assert run(place, "list").code == 3
    made = run(place, "init", "--json")
    assert made.code == 0 and made.json["store"] == place and made.json["encryption"] == "aes-256-gcm"
    assert run(place, "init").code == 5
    ids = [run(place, "put", source, "--machine", "m", "--json").json["id"] for source in (first, second)]
    assert [version["id"] for version in run(place, "list", "--json").json["versions"]] == ids
    assert run(place, "show", "m/system/latest", "--json").json["id"] == ids[1]
    for image_id, data in zip(ids, (FIRST, SECOND), strict=True):
        assert run(place, "get", image_id, str(tmp_path / "out")).code == 0
        assert (tmp_path / "out").read_bytes() == data
    assert run(place, "verify", ids[0]).code == 0
    assert run(place, "show", ids[0], "--json").json["state"] == "verified"
    stats = run(place, "stats", "--json").json
    assert stats["store"] == place and stats["versions"] == 2 and stats["packs"] == 2 and stats["stored"] > 500 * 512
    diff = run(place, "diff", *ids, "--json").json
    assert (diff["added"], diff["changed"], diff["gone"]) == (0, 100, 0)
    assert run(place, "select", "--machine", "m", "--json").json["id"] == ids[1]
    assert "resume offset" in run(place, "inspect", ids[1]).err  # it was read, and is no hibernation image
    assert "not a hibernation image" in run(place, "stage", ids[1], str(tmp_path / "device")).err
    assert run(place, "report", ids[1], "resumed").code == 5
    assert run(place, "show", ids[1], "--json").json["state"] == "captured"
    assert run(place, "show", "ffff").code == 3
    assert run(place, "prune", "--keep-last", "1", "--dry-run").code == 0
    assert run(place, "remove", ids[0]).code == 0
    assert run(place, "remove", ids[0]).code == 3
    assert run(place, "get", ids[0], str(tmp_path / "gone")).code == 3
    assert run(place, "put", first, "--machine", "m", "--application", "other", "--replace").code == 0
    assert run(place, "prune", "--keep-last", "1").code == 0
    assert run(place, "gc").code == 0 and run(place, "gc", "--now", "--json").code == 0
    assert run(place, "repair").code == 0
    assert run(place, "verify").code == 0
    assert len(run(place, "list", "--json").json["versions"]) == 2
    assert not [name for name in all_names(place) if name.startswith("trash/")]


def test_a_hibernation_image_is_staged(place: str, tmp_path: Path) -> None:
    case = make_case(tmp_path / "case")
    assert run(place, "init").code == 0
    assert run(place, "put", str(case.sources[0]), "--machine", "m", "--kind", "hibernation").code == 0
    assert run(place, "inspect", "m/system/latest", "--json").code == 0
    device = blank(tmp_path / "device")
    assert run(place, "stage", "m/system/latest", str(device)).code == 0
    assert device.read_bytes()[:SIZE] == unarmed(case.content(0))
    assert run(place, "show", "m/system/latest", "--json").json["state"] == "staged"
    assert run(place, "arm", str(device), "--force", "machine_unknown", "--force", "filesystems_unknown").code == 0
    assert run(place, "report", "m/system/latest", "resumed").code == 0
    assert run(place, "show", "m/system/latest", "--json").json["state"] == "resumed"
    assert run(place, "put", str(case.sources[0]), "--machine", "m", "--kind", "hibernation").code == 0
    assert run(place, "show", "m/system/latest", "--json").json["state"] == "resumed"


def test_nothing_of_an_image_can_be_read_in_the_bucket(url: str, tmp_path: Path) -> None:
    prepared(url, tmp_path)
    where = backend(url)
    assert not [name for name in all_names(url) if MARK in where.read(name) or b"system" in where.read(name)]
    with open(next((tmp_path / "config/fuse-store/keys").iterdir()), "r+") as key:
        text = key.read().splitlines()
        assert text[-1].startswith("key ")
        text[-1] = "key " + "0" * 64
        key.seek(0)
        key.write("\n".join(text) + "\n")
    assert run(url, "list").code == 4


def test_without_encryption(url: str, tmp_path: Path) -> None:
    assert run(url, "init", "--no-encryption", "--compression", "none").code == 0
    assert run(url, "put", sources(tmp_path)[0], "--machine", "m").code == 0
    assert any(MARK in backend(url).read(name) for name in all_names(url))
    assert run(url, "verify").code == 0


# killed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["put", "gc", "remove", "record"])
def test_killed_at_any_step(url: str, tmp_path: Path, verb: str) -> None:
    """Killed there, everything that was there can be read, and the same command then comes to its end."""
    script = (
        "import sys\nfrom fuse_store.maintenance.gc import collect\nfrom fuse_store.progress import SILENT\n"
        "from fuse_store.store import Label, Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    every = [one for one in store.summaries() if one.application == 'system']\n"
        "    if sys.argv[2] == 'put': store.put(sys.argv[3], Label('m', application='new'), bases=[every[-1].id])\n"
        "    if sys.argv[2] == 'gc': collect(store, dry_run=False, progress=SILENT, grace=0.0)\n"
        "    if sys.argv[2] == 'remove': store.remove([every[0].id])\n"
        "    if sys.argv[2] == 'record': store.record([every[-1].id], 'verified')\n"
    )
    new = content([*range(1, 201), *range(2001, 2101)])
    source = str(write_sparse(tmp_path / "new", new))
    stride = 1 if os.environ.get("EVERY_STEP") else 3  # with another beginning each time
    for step in range(random.randint(1, stride), 42, stride):
        place = f"{url}/{step}"
        oldest, newest = prepared(place, tmp_path)
        if verb == "gc":
            with Store.open(place) as store:
                store.remove([oldest])
        command = [sys.executable, "-c", script, place, verb, source]
        code = subprocess.run(command, env={**os.environ, FAULT_POINT: str(step)}, check=False, timeout=60).returncode
        assert code in (0, -signal.SIGKILL)
        with Store.open(place) as store:
            found = {summary.id: summary for summary in store.summaries()}
            came = [summary for summary in found.values() if summary.application == "new"]
            assert read_whole(store, newest) == SECOND and all(read_whole(store, summary.id) == new for summary in came)
            assert oldest not in found or read_whole(store, oldest) == FIRST
        if code == 0:
            break
        if not came and (verb != "remove" or oldest in found):
            assert subprocess.run(command, check=False, timeout=60).returncode == 0
        with Store.open(place) as store:
            assert all(verdict.state == "sound" for verdict in verify(store, store.ids(), 100, SILENT))
            collect(store, dry_run=False, progress=SILENT, grace=0.0)
            assert read_whole(store, newest) == SECOND
            assert len(store.ids()) == {"put": 3, "gc": 1, "remove": 1, "record": 2}[verb]
    assert code == 0 and step > {"put": 10, "gc": 4, "remove": 3, "record": 3}[verb]


def test_killed_while_a_pack_is_sent(url: str, tmp_path: Path) -> None:
    """In parts, as a pack is that has more than one: nothing of it can be seen, and the next put stores it."""
    assert run(url, "init").code == 0
    data = np.random.default_rng(7).bytes(96 << 20)
    (tmp_path / "large").write_bytes(data)
    script = (
        "import os, signal, sys, threading, obstore\nfrom fuse_store.store import Label, Store\nput = obstore.put\n"
        "def slow(store, name, file, **named):\n"
        "    if 'chunk_size' in named: threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "    return put(store, name, file, **named)\n"
        "obstore.put = slow\nwith Store.open(sys.argv[1]) as store: store.put(sys.argv[2], Label('m'))\n"
    )
    before = all_names(url)
    for delay in ("0", "0.1", "0.3"):
        command = [sys.executable, "-c", script, url, str(tmp_path / "large"), delay]
        assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
        assert all_names(url) - {lease.LOCK_NAME} == before, delay
    assert run(url, "put", str(tmp_path / "large"), "--machine", "m").code == 0
    with Store.open(url) as store:
        assert read_whole(store, store.ids()[0]) == data


# damage ---------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit(place: str, tmp_path: Path) -> None:
    prepared(place, tmp_path)
    flip(place)
    done = run(place, "verify")
    assert done.code == 4 and "pack" in done.err + done.out
    assert run(place, "get", "m/system/latest", str(tmp_path / "out")).code == 4
    assert not (tmp_path / "out").exists()


def test_the_mount(place: str, tmp_path: Path) -> None:
    """What is read is the source; what comes appears; a flipped bit is an error."""
    prepared(place, tmp_path)
    point = tmp_path / "mount"
    point.mkdir()
    assert run(place, "mount", "--writable", str(point)).code == 0
    try:
        machine = point / "machines/m/system"
        assert (machine / "latest/image").read_bytes() == SECOND
        assert sorted((path / "image").read_bytes() == FIRST for path in machine.iterdir() if not path.is_symlink()) == [False, True]
        third = content(range(3001, 3101))
        assert run(place, "put", str(write_sparse(tmp_path / "third", third)), "--machine", "m").code == 0
        until = time.monotonic() + 10
        while (machine / "latest/image").read_bytes() != third:
            assert time.monotonic() < until
            time.sleep(0.2)
        (point / "incoming/m/copied").mkdir(parents=True)
        (point / "incoming/m/copied/file").write_bytes(FIRST)
        while not (point / "machines/m/copied/latest/image").exists():
            assert time.monotonic() < until + 10
            time.sleep(0.2)
        assert (point / "machines/m/copied/latest/image").read_bytes() == FIRST
    finally:
        subprocess.run(["fusermount3", "-u", str(point)], check=True)
    flip(place)
    assert run(place, "mount", str(point)).code == 0
    try:
        with pytest.raises(OSError) as caught:
            (point / "machines/m/copied/latest/image").read_bytes()
        assert caught.value.errno == errno.EIO
    finally:
        subprocess.run(["fusermount3", "-u", str(point)], check=True)


def test_what_is_kept_here_is_checked(url: str, tmp_path: Path) -> None:
    """Damaged, or gone, it is asked for again; and others must not be able to write to it."""
    prepared(url, tmp_path)
    (kept,) = (tmp_path / "cache/fuse-store").iterdir()
    assert run(url, "get", "m/system/latest", str(tmp_path / "out")).code == 0
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {file.suffix for file in files} >= {".idx", ".table"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in [kept, *files])
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert run(url, "get", "m/system/latest", str(tmp_path / "again")).code == 0
    assert (tmp_path / "again").read_bytes() == SECOND
    assert run(url, "put", str(tmp_path / "first"), "--machine", "m").code == 0
    kept.chmod(0o777)
    assert run(url, "list").code == 5


def test_packs_that_only_the_local_cache_knows_are_not_shared(url: str, tmp_path: Path) -> None:
    prepared(url, tmp_path)
    assert run(url, "put", str(tmp_path / "second"), "--machine", "m").code == 0
    (kept,) = (tmp_path / "cache/fuse-store").iterdir()
    assert list(kept.rglob("*.table"))
    where = backend(url)
    for pack, _size in list(all_packs(where)):
        where.remove(pack_name(pack))
    assert run(url, "get", "m/system/latest", str(tmp_path / "gone")).code == 4
    for machine in ("m", "other"):
        assert run(url, "put", str(tmp_path / "second"), "--machine", machine).code == 0
        assert run(url, "get", f"{machine}/system/latest", str(tmp_path / machine)).code == 0
        assert (tmp_path / machine).read_bytes() == SECOND


# writers and readers --------------------------------------------------------------------------------------------------


def test_two_writers(url: str, tmp_path: Path) -> None:
    prepared(url, tmp_path)
    with Store.open(url) as store, store.writing():
        done = run(url, "put", str(tmp_path / "first"), "--machine", "n")
        assert done.code == 6 and str(os.getpid()) in done.err
        assert run(url, "list").code == 0 and run(url, "verify").code == 0
    assert run(url, "put", str(tmp_path / "first"), "--machine", "n").code == 0


class Meanwhile(Progress):
    """Does something once, while a put is at work."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def start(self, *_arguments: Any, **_named: Any) -> None:
        pass

    def at(self, *_arguments: Any) -> None:
        if self._act is not None:
            self._act()
            self._act = None

    def finish(self) -> None:
        pass


def lock_of(**changes: object) -> bytes:
    from fuse_store.repository.locks import this_process

    return json.dumps({**this_process(), "token": "00", **changes}).encode()


def test_a_writer_that_lost_its_lock(url: str, tmp_path: Path) -> None:
    """As after a hibernation: it is found out before the commit, and the lock of the other stays."""
    prepared(url, tmp_path)
    before = {name for name in all_names(url) if name.startswith("images/")}
    with Store.open(url) as store:
        other = Meanwhile(lambda: store.backend.write(lease.LOCK_NAME, lock_of(), sync=False))
        with pytest.raises(Locked, match="taken over by another process"):
            store.put(str(tmp_path / "first"), Label("n"), progress=other)
        assert store.backend.read(lease.LOCK_NAME) == lock_of()
    assert {name for name in all_names(url) if name.startswith("images/")} == before


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"start": 1}, {"pid": 1 << 22}])
def test_the_lock_of_a_holder_that_ended(url: str, changes: dict[str, object]) -> None:
    where = backend(url)
    where.write(lease.LOCK_NAME, lock_of(**changes), sync=False)
    with where.lock() as lock:
        lock.check()


def test_the_lock_of_another_machine_runs_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = backend(url)
    where.write(lease.LOCK_NAME, lock_of(machine="another"), sync=False)
    with pytest.raises(Locked, match="300 seconds"), where.lock():
        pass
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    time.sleep(2.1)
    with where.lock() as lock:
        lock.check()


def test_a_lock_is_renewed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its holder works it does not run out, and a holder that lost it does not take it back."""
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.1)
    where = backend(url)
    with where.lock() as lock:
        before = where.read(lease.LOCK_NAME)
        time.sleep(0.5)
        assert json.loads(where.read(lease.LOCK_NAME))["count"] > json.loads(before)["count"]
        lock.check()
        where.write(lease.LOCK_NAME, lock_of(), sync=False)
        time.sleep(0.5)
        assert where.read(lease.LOCK_NAME) == lock_of()
        with pytest.raises(Locked):
            lock.check()


def test_who_lost_the_lock_does_not_release_that_of_another(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if it is taken over in the moment between the last look at it and the release."""
    where = backend(url)
    real = lease.Lease._is_ours

    def then_lost(self: lease.Lease) -> bool:
        ours = real(self)
        backend(url).write(lease.LOCK_NAME, lock_of(), sync=False)
        return ours

    with where.lock():
        monkeypatch.setattr(lease.Lease, "_is_ours", then_lost)
    assert where.read(lease.LOCK_NAME) == lock_of()
    with pytest.raises(Locked), where.lock():
        pass


def test_many_want_the_lock_of_a_holder_that_ended(url: str) -> None:
    """One of them gets it."""
    backend(url).write(lease.LOCK_NAME, lock_of(boot="another"), sync=False)
    holders: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            try:
                with backend(url).lock() as lock:
                    holders.append(number)
                    most.append(len(holders))
                    time.sleep(0.01)
                    lock.check()
                    holders.remove(number)
            except Locked:
                time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and holders == []


def ignore(condition: str) -> Callable[..., str | None]:
    """``S3Backend.put`` of a server that ignores one condition, or, by chance, both."""
    real = S3Backend.put

    def put(self: S3Backend, name: str, content: bytes, mode: Any = "overwrite") -> str | None:
        ignored = {"create": mode == "create", "replace": isinstance(mode, dict), "both": True}[condition]
        return real(self, name, content, "overwrite" if ignored else mode)

    return put


@pytest.mark.parametrize("condition", ["create", "replace", "both"])
def test_a_server_that_does_not_heed_a_condition(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    """No store is created there, and one that was copied there is not written to."""
    prepared(url, tmp_path)
    monkeypatch.setattr(S3Backend, "put", ignore(condition))
    with Store.open(url) as store:
        with pytest.raises(Refused, match="ignores conditional writes"):
            store.put(str(tmp_path / "first"), Label("n"))
        assert len(store.summaries()) == 2
    with pytest.raises(Refused, match="ignores conditional writes"):
        Store.create(f"{url}/other")
    assert all_names(f"{url}/other") == set() and not [name for name in all_names(url) if name.startswith("locks/probe")]
    assert len(list((tmp_path / "config/fuse-store/keys").iterdir())) == 1, "the key of the store that is not there is not kept"


@pytest.mark.parametrize("condition", ["create", "replace"])
def test_a_server_that_checks_conditions_and_then_writes(url: str, monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    """One request after the other is right there; of several at once, all of them win."""
    real = S3Backend.put

    def put(self: S3Backend, name: str, content: bytes, mode: Any = "overwrite") -> str | None:
        if (mode == "create") if condition == "create" else isinstance(mode, dict):
            try:
                tag = self.get(name)[1]
            except FileNotFoundError:
                tag = None
            if tag != (None if condition == "create" else mode["e_tag"]):
                return None
            time.sleep(0.2)
            mode = "overwrite"
        return real(self, name, content, mode)

    monkeypatch.setattr(S3Backend, "put", put)
    with pytest.raises(Refused, match="lets several clients"):
        Store.create(url)


def test_a_collection_under_a_reader(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a version open reads it to its end, though it was removed and collected."""
    make_small(monkeypatch)
    first, second = prepared(url, tmp_path)
    with Store.open(url) as reader:
        image = reader.open_image(first)
        start = image.read(0, PAGE)
        assert run(url, "remove", first, second).code == 0
        assert run(url, "gc").code == 0
        assert not [name for name in all_names(url) if name.startswith("packs/")]
        assert start + image.read(PAGE, len(FIRST)) == FIRST
    assert run(url, "gc", "--now").code == 0
    assert {name.partition("/")[0] for name in all_names(url)} <= {"store.json", "states", "index", "locks", "machines"}


def test_many_versions_are_listed_without_asking_for_each(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(url) as store:
        for number in range(1100):  # more than a server lists at once
            head = Head(
                f"machine{number % 7}", "system", "file", "", {}, 1_700_000_000_000_000_000 + number, number, 0, 0, 0, 0, PAGE, (),
                (ImageFile("image", 0, 0),), (),
            )  # fmt: skip
            write_manifest(store.backend, head, [], store.aead, False)
            store.versions.name_machine(f"machine{number % 7}", False)
        assert len(store.summaries()) == 1100
    asked = count_requests(monkeypatch)
    with Store.open(url) as store:
        assert len(store.summaries()) == 1100
    # store.json; the state logs, the names of the machines, the directories of seven machines
    assert sorted(asked) == ["get", *["list"] * 9, "list_with_delimiter"]


def test_the_list_of_one_machine_asks_for_its_own_states_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless one request lists them all."""
    source = tmp_path / "source"
    with Store.create(url) as store:
        for number in range(8):
            source.write_bytes(bytes([number]) * PAGE)
            store.put(str(source), Label("few" if number < 2 else "many"))
        few = [version.id for version in store.versions.each("few")]
        store.record(few[:1], "verified")
        assert [version.state for version in store.versions.each("few")] == ["verified", "captured"]
    asked = count_requests(monkeypatch)
    for page, requests in ((1000, {"list": 2}), (3, {"list": 2, "head": 2})):
        monkeypatch.setattr(s3, "LIST_PAGE", page)
        with Store.open(url) as store:
            list(store.versions.each("few"))
            asked.clear()
            assert [version.state for version in store.versions.each("few")] == ["verified", "captured"]
            assert {verb: asked.count(verb) for verb in ("list", "head") if verb in asked} == requests
            store.backend.remove(store.state_log.name(store.find(few[1]).content))
            assert [version.state for version in store.versions.each("few")] == ["verified", "unknown"]
            store.state_log.begin(store.find(few[1]).content, few[1], usable=False, sync=False)


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the server from now on."""
    asked: list[str] = []
    for verb in ("get", "get_range", "head", "list", "list_with_delimiter"):
        real = getattr(obstore, verb)

        def counted(*given: Any, real: Callable[..., Any] = real, verb: str = verb, **named: Any) -> Any:
            asked.append(verb)
            return real(*given, **named)

        monkeypatch.setattr(obstore, verb, counted)
    return asked


# what goes wrong ------------------------------------------------------------------------------------------------------


def test_errors_are_told(url: str, tmp_path: Path) -> None:
    prepared(url, tmp_path)
    source = str(tmp_path / "first")
    reader = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), s3_server.READER, strict=True))
    point = tmp_path / "mount"
    point.mkdir()
    for place, environment, arguments, code, words in (
        ("s3://no-such-bucket/x", {}, ("list",), 3, "no such bucket"),
        ("s3://no-such-bucket/x", {}, ("init",), 3, "no such bucket"),
        (url + "/elsewhere", {}, ("list",), 3, "no such store"),
        (url, {"AWS_SECRET_ACCESS_KEY": "wrong"}, ("list",), 1, "wrong credentials"),
        (url, {"AWS_ACCESS_KEY_ID": "nobody"}, ("put", source, "--machine", "m"), 1, "wrong credentials"),
        (url, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, ("list",), 1, "cannot reach the server"),
        (url, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, ("get", "m/system/latest", "out"), 1, "cannot reach the server"),
        (url, {"AWS_ALLOW_HTTP": "false"}, ("list",), 1, "endpoint is not encrypted"),
        (url, reader, ("put", source, "--machine", "m"), 1, "permission denied"),
        (url, reader, ("gc",), 1, "permission denied"),
        (url, reader, ("list",), 0, ""),
        (url, reader, ("get", "m/system/latest", str(tmp_path / "out")), 0, ""),
        (url + "/elsewhere", {}, ("mount", str(point)), 3, "no such store"),
        (url, {"AWS_SECRET_ACCESS_KEY": "wrong"}, ("mount", str(point)), 1, "wrong credentials"),
        ("s3://", {}, ("list",), 2, "s3://BUCKET"),
        *(
            (url, {variable: value}, ("list",), 2, f"{variable} '{value}': not a URL like https://HOST:PORT")
            for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT")
            for value in ("127.0.0.1:9000", "http://", "http://a:99999", "ftp://a", "http://[::1", " http://a", "")
        ),
        ("s3://bucket/../x", {}, ("list",), 2, "s3://BUCKET"),
    ):
        done = run(place, *arguments, **environment)
        assert done.code == code and words in done.err, (arguments, environment, done)
        if code:
            told = run(place, *arguments, "--json", **environment)
            assert told.code == code and json.loads(told.err)["error"]["exit_code"] == code


def test_a_server_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a read: it is no damage, and no byte that was not read is given."""
    directory = tmp_path / "server"
    directory.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server.server(directory) as where:
        for key, value in s3_server.environment(where).items():
            monkeypatch.setenv(key, value)
        place = f"s3://{s3_server.BUCKET}/x"
        first, _second = prepared(place, tmp_path)
        store = Store.open(place)
        image = store.open_image(first)
        store.backend.close()
    with pytest.raises(StoreError, match="cannot reach the server") as caught:
        image.read(0, len(FIRST))
    assert not isinstance(caught.value, (Damaged, NotFound))
    with pytest.raises(StoreError, match="cannot reach the server"):
        verify(store, [first], 100, SILENT)
    store.close()


def test_a_client_that_panics_gives_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As obstore's."""

    def panic(*given: object, **named: object) -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value")

    for verb in ("get", "put", "head", "delete", "list"):
        monkeypatch.setattr(obstore, verb, panic)
    where = backend(url)
    for ask in (lambda: where.read("a"), lambda: where.size("a"), lambda: where.remove("a"), lambda: where.names("images")):
        with pytest.raises(StoreError, match="client of the server failed"):
            ask()


def test_names_that_are_no_buckets() -> None:
    for wrong in ("s3:///x", "s3://UPPER/x", "s3://bucket//x", "http://bucket/x", "s3://bucket/x?y", "s3://bucket/\n"):
        with pytest.raises(UsageError):
            backend(wrong)
    assert isinstance(backend("s3/bucket"), PosixBackend)


def test_a_manifest_that_is_cut_off(url: str, tmp_path: Path) -> None:
    first, _second = prepared(url, tmp_path)
    where = backend(url)
    where.write(image_name(first), where.read(image_name(first))[:40], sync=False)
    assert run(url, "get", first, str(tmp_path / "out")).code in (3, 4)
    assert run(url, "verify").code == 4


@pytest.mark.parametrize("code", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b"{\"pid\": {}, \"machine\": 1}", b"null"])
def test_a_lock_that_is_none(url: str, code: bytes) -> None:
    """It counts as held until it expires."""
    where = backend(url)
    where.write(lease.LOCK_NAME, code, sync=False)
    with pytest.raises(Locked), where.lock():
        pass


def test_an_object_that_is_too_large(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory is taken for it."""
    where = backend(url)
    where.write("states/a.log", bytes(1000), sync=False)
    monkeypatch.setattr(s3, "MAX_OBJECT_SIZE", 999)
    with pytest.raises(Damaged, match="1000 bytes"):
        where.read("states/a.log")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("in 507.501 ms - code: 507 Insufficient", "no space left on the server"),
        ("403 <?xml <Code>QuotaExceeded</Code>", "no space left on the server"),
        ("<?xml <Code>NotImplemented</Code>", "lacks a required function"),
        ("GET http://x/AccessDenied/timed%20out: strange", "request failed"),
        ("GET http://169.254.169.254/latest: refused", "no credentials"), ("operation timed out", "cannot reach the server"),
        ("strange\nDebug source: timed out", "request failed"),
    ],
)  # fmt: skip
def test_what_the_server_says(url: str, words: str, cause: str) -> None:
    assert cause in S3Backend(url).error(Exception(words)).cause


def test_without_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fuse_store.repository.backends.s3")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"obstore is not installed\. Install it beside fuse-store"):
        backend("s3://bucket/x")
    Store.create(tmp_path / "store").close()
