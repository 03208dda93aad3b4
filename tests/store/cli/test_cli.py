# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: results, exit codes, errors in one line, and what the process does about signals and pipes."""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fuse_store
from fuse_store.cli import main, manpage, text
from fuse_store.cli.output import NAME_KEYS
from fuse_store.cli.parser import GENERAL
from fuse_store.cli.verbs import NAMES, init, load, wanted
from fuse_store.cli.verbs import put as put_verb
from fuse_store.policy.names import KINDS
from fuse_store.repository.block import CODECS
from fuse_store.store import COMPRESSIONS, DURABILITY, Store
from tests.store.conftest import Done

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = 4096


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FUSE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("FUSE_STORE_KEY_FILE", raising=False)
    monkeypatch.delenv("FUSE_STORE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process. Never a traceback, whatever it is."""

    def command(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(arguments)
        done = Done(code, *capfd.readouterr())
        assert "Traceback" not in done.err and "defect" not in done.err
        return done

    return command


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store", durability="none") as made:
        return made.path


def image(path: Path, pages: int = 64, seed: int = 1) -> Path:
    path.write_bytes(np.random.default_rng(seed).bytes(pages * PAGE))
    return path


def put(run: Run, source: Path | str, *more: str, machine: str = "web01") -> str:
    done = run("put", str(source), "--machine", machine, *more)
    assert done.code == 0, done.err
    return done.out.strip()


# init -------------------------------------------------------------------------------------------------------------------


def test_init_says_where_the_key_is_and_to_keep_a_copy(run: Run, tmp_path: Path) -> None:
    done = run("init")
    (key,) = (tmp_path / "config/fuse-store/keys").iterdir()
    assert done.code == 0 and done.out == ""
    assert str(key) in done.err and "copy" in done.err
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_init_with_everything(run: Run, tmp_path: Path) -> None:
    options = "--key-file the.key --compression lz4 --page-size 16KiB --durability none"
    done = run("init", "--store", "other", *options.split(), "--json")
    assert done.code == 0 and done.err == ""
    assert done.json | {"id": ""} == {
        "store": "other", "id": "", "encryption": "aes-256-gcm", "key_file": "the.key", "page_size": 16384, "compression": "lz4",
        "level": -2, "durability": "none",
    }  # fmt: skip
    assert (tmp_path / "the.key").exists()
    assert run("--store", "other", "list").code == 5  # it is not told where the key is
    assert run("--store", "other", "--key-file", "the.key", "list").code == 0


def test_levels(run: Run, tmp_path: Path) -> None:
    """They are recorded, and make a difference. There is no level 0."""
    (tmp_path / "text").write_text("\n".join(one.read_text() for one in sorted(Path(argparse.__file__).parent.glob("[a-d]*.py"))))
    stored = {}
    for level in (-7, -1, 1, 9):
        store = ("--store", f"level{level}")
        assert run(*store, "init", "--no-encryption", "--level", str(level), "--json").json["level"] == level
        run(*store, "put", "text", "--machine", "m")
        stored[level] = run(*store, "list", "--json").json["versions"][0]["stored"]
        assert run(*store, "get", "m/system/latest", f"back{level}").code == 0
        assert (tmp_path / f"back{level}").read_bytes() == (tmp_path / "text").read_bytes()
    assert stored[-7] > stored[-1] > stored[1] > stored[9] > 0
    for level in (-8, 0, 20):
        done = run("--store", "none", "init", "--level", str(level))
        assert done.code == 2 and "not possible" in done.err and not (tmp_path / "none").exists()


def test_init_without_encryption(run: Run, tmp_path: Path) -> None:
    done = run("init", "--no-encryption", "--json")
    assert done.json["key_file"] is None and done.json["encryption"] == "none"
    assert not (tmp_path / "config").exists()
    assert run("init", "--store", "b", "--no-encryption", "--key-file", "k").code == 2


def test_init_where_something_is(run: Run, store: Path) -> None:
    assert run("init").code == 5
    assert run("init", "--json").error["type"] == "refused"


# put, list, show, get -----------------------------------------------------------------------------------------------------


def test_put_prints_the_id_alone(run: Run, store: Path, tmp_path: Path) -> None:
    done = run("put", str(image(tmp_path / "a")), "--machine", "web01")
    assert done.code == 0 and len(done.out) == 33 and int(done.out, 16) >= 0
    assert "web01/system/" in done.err
    assert run("--quiet", "put", "a", "--machine", "web01").err == ""


def test_put_and_show_with_everything(run: Run, store: Path, tmp_path: Path) -> None:
    base = put(run, image(tmp_path / "a"), machine="base")
    arguments = (
        "--application",
        "db",
        "--kind",
        "disk",
        "--event",
        "before update",
        "--tag",
        "a=1",
        "--tag",
        "b=x=y",
        "--base",
        base,
    )
    made = run("put", "a", "--machine", "web01", *arguments, "--json").json
    expected = {
        "machine": "web01", "application": "db", "kind": "disk", "event": "before update", "tags": {"a": "1", "b": "x=y"},
        "bases": [base], "size": 64 * PAGE, "new": 0, "state": "captured", "files": 1,
    }  # fmt: skip
    assert made | expected == made
    shown = run("show", made["id"][:8], "--json").json
    del made["seconds"]
    assert shown | made == shown
    assert shown["pages"] == 64 and shown["page_size"] == PAGE
    (file,) = shown["contents"]
    assert file | {"name": "image", "size": 64 * PAGE, "offset": 0, "mode": "0644"} == file
    human = run("show", made["id"]).out
    assert all(
        word in human for word in (made["id"], "before update", "a=1 b=x=y", "256 KiB (262144 bytes)", base[:12])
    )


def test_put_replace(run: Run, store: Path, tmp_path: Path) -> None:
    one = put(run, image(tmp_path / "a"))
    two = put(run, image(tmp_path / "b", seed=2), "--replace")
    assert [version["id"] for version in run("list", "--json").json["versions"]] == [two] and one != two


@pytest.mark.parametrize("name", ["a", "machine with spaces", "máquina ☃ 机器", "x" * 200, "-odd", "...", "a:b"])
def test_names_that_are_allowed(run: Run, store: Path, tmp_path: Path, name: str) -> None:
    made = run("put", str(image(tmp_path / "a", 1)), f"--machine={name}", "--application", "app", "--json").json
    assert run("show", "--json", "--", f"{name}/app/latest").json["id"] == made["id"]
    assert f" {name} " in run("list").out
    assert run("select", f"--machine={name}").out.strip() == made["id"]
    assert run("stats", "--json").json["groups"][0]["machine"] == made["machine"] == name


@pytest.mark.parametrize(
    "name", ["", "../x", "..", "a/b", "a@b", "x" * 300, "é" * 150, "a\nb", "a\x1b[31mb", " a", "a\u202eb"]
)
@pytest.mark.parametrize("what", ["--machine", "--application", "--event"])
def test_names_that_are_not(run: Run, store: Path, tmp_path: Path, name: str, what: str) -> None:
    if (what, name) == ("--event", ""):
        return
    image(tmp_path / "a", 1)
    arguments = {"--machine": "m", what: name}
    done = run("put", "a", *(f"{key}={value}" for key, value in arguments.items()))
    assert done.code == 2 and done.out == ""
    assert done.err.count("\n") == 1 and done.err[:-1].isprintable()
    assert run("list", "--json").json == {"versions": []}


@pytest.mark.parametrize("tag", ["", "=", "=v", "novalue"])
def test_tags_that_are_none(run: Run, store: Path, tag: str) -> None:
    assert run("put", "a", "--machine", "m", "--tag", tag).code == 2


def test_a_tag_given_twice(run: Run, store: Path, tmp_path: Path) -> None:
    assert run("put", str(image(tmp_path / "a")), "--machine", "m", "--tag", "a=1", "--tag", "a=2").code == 2


@pytest.mark.parametrize("content", [b"", b"x", bytes(10), b"y" * PAGE, bytes(PAGE) + b"z" * 5000], ids=len)
def test_there_and_back(run: Run, store: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    made = put(run, "a")
    done = run("get", made, "back", "--json")
    assert done.code == 0 and (tmp_path / "back").read_bytes() == content
    assert done.json | {"id": made, "target": "back", "size": len(content)} == done.json
    assert run("verify", made).code == 0


def test_a_directory_there_and_back(run: Run, store: Path, tmp_path: Path) -> None:
    names = ["image", "sub folder/ünïcode ☃", "sub folder/new\nline", "z" * 255, "empty"]
    for number, name in enumerate(names):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(bytes([number]) * 1000 * number)
    made = put(run, "d")
    assert run("get", made, "back").code == 0
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    shown = run("show", made)
    assert "new\\nline" in shown.out  # one line for each file, whatever it is called
    assert sorted(one["name"] for one in run("show", made, "--json").json["contents"]) == sorted(names)


def test_list_is_for_people_or_programs(run: Run, store: Path, tmp_path: Path) -> None:
    ids = [
        put(run, image(tmp_path / "a", 3, seed), "--application", "ab"[seed % 2], machine=f"m{seed % 2}")
        for seed in range(4)
    ]
    lines = run("list").out.splitlines()
    assert lines[0].split()[:2] == ["ID", "TAKEN"] and len(lines) == 5
    assert lines[1].split() == [
        ids[0][:12],
        *lines[1].split()[1:3],
        "m0",
        "a",
        "file",
        "captured",
        "12.0",
        "KiB",
        "12.0",
        "KiB",
    ]
    assert {one["id"] for one in run("list", "--json").json["versions"]} == set(ids)
    assert {one["id"] for one in run("list", "--machine", "m1", "--json").json["versions"]} == {ids[1], ids[3]}
    assert run("list", "--machine", "m1", "--application", "a", "--json").json == {"versions": []}


def test_list_of_an_empty_store(run: Run, store: Path) -> None:
    assert run("list").out == "" and run("list").code == 0


@pytest.mark.parametrize(
    "reference", ["ffffffff", "zzz", "", "web01/system/latest", "web01", "web01/nothing/latest", "../../x", "a" * 300]
)
@pytest.mark.parametrize("verb", ["show", "get", "verify", "diff"])
def test_images_that_are_not_there(run: Run, store: Path, verb: str, reference: str) -> None:
    more = {"get": ["target"], "diff": [reference]}.get(verb, [])
    done = run(verb, reference, *more, "--json")
    assert done.code == 3 and done.error["exit_code"] == 3


# verify, repair ---------------------------------------------------------------------------------------------------------


def damage(store: Path) -> None:
    """Flip one bit in the middle of the largest pack."""
    pack = max(store.glob("packs/*/*.pack"), key=lambda one: one.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)


def test_verify_names_what_is_damaged(run: Run, store: Path, tmp_path: Path) -> None:
    bad = put(run, image(tmp_path / "a", 300), machine="bad")
    sound = put(run, image(tmp_path / "b", 1, 2), machine="sound")
    damage(store)
    done = run("verify", "--json")
    assert done.code == 4 and done.error["type"] == "damaged"
    states = {one["id"]: one for one in done.json["versions"]}
    assert (states[bad]["state"], states[sound]["state"]) == ("damaged", "sound")
    assert states[sound]["problems"] == []
    pack = max(store.glob("packs/*/*.pack"), key=lambda one: one.stat().st_size).stem
    (problem,) = states[bad]["problems"]
    assert pack in problem and "extent 0x" in problem
    people = run("verify")
    assert people.code == 4 and bad in people.err and pack in people.err and "extent" in people.err
    assert run("verify", sound).code == 0
    states = {one["id"]: one["state"] for one in run("list", "--json").json["versions"]}
    assert states == {bad: "captured", sound: "verified"}
    got = run("get", bad, "back", "--json")
    assert got.code == 4 and not (tmp_path / "back").exists()
    assert (got.error["image"], got.error["pack"]) == (bad, pack) and got.error["extent"].startswith("0x")


def test_a_sample_proves_nothing(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a"))
    assert run("verify", "--sample", "50", "--json").json["recorded"] is False
    assert run("show", made, "--json").json["state"] == "captured"
    assert run("verify", "--json").json["recorded"] is True
    assert run("show", made, "--json").json["state"] == "verified"


@pytest.mark.parametrize("percent", ["0", "101", "-1", "x", "nan", "1e1", ""])
def test_samples_that_are_none(run: Run, store: Path, percent: str) -> None:
    assert run("verify", f"--sample={percent}").code == 2


def test_a_damaged_manifest_is_named_everywhere(run: Run, store: Path, tmp_path: Path) -> None:
    lost, there = put(run, image(tmp_path / "a")), put(run, image(tmp_path / "b", 1, 2))
    path = store / "images" / f"{lost}.img"
    path.chmod(0o600)
    path.write_bytes(b"FSIMAGE1" + bytes(20))
    listed = run("list")
    assert there[:12] in listed.out and lost in listed.err and listed.code == 0
    done = run("verify", "--json")
    assert done.code == 4 and {one["id"]: one["state"] for one in done.json["versions"]} == {
        lost: "damaged",
        there: "sound",
    }
    assert run("repair", "--json").code == 4
    assert run("gc").code in (1, 4)  # what the lost one needs is not known, so nothing is freed


def test_repair(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a"))
    for path in (store / "index").iterdir():
        path.unlink()
    assert run("repair", "--json").json["packs_found"] == 1
    assert run("verify").code == 0 and run("get", made, "back").code == 0


# prune, gc, stats -------------------------------------------------------------------------------------------------------


def test_prune_says_what_goes_and_why_the_rest_stays(run: Run, store: Path, tmp_path: Path) -> None:
    base = put(run, image(tmp_path / "a", 1), machine="base")
    ids = [
        put(run, image(tmp_path / "a", 5, seed), "--base", base, *(["--tag", "keep=yes"] if seed == 1 else []))
        for seed in range(4)
    ]
    dry = run("prune", "--keep-last", "1", "--keep-tag", "keep=yes", "--machine", "web01", "--dry-run", "--json")
    assert dry.json["dry_run"] is True and len(run("list", "--json").json["versions"]) == 5
    lines = run(
        "prune", "--keep-last", "1", "--keep-tag", "keep=yes", "--machine", "web01", "--dry-run"
    ).out.splitlines()
    assert lines[0] == "web01/system"
    words = {line.split()[1]: (line.split()[0], " ".join(line.split()[4:])) for line in lines[2:]}
    assert words == {
        ids[3][:12]: ("keep", "last"), ids[2][:12]: ("remove", ""), ids[1][:12]: ("keep", "tag keep=yes"), ids[0][:12]: ("remove", ""),
    }  # fmt: skip
    done = run("prune", "--keep-last", "1", "--keep-tag", "keep=yes", "--machine", "web01", "--json")
    assert done.json == {**dry.json, "dry_run": False}
    assert {one["id"] for one in done.json["removed"]} == {ids[0], ids[2]}
    assert {one["id"] for one in run("list", "--json").json["versions"]} == {base, ids[1], ids[3]}
    freed = run("gc", "--json").json
    assert freed["freed"] > 8 * PAGE and freed["packs_removed"] == 2
    assert run("verify").code == 0


def test_prune_keeps_the_newest_bootable_version(run: Run, store: Path, tmp_path: Path) -> None:
    boot = put(run, image(tmp_path / "a"), "--kind", "hibernation")
    other = put(run, image(tmp_path / "b", 64, 2))
    newest = put(run, image(tmp_path / "c", 64, 3), "--base", other)
    done = run("prune", "--keep-last", "1", "--json")
    assert {one["id"]: one["reasons"] for one in done.json["kept"]} == {newest: ["last"], boot: ["newest bootable"]}


@pytest.mark.parametrize(
    "arguments",
    [[], ["--keep-last", "0"], ["--keep-last", "-1"], ["--keep-daily", "x"], ["--keep-within", "7"], ["--keep-tag", "x"], ["--keep-last"],
     ["--keep", "3"], ["--machine", "web01"]],
)  # fmt: skip
def test_prune_without_a_rule(run: Run, store: Path, tmp_path: Path, arguments: list[str]) -> None:
    put(run, image(tmp_path / "a"))
    assert run("prune", *arguments).code == 2
    assert len(run("list", "--json").json["versions"]) == 1


def test_stats(run: Run, store: Path, tmp_path: Path) -> None:
    assert run("stats", "--json").json["ratio"] is None
    put(run, image(tmp_path / "a"))
    put(run, "a", machine="web02")
    done = run("stats", "--json").json
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    expected = {"versions": 2, "logical": 128 * PAGE, "allocated": 128 * PAGE}
    assert done | expected == done and abs(done["stored"] - stored) < 8192 and done["packs"] == 1
    assert 1.5 < done["ratio"] < 2
    assert [(one["machine"], one["allocated"], one["stored"] > 0) for one in done["groups"]] == [
        ("web01", 64 * PAGE, True),
        ("web02", 64 * PAGE, False),
    ]
    assert "512 KiB (524288 bytes)" in run("stats").out


# select, diff -----------------------------------------------------------------------------------------------------------


def test_select(run: Run, store: Path, tmp_path: Path) -> None:
    one = put(run, image(tmp_path / "a"), "--kind", "hibernation", "--tag", "kernel=6.12.9", "--tag", "memory=1024")
    two = put(run, image(tmp_path / "b", 1, 2), "--event", "nightly")
    done = run("select", "--machine", "web01")
    assert (done.code, done.out) == (0, two + "\n")
    record = run("select", "--machine", "web01", "--kind", "hibernation", "--json").json
    assert record["id"] == record["chosen"]["id"] == one
    assert [(other["id"], [why["code"] for why in other["reasons"]]) for other in record["passed_over"]] == [
        (two, ["other_kind"])
    ]
    (tmp_path / "profile").write_text('{"kernel": "6.12.9", "memory": 1024}')
    assert run("select", "--machine", "web01", "--bootable-on", "profile").out.strip() == one
    none = run("select", "--machine", "web01", "--before", "2001-01-01")
    assert none.code == 3 and none.out == "" and one[:12] in none.err and two[:12] in none.err
    none = run("select", "--machine", "web01", "--state", "armed", "--json")
    assert (
        none.code == 3
        and none.json["id"] is None
        and len(none.json["passed_over"]) == 2
        and none.error["type"] == "not_found"
    )
    assert run("select", "--machine", "nobody").code == 3


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", 2), (b"[]", 2), (b'{"a": [1]}', 2), (b'{"a": true}', 2), (b"\xff", 2), (b"[" * 100000, 2), (None, 3)],
)
def test_profiles_that_are_none(run: Run, store: Path, tmp_path: Path, content: bytes | None, code: int) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    assert run("select", "--machine", "m", "--bootable-on", "p").code == code


def test_diff(run: Run, store: Path, tmp_path: Path) -> None:
    one = put(run, image(tmp_path / "a"))
    content = bytearray((tmp_path / "a").read_bytes())
    content[5 * PAGE] ^= 1
    content[7 * PAGE : 9 * PAGE] = bytes(2 * PAGE)
    (tmp_path / "b").write_bytes(content + b"more")
    two = put(run, "b")
    assert run("diff", one, two, "--json").json == {
        "a": one, "b": two, "page_size": PAGE,
        "ranges": [
            {"file": "image", "change": "changed", "offset": 5 * PAGE, "length": PAGE},
            {"file": "image", "change": "gone", "offset": 7 * PAGE, "length": 2 * PAGE},
            {"file": "image", "change": "added", "offset": 64 * PAGE, "length": 4},
        ],
        "added": 1, "changed": 1, "gone": 2, "identical": False,
    }  # fmt: skip
    assert run("diff", one, two).out.splitlines()[1].split() == ["gone", "0x000000007000", "8.0", "KiB"]
    same = run("diff", one, one, "--json")
    assert same.code == 0 and same.json["identical"] is True and same.json["ranges"] == []


def test_remove_takes_the_named_and_no_other(run: Run, store: Path, tmp_path: Path) -> None:
    image(tmp_path / "a"), image(tmp_path / "b", 64, 2)
    ids = [run("put", name, "--machine", "m", "-q").out.strip() for name in ("a", "b", "a")]
    assert run("remove", ids[1], "0123456789", "--json").code == 3
    assert {one["id"] for one in run("list", "--json").json["versions"]} == {*ids}, "one is not there, so none goes"
    done = run("remove", ids[0], ids[0][:20], "m/system/latest", "--json")
    assert done.code == 0 and {one["id"] for one in done.json["removed"]} == {ids[0], ids[2]}
    assert set(done.json["removed"][0]) == set(NAME_KEYS)
    assert [one["id"] for one in run("list", "--json").json["versions"]] == [ids[1]]
    assert run("gc").code == 0 and run("verify").code == 0, "the version that was compared with one of them is whole"
    assert run("remove", ids[0]).code == 3


# what every verb promises -------------------------------------------------------------------------------------------------


def test_json_has_the_keys_that_are_documented(run: Run, tmp_path: Path) -> None:
    image(tmp_path / "a"), image(tmp_path / "b", 64, 2)
    commands = {
        "init": [], "put": ["a", "--machine", "m"], "list": [], "show": ["m/system/latest"], "get": ["m/system/latest", "t"], "verify": [],
        "stats": [], "prune": ["--keep-last", "1"], "gc": [], "repair": [], "select": ["--machine", "m"],
        "diff": ["m/system/latest", "m/system/latest"], "completion": ["bash"],
    }  # fmt: skip
    # Those of the mount and of devices have tests of their own for it.
    assert {*commands, "mount", "inspect", "preflight", "stage", "arm", "disarm", "outcome", "remove"} == {*NAMES}
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
        ("--help put", NAMES), ("-qh put", NAMES), ("--version put", NAMES), ("nonsense put", NAMES), ("--store", NAMES),
    ],
)  # fmt: skip
def test_one_verb_is_loaded_where_one_is_named(line: str, loaded: Sequence[str]) -> None:
    assert [verb.name for verb in wanted(line.split())] == list(loaded)


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
    def broken(self: Store) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(Store, "summaries", broken)
    assert main(["list"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("fuse-store: ZeroDivisionError: by\\nzero") and "report" in error and error.count("\n") == 1
    monkeypatch.setenv("FUSE_STORE_DEBUG", "1")
    assert main(["list"]) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/some/place"), MemoryError()])
def test_what_the_system_refuses_is_one_line(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(self: Store) -> None:
        raise error

    monkeypatch.setattr(Store, "summaries", broken)
    done = run("list")
    assert done.code == 1 and done.err.count("\n") == 1
    assert done.err in ("fuse-store: /some/place: No space left on device\n", "fuse-store: memory is exhausted.\n")


def test_signal_handlers_are_as_before(run: Run, store: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    run("list")
    assert [signal.getsignal(number) for number in numbers] == before


# the process ----------------------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "fuse_store.cli"]


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
    assert done.returncode == 1 and done.stderr == "fuse-store: input or output: No space left on device\n"


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
    assert error == "fuse-store: interrupted. No version was made, none was lost. Run it again.\n"
    assert process.stdout.read() == b""
    process.stdin.close()
    assert run("list", "--json").json == {"versions": []}
    assert not [path for path in store.rglob("*") if path.suffix == ".partial" or path.name == "writer"]
    assert run("put", str(image(Path("a"))), "--machine", "web01").code == 0


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
        assert done.code == 0 or ("Read-only file system" in done.err and done.err.count("\n") == 1)


def test_lists_import_nothing_heavy(store: Path) -> None:
    """What makes ``list`` fast enough for a store of ten thousand versions."""
    script = (
        "import sys; from fuse_store.cli import main; assert main(['list']) == 0; "
        "heavy = {'rich', 'shtab', 'mfusepy', 'fuse_store.image.reader', 'fuse_store.image.writer', 'concurrent.futures'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# completion, the man page, the guide ---------------------------------------------------------------------------------------


def test_bash_completes_verbs_options_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(run("completion", "bash").out)
    (tmp_path / "image.raw").touch()
    script = """
    source ./completion
    complete_words() {
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
      _shtab_fuse_store fuse-store "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$((COMP_CWORD - 1))]}"
      echo "${COMPREPLY[*]}"
    }
    complete_words fuse-store ver
    complete_words fuse-store prune --keep-d
    complete_words fuse-store put ima
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["verify", "--keep-daily", "image.raw"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(run: Run, shell: str) -> None:
    script = run("completion", shell).out
    assert all(name in script for name in NAMES) and "keep-monthly" in script


def test_help_offers_what_the_store_takes() -> None:
    offered = {one.flags[0]: str(one.settings.get("metavar")).split("|") for one in init.VERB.arguments}
    assert offered["--durability"] == list(DURABILITY)
    assert sorted(offered["--compression"]) == sorted(CODECS) == sorted(COMPRESSIONS)
    (kind,) = (one for one in put_verb.VERB.arguments if one.flags == ("--kind",))
    assert all(name in str(kind.settings["help"]) for name in KINDS)


def test_the_man_page_is_that_of_this_program() -> None:
    assert (DOCS / "fuse-store.1").read_text() == manpage.manpage()


def test_the_guide_tells_of_every_verb_option_and_exit_code() -> None:
    guide = (DOCS / "fuse-store.md").read_text()
    missing = [name for name in NAMES if f"`{name}" not in guide]
    missing += [
        one.flags[-1]
        for verb in load()
        for one in (*verb.arguments, *GENERAL)
        if one.flags[-1] not in guide and one.flags[0][0] == "-"
    ]
    missing += [str(code) for code in manpage.EXIT_CODES if f"| {code} |" not in guide]
    assert missing == []


# how things are written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (102348, "99.9 KiB"), (102400, "100 KiB"),
        ((1 << 20) - 1, "1024 KiB"), (1 << 20, "1.0 MiB"), (64 << 30, "64.0 GiB"), (16 << 40, "16.0 TiB"), (1 << 50, "1.0 PiB"),
        (1 << 73, "8192 EiB"),
    ],
)  # fmt: skip
def test_sizes(number: int, written: str) -> None:
    assert text.size(number) == written


def test_tables_with_wide_and_hostile_cells() -> None:
    made = text.table(
        ("A", "B"), [("机器", "1"), ("ab\x1b[31m", "22"), ("e\u0301", "3"), ("plain", "4")], right=frozenset((1,))
    )
    lines = made.splitlines()
    assert len(lines) == 5 and {text.width(line) for line in lines} == {text.width(lines[0])}
    assert "\x1b" not in made and "\\x1b[31m" in made
