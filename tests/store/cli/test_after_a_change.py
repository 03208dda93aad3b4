# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command says that has changed something, and then cannot say so, or is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_store.cli.verbs import NAMES
from tests.store.cli.conftest import COMMAND, Run, hibernation, image, put

CHANGES = {  # verb: its arguments, and what it has done
    "init": (["--store", "new"], "The store was created, with the key file "),
    "put": (["a", "--machine", "web01"], "Version "),
    "get": (["web01/system/latest", "got"], "got was written."),
    "prune": (["--keep-last", "1"], "Removed: 1 version."),
    "remove": (["web01/system/latest"], "Removed: 1 version."),
    "gc": ([], "The collection is complete."),
    "repair": ([], "The index was rebuilt."),
    "stage": (["web01/memory/latest", "device", "--force"], "The version was staged on "),
    "arm": (["device", "--force"], " is armed."),
    "disarm": (["device"], " is not armed."),
    "slots": (["init", "device", "--force"], " has a table of slots."),
    "report": (["web01/memory/latest", "failed"], "The result was recorded."),
}
OTHERS = {"list", "show", "stats", "select", "diff", "verify", "inspect", "preflight", "completion", "mount"}
OTHERS |= {"snapshot", "snapshotd", "boot"}  # of a machine; tests/store/snapshot, tests/store/boot


def test_every_verb_is_of_one_sort() -> None:
    assert {*CHANGES} | OTHERS == {*NAMES}


@pytest.fixture
def prepare(run: Run, store: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """What a verb needs, and its arguments."""
    from fuse_store.hibernation.preflight import CODES

    def make(verb: str) -> list[str]:
        for seed in range(2):
            put(run, image(tmp_path / "a", 1, seed))
        put(run, hibernation(tmp_path / "device"), "--kind", "hibernation", "--application", "memory")
        arguments = [verb, *CHANGES[verb][0]]
        if verb == "arm":
            arguments = [verb, "device", *(word for code in CODES for word in ("--force", code))]
        if verb != "stage":
            assert run("stage", "web01/memory/latest", "device", "--force").code == 0
        if verb in ("disarm", "report"):
            assert run("arm", "device", *(word for code in CODES for word in ("--force", code))).code == 0
        if verb == "slots":
            os.truncate(tmp_path / "device", 8 << 20)
        return arguments

    return make


@pytest.mark.parametrize("verb", CHANGES)
def test_standard_output_that_is_full(prepare: Callable[[str], list[str]], verb: str) -> None:
    """With --json every verb prints something."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *prepare(verb), "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "standard output" in done.stderr
    assert CHANGES[verb][1] in done.stderr and "Free some space." in done.stderr


def test_a_reader_that_has_ended(prepare: Callable[[str], list[str]]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = subprocess.run([*COMMAND, *prepare("put"), "--quiet"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 141 and done.stderr.startswith("fuse-store: standard output: its reader has ended. Version ")
    assert done.stderr.endswith(" was stored.\n")


@pytest.mark.parametrize("verb", ["put", "remove", "arm"])
def test_an_interrupt(prepare: Callable[[str], list[str]], verb: str) -> None:
    """Ctrl-C when it is done, and has not said so."""
    script = f"""
import os, signal, sys
from fuse_store.cli.context import Context
Context.emit = lambda *_: os.kill(os.getpid(), {signal.SIGTERM:d})
from fuse_store.cli import command
command()
"""
    done = subprocess.run([sys.executable, "-c", script, *prepare(verb)], capture_output=True, text=True, check=False)
    assert done.returncode == 143 and CHANGES[verb][1] in done.stderr and "No version was created" not in done.stderr
