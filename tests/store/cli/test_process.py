# SPDX-License-Identifier: GPL-3.0-or-later
"""The process: standard streams, pipes, signals, a terminal, a read-only store, what is imported."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import fuse_store
from fuse_store.store import Store
from tests.store.cli.conftest import COMMAND, DOCS, Run, image, put
from tests.store.conftest import Done

NOT_IGNORED = ["env", "--default-signal=INT"]  # shells have the signal ignored in the background
FULL = "fuse-store: standard output: No space left on device. Free some space.\n"
INTERRUPTED = "fuse-store: interrupted. The store is consistent.\n"


def test_a_reader_that_goes_away(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a", 4096))
    process = subprocess.Popen([*COMMAND, "get", made, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_standard_output_that_is_full(run: Run, store: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "stats"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr == FULL


def test_a_get_to_standard_output_that_is_full(run: Run, store: Path, tmp_path: Path) -> None:
    put(run, image(tmp_path / "a", 1))
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "get", "web01/system/latest", "-"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr == FULL


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["put", "--help"], ["--version"], ["completion", "bash"], ["list"]])
def test_any_output_to_a_full_disk_or_a_closed_pipe(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], unbuffered: str
) -> None:
    put(run, image(tmp_path / "a", 1))
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, FULL)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = subprocess.run([*COMMAND, *arguments], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "module", ["cli.process", "streams", "cli.run", "cli.parser", "cli.verbs.list", "store"],
)
def test_an_early_interrupt_gives_no_traceback(store: Path, module: str) -> None:
    """Ctrl-C while a module is imported."""
    script = f"""
import sys, signal, os
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "fuse_store.{module}":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from fuse_store.cli import command
sys.argv = ["fuse-store", "list"]
command()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr == INTERRUPTED


PROGRAM = Path(sys.executable).with_name("fuse-store")  # as it is installed
MOMENTS = 20  # over the whole time that a command takes


