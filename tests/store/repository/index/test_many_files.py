# SPDX-License-Identifier: GPL-3.0-or-later
"""A store with four times as many packs, and as many fragments, as a process may open files: every verb works."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from fuse_store.image.put import block_writer
from fuse_store.repository import pack
from fuse_store.repository.index import lookup
from fuse_store.store import Label, Store
from tests.store.cli.conftest import COMMAND
from tests.store.conftest import clone, packs_of

FILES = 100
BLOCK = 128 << 10


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def content(blocks: int, seed: int) -> bytes:
    """Whole blocks, no two pages of which are equal, that compress to almost nothing."""
    pages = np.zeros((blocks * BLOCK // 4096, 512), np.uint64)
    pages[:, 0] = np.arange(len(pages)) + (seed << 32) + 1
    return pages.tobytes()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, a pack and a fragment for each of their blocks."""
    directory = tmp_path_factory.mktemp("crowded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        patch.setattr(pack, "PACK_SIZE", 1)
        patch.setattr(block_writer, "GROUP", 64)
        patch.setattr(lookup, "similar", lambda fragments: fragments[:0])
        with Store.create(directory / "store", durability="none") as store:
            for number, blocks in enumerate((340, 60)):
                (directory / f"v{number}").write_bytes(content(blocks, number))
                store.put(str(directory / f"v{number}"), Label("web01"))
                time.sleep(0.01)
    assert len(list((directory / "store" / "index").glob("*.idx"))) == len(packs_of(directory / "store")) == 400
    return directory


@pytest.fixture
def command(crowded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store like that, for one test; the commands below know of it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(crowded / "config"))
    monkeypatch.setenv("FUSE_STORE", str(clone(crowded / "store", tmp_path / "store")))
    monkeypatch.chdir(tmp_path)
    return crowded


def run(*arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, preexec_fn=limit)
    assert (done.returncode, done.stderr.count("Too many open files")) == (0, 0), f"{arguments}: {done.stderr}"
    return done.stdout


def test_verbs_that_read(command: Path, tmp_path: Path) -> None:
    old, new = sorted((one["taken"], one["id"]) for one in json.loads(run("list", "--json"))["versions"])
    for number, (_taken, image_id) in enumerate((old, new)):
        run("show", image_id)
        run("get", image_id, "back", "--force")
        assert (tmp_path / "back").read_bytes() == (command / f"v{number}").read_bytes()
    run("diff", old[1], new[1])
    run("stats")
    run("verify")
    run("gc", "--dry-run")
    point = tmp_path / "mount"
    point.mkdir()
    run("mount", str(point))
    try:
        assert (point / "machines" / "web01" / "system" / "latest" / "image").read_bytes() == (command / "v1").read_bytes()
    finally:
        subprocess.run(["fusermount3", "-uzq", str(point)], check=True)


@pytest.mark.parametrize("first", [["put", "v", "--machine", "web01"], ["repair"], ["gc"]], ids=lambda verb: str(verb[0]))
def test_verbs_that_write(command: Path, tmp_path: Path, first: list[str]) -> None:
    (tmp_path / "v").write_bytes(content(90, 1))
    run(*first)
    run("put", "v", "--machine", "web01", "--replace")
    fragments = list((tmp_path / "store" / "index").glob("*.idx"))
    assert len(fragments) <= 3
    run("remove", *[one["id"] for one in json.loads(run("list", "--json"))["versions"]][:1])
    run("gc", "--now")
    run("verify")
    run("get", "web01/system/latest", "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "v").read_bytes()


def test_the_descriptors_of_a_process_do_not_grow_with_the_fragments(command: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        before = len(os.listdir("/proc/self/fd"))
        assert len(store.index.fragments()) == 400
        assert len(os.listdir("/proc/self/fd")) == before
