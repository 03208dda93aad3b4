# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks: which run, in which order, what they are told, and what becomes of those that fail or hang."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fuse_store.errors import Refused
from fuse_store.snapshot import restored
from fuse_store.snapshot.restored import commands, hooks, network
from tests.store.conftest import needs_root


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hooks are, of both kinds; the network of this machine stays as it is."""
    monkeypatch.setattr(network, "set_addresses_again", list)
    for name, attribute in (("pre", "BEFORE"), ("post", "AFTER")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(hooks, attribute, tmp_path / name)
    return tmp_path


def hook(path: Path, script: str, mode: int = 0o755) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def test_they_run_in_the_order_of_their_names_and_are_told(directory: Path) -> None:
    """Names and modes as run-parts(8) has them: it lists the same."""
    log = directory / "log"
    for name in ("20-b", "10_a", "B", "a"):
        hook(directory / "pre" / name, f'echo "{name} $FUSE_STORE_EVENT/$FUSE_STORE_RESULT" >>{log}')
    for name in ("10-x.dpkg-old", "x~", ".hidden", "a.sh"):
        hook(directory / "pre" / name, f"echo {name} >>{log}")
    hook(directory / "pre" / "not-executable", f"echo not >>{log}", 0o644)
    (directory / "pre" / "directory").mkdir()
    told = "$FUSE_STORE_EVENT $FUSE_STORE_APPLICATION $FUSE_STORE_IMAGE $FUSE_STORE_RESULT $FUSE_STORE_DEVICE $FUSE_STORE_SLOT"
    hook(directory / "post" / "told", f'echo "{told}" >>{log}')
    context = restored.Context("/dev/x", 3, "0f" * 16, "shop", "two words")
    restored.before_snapshot(context)
    assert log.read_text().splitlines() == [f"{name} two words/" for name in ("10_a", "20-b", "B", "a")]
    listed = commands.run(["run-parts", "--test", str(directory / "pre")])
    assert [str(path) for path in hooks.found(directory / "pre")] == listed.output.decode().split()
    log.unlink()
    assert restored.after_created(context) == () and restored.after_failed(context) == ()
    assert log.read_text().splitlines() == [f"two words shop {'0f' * 16} {result} /dev/x 3" for result in ("created", "failed")]


def test_one_that_fails_refuses_the_snapshot(directory: Path) -> None:
    """By name, with what it said last; those after it do not run, and what comes after a snapshot does."""
    hook(directory / "pre" / "10-fails", "echo first; echo the queue is not empty >&2; exit 3")
    hook(directory / "pre" / "20-next", f"touch {directory}/next")
    hook(directory / "post" / "undo", f"echo $FUSE_STORE_RESULT >{directory}/undone")
    with pytest.raises(Refused, match=r"hook .*/pre/10-fails: exit code 3: the queue is not empty\. No snapshot was made\."):
        restored.before_snapshot(restored.Context("/dev/x"))
    assert not (directory / "next").exists() and (directory / "undone").read_text() == "failed\n"


def test_one_that_hangs_is_killed_with_its_children(directory: Path) -> None:
    hook(directory / "pre" / "hangs", f"sleep 1000 & echo $! >{directory}/child; trap '' TERM; wait; sleep 1000")
    begun = time.monotonic()
    with pytest.raises(Refused, match=r"hangs: killed after 3 seconds"):
        restored.before_snapshot(restored.Context("/dev/x", limit=3))
    assert time.monotonic() - begun < 20
    child = Path("/proc") / (directory / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 60
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives"
        time.sleep(0.05)


def test_one_that_leaves_a_program_in_the_background_has_ended(directory: Path) -> None:
    hook(directory / "pre" / "daemon", f"sleep 1000 & echo $! >{directory}/child")
    begun = time.monotonic()
    restored.before_snapshot(restored.Context("/dev/x"))
    assert time.monotonic() - begun < 20
    os.kill(int((directory / "child").read_text()), 9)


def test_after_a_snapshot_each_failure_is_a_message(directory: Path) -> None:
    hook(directory / "post" / "10-fails", "exit 1")
    hook(directory / "post" / "20-hangs", "sleep 1000")
    hook(directory / "post" / "30-signal", "kill -9 $$")
    (directory / "post" / "40-nothing").write_text("no program")
    (directory / "post" / "40-nothing").chmod(0o755)
    hook(directory / "post" / "50-last", f"head -c 1000000 /dev/zero; touch {directory}/last")
    messages = restored.after_created(restored.Context("/dev/x", limit=3))
    ends = ("10-fails: exit code 1", "20-hangs: killed after 3 seconds", "30-signal: ended by signal 9", "Exec format error")
    assert len(messages) == len(ends) and all(message.endswith(end) for message, end in zip(messages, ends, strict=True)), messages
    assert (directory / "last").exists()


@pytest.mark.parametrize("what", ["file", "directory", "target", "owner"])
def test_one_that_others_may_change_is_refused(directory: Path, what: str) -> None:
    """It would run as root."""
    needs_root()
    (directory / "elsewhere").mkdir()
    path = hook(directory / "elsewhere" / "hook", f"touch {directory}/ran")
    (directory / "pre" / "link").symlink_to(path)
    culprit = {"file": path, "directory": directory / "pre", "target": directory / "elsewhere", "owner": path}[what]
    if what == "owner":
        os.chown(path, 12345, 0)
    else:
        culprit.chmod(0o777)
    with pytest.raises(Refused, match=f"hook .*/pre/link: not run, because {culprit} may be changed by others than root"):
        restored.before_snapshot(restored.Context("/dev/x"))
    assert not (directory / "ran").exists()
    os.chown(path, 0, 0)
    culprit.chmod(0o755)
    restored.before_snapshot(restored.Context("/dev/x"))
    assert (directory / "ran").exists()


def test_without_directories_there_is_nothing_to_do(directory: Path) -> None:
    (directory / "pre").rmdir()
    (directory / "post").rmdir()
    context = restored.Context("/dev/x")
    restored.before_snapshot(context)
    assert restored.after_created(context) == ()


def test_the_end_of_the_output_is_kept() -> None:
    done = commands.run(["sh", "-c", "seq 100000; exit 5"], keep=100)
    assert (done.code, len(done.output), done.problem) == (5, 100, "exit code 5: 100000")
    assert commands.run(["cat"], given=b"given").output == b"given"
    assert commands.run(["no-such-program"]).problem == "no-such-program: No such file or directory"