@pytest.mark.parametrize("arguments", [["list"], ["verify", "--json"]])
def test_an_interrupt_at_any_moment_gives_no_traceback(store: Path, arguments: list[str]) -> None:
    """Also while the interpreter itself starts, which would answer with a traceback of its own. In the first milliseconds, before
    anything could have been done, the signal ends the process as it ends any other: a shell says 130 of that, too."""
    assert PROGRAM.read_bytes() == (DOCS.parent / "fuse_store/cli/fuse-store").read_bytes(), "run make setup"
    started = time.monotonic()
    subprocess.run([PROGRAM, *arguments], capture_output=True, check=True)
    whole = time.monotonic() - started
    ends = set()
    for moment in (whole * number / MOMENTS for number in range(MOMENTS)):
        process = subprocess.Popen(
            [*NOT_IGNORED, PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _out, error = process.communicate(timeout=20)
        ends.add(process.returncode)
        if process.returncode == 130:
            assert error == (INTERRUPTED if "--json" not in arguments else error) and error.count("\n") == 1, moment
            assert "--json" not in arguments or json.loads(error)["error"]["exit_code"] == 130
        else:
            assert (process.returncode, error) in ((-signal.SIGINT, ""), (0, ""), (0, "No versions.\n")), moment
    assert 130 in ends


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_an_import_made_into_another_error(store: Path, number: int, code: int) -> None:
    """As the creation of a class does, and numpy's modules do."""
    script = f"""
import os, sys
from fuse_store.cli.context import Context
class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), {number})
def open_store(self):
    class Made:
        field = Field()
Context.open_store = open_store
from fuse_store.cli import command
sys.argv = ["fuse-store", "list"]
command()
"""
    done = subprocess.run([*NOT_IGNORED, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, INTERRUPTED)


def test_the_command_takes_no_modules_from_the_working_directory(store: Path, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('planted')\n")
    done = subprocess.run([PROGRAM, "list", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, '{"versions":[]}\n')


def test_the_command_through_a_link(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a link").symlink_to(PROGRAM)
    done = subprocess.run([tmp_path / "a link", "--version"], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"fuse-store {fuse_store.__version__}\n")


def test_the_entry_point_imports_nothing() -> None:
    """So that Ctrl-C can hardly come before it is caught."""
    script = "import sys, fuse_store, __future__; before = set(sys.modules); import fuse_store.cli; print({*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=DOCS.parent)
    assert done.stdout == "{'fuse_store.cli'}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_becomes_full(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    made = put(run, image(tmp_path / "a", 1024))
    (tmp_path / "small").mkdir()
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    script = 'mount -t tmpfs -o size=1m none small && exec "$@" > small/out'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *COMMAND, "get", made, "-"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "No space left on device" in done.stderr and done.stderr.count("\n") == 1


def test_pipes_on_both_sides(run: Run, store: Path, tmp_path: Path) -> None:
    content = image(tmp_path / "a", 300).read_bytes() + b"end"
    done = subprocess.run([*COMMAND, "put", "-", "--machine", "web01"], input=content, capture_output=True, check=True)
    got = subprocess.run([*COMMAND, "get", done.stdout.decode().strip(), "-"], capture_output=True, check=True)
    assert got.stdout == content
    assert run("get", "web01/system/latest", "-", "--json").code == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(run: Run, store: Path, tmp_path: Path, closed: str) -> None:
    """As some daemons start programs: what is opened next must not be taken for one of them."""
    source = image(tmp_path / "source")

    def command(*arguments: str | Path) -> int:
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "--store", str(store), *map(str, arguments)]
        return subprocess.run(shell, capture_output=True, check=False).returncode

    assert command("put", source, "--machine", "web01") == 0
    assert command("list") == command("verify") == 0
    assert command("get", "web01/system/latest", tmp_path / "back") == 0
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert command("show", "nothing") == 3
    assert command("get", "web01/system/latest", "-") == (2 if ">&-" in closed.split() else 0)
    assert run("verify").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_put_leaves_nothing(run: Run, store: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND, "put", "-", "--machine", "web01"],  # in the background shells have it ignored
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stderr is not None and process.stdout is not None
    chunk = os.urandom(1 << 20)
    for _number in range(20):  # what it reads at once, and something of the next
        process.stdin.write(chunk)
    process.stdin.flush()
    assert (store / "locks/writer").exists()
    time.sleep(0.3)  # now it waits for more
    process.send_signal(number)
    assert process.wait(20) == code
    error = process.stderr.read().decode()
    assert error == "fuse-store: interrupted. No version was created, none was removed. Run it again.\n"
    assert process.stdout.read() == b""
    process.stdin.close()
    assert run("--store", str(store), "list", "--json").json == {"versions": []}
    assert not [path for path in store.rglob("*") if path.suffix == ".partial" or path.name == "writer"]
    assert run("put", str(image(Path("a"))), "--machine", "web01").code == 0


INTERRUPTED_WHEN_IT_EXISTS = """
import os, signal, sys
call, place = sys.argv.pop(1), sys.argv.pop(1)
changed = getattr(os, call)
def interrupted(*arguments, **named):
    result = changed(*arguments, **named)
    done = os.readlink(f"/proc/self/fd/{arguments[0]}") if call == "fsync" else str(arguments[-1])
    if place in done:
        os.kill(os.getpid(), signal.SIGTERM)
    return result
setattr(os, call, interrupted)
from fuse_store.cli import command
command()
"""


@pytest.mark.parametrize(("call", "place", "told"), [
    ("fsync", "/images/", "may have been created: run 'fuse-store list'."),
    ("rename", "/trash/", "was stored. The one before it may still be there."),
])  # fmt: skip
def test_an_interrupt_when_the_version_exists(run: Run, tmp_path: Path, call: str, place: str, told: str) -> None:
    """On a slow disk it takes a while until a new name is durable."""
    with Store.create(tmp_path / "durable") as made:
        store = made.path
    first = put(partial(run, "--store", str(store)), image(tmp_path / "first"), machine="m")
    (tmp_path / "next").write_bytes(b"next" * 5000)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHEN_IT_EXISTS, call, place, "put", str(tmp_path / "next"), "--machine", "m", "--replace"],
        env={**os.environ, "FUSE_STORE": str(store)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (new,) = {version["id"] for version in run("--store", str(store), "list", "--json").json["versions"]} - {first}
    assert done.returncode == 143 and done.stderr == f"fuse-store: interrupted. Version {new} {told}\n", done.stderr


def terminal(arguments: list[str], feed: bytes = b"", slowly: float = 0.0) -> tuple[int, str]:
    """Run a command whose standard error is a terminal; exit code and what was shown there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    fcntl.fcntl(leader, fcntl.F_SETFL, os.O_NONBLOCK)
    assert process.stdin is not None
    shown = b""
    for at in range(0, len(feed), 1 << 24):
        process.stdin.write(feed[at : at + (1 << 24)])
        process.stdin.flush()
        time.sleep(slowly)
    process.stdin.close()
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                shown += os.read(leader, 65536)
            except OSError:
                break
    os.close(leader)
    return process.wait(), shown.decode()


def test_progress_on_a_terminal_after_a_second(run: Run, store: Path) -> None:
    feed = bytes(3 << 24) + b"x"
    code, shown = terminal(["put", "-", "--machine", "m"], feed, slowly=0.7)
    assert code == 0 and "put" in shown and "/s" in shown
    code, shown = terminal(["--quiet", "put", "-", "--machine", "m"], feed, slowly=0.5)
    assert code == 0 and shown == ""
    code, shown = terminal(["put", "-", "--machine", "m"], b"quick")
    assert code == 0 and shown.count("\n") == 1 and "\x1b" not in shown


def test_a_store_that_can_only_be_read(run: Run, store: Path, tmp_path: Path) -> None:
    """On a read-only mount in a namespace of its own, so that root is held back as well."""
    made = put(run, image(tmp_path / "a"))
    script = f'mount --bind {store} {store} && mount -o remount,bind,ro {store} && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *COMMAND]

    def read_only(*arguments: str) -> Done:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr and "defect" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    assert read_only("list", "--json").json["versions"][0]["id"] == made
    assert (
        read_only("get", made, "back").code == 0 and (tmp_path / "back").read_bytes() == (tmp_path / "a").read_bytes()
    )
    verified = read_only("verify")
    assert verified.code == 0 and "Not recorded" in verified.err
    for arguments in (["put", "a", "--machine", "m"], ["gc"], ["prune", "--keep-within", "1h"], ["repair"]):
        done = read_only(*arguments)
        assert done.code in (0, 1) and (done.code == 0) == (arguments[0] == "prune")
        remedy = "Read-only file system. Nothing was changed. Mount the filesystem for writing, or name another place.\n"
        assert done.code == 0 or (done.err.endswith(remedy) and done.err.count("\n") == 1)


LIST_NEEDS_NO = {"rich", "shtab", "mfusepy", "numpy", "fuse_store.image.reader", "fuse_store.image.put", "concurrent.futures"}
PUT_NEEDS_NO = {"rich", "shtab", "mfusepy", "obstore", "tempfile", "numpy.ma", "subprocess", "socket"}
HELP_NEEDS_NO = {*LIST_NEEDS_NO, "cryptography", "fuse_store.store", "tempfile"}


@pytest.mark.parametrize(("argument", "heavy"), [("list", LIST_NEEDS_NO), ("--help", HELP_NEEDS_NO)])
def test_a_short_command_imports_nothing_heavy(store: Path, argument: str, heavy: set[str]) -> None:
    """What makes ``list`` fast enough for a store of ten thousand versions."""
    script = (
        f"import sys; from fuse_store.cli import main; assert main(['{argument}']) == 0; "
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]" and (done.stdout == "") == (argument == "list")


def test_a_put_imports_nothing_that_it_does_not_need(store: Path, tmp_path: Path) -> None:
    """Some functions of numpy import numpy.ma, which takes as long as a tenth of a put of 268 MiB."""
    path = tmp_path / "source"
    path.write_bytes(np.random.default_rng(1).bytes(8 << 20))
    script = (
        f"import sys; from fuse_store.cli import main; assert main(['put', {str(path)!r}, '--machine', 'm', '--replace']) == 0; "
        f"print(sorted({PUT_NEEDS_NO} & set(sys.modules)), file=sys.stderr)"
    )
    for _put in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"


def test_numpy_is_loaded_without_its_docstrings() -> None:
    """By the program; a program that uses the package has them. All else is as it is."""
    load = "import numpy; print(len(numpy.ndarray.sum.__doc__ or ''), numpy.add(1, 2), numpy.arange(3).sum())"
    program = "from fuse_store.cli.process import prepare; prepare(); "
    for before, wanted in (("", False), (program, True), ("import fuse_store.store; ", False)):
        done = subprocess.run([sys.executable, "-c", before + load], capture_output=True, text=True, check=True)
        length, *sums = map(int, done.stdout.split())
        assert (not length) == wanted and sums == [3, 3]


def test_the_collector_of_cycles_waits_until_modules_are_loaded() -> None:
    """And then runs as often as ever: an error that nothing holds would else keep what was read."""
    program = (
        "import gc; before = gc.get_threshold(); from fuse_store.cli.process import LOADED, prepare; prepare(); "
        "print(gc.get_threshold()[0] == LOADED); kept = [[] for _number in range(LOADED)]; print(gc.get_threshold() == before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
