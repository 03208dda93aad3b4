# SPDX-License-Identifier: GPL-3.0-or-later
"""What all verbs have in common: arguments, help, usage errors, keys of JSON, errors in one line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fuse_store
from fuse_store.cli import main
from fuse_store.cli.verbs import NAMES, load, needed
from fuse_store.image.kind import KINDS
from fuse_store.repository.backends import PosixBackend
from fuse_store.store import Store
from fuse_store.versions import Versions
from tests.store.cli.conftest import Run, hibernation, image, put
from tests.store.conftest import fork, wait


def test_json_has_the_keys_that_are_documented(run: Run, tmp_path: Path) -> None:
    image(tmp_path / "a"), image(tmp_path / "b", 64, 2)
    commands = {
        "init": [], "put": ["a", "--machine", "m"], "list": [], "show": ["m/system/latest"], "get": ["m/system/latest", "t"], "verify": [],
        "stats": [], "prune": ["--keep-last", "1"], "gc": [], "repair": [], "select": ["--machine", "m"],
        "diff": ["m/system/latest", "m/system/latest"], "completion": ["bash"],
    }  # fmt: skip
    # Those of the mount and of devices have tests of their own for it.
    others = "mount", "inspect", "snapshot", "snapshotd", "preflight", "stage", "arm", "disarm", "slots", "boot", "report", "remove"
    assert {*commands, *others} == {*NAMES}
    for verb in load(*commands):
        record = run(verb.name, *commands[verb.name], "--json").json
        top = [name for key in verb.keys if not key.startswith(" ") for name in key.split(", ")]
        assert list(record) == top, verb.name
        nested = {name for key in verb.keys if key.startswith(" ") for name in key.strip().split(", ")}
        inner = [
            value[0] for value in record.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        assert all(set(one) <= nested for one in inner), verb.name


@pytest.mark.parametrize("verb", load(), ids=lambda verb: verb.name)
def test_help_has_examples_that_parse(run: Run, verb: Any) -> None:
    from fuse_store.cli.parser import build

    done = run(verb.name, "--help")
    assert done.code == 0 and verb.examples and done.err == ""
    for command, what in verb.examples:
        assert command in done.out and what in done.out
        for part in command.replace("&&", "|").split("|"):
            words = part.split(" > ")[0].split()
            if words[0] == "fuse-store":
                build(load()).parse_args(words[1:])


@pytest.mark.parametrize(
    ("line", "loaded"),
    [
        ("put x --machine m", ["put"]), ("--store put -q --json --key-file=k list --help", ["list"]), ("put list", ["put"]), ("", NAMES),
        ("--help put", NAMES), ("-qh put", NAMES), ("--version put", NAMES), ("--store", NAMES),
    ],
)  # fmt: skip
def test_one_verb_is_loaded_where_one_is_named(line: str, loaded: Sequence[str]) -> None:
    assert [verb.name for verb in needed(line.split())] == list(loaded)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lst", "fuse-store: lst: no such verb. Did you mean 'fuse-store list'? See 'fuse-store --help'.\n"),
        ("-q verfy x", "fuse-store: verfy: no such verb. Did you mean 'fuse-store verify'? See 'fuse-store --help'.\n"),
        ("outcome x failed", "fuse-store: outcome: no such verb. See 'fuse-store --help'.\n"),
        ("--sto x list", "fuse-store: --sto: no such option. See 'fuse-store --help'.\n"),
    ],
)
def test_unknown_verbs_and_options(run: Run, line: str, message: str) -> None:
    done = run(*line.split())
    assert (done.code, done.out, done.err) == (2, "", message)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["put", "", "--machine", "m"], "SOURCE"), (["put", "a", "--machine", ""], "--machine"),
        (["put", "a", "--machine", "m", "--application="], "--application"), (["list", "--store", ""], "--store"),
        (["--store=", "list"], "--store"), (["list", "--key-file", ""], "--key-file"), (["list", "--machine="], "--machine"),
        (["get", "a", ""], "TARGET"), (["mount", ""], "DIR"), (["inspect", ""], "SOURCE"), (["stage", "a", ""], "DEVICE"),
        (["disarm", ""], "DEVICE"), (["arm", "d", "--image", ""], "--image"), (["arm", "d", "--root="], "--root"),
        (["put", "a", "--machine", "m", "--machine-disk", ""], "--machine-disk"),
        (["preflight", "a", "--machine-disk", "d", "--machine-disk", ""], "--machine-disk"), (["preflight", "a", "--device="], "--device"),
        (["put", "a", "--machine", "m", "--base="], "--base"), (["select", "--machine", "m", "--bootable-on", ""], "--bootable-on"),
    ],
)  # fmt: skip
def test_empty_paths_and_names(run: Run, store: Path, tmp_path: Path, arguments: list[str], name: str) -> None:
    """An unset variable in a script must not select a default, or the current directory."""
    image(tmp_path / "a", 1)
    done = run(*arguments)
    verb = next(word for word in arguments if word in NAMES)
    assert (done.code, done.out, done.err) == (2, "", f"fuse-store: {verb}: {name} is empty. See 'fuse-store {verb} --help'.\n")
    assert run("list", "--json").json == {"versions": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "put: give either SOURCE or --command."), (["a", "--command", "cat", "a"], "put: SOURCE and --command given."),
        (["--command"], "--command: no command given."), (["--command", ""], "--command: no command given."),
        (["--command", "--"], "--command: no command given."), (["--allow-changing", "--command", "cat", "a"], "--allow-changing:"),
        (["a", "--size", "much"], "put: argument --size: 'much' is not a size such as"), (["a", "--size", "-1"], "put: argument --size:"),
        (["a", "--size", "4095"], "source a: has 4096 bytes, not the 4095 of --size."),
    ],
)
def test_sources_and_commands_that_are_none(run: Run, store: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    image(tmp_path / "a", 1)
    done = run("put", "--machine", "m", *arguments)
    assert done.code in (2, 5) and done.err.startswith(f"fuse-store: {message}"), done.err
    assert run("list", "--json").json == {"versions": []}


def test_what_follows_a_command_is_its_own(run: Run, store: Path, tmp_path: Path) -> None:
    """Also what looks like an option of ours."""
    words = ["--wait", "--json", "--", "--quiet", "--command", "", "list"]
    done = run("put", "--machine", "m", "--command", "printf", "%s,", *words)
    assert done.code == 0 and not done.out.startswith("{")
    assert run("get", "m/system/latest", "got").code == 0
    assert (tmp_path / "got").read_text() == ",".join(words) + ","
    assert run("put", "--machine", "m", "--size", "4KiB", "--command", "--", "head", "-c", "4096", "/dev/zero", "--json").code == 1


def test_empty_values_that_are_valid(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a", 1), "--event", "")
    assert run("select", "--machine", "web01", "--event", "").out.strip() == made
    assert run("report", made, "failed", "--detail", "").code == 5


@pytest.mark.parametrize("kind", ["nonsense", "Hibernation"])
def test_unknown_kinds(run: Run, store: Path, tmp_path: Path, kind: str) -> None:
    for arguments in (["put", str(image(tmp_path / "a", 1)), "--machine", "m"], ["select", "--machine", "m"]):
        done = run(*arguments, "--kind", kind)
        assert done.code == 2 and all(name in done.err for name in KINDS) and done.err.count("\n") == 1


def test_help_and_version(run: Run) -> None:
    done = run("--help")
    assert done.code == 0 and all(f"    {name} " in done.out for name in NAMES)
    assert run("--version").out == f"fuse-store {fuse_store.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["list", "more"], ["--sto", "x", "list"], ["put"], ["get", "a"], ["list", "--jso"]]
)
def test_usage(run: Run, store: Path, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1 and "--help" in done.err
    done = run(*arguments, "--json")
    assert done.code == 2 and done.error["type"] == "usage_error"


@pytest.mark.parametrize("where", [["--store", "there"], []])
def test_no_store(run: Run, monkeypatch: pytest.MonkeyPatch, where: list[str]) -> None:
    assert run(*where, "list").code == 3
    monkeypatch.delenv("FUSE_STORE")
    assert run(*where, "list").code == (3 if where else 2)
    assert run("--store", "gopher://bucket/store", "init").code == 2


def test_options_before_and_after_the_verb(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSE_STORE")
    assert (
        run("--store", str(store), "--json", "list").json
        == run("list", "--json", "--store", str(store)).json
        == {"versions": []}
    )


def test_wrong_and_missing_keys(run: Run, store: Path, tmp_path: Path) -> None:
    key = next((tmp_path / "config/fuse-store/keys").iterdir())
    assert run("init", "--store", "b", "--key-file", "b.key").code == 0
    assert run("list", "--key-file", "b.key").code == 4
    key.rename(tmp_path / "kept")
    missing = run("list")
    assert missing.code == 5 and str(key) in missing.err and "--key-file" in missing.err
    assert run("list", "--key-file", "kept").code == 0


def hold(store: Path, seconds: float) -> int:
    """A process that has the lock for a while; its pid."""
    reader, writer = os.pipe()

    def work() -> None:
        with PosixBackend(store).lock():
            os.write(writer, b"x")
            time.sleep(seconds)

    child = fork(work)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return child


def test_a_lock_of_a_live_process_is_waited_for(run: Run, store: Path, tmp_path: Path) -> None:
    source = str(image(tmp_path / "image"))
    for arguments in (
        ("--wait", "put", source, "--machine", "m"), ("put", "--wait", source, "--machine", "m"), ("--wait", "60", "gc"),
        ("put", source, "--machine", "m", "--wait=60"), ("put", "--machine", "m", "--wait", "--", source),
        ("put", source, "--machine", "m", "--wait"),
    ):  # fmt: skip
        child = hold(store, 0.7)
        done = run(*arguments)
        assert wait(child) == 0 and done.code == 0, done
        assert done.err.count(f"Waiting: store {store} is locked by process {child} on ") == 1
    assert len(run("list", "--json").json["versions"]) == 5


def test_the_wait_for_a_lock_ends(run: Run, store: Path, tmp_path: Path) -> None:
    source = str(image(tmp_path / "image"))
    child = hold(store, 60)
    try:
        for seconds in (0, 1, 2):
            began = time.monotonic()
            done = run("--wait", str(seconds), "put", source, "--machine", "m")
            assert done.code == 6 and f"locked by process {child} on " in done.err and "remove" not in done.err
            assert seconds <= time.monotonic() - began < seconds + 3
        assert run("put", source, "--machine", "m", "--json", "--wait=1").error["type"] == "locked"
        for value in ("-1", "x", "", "1.5"):
            assert run(f"--wait={value}", "gc").code == 2
        assert run("gc", "--dry-run").code == 0, "it changes nothing"
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child)


def test_a_stopped_process_that_holds_the_lock(run: Run, store: Path, tmp_path: Path) -> None:
    """To wait for it would not end."""
    image(tmp_path / "a", 1)
    child = hold(store, 60)
    try:
        os.kill(child, signal.SIGSTOP)
        assert run("put", "a", "--machine", "m").err.endswith(f"It is stopped: run 'kill -CONT {child}' to have it go on.\n")
        writer = store / "locks/writer"
        writer.write_text(writer.read_text().replace(f'"pid": {child}', f'"pid": "{child} $(reboot)"'))
        assert "kill" not in run("put", "a", "--machine", "m").err, "what the file says is no part of a command"
        os.kill(child, signal.SIGCONT)
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child)


def test_locked(run: Run, store: Path, tmp_path: Path) -> None:
    image(tmp_path / "a")
    with Store.open(store) as other, other.writing():
        for command in (["put", "a", "--machine", "m"], ["gc"], ["repair"]):
            done = run(*command, "--json")
            assert done.code == 6 and done.error["type"] == "locked"
        assert run("list").code == 0


def test_a_defect_is_one_line_that_asks_to_report(
    capfd: pytest.CaptureFixture[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(Versions, "each", broken)
    assert main(["list"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("fuse-store: ZeroDivisionError: by\\nzero") and "report" in error and error.count("\n") == 1
    monkeypatch.setenv("FUSE_STORE_DEBUG", "1")
    assert main(["list"]) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        ImportError("numpy: x.so: failed to map segment from shared object"), ImportError("x.so: Cannot allocate memory"),
    ],
)  # fmt: skip
def test_limits_that_have_no_class_of_their_own(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As ulimit -v and ulimit -u show them."""

    def broken(*_given: object) -> None:
        raise error

    monkeypatch.setattr(Versions, "each", broken)
    done = run("list", "--json")
    assert (done.code, done.error["type"]) == (1, "memory") and "ulimit -v" in done.error["remedy"]


