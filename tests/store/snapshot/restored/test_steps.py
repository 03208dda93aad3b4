# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps after a restore: each is done whatever becomes of the others, and says what failed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fuse_store.hibernation.machine import Machine
from fuse_store.snapshot import restored
from fuse_store.snapshot.restored import clock, hooks, mounts, network, random
from tests.store.conftest import needs_root


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine to which nothing is done; what was called, in order."""
    called: list[str] = []
    monkeypatch.setattr(restored, "REPORT", tmp_path / "run" / "restored")
    monkeypatch.setattr(hooks, "AFTER", tmp_path / "none")
    for module, name in ((random, "reseed_again"), (clock, "correct"), (clock, "tell"), (network, "renew"), (mounts, "try_again")):

        def step(*_arguments: object, called: list[str] = called, what: str = f"{module.__name__.rpartition('.')[2]}.{name}") -> list[str]:
            called.append(what)
            return []

        monkeypatch.setattr(module, name, step)
    return called


def test_the_order_of_the_steps(quiet: list[str], tmp_path: Path) -> None:
    assert restored.after_restored(restored.Context("/dev/x", 2, "0f" * 16), Machine(tmp_path)) == ()
    assert quiet == ["random.reseed_again", "clock.correct", "network.renew", "clock.tell", "mounts.try_again"]
    report = restored.REPORT.read_text()
    assert report.startswith(f"image {'0f' * 16}\ndevice /dev/x\nslot 2\nrandom numbers: 0.0 s\n") and "VM generation id: none\n" in report


def test_what_fails_is_named_and_the_rest_is_done(quiet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object) -> list[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(random, "reseed_again", fails)
    monkeypatch.setattr(network, "renew", lambda: ["first", "second"])
    monkeypatch.setattr(hooks, "AFTER", tmp_path)
    (tmp_path / "hook").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "hook").chmod(0o755)
    messages = restored.after_restored(restored.Context("/dev/x"), Machine(tmp_path))
    assert messages == (
        "random numbers: Input/output error", "network: first", "network: second", f"hooks: hook {tmp_path}/hook: exit code 1",
    )  # fmt: skip
    assert quiet == ["clock.correct", "clock.tell", "mounts.try_again"]
    assert "network: 0.0 s, network: first; network: second\n" in restored.REPORT.read_text()


def test_random_numbers_are_reseeded() -> None:
    """The kernel counts as it would for any other process."""
    needs_root()
    with random.open_pool() as pool:
        random.reseed(pool, b"more")
    assert random.reseed_again(b"more") == []
    assert isinstance(random.from_hardware(), bytes)
    with open("/dev/null", "wb", buffering=0) as pool:
        random.reseed(pool)  # no pool: the system goes on all the same


def hardware_clock(root: Path, seconds: float, *, local: bool = False) -> None:
    for name, hctosys, value in (("rtc0", "0", 1), ("rtc1", "1", int(seconds))):
        (root / "sys/class/rtc" / name).mkdir(parents=True, exist_ok=True)
        (root / "sys/class/rtc" / name / "hctosys").write_text(f"{hctosys}\n")
        (root / "sys/class/rtc" / name / "since_epoch").write_text(f"{value}\n")
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/adjtime").write_text(f"0.0 0 0.0\n0\n{'LOCAL' if local else 'UTC'}\n")


def test_the_clock_is_set_by_what_it_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by what the hardware clock shows: it may have been wrong before."""
    set_to: list[float] = []
    monkeypatch.setattr(time, "clock_settime", lambda _clock, seconds: set_to.append(seconds))
    now = time.time()
    assert clock.correct(0, now, tmp_path) == ["there is no hardware clock: the time may be that of the snapshot"]
    hardware_clock(tmp_path, now + 3600)
    before = clock.difference(tmp_path)
    assert before is not None and abs(before - 3600) < 30
    assert clock.correct(before, now - 9, tmp_path) == [] and not set_to
    hardware_clock(tmp_path, now + 3700)
    assert clock.correct(before, now - 9, tmp_path) == [] and abs(set_to[0] - now - 100) < 30
    hardware_clock(tmp_path, now - 3600)
    (message,) = clock.correct(0, now - 9, tmp_path)
    assert "seconds behind, before the snapshot, and was not heeded" in message and len(set_to) == 1


def test_a_hardware_clock_with_the_local_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-5")
    time.tzset()
    try:
        now = int(time.time())
        hardware_clock(tmp_path, now + 5 * 3600, local=True)
        assert clock.hardware(tmp_path) == now
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("driver", ["platform", "acpi"])
def test_the_generation_id_is_looked_at(tmp_path: Path, driver: str) -> None:
    assert restored.generation(Machine(tmp_path)) == "none"
    (tmp_path / f"sys/bus/{driver}/drivers/vmgenid").mkdir(parents=True)
    assert restored.generation(Machine(tmp_path)) == "none", "no device"
    os.symlink("..", tmp_path / f"sys/bus/{driver}/drivers/vmgenid/VMGENCTR:00")
    assert "reseeds by itself" in restored.generation(Machine(tmp_path))
