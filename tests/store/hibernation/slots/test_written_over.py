# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices with slots on which something else was made since: named, and left alone. And what an old table of slots leaves behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fuse_store import times
from fuse_store.cli import main
from fuse_store.errors import Damaged, Refused
from fuse_store.formats.readable import File
from fuse_store.hibernation.preflight import TargetMachine
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.arm import arm
from fuse_store.hibernation.slots.layout import COPIES, COPY_SIZE, Slot
from fuse_store.hibernation.slots.manage import Slots, create, listing
from fuse_store.hibernation.slots.stage import Wishes, stage
from fuse_store.image import devices
from tests.store.hibernation.cases import FREE, SIZE, Case, blank, make_case, signature

FORMATS = {
    "gpt": "printf 'label: gpt\\n,,\\n' | sfdisk -q {}",
    "dos": "printf 'label: dos\\n,,\\n' | sfdisk -q {}",
    "vfat": "mkfs.vfat {}",
    "swap": "mkswap {}",
    "xfs": "mkfs.xfs -q -f {}",
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("over") / "case")


def large(path: Path) -> Path:
    """A sparse file in which every filesystem has space."""
    with open(path, "wb") as file:
        file.truncate(400 << 20)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_named_and_not_written_to(case: Case, tmp_path: Path, kind: str) -> None:
    device = large(tmp_path / "device")
    create(device)
    subprocess.run(FORMATS[kind].format(device), shell=True, check=True, capture_output=True)
    with open(device, "rb") as file:
        before = file.read(2 << 20)
    for action, *options in (["slots list"], ["boot select", "--cold"], ["slots init"], ["slots remove", "--slot", "1"]):
        assert main([*action.split(), str(device), *options, "--quiet"]) == 5, action
    with pytest.raises(Refused, match=rf"had slots, and {kind} was written over them"):
        stage(case.image(0), device, Wishes())
    with pytest.raises(Refused, match=f"contains {kind}, and what is left of a table of slots"):
        create(device)
    with open(device, "rb") as file:
        assert file.read(2 << 20) == before


@pytest.mark.parametrize("at", [0, 300, 5000, (256 << 10) - 1])
def test_a_flipped_bit_before_the_table_is_told_and_mended(case: Case, tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]) -> None:
    device = blank(tmp_path / "device", 2 * SIZE)
    create(device)
    with open(device, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    assert main(["slots", "list", str(device)]) == 0
    assert "the device does not begin as it was written" in capsys.readouterr().err
    stage(case.image(0), device, Wishes())
    assert not listing(device).problem


def test_slots_that_were_armed_are_not_resumed_after_another_init(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device", 2 * SIZE)
    create(device)
    slot = stage(case.image(0), device, Wishes()).slot
    arm(case.store, device, slot.number, TargetMachine(None), force=(*FREE, "swap_unknown"))
    begin, end = slot.header * 4096, (slot.header + 1) * 4096
    assert signature(device.read_bytes()[begin:end]) == b"S1SUSPEND\0"
    with pytest.raises(Refused, match="a table of slots, with an armed image in slot 1"):
        create(device)
    create(device, force=True)
    assert signature(device.read_bytes()[begin:end]) != b"S1SUSPEND\0"


def test_a_read_only_device_is_told_from_one_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = blank(tmp_path / "disk", SIZE)
    loop = subprocess.run(["losetup", "-r", "-f", "--show", disk], capture_output=True, check=True, text=True).stdout.strip()
    try:
        with pytest.raises(Refused, match=r"read-only\. Run blockdev --setrw"):
            create(loop)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)

    def forbidden(*_arguments: object, **_options: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "open", forbidden)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Refused, match="Name another device, or have what confines this process"):
        devices.open_device(Path("/dev/loop0"))


def test_two_damaged_copies_do_not_promise_that_nothing_is_resumed(tmp_path: Path) -> None:
    device = blank(tmp_path / "device", 2 * SIZE)
    create(device)
    with open(device, "r+b") as file:
        for copy in COPIES:
            file.seek(copy)
            file.write(bytes(COPY_SIZE))
    with pytest.raises(Damaged, match="an image that was armed could still be resumed"), File(device) as readable:
        tables.load(readable, str(device))


def test_a_time_after_all_calendars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = blank(tmp_path / "device", 2 * SIZE)
    create(device)
    with Slots(device) as slots:
        slot = Slot(1, "complete", "m", "shop", "", "0" * 32, "", (1 << 48) - 1, 1, 1, ((slots.table.first, 2),), "0" * 64)
        slots.save(slots.table.with_slot(replace(slot)))
    assert main(["slots", "list", str(device)]) == 0 and "9999-12-31 23:59:59" in capsys.readouterr().out
    assert main(["--json", "slots", "list", str(device)]) == 0
    assert json.loads(capsys.readouterr().out)["slots"][0]["taken"].startswith("9999-12-31T23:59:59")
    assert times.at(0).year == 1970


def test_verify_says_of_a_slot_what_the_kernel_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = blank(tmp_path / "device", 2 * SIZE)
    create(device)
    with Slots(device) as slots:
        first = slots.table.first
        slots.save(slots.table.with_slot(Slot(1, "armed", "m", "shop", "", "0" * 32, "", 1, 1, 1, ((first, 2),), "0" * 64)))
    assert main(["--json", "slots", "verify", str(device)]) == 4
    assert json.loads(capsys.readouterr().out.splitlines()[0])["slots"][0]["armed"] is False