# What numpy 2.4 says on a processor of 2008.
NEWER = RuntimeError("NumPy was built with baseline optimizations: \n(X86_V2) but your machine doesn't support:\n(X86_V2).")


@pytest.mark.parametrize(
    ("error", "library", "says"),
    [
        (NEWER, "numpy", "pip install 'numpy<2.4'"),
        (ModuleNotFoundError("No module named 'zstandard'", name="zstandard"), "zstandard", "pip or pipx"),
        (ImportError("libz.so: cannot open shared object file", name="lz4._version"), "lz4", "pip or pipx"),
    ],
)  # fmt: skip
def test_a_library_that_does_not_run_here(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, library: str, says: str
) -> None:
    def broken(*_given: object) -> None:
        raise error

    monkeypatch.setattr(Versions, "each", broken)
    done = run("list", "--json")
    assert (done.code, done.error["type"], done.error["thing"]) == (1, "store_error", library) and says in done.error["remedy"]


LOOPS = [
    ["get", "web01/system/latest", "loop"], ["get", "web01/system/latest", "loop/x"], ["put", "loop", "--machine", "m"], ["mount", "loop"],
    ["inspect", "loop"], ["--store", "loop", "list"], ["--store", "loop", "init"], ["--store", "new", "--key-file", "loop", "init"],
    ["--key-file", "loop", "list"], ["arm", "loop"], ["disarm", "loop"], ["stage", "web01/memory/latest", "loop"],
    ["report", "web01/memory/latest", "failed", "--device", "loop"], ["select", "--machine", "web01", "--bootable-on", "loop"],
    ["preflight", "web01/memory/latest", "--device", "loop"], ["preflight", "web01/memory/latest", "--root", "loop"],
    ["preflight", "web01/memory/latest", "--machine-disk", "loop"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", LOOPS, ids=" ".join)
def test_a_link_that_leads_to_itself(run: Run, store: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Never a defect; ``run`` looks for that."""
    put(run, image(tmp_path / "a", 1))
    put(run, hibernation(tmp_path / "device"), "--kind", "hibernation", "--application", "memory")
    (tmp_path / "loop").symlink_to("loop")
    done = run(*arguments)
    assert done.code in (1, 2, 3, 5) and done.err.startswith("fuse-store: ") and (tmp_path / "loop").is_symlink()


def test_a_store_that_is_no_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "link", "fifo"):
        for verb, code in (("list", 3), ("init", 5)):
            done = run("--store", name, verb)
            assert done.code == code and done.err.startswith(f"fuse-store: store {name}: not a directory. Name ")
    assert not list((tmp_path / "config").rglob("*.key"))


def test_inspect_of_nothing(run: Run, store: Path) -> None:
    """It may have been meant as a file or as a version."""
    done = run("inspect", "/dev/nosuch")
    assert done.code == 3
    assert done.err.startswith("fuse-store: source /dev/nosuch: no such file or device, and no such version. Check the path; ")


def test_what_is_longer_than_any_path_is_not_printed_in_full(run: Run, store: Path) -> None:
    for arguments in (["show", "x" * 100_000], ["get", "m/system/latest", "x" * 5000], ["x" * 100_000], ["list", "--" + "x" * 100_000]):
        done = run(*arguments)
        assert done.code in (2, 3) and len(done.err) < 1000
    assert len(run("show", "x" * 100_000, "--json").error["thing"]) > 100_000, "programs get all of it"


@pytest.mark.parametrize("columns", ["20", "40", "80", "1", "-5", "x"])
def test_help_as_wide_as_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    width = {"20": 40, "40": 40, "80": 80, "1": 40}.get(columns, 80)
    for verb in ([], *([name] for name in NAMES)):
        lines = run(*verb, "--help").out.splitlines()
        long = [line.strip() for line in lines if len(line) > width and "fuse-store " not in line]
        long = [line for line in long if " " in line and not line.startswith("[")]  # but for a word, or an option in the usage
        assert long == [] or columns in ("20", "1"), verb


def test_a_machine_whose_name_is_no_text(run: Run, store: Path, tmp_path: Path) -> None:
    """As words are that are typed in another encoding than the locale's."""
    image(tmp_path / "a", 1)
    done = run("put", "a", "--machine", os.fsdecode(b"\xff"))
    assert done.code == 2 and "not text in the encoding of the locale, or in UTF-8. Choose another name." in done.err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/some/place"), MemoryError()])
def test_what_the_system_refuses_is_one_line(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_given: object) -> None:
        raise error

    monkeypatch.setattr(Versions, "each", broken)
    done = run("list")
    assert done.code == 1 and done.err.count("\n") == 1
    memory = "fuse-store: out of memory. Close other programs, or raise the limits of memory and processes (ulimit -v, ulimit -u).\n"
    assert done.err in ("fuse-store: /some/place: No space left on device. Free some space.\n", memory)
    assert {*run("list", "--json").error} >= {"type", "exit_code", "thing", "cause", "remedy"}


def test_signal_handlers_are_as_before(run: Run, store: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    run("list")
    assert [signal.getsignal(number) for number in numbers] == before
