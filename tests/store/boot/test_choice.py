# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running system and the next boot tell each other on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fuse_store.boot import choice
from fuse_store.boot.choice import record_session, select
from fuse_store.boot.report import parse, read
from fuse_store.errors import Locked, NotFound, Refused, UsageError
from fuse_store.hibernation.slots.manage import Slots
from tests.store.boot.stand import KERNEL, Stand


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand.made(tmp_path)


def test_a_slot_for_the_next_boot(stand: Stand) -> None:
    older, newest = stand.add(), stand.add()
    assert select(stand.device, older.number).slot == older
    assert stand.boot().resumed == older.header
    assert stand.boot().resumed == newest.header, "it was for one boot"
    assert select(stand.device, None).slot is None
    assert stand.boot().report[-1] == "normal a normal boot was chosen"


def test_slots_that_are_not_to_be_chosen(stand: Stand) -> None:
    slot = stand.add()
    before = stand.device.read_bytes()
    with pytest.raises(NotFound, match="no slot 2"):
        select(stand.device, 2)
    assert stand.device.read_bytes() == before
    for change, message in (
        ({"state": "writing"}, "it is writing"), ({"state": "failed"}, "it is failed"),
        ({"tags": {"unsafe": "/ is writable"}}, "/ is writable"), ({"tags": {}}, "no state of the filesystems was recorded"),
    ):  # fmt: skip
        changed = replace(slot, **change)
        stand.change(lambda table, changed=changed: table.with_slot(changed))
        with pytest.raises(Refused, match=message):
            select(stand.device, 1)


def test_a_session_that_ended(stand: Stand) -> None:
    assert record_session(stand.device, "ended") and not record_session(stand.device, "ended")
    assert stand.table().session == "ended"
    assert "event shutdown" in stand.boot().report and stand.table().session == "running"
    assert not record_session(stand.device, "running")
    with pytest.raises(UsageError, match="session 'over'"):
        record_session(stand.device, "over")


def test_a_device_in_use(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "PATIENCE", 0.3)
    with Slots(stand.device), pytest.raises(Locked):
        record_session(stand.device, "ended")
    assert stand.table().session == "running"


def test_report(stand: Stand) -> None:
    with pytest.raises(NotFound, match="no boot report"):
        read(stand.device)
    older, newest = stand.add(), stand.add(sha256="0" * 64)
    stand.write("sys/fs/pstore/dmesg-erst-7", "Panic#1 Part1\n")
    stand.policy.append("panic any|||")
    assert stand.boot().resumed == older.header
    report = read(stand.device)
    assert (report.event, report.kernel, report.selected, report.image) == ("panic", KERNEL, older.number, older.image)
    assert report.passed == ((newest.number, "its checksum is wrong"),) and report.records == ("dmesg-erst-7",)
    assert report.time and report.time > 1_700_000_000 and not report.reason
    stand.boot("fuse_store.boot=cold")
    assert (read(stand.device).selected, read(stand.device).reason) == (None, "a normal boot was chosen")
    stand.damage((768 << 10) + 600)
    with pytest.raises(NotFound, match="no boot report"):
        read(stand.device)


def test_reports_of_any_kind() -> None:
    report = parse("passed x\npassed 1\nselected\ntime 9999999999999999\nrecord\n\nselected 2 x\nnonsense\n")
    assert report.passed == ((1, ""),) and report.selected is None and report.time is None and report.records == ("",)
