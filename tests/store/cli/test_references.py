# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and references as people type them: in another Unicode form, with a time as it is printed, latest-verified."""

from __future__ import annotations

import json
import unicodedata
from datetime import datetime
from pathlib import Path

import pytest

from fuse_store.errors import UsageError
from fuse_store.mount.tree import Tree
from fuse_store.policy.retention import Policy, decide
from fuse_store.policy.selection import Wanted, select
from fuse_store.store import Label, Store
from tests.store.cli.conftest import Run, image, put

NAME = "köln-ビ"
NFC, NFD = unicodedata.normalize("NFC", NAME), unicodedata.normalize("NFD", NAME)


def test_names_in_another_unicode_form(run: Run, store: Path, tmp_path: Path) -> None:
    """As on a Mac: what is typed there finds what was stored elsewhere, and the other way round."""
    assert NFC != NFD
    source = image(tmp_path / "a", 2)
    for stored, typed in ((NFC, NFD), (NFD, NFC)):
        made = put(run, source, "--application", stored, "--event", stored, "--tag", f"{stored}={stored}", machine=stored)
        assert run("show", f"{typed}/{typed}/latest", "--json").json["id"] == made
        assert run("get", f"{typed}/{typed}/latest", "b").code == 0
        listed = run("list", "--machine", typed, "--application", typed, "--json").json["versions"]
        assert made in [version["id"] for version in listed]
        selected = run("select", "--machine", typed, "--application", typed, "--event", typed)
        assert selected.out.strip() == made
        (tmp_path / "profile").write_text(json.dumps({typed: typed}))
        assert run("select", "--machine", typed, "--bootable-on", "profile", "--json").json["passed_over"]
        kept = run("prune", "--keep-tag", f"{typed}={typed}", "--machine", typed, "--application", typed, "--dry-run", "--json").json
        assert made in [version["id"] for version in kept["kept"]] and kept["removed"] == []
        assert run("put", str(source), "--machine", "other", "--base", f"{typed}/{typed}/latest").code == 0
        assert run("diff", f"{typed}/{typed}/latest", made).code == 0
        assert run("verify", f"{typed}/{typed}/latest").code == 0
        assert made[:12] in run("report", f"{typed}/{typed}/latest", "failed").err  # found; it is no hibernation image
    assert run("remove", f"{NFD}/{NFD}/latest").code == 0


def test_names_in_another_unicode_form_from_python(store: Path, tmp_path: Path) -> None:
    source = str(image(tmp_path / "a", 2))
    with Store.open(store) as opened:
        made = opened.put(source, Label(NFC, NFC, event=NFC, tags={NFC: NFC, "kernel": NFC}))
        assert opened.find(f"{NFD}/{NFD}/latest") == made
        chosen = select([made], Wanted(NFD, NFD, event=NFD)).chosen
        assert chosen == made
        (passed,) = select([made], Wanted(NFD, profile={"kernel": NFD})).passed_over
        assert [reason.code for reason in passed.reasons] == ["not_bootable"]
        (decision,) = decide([made], Policy(tags=((NFD, NFD),)))
        assert decision.reasons
        tree = Tree(opened)
        for names in ((NFD,), (NFD, NFD), (NFD, NFD, "latest"), (NFD, NFD, made.version, "image")):
            assert tree.node(("machines", *names)) is not None
        assert tree.node(("kinds", "file", f"{NFD}-{NFD}-{made.version}")) is not None
        tree.close()


def test_names_of_files_in_an_image_stay_as_they_are(store: Path, tmp_path: Path) -> None:
    """They are bytes: two files may differ in nothing but the form."""
    (tmp_path / "files").mkdir()
    for name in (NFC, NFD):
        (tmp_path / "files" / name).write_text(name)
    with Store.open(store) as opened:
        made = opened.put(str(tmp_path / "files"), Label("m"))
        tree = Tree(opened)
        sizes = {name: tree.node(("machines", "m", "system", made.version, "image", name)).size for name in (NFC, NFD)}  # type: ignore[union-attr]
        tree.close()
    assert sizes == {name: len(name.encode()) for name in (NFC, NFD)}


def test_times_as_they_are_printed(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a", 2))
    version = run("show", made, "--json").json
    listed = run("list").out.splitlines()[1]
    shown = next(line for line in run("show", made).out.splitlines() if line.startswith("taken"))
    moment = datetime.fromisoformat(version["taken"])
    printed = [
        version["taken"], version["version"], version["version"][:-7], f"{moment:%Y-%m-%d %H:%M:%S}", f"{moment:%Y-%m-%d %H:%M:%S} UTC",
        shown.split(maxsplit=1)[1], run("stats", "--json").json["groups"][0]["newest"], version["taken"][:10], version["taken"][:13],
    ]  # fmt: skip
    assert f"{moment:%Y-%m-%d %H:%M:%S}" in listed
    for time in printed:
        assert run("show", f"web01/system@{time}", "--json").json["id"] == made, time
        if time != version["version"]:
            done = run("select", "--machine", "web01", "--before", time)
            assert done.code == 3 and "no match among 1 version" in done.err, time
    assert run("select", "--machine", "web01", "--before", "2200-01-01 00:00:00").out.strip() == made


@pytest.mark.parametrize("when", ["", "20", "2", "2026-1", "latest", "yesterday", "2026-11-25T07:33:49.123+00:0"])
def test_what_is_no_time_matches_nothing(run: Run, store: Path, tmp_path: Path, when: str) -> None:
    put(run, image(tmp_path / "a", 2))
    done = run("get", f"web01/system@{when}", "b")
    assert done.code == 2 and "is not a time such as 2026-11-22" in done.err and not (tmp_path / "b").exists()
    assert run("remove", f"web01/system@{when}").code == 2
    with Store.open(store) as opened, pytest.raises(UsageError):
        opened.find(f"web01/system@{when}")


def test_the_newest_that_was_verified(run: Run, store: Path, tmp_path: Path) -> None:
    first = put(run, image(tmp_path / "a", 2))
    missing = run("show", "web01/system/latest-verified")
    assert missing.code == 3
    assert run("verify").code == 0
    second = put(run, image(tmp_path / "a", 2, seed=2))
    assert run("show", "web01/system/latest-verified", "--json").json["id"] == first
    assert run("show", "web01/system/latest", "--json").json["id"] == second
    with Store.open(store) as opened:
        opened.record([first], "failed")
    assert run("show", "web01/system/latest-verified").code == 3
