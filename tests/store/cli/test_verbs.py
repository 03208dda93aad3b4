# SPDX-License-Identifier: GPL-3.0-or-later
"""What each verb does: results, JSON and exit codes."""

from __future__ import annotations

import argparse
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fuse_store.cli.output import NAME_KEYS
from fuse_store.repository.manifest import image_name
from fuse_store.store import Store
from fuse_store.versions import Listed, Versions
from tests.fuzz.core_encoder import core, process_notes
from tests.fuzz.swsusp_encoder import swap_header
from tests.store.cli.conftest import PAGE, Run, hibernation, image, put

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
        assert done.code == 2 and f"level {level}: " in done.err and not (tmp_path / "none").exists()


def test_init_without_encryption(run: Run, tmp_path: Path) -> None:
    done = run("init", "--no-encryption", "--json")
    assert done.json["key_file"] is None and done.json["encryption"] == "none"
    assert not (tmp_path / "config/fuse-store/keys").exists()
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
    del made["seconds"], made["slots"]
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
    path = store / image_name(lost)
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
    assert run("gc").code == 4  # what the lost one needs is not known, so nothing is freed


def test_repair(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a"))
    for path in (store / "index").iterdir():
        path.unlink()
    assert run("repair", "--json").json["packs_found"] == 1
    assert run("verify").code == 0 and run("get", made, "back").code == 0


def test_what_was_verified_lately_is_left_out(run: Run, store: Path, tmp_path: Path) -> None:
    """The longest ago first. What failed since, has a time in the future, or cannot be read is never left out."""
    long_ago, lately, never, ahead, broken = (put(run, image(tmp_path / "a", 8, seed), machine=f"m{seed}") for seed in range(5))
    failed = put(run, hibernation(tmp_path / "a"), "--kind", "hibernation")
    now, day = time.time_ns(), 86400 * 10**9
    with Store.open(store) as opened:
        for image_id, when in ((long_ago, now - 31 * day), (lately, now - 29 * day), (ahead, now + day), (broken, now), (failed, now)):
            opened.record([image_id], "verified")
            content = opened.find(image_id).content
            entries = [{**entry, "time": when} for entry in opened.state_log.read(content).entries]
            opened.state_log._write(content, cast(Any, entries), False)
        opened.record([failed], "failed")
    (store / image_name(broken)).write_bytes(b"")
    done = run("verify", "--not-verified-within", "30d", "--json")
    assert done.code == 4 and done.json["skipped"] == 1 and done.json["sound"] == 4
    order = [one["id"] for one in done.json["versions"]]
    assert set(order[:3]) == {never, broken, failed} and order[3:] == [long_ago, ahead]
    (store / image_name(broken)).unlink()
    again = run("verify", "--not-verified-within", "30d", ahead, lately, long_ago, failed)
    assert again.code == 0 and "3 versions verified" not in again.err and "verified within 30d" in again.err
    assert run("verify", "--not-verified-within", "0d").code == 2


# prune, gc, stats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["--machine", "nosuch"], ["--application", "nosuch"], ["--machine", "web01", "--application", "x"]])
def test_prune_of_what_is_not_there(run: Run, store: Path, tmp_path: Path, names: list[str]) -> None:
    """A machine whose name is mistyped must not look like one of which all is kept."""
    put(run, image(tmp_path / "a", 1))
    done = run("prune", "--keep-last", "1", *names)
    what = ", ".join(f"{option[2:]} {value}" for option, value in zip(names[::2], names[1::2], strict=True))
    assert (done.code, done.out) == (3, "")
    assert done.err == f"fuse-store: {what}: no versions. Run 'fuse-store list' to see all versions.\n"
    assert run("prune", "--keep-last", "1", "--machine", "web01").code == 0


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
    put(run, hibernation(tmp_path / "z", 2), "--kind", "hibernation")
    boot = put(run, hibernation(tmp_path / "a"))  # whatever it is called
    other = put(run, image(tmp_path / "b", 64, 2))
    newest = put(run, image(tmp_path / "c", 64, 3), "--base", other)
    done = run("prune", "--keep-last", "1", "--json")
    assert {one["id"]: one["reasons"] for one in done.json["kept"]} == {newest: ["last"], boot: ["newest bootable"]}


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def swap_area(path: Path) -> Path:
    path.write_bytes(swap_header(4096, 64, bytes(16)).ljust(64 * 4096, b"\0"))
    return path


@pytest.mark.parametrize("pipe", [False, True])
def test_a_hibernation_image_that_is_cut_off_is_not_stored(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: bool
) -> None:
    with open(cut(hibernation(tmp_path / "no"))) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        done = run("put", "-" if pipe else "no", "--machine", "web01", "--kind", "hibernation")
    assert done.code == 5 and "truncated" in done.err and run("list", "--json").json["versions"] == []


def test_a_hibernation_image_from_a_pipe_has_the_tags_of_one_from_a_file(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what was recorded of the machine's disks. They are read from what was stored; the user's own count more."""
    path = hibernation(tmp_path / "a")
    put(run, path, "--kind", "hibernation")
    for more in ((), ("--tag", "memory=1")):
        with open(path) as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            put(run, "-", "--kind", "hibernation", *more)
    assert run("put", "--machine", "web01", "--kind", "hibernation", "--command", "cat", str(path)).code == 0
    file, pipe, own, command = (one["tags"] for one in sorted(run("list", "--json").json["versions"], key=lambda one: one["number"]))
    recorded = {key: value for key, value in file.items() if not key.startswith("fs.")}
    assert {"memory", "compression"} <= set(recorded) and pipe == command == {**recorded, "consistent": "unknown"}
    assert own == {**pipe, "memory": "1"}


@pytest.mark.parametrize("make", [swap_area, image])
@pytest.mark.parametrize("pipe", [False, True])
def test_what_only_is_called_a_hibernation_image_takes_no_place(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], pipe: bool
) -> None:
    (tmp_path / "profile").write_text("{}")
    real = put(run, hibernation(tmp_path / "real"), "--kind", "hibernation")
    with open(make(tmp_path / "no")) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        called = put(run, "-" if pipe else "no", "--kind", "hibernation")
    assert [one["recognised"] for one in run("list", "--json").json["versions"]] == ["hibernation", ""]
    assert run("select", "--machine", "web01", "--bootable-on", "profile").out.strip() == real
    assert "no hibernation image was recognised" in run("select", "--machine", "web01", "--bootable-on", "profile", "--kind", "vm").err
    (tmp_path / "device").write_bytes(bytes(4 << 20))
    before = (tmp_path / "device").read_bytes()
    assert run("stage", called, "device").code in (3, 4, 5) and (tmp_path / "device").read_bytes() == before
    done = run("prune", "--keep-last", "1", "--json")
    assert {one["id"]: one["reasons"] for one in done.json["kept"]} == {called: ["last"], real: ["newest bootable"]}


def test_what_is_staged_or_armed_stays(run: Run, store: Path, tmp_path: Path) -> None:
    ids = [put(run, hibernation(tmp_path / "a", seed), "--kind", "hibernation", "--tag", "fs.source=machine") for seed in range(4)]
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(4 << 20))
    rules = ("prune", "--keep-last", "1", "--json")

    def kept(*more: str) -> dict[str, list[str]]:
        return {one["id"]: one["reasons"] for one in run(*rules, *more).json["kept"]}

    assert run("stage", ids[0], "one").code == run("stage", ids[1], "two").code == 0
    assert run("arm", "two", "--force", "machine_unknown").code == 0
    last = {ids[3]: ["last", "newest bootable"]}
    assert kept() == {ids[0]: ["staged"], ids[1]: ["armed"], **last}
    for image_id, state in ((ids[0], "staged"), (ids[1], "armed")):
        done = run("remove", ids[3], image_id)
        assert done.code == 5 and f"image {image_id[:12]}: {state} on a device" in done.err and "--force" in done.err
    assert len(run("list", "--json").json["versions"]) == 3
    assert run("stage", ids[3], "one").code == 0, "which takes the place of the other"
    assert kept("--dry-run") == {ids[1]: ["armed"], ids[3]: [*last[ids[3]], "staged"]}
    assert run("report", ids[1], "failed").code == 0
    assert kept("--dry-run") == {ids[3]: [*last[ids[3]], "staged"]}
    assert run("remove", ids[3], "--force").code == 0


def test_what_another_machine_staged_on_the_same_device_since_counts(run: Run, store: Path, tmp_path: Path) -> None:
    mine, last = (put(run, hibernation(tmp_path / "a", seed), "--kind", "hibernation", "--tag", "fs.source=machine") for seed in (1, 2))
    (tmp_path / "one").write_bytes(bytes(4 << 20))
    assert run("stage", mine, "one").code == 0
    other = put(run, hibernation(tmp_path / "a", 3), "--kind", "hibernation", "--tag", "fs.source=machine", machine="web00")
    assert [one["id"] for one in run("prune", "--keep-last", "1", "--dry-run", "--json").json["removed"]] == []
    assert run("stage", other, "one").code == 0
    done = run("prune", "--keep-last", "1", "--dry-run", "--json").json
    assert [one["id"] for one in done["removed"]] == [mine]
    assert {one["id"]: one["reasons"] for one in done["kept"]} == {
        other: ["last", "newest bootable", "staged"], last: ["last", "newest bootable"],
    }  # fmt: skip


def test_prune_goes_through_the_versions_once(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a machine of which another one has a base."""
    ids = {machine: [put(run, image(tmp_path / "a", 8, seed), machine=machine) for seed in range(3)] for machine in ("m1", "m2", "m3")}
    based = put(run, image(tmp_path / "a", 8, 9), "--base", ids["m3"][0], machine="m4")
    listed: Counter[str] = Counter()
    original = Versions.listed

    def counted(self: Versions, tag: str) -> Listed:
        listed[tag] += 1
        return original(self, tag)

    monkeypatch.setattr(Versions, "listed", counted)
    done = run("prune", "--keep-last", "1", "--json", "--dry-run").json
    assert {one["id"]: one["reasons"] for one in done["kept"]} == {
        **{ids[machine][2]: ["last"] for machine in ids}, based: ["last"], ids["m3"][0]: [f"base of {based[:12]}"],
    }  # fmt: skip
    assert [one["id"] for one in done["removed"]] == [ids["m1"][1], ids["m1"][0], ids["m2"][1], ids["m2"][0], ids["m3"][1]]
    assert {tag: count for tag, count in listed.items() if tag != ids["m3"][0][-4:]} == {
        versions[0][-4:]: 1 for versions in (ids["m1"], ids["m2"], [based])
    }


def test_replace_leaves_what_is_staged(run: Run, store: Path, tmp_path: Path) -> None:
    first = put(run, hibernation(tmp_path / "a"), "--kind", "hibernation")
    (tmp_path / "device").write_bytes(bytes(4 << 20))
    assert run("stage", first, "device").code == 0
    done = run("put", str(hibernation(tmp_path / "a", 2)), "--machine", "web01", "--kind", "hibernation", "--replace")
    assert done.code == 0 and f"version {first[:12]} was not replaced: it is staged on a device" in done.err
    done = run("put", str(hibernation(tmp_path / "a", 3)), "--machine", "web01", "--kind", "hibernation", "--replace")
    assert done.code == 0 and len(run("list", "--json").json["versions"]) == 2


def test_prune_does_not_empty_a_group_unless_told_so(run: Run, store: Path, tmp_path: Path) -> None:
    """A typo in a rule: restic issue 4568."""
    tagged = put(run, image(tmp_path / "a"), "--tag", "keep=yes", machine="web02")
    ids = [put(run, image(tmp_path / "a", 5, seed), *more) for seed, more in ((1, ()), (2, ()), (3, ("--application", "db")))]
    for dry_run in ((), ("--dry-run",)):
        for rule, groups in (("keep=yse", ("web01/db", "web01/system", "web02/system")), ("keep=yes", ("web01/db", "web01/system"))):
            done = run("prune", "--keep-tag", rule, *dry_run)
            assert done.code == 5 and done.out == "" and f"{len(groups)} groups: {', '.join(groups)}." in done.err
            assert "Nothing was removed" in done.err and "--allow-empty" in done.err
    assert len(run("list", "--json").json["versions"]) == 4
    assert run("prune", "--keep-tag", "keep=yes", "--machine", "web02").code == 0
    done = run("prune", "--keep-tag", "keep=yes", "--allow-empty", "--json")
    assert [one["id"] for one in done.json["kept"]] == [tagged] and {one["id"] for one in done.json["removed"]} == set(ids)


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
    one = put(run, hibernation(tmp_path / "a"), "--kind", "hibernation", "--tag", "kernel=6.12.9", "--tag", "memory=1024")
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
        "names": [{"name": "image", "type": "file", "change": "changed"}],
        "added": 1, "changed": 1, "gone": 2, "identical": False,
    }  # fmt: skip
    assert run("diff", one, two).out.splitlines()[1].split() == ["gone", "0x000000007000", "8.0", "KiB"]
    same = run("diff", one, one, "--json")
    assert same.code == 0 and same.json["identical"] is True and same.json["ranges"] == same.json["names"] == []


def test_a_directory_is_shown_and_compared(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "d/empty").mkdir(parents=True)
    (tmp_path / "d/file").write_bytes(b"x")
    (tmp_path / "d/link").symlink_to("file")
    one = put(run, "d")
    shown = run("show", one)
    table = shown.out[shown.out.index("FILE") :].splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["./", "empty/", "file", "link"] and table[4].startswith("link -> file ")
    record = run("show", one, "--json").json
    assert record["directory"] and [each["name"] for each in record["directories"]] == ["", "empty"]
    assert [(each["name"], each["target"]) for each in record["links"]] == [("link", "file")]
    (tmp_path / "d/link").unlink()
    (tmp_path / "d/link").symlink_to("empty")
    (tmp_path / "d/empty").chmod(0o500)
    done = run("diff", one, put(run, "d"))
    assert [line.split() for line in done.out.splitlines()] == [["changed", "directory", "empty"], ["changed", "link", "link"]]
    assert "2 names differ" in done.err
    assert run("diff", one, "web01/system/latest", "--json").json["identical"] is False


def test_a_directory_with_the_store_in_it_is_refused(run: Run, store: Path, tmp_path: Path) -> None:
    done = run("put", ".", "--machine", "m")
    assert done.code == 2 and "source .: contains the store." in done.err


def test_a_core_dump_is_shown(run: Run, store: Path, tmp_path: Path) -> None:
    """In ``show``, ``inspect`` and ``list``; made of nothing but notes."""
    (tmp_path / "core").write_bytes(core(True, "<", 62, process_notes(True, "<")))
    stored = put(run, "core", "--kind", "core")
    for verb, name in (("show", stored), ("inspect", stored), ("inspect", "core")):
        lines = dict(line.split(maxsplit=1) for line in run(verb, name).out.splitlines() if " " in line)
        assert {key: lines[key] for key in ("command", "signal", "address")} == {"command": "app", "signal": "SIGSEGV", "address": "0x1234"}
    record = run("show", stored, "--json").json
    assert record["recognised"] == "core" and record["core"]["pid"] == 4711 and record["hibernation"] is None
    assert record["tags"] == {"command": "app", "signal": "SIGSEGV", "architecture": "x86_64"}
    (tmp_path / "text").write_text("no core")
    assert "no core image found in text: none is there: no ELF file." in run("put", "text", "--machine", "m", "--kind", "core").err
    assert run("inspect", "/bin/sh").code == 3


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


def test_get_into_the_store_is_refused(run: Run, store: Path, tmp_path: Path) -> None:
    put(run, image(tmp_path / "source"))
    before = (store / "store.json").read_bytes()
    for target in (store / "store.json", store / "packs" / "x", store):
        done = run("get", "web01/system/latest", str(target))
        assert done.code == 2 and "is inside the store" in done.err
    assert (store / "store.json").read_bytes() == before


def test_a_root_that_does_not_exist_is_an_error(run: Run, store: Path, tmp_path: Path) -> None:
    """Else no fact of the machine could be read, and no check would fail."""
    image_id = put(run, image(tmp_path / "source"))
    done = run("preflight", image_id, "--root", str(tmp_path / "nothing"))
    assert done.code == 3 and "no such directory" in done.err


def test_latest_is_not_silently_an_older_version(run: Run, store: Path, tmp_path: Path) -> None:
    older = put(run, image(tmp_path / "source", seed=1))
    newest = put(run, image(tmp_path / "source", seed=2))
    (store / image_name(newest)).write_bytes(b"")
    for verb in (("get", "web01/system/latest", str(tmp_path / "out")), ("show", "web01/system/latest")):
        done = run(*verb)
        assert done.code == 0 and newest in done.err and "unreadable manifest" in done.err
    assert run("get", older, str(tmp_path / "out")).code == 0
