# SPDX-License-Identifier: GPL-3.0-or-later
"""A used image is not armed again: whatever becomes of its state log, by whatever way the same bytes get into the store again, and
onto however many devices they are copied. By means of: writing to the store without the key; storing, staging and copying."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_store.cli import main
from fuse_store.errors import Refused
from fuse_store.hibernation import history
from fuse_store.hibernation.arm import arm
from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.hibernation.preflight import TargetMachine, preflight
from fuse_store.hibernation.stage import stage
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository import state_log
from fuse_store.store import Label
from tests.store.conftest import entries_of, replace_content, state_of
from tests.store.hibernation.cases import FREE, SIZE, Case, blank, make_case, signature
from tests.store.hibernation.test_stage import write

ELSEWHERE = TargetMachine(None)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("history") / "case", compressions=("lzo", "none"))


@pytest.fixture
def case(template: Case, tmp_path: Path) -> Case:
    return template.copied(tmp_path / "case")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return blank(tmp_path / "device", SIZE)


def use(case: Case, device: Path, image_id: str) -> None:
    """Stage and arm a version, and resume it: the kernel takes the signature away first (kernel/power/swap.c, swsusp_check)."""
    put_on(case, device, image_id)
    arm(case.store, device, ELSEWHERE, reference=image_id, force=FREE)
    resume(device)


def put_on(case: Case, device: Path, image_id: str) -> None:
    done = stage(case.store.open_image(image_id), device)
    case.store.record([image_id], "staged", after=history.newest_on(case.store, done.device), device=done.device)


def resume(device: Path) -> None:
    content = device.read_bytes()
    assert signature(content) == b"S1SUSPEND\0"
    write(device, 4086, content[4076:4086])


def refused(case: Case, image_id: str) -> list[str]:
    """The codes with which preflight refuses."""
    report = preflight(case.store, case.store.open_image(image_id), ELSEWHERE)
    return [finding.code for finding in report.refusals if finding.code not in FREE]


def log_of(case: Case, image_id: str) -> Path:
    content = case.store.open_image(image_id).head.content.hex()
    return case.store.path / "states" / content[:2] / f"{content}.log"


def command(case: Case, *words: str) -> int:
    return main([*words, "--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")])


# the log -----------------------------------------------------------------------------------------------------------------


def flip(log: Path) -> None:
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    replace_content(log, bytes(data))


LOSSES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip,
    "deleted": Path.unlink,
    "cut": lambda log: replace_content(log, log.read_bytes()[:40]),
    "empty": lambda log: replace_content(log, b""),
    "all deleted": lambda log: shutil.rmtree(log.parents[1]),
    "that of another image": lambda log: replace_content(
        log, next(other for other in sorted(log.parents[1].glob("*/*.log")) if other != log).read_bytes()
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("number", [0, 1])
def test_a_log_that_is_lost_is_not_one_that_says_no(case: Case, device: Path, loss: str, number: int) -> None:
    used = case.ids[number]
    use(case, device, used)
    assert refused(case, used) == ["already_used"]
    LOSSES[loss](log_of(case, used))
    assert refused(case, used) == ["history_unknown"] and case.store.find(used).state == "unknown"
    put_on(case, device, used)  # which writes a log
    assert refused(case, used) == ["history_unknown"] and case.store.find(used).state == "unknown"
    with pytest.raises(Refused, match="history_unknown: it is not known whether"):
        arm(case.store, device, ELSEWHERE, force=FREE)
    assert signature(device.read_bytes()) == b"SWAPSPACE2"
    assert arm(case.store, device, ELSEWHERE, force=(*FREE, "history_unknown")).changed
    assert refused(case, used) == ["history_unknown", "already_used"]


@pytest.mark.parametrize("loss", LOSSES)
def test_verify_names_a_lost_log_and_repair_does_not_launder_it(case: Case, device: Path, loss: str) -> None:
    used, other = case.ids
    use(case, device, used)
    LOSSES[loss](log_of(case, used))
    (verdict,) = verify(case.store, [used], 100, SILENT)
    assert verdict.state == "damaged" and "state log" in verdict.problems[0] and "repair" in verdict.problems[0]
    assert used in repair(case.store, SILENT).unknown
    assert verify(case.store, [used], 100, SILENT)[0].state == "sound"
    case.store.record([used], "verified")
    assert refused(case, used) == ["history_unknown"] and case.store.find(used).state == "unknown"
    assert refused(case, other) == (["history_unknown"] if loss == "all deleted" else [])
    assert command(case, "report", used, "failed") == 0
    assert refused(case, used) == [] and case.store.find(used).state == "failed"
    LOSSES[loss](log_of(case, used))
    assert command(case, "report", used, "resumed") == 0
    assert refused(case, used) == ["already_used"] and case.store.find(used).state == "resumed"


def test_later_entries_do_not_push_it_out(case: Case, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = case.ids[0]
    use(case, device, used)
    monkeypatch.setattr(state_log, "MAX_ENTRIES", 10)
    for _night in range(10):
        case.store.record([used] * 4, "verified")
        case.store.record([used] * 4, "staged", device="/dev/other")
    assert len(entries_of(case.store, used)) == 10
    assert refused(case, used) == ["already_used"] and case.store.find(used).verified
    assert [entry["state"] for entry in entries_of(case.store, used)][:3] == ["captured", "staged", "armed"]


# the same bytes again ------------------------------------------------------------------------------------------------------


def again(case: Case, source: Path, machine: str = "m", kind: str = "hibernation") -> str:
    return case.store.put(str(source), Label(machine, kind=kind)).id


def from_a_pipe(case: Case, source: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with open(source, encoding="latin-1") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stream)
        return case.store.put("-", Label("m", kind="hibernation")).id


def as_plain_bytes(case: Case, source: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(lzo, "available", lambda: False)
        version = case.store.put(str(source), Label("m", kind="hibernation"))
    assert not version.chunks
    return version.id


def sparse(case: Case, source: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    data = source.read_bytes()
    with open(source, "wb") as file:
        file.truncate(len(data) + (1 << 20))  # a larger device, whose rest is zeros
        for at in range(0, len(data), 4096):
            if any(data[at : at + 4096]):
                file.seek(at)
                file.write(data[at : at + 4096])
    return again(case, source)


def not_armed(case: Case, source: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read from the device after the resume: ten bytes differ."""
    data = source.read_bytes()
    write(source, 4086, data[4076:4086])
    return again(case, source)


