# SPDX-License-Identifier: GPL-3.0-or-later
"""The power goes before a fragment of the index is on the disk: what verify says of it, and what goes on all the same."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fuse_store.maintenance.gc import collect
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.cli.conftest import COMMAND
from tests.store.conftest import Done, content, packs_of, read_store, replace_content

VERSIONS = [content(range(1, 700)), content(range(1000, 1200))]  # so that their fragments are not merged
HOW = ["empty", "half", "zeros"]


def torn(path: Path, how: str) -> None:
    data = path.read_bytes()
    replace_content(path, {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[how])


def run(*arguments: str, **environment: str) -> Done:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose files are not synced one by one."""
    monkeypatch.setenv("FUSE_STORE", str(tmp_path / "store"))
    with Store.create(tmp_path / "store", durability="batch") as store:
        for data in VERSIONS:
            (tmp_path / "source").write_bytes(data)
            store.put(str(tmp_path / "source"), Label("m"))
    (tmp_path / "source").write_bytes(content(range(2000, 2300)))
    return tmp_path / "store"


def fragments(path: Path) -> set[Path]:
    return set((path / "index").glob("*.idx"))


@pytest.mark.parametrize("how", HOW)
def test_a_fragment_that_no_version_needs(path: Path, tmp_path: Path, how: str) -> None:
    """Of a put that was cut off: its rows are not on the disk. All versions are sound, and stay so; the next collection mends it."""
    before, sound = fragments(path), read_store(path)
    put = ("put", str(tmp_path / "source"), "--machine", "m")
    assert run(*put, FUSE_STORE_FAULT_POINT="renamed .idx").code == -signal.SIGKILL
    (left,) = fragments(path) - before
    torn(left, how)
    done = run("verify", "--json")
    assert done.code == 4 and "no version damaged, but 1 fragment of the index" in done.error["cause"] and "repair" in done.error["remedy"]
    assert [one["state"] for one in done.json["versions"]] == ["sound"] * 2 and done.json["damaged"] == 0 and done.json["recorded"]
    assert len(done.json["problems"]) == 1 and left.name in done.json["problems"][0]
    for more in ([], ["--sample", "50"]):
        done = run("verify", *more)
        assert done.code == 4 and done.err.count(left.name) == 1 and run("list").code == 0
    assert run(*put).code == 0
    assert len(read_store(path)) == 3 and left.exists()
    assert run("gc").code == 0 and not left.exists()
    done = run("verify", "--json")
    assert done.code == 0 and done.json["problems"] == []
    assert sound.items() <= read_store(path).items()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mended_by", ["gc", "repair"])
def test_a_fragment_that_versions_need(path: Path, how: str, mended_by: str) -> None:
    """Those whose blocks only it named are damaged, and no other, until it is mended."""
    sound = read_store(path)
    newest = max(fragments(path), key=lambda fragment: fragment.stat().st_mtime_ns)
    with Store.open(path) as store:
        kept, lost = (summary.id for summary in store.summaries())
    torn(newest, how)
    done = run("verify", "--json")
    assert done.code == 4 and len(done.json["problems"]) == 1
    assert {one["id"]: one["state"] for one in done.json["versions"]} == {kept: "sound", lost: "damaged"}
    assert run(mended_by).code == 0
    assert run("verify").code == 0 and read_store(path) == sound


@pytest.mark.parametrize("how", HOW)
def test_nothing_goes_that_only_a_torn_fragment_names(path: Path, how: str) -> None:
    """A dry run does not mend it: it counts the packs as kept."""
    with Store.open(path) as store:
        (first, second) = store.summaries()
        store.remove([second.id])
        newest, _oldest = store.index.fragments()
    torn(path / "index" / newest, how)
    with Store.open(path) as store:
        dry = collect(store, dry_run=True, progress=SILENT)
        assert (dry.packs_kept, dry.packs_removed) == (2, 0)
        assert len(packs_of(path)) == 2
        assert collect(store, dry_run=False, progress=SILENT, grace=0).packs_removed == 1  # now it accounts for all
    assert list(read_store(path).values()) == [VERSIONS[0]] and first.id in read_store(path)
