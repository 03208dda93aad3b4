# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes a version of files that programs write below ``incoming/``, as they really do it; and the spool they are in."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_store.mount import spool as spools
from fuse_store.mount.spool import Spool, SpoolInput
from fuse_store.store import Label, Store
from tests.store.conftest import content, read_whole, run, write_sparse
from tests.store.mount.test_mount import WAIT, Mounted, mounted

SIZE = 6_000_001


@pytest.fixture(autouse=True, scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        monkeypatch.delenv("TMPDIR", raising=False)
        yield


@pytest.fixture(autouse=True)
def config_home() -> None:
    """Instead of the one of all tests, which is another for each: the store here is that of all."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, config: None) -> Iterator[Mounted]:
    if not Path("/dev/fuse").exists() or not shutil.which("rsync"):
        pytest.fail("the tests of the mount need /dev/fuse (modprobe fuse) and rsync")
    directory = tmp_path_factory.mktemp("incoming")
    Store.create(directory / "store", durability="none").close()
    (directory / "big").write_bytes(os.urandom(SIZE))
    with mounted(directory, "--writable") as own:
        yield own


@pytest.fixture
def incoming(served: Mounted, request: pytest.FixtureRequest) -> Path:
    application = str(request.node.name).replace("[", "-").replace("]", "").replace("/", "-")
    directory = served.point / "incoming" / "web02" / application
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def big(served: Mounted) -> Path:
    return served.point.parent / "big"


def came(served: Mounted, incoming: Path) -> list[bytes]:
    """The bytes of the versions, oldest first."""
    own = [version for version in served.store.summaries() if version.application == incoming.name]
    return [(served.point / "ids" / version.id / "image").read_bytes() for version in own]


def until(condition: object) -> None:
    deadline = time.monotonic() + WAIT
    while callable(condition) and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def slow(big: Path, fifo: Path) -> Iterator[Path]:
    """A pipe in which half of ``big`` comes, and then nothing for a long time."""
    os.mkfifo(fifo)
    feeder = subprocess.Popen([sys.executable, "-c", f"import time; d=open({str(big)!r},'rb').read({SIZE // 2}); "
                               f"f=open({str(fifo)!r},'wb',0); f.write(d); time.sleep(600)"])  # fmt: skip
    try:
        yield fifo
    finally:
        feeder.kill()
        feeder.wait()


def interrupt(*command: str | Path, when: Path, size: int, number: int = signal.SIGINT, shell: bool = False) -> None:
    """Run a command, and do what Ctrl-C does once ``when`` (or a file in that directory) has ``size`` bytes."""
    started = subprocess.Popen(
        ["env", "--default-signal=INT", *map(str, command)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def arrived() -> bool:
        with contextlib.suppress(OSError):
            return any(path.stat().st_size >= size for path in ([when] if when.is_file() else when.iterdir()))
        return False

    until(arrived)
    os.killpg(started.pid, number)
    assert started.wait(WAIT) != 0


@pytest.mark.parametrize("options", ["-a", "-aP", "-a --inplace", "-r"])
def test_interrupted_rsync(served: Mounted, incoming: Path, big: Path, options: str) -> None:
    interrupt("rsync", *options.split(), "--bwlimit=2000", big, incoming, when=incoming, size=1 << 20)
    until(lambda: not os.listdir(incoming))
    assert came(served, incoming) == []
    run("rsync", *options.split(), str(big), str(incoming))
    assert came(served, incoming) == [big.read_bytes()] and os.listdir(incoming) == ["big"]
    with open(big, "r+b") as file:
        file.write(os.urandom(1000))
    run("rsync", *options.split(), "--ignore-times", str(big), str(incoming))
    assert came(served, incoming)[1:] == [big.read_bytes()], "again: the next version"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("program", ["cp", "dd", "cat"])
def test_interrupted_programs(served: Mounted, incoming: Path, big: Path, tmp_path: Path, program: str, number: int) -> None:
    with slow(big, tmp_path / "fifo") as fifo:
        target = incoming / "f"
        command: dict[str, list[str | Path]] = {
            "cp": ["cp", "--copy-contents", fifo, target], "dd": ["dd", f"if={fifo}", f"of={target}", "bs=64k"],
            "cat": ["sh", "-c", 'cat "$0" > "$1"', fifo, target],
        }  # fmt: skip
        interrupt(*command[program], when=target, size=1 << 20, number=number)
    until(lambda: not os.listdir(incoming))
    assert came(served, incoming) == []


def test_programs_that_complete_what_they_write(served: Mounted, incoming: Path, big: Path) -> None:
    for number, script in enumerate(("cp $0 $1", "dd if=$0 of=$1 bs=64k status=none", "cat $0 > $1", "tail -c +1 < $0 >> $1"), 1):
        run("sh", "-c", script, str(big), str(incoming / f"f{number}"))
        assert came(served, incoming) == [big.read_bytes()] * number, script


def test_what_a_failed_program_leaves_open(served: Mounted, incoming: Path) -> None:
    """As ssh does when the connection breaks: its output is closed by the kernel when it exits."""
    write = "import os, sys; os.write(1, b'half'); os._exit(int(sys.argv[1]))"
    for code in (3, 0):
        with subprocess.Popen(["sh", "-c", 'exec "$0" -c "$1" $2 > "$3"', sys.executable, write, str(code), incoming / "f"]):
            pass
    assert came(served, incoming) == [b"half"], "the one that succeeded"


@pytest.mark.parametrize("name", [".f.a8Xy2Z", ".ansible_tmpf", "f.part", "f.partial", "f.tmp", "f.filepart", "f.crdownload", "f~"])
def test_a_partial_name_is_stored_when_it_is_renamed(served: Mounted, incoming: Path, name: str) -> None:
    part = incoming / name
    part.write_bytes(b"half")
    with open(part, "ab") as file:
        file.write(b" and half")
    assert part.read_bytes() == b"half and half" and came(served, incoming) == []
    part.rename(incoming / "other.tmp")
    assert came(served, incoming) == []
    (incoming / "other.tmp").rename(incoming / "f")
    assert came(served, incoming) == [b"half and half"] and os.listdir(incoming) == ["f"]
    (incoming / "f").rename(incoming / "g")
    assert len(came(served, incoming)) == 1


def test_a_renamed_file_that_cannot_be_stored_is_an_error(served: Mounted, incoming: Path) -> None:
    """It is still there then, and can be renamed again."""
    (incoming / ".f").write_bytes(b"data")
    with served.store.writing(), pytest.raises(OSError):
        (incoming / ".f").rename(incoming / "f")
    assert came(served, incoming) == [] and os.listdir(incoming) == [".f"]
    (incoming / ".f").rename(incoming / "f")
    assert came(served, incoming) == [b"data"] and os.listdir(incoming) == ["f"]


def test_create_close_and_open_again(served: Mounted, incoming: Path) -> None:
    (incoming / "f").touch()
    assert os.listdir(incoming) == ["f"] and came(served, incoming) == []
    with open(incoming / "f", "r+b") as file:
        file.write(b"first")
    assert came(served, incoming) == [b"first"]
    with open(incoming / "f", "r+b"):
        pass
    assert came(served, incoming) == [b"first"], "nothing was written"
    with open(incoming / "f", "ab") as file:
        file.write(b" and second")
    assert came(served, incoming) == [b"first", b"first and second"]
    os.truncate(incoming / "f", 5)
    assert came(served, incoming)[2:] == [b"first"]
    (incoming / "f").unlink()
    assert len(came(served, incoming)) == 3 and os.listdir(incoming) == []


def test_a_size_alone_is_no_data(served: Mounted, incoming: Path, big: Path) -> None:
    """As programs do that first reserve the space."""
    os.close(os.open(incoming / "f", os.O_CREAT | os.O_WRONLY))
    os.truncate(incoming / "f", SIZE)
    assert (incoming / "f").stat().st_size == SIZE and came(served, incoming) == []
    run("dd", f"if={big}", f"of={incoming / 'f'}", "bs=64k", "conv=notrunc", "status=none")
    assert came(served, incoming) == [big.read_bytes()]


def test_a_file_is_read_while_it_is_written(served: Mounted, incoming: Path) -> None:
    with open(incoming / "f", "wb", buffering=0) as file:
        file.write(b"so far")
        assert (incoming / "f").read_bytes() == b"so far"
        file.write(b", so good")
    assert came(served, incoming) == [b"so far, so good"]


# the spool -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_spool_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Compared with bytes in memory, over many writes, reads and truncations."""
    monkeypatch.setattr(spools, "UNIT", 4096)
    monkeypatch.setattr(spools, "SLOT", 4096 + spools.NONCE + spools.TAG)
    choice, spool, model = random.Random(seed), Spool(tmp_path), bytearray()
    for _step in range(400):
        at, length = choice.randrange(60_000), choice.choice([0, 1, 7, 4096, 8192, 20_000])
        match choice.choice(["write", "write", "read", "truncate", "aligned"]):
            case "truncate":
                model = model[:at] + bytes(max(0, at - len(model)))
                spool.truncate(at)
            case "read":
                assert spool.read(at, length) == bytes(model[at : at + length])
            case kind:
                at = at // 4096 * 4096 if kind == "aligned" else at
                data = choice.randbytes(length)
                if data:
                    model += bytes(max(0, at + len(data) - len(model)))
                    model[at : at + len(data)] = data
                spool.write(data, at) if data else None
        assert spool.size == len(model)
    assert spool.read(0, 1 << 20) == bytes(model)
    covered, at = set(), 0
    while (start := spool.data(at)) is not None:
        at = spool.hole(start)
        assert at > start
        covered |= set(range(start, at))
    assert all(position in covered for position, byte in enumerate(model) if byte)
    spool.close()


def test_a_spool_is_put_with_its_holes(tmp_path: Path) -> None:
    data = content([1, 2, *[0] * 200, 3, *[0] * 40], cut=5)
    write_sparse(tmp_path / "source", data)
    spool = Spool(tmp_path)
    spool.truncate(len(data))
    spool.write(data[:8192], 0)
    spool.write(data[202 * 4096 : 203 * 4096], 202 * 4096)
    with Store.create(tmp_path / "store", durability="none") as store:
        made = store.put(SpoolInput(spool), Label("m"))
        assert read_whole(store, made.id) == data and made.allocated == 3 * 4096
    spool.close()
