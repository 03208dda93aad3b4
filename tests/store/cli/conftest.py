# SPDX-License-Identifier: GPL-3.0-or-later
"""A store, a function that runs commands in this process, and what the tests of the command line have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuse_store.cli import main
from fuse_store.store import Store
from tests.fuzz.swsusp_encoder import encode, machine
from tests.store.conftest import Done

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = 4096
COMMAND = [sys.executable, "-m", "fuse_store.cli"]


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


def hibernation(path: Path, seed: int = 1) -> Path:
    """A swap device with a hibernation image."""
    path.write_bytes(encode(machine(pages=60, seed=seed), 4096, "x86", "none").device)
    return path


def put(run: Run, source: Path | str, *more: str, machine: str = "web01") -> str:
    done = run("put", str(source), "--machine", machine, *more)
    assert done.code == 0, done.err
    return done.out.strip()