WAYS: dict[str, Callable[[Case, Path, pytest.MonkeyPatch], str]] = {
    "as before": lambda case, source, _patch: again(case, source),
    "from a pipe": from_a_pipe,
    "as plain bytes": as_plain_bytes,
    "with holes": sparse,
    "from the device": not_armed,
    "of another machine": lambda case, source, _patch: again(case, source, machine="other"),
    "as a file": lambda case, source, _patch: again(case, source, kind="file"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_the_same_bytes_have_the_same_history(
    case: Case, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, removed: bool, number: int
) -> None:
    used = case.ids[number]
    assert number or case.store.find(used).chunks, "stored as LZO chunks"
    use(case, device, used)
    case.store.record([used], "resumed", device=str(device))
    if removed:
        case.store.remove([used])
        collect(case.store, dry_run=False, progress=SILENT, grace=0)
    anew = WAYS[way](case, case.sources[number], monkeypatch)
    assert refused(case, anew) == ["already_used"] and case.store.find(anew).state == "resumed"
    other = blank(tmp_path / "other")
    put_on(case, other, anew)
    with pytest.raises(Refused, match="already_used"):
        arm(case.store, other, ELSEWHERE, reference=anew, force=FREE)


def test_other_bytes_have_another_history(case: Case, device: Path) -> None:
    use(case, device, case.ids[0])
    for at in (4096, SIZE - 1, 200):
        byte = case.content(0)[at]
        write(case.sources[0], at, bytes([byte ^ 1]))
        other = again(case, case.sources[0], kind="file")
        assert state_of(case.store, other) == "captured", at


@pytest.mark.parametrize("loss", LOSSES)
def test_bytes_put_anew_do_not_stand_for_a_lost_log(case: Case, device: Path, loss: str) -> None:
    used = case.ids[0]
    use(case, device, used)
    LOSSES[loss](log_of(case, used))
    anew = again(case, case.sources[0])
    assert refused(case, used) == refused(case, anew) == ["history_unknown"]
    repair(case.store, SILENT)
    assert refused(case, used) == refused(case, anew) == ["history_unknown"]


@pytest.mark.parametrize("loss", ["a flipped bit", "cut", "empty"])
def test_a_damaged_log_outlives_its_version(case: Case, device: Path, loss: str) -> None:
    use(case, device, case.ids[0])
    LOSSES[loss](log_of(case, case.ids[0]))
    case.store.remove([case.ids[0]])
    collect(case.store, dry_run=False, progress=SILENT, grace=0)
    assert refused(case, again(case, case.sources[0])) == ["history_unknown"]


def test_logs_of_what_was_never_used_go(case: Case) -> None:
    case.store.record([case.ids[0]], "verified")
    logs = [log_of(case, image_id) for image_id in case.ids]
    case.store.remove(case.ids)
    assert not any(log.exists() for log in logs)
    anew = again(case, case.sources[0])
    assert refused(case, anew) == [] and case.store.find(anew).state == "captured"


# copies of a device -------------------------------------------------------------------------------------------------------


def test_a_copy_of_an_armed_device_is_not_taken_for_the_device(case: Case, device: Path, tmp_path: Path) -> None:
    """It is armed, byte for byte; the log does not know of it."""
    put_on(case, device, case.ids[0])
    arm(case.store, device, ELSEWHERE, force=FREE)
    copy = tmp_path / "copy"
    shutil.copy(device, copy)
    with pytest.raises(Refused, match="already_used"):
        arm(case.store, copy, ELSEWHERE, reference=case.ids[0], force=FREE)
    assert not arm(case.store, device, ELSEWHERE, force=FREE).changed


def test_what_one_of_two_devices_is_told_says_nothing_of_the_other(case: Case, device: Path, tmp_path: Path) -> None:
    used = case.ids[0]
    put_on(case, device, used)
    arm(case.store, device, ELSEWHERE, force=FREE)
    copy = tmp_path / "copy"
    shutil.copy(device, copy)
    arm(case.store, copy, ELSEWHERE, reference=used, force=(*FREE, "already_used"))
    assert command(case, "report", used, "failed") == 5, "on which of them?"
    assert command(case, "disarm", str(copy)) == 0
    assert refused(case, used) == ["already_used"] and state_of(case.store, used) == "armed"
    assert command(case, "report", used, "failed", "--device", str(copy)) == 5, "not armed there any more"
    assert command(case, "report", used, "failed", "--device", str(device)) == 0
    assert refused(case, used) == []


def test_a_hibernation_since_is_not_the_image_that_was_armed(case: Case, device: Path) -> None:
    """The machine resumed, and hibernates on its own: to disarm that does not say that the first one was not resumed."""
    use(case, device, case.ids[1])
    write(device, 0, case.content(0))  # by the kernel
    assert command(case, "disarm", str(device)) == 0
    assert refused(case, case.ids[1]) == ["already_used"]


# reports ------------------------------------------------------------------------------------------------------------------


def test_a_report_is_of_what_was_armed(case: Case, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    never = case.ids[0]
    case.store.record([never], "verified")
    assert command(case, "report", never, "resumed") == 5
    assert "never armed. Run 'fuse-store arm DEVICE' first" in capfd.readouterr().err
    assert case.store.find(never).state == "verified" and case.store.find(never).verified
    (tmp_path / "disk").write_bytes(bytes(4096) + b"x" * 8192)
    disk = case.store.put(str(tmp_path / "disk"), Label("m", "disk", kind="hibernation")).id
    case.store.record([disk], "verified")
    assert command(case, "report", disk, "failed") == 5
    assert "no hibernation image was recognised" in capfd.readouterr().err
    assert case.store.find(disk).state == "verified" and case.store.find(disk).verified


def test_verified_is_of_one_version(case: Case, device: Path) -> None:
    first, second = case.ids[0], again(case, case.sources[0])
    case.store.record([first], "verified")
    assert case.store.find(first).verified and not case.store.find(second).verified
    put_on(case, device, first)
    assert case.store.find(second).state == "staged" and not case.store.find(second).verified
    assert case.store.find(first).verified
    case.store.remove([first], force=True)
    assert not case.store.find(second).verified
