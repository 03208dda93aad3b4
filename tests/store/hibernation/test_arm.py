# SPDX-License-Identifier: GPL-3.0-or-later
"""Arm sets the signature only on a copy that equals the store's, once, and after preflight; disarm removes it; and no failure on
the way leaves a device that the kernel would resume wrongly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError
from fuse_store.hibernation import history
from fuse_store.hibernation.arm import ArmResult, arm, disarm
from fuse_store.hibernation.preflight import TargetMachine
from fuse_store.hibernation.stage import stage
from fuse_store.image import devices
from fuse_store.repository.locks import WriterLock
from fuse_store.repository.state_log import usage
from fuse_store.store import Label
from tests.fuzz.swsusp_encoder import UUID, decode, swap_header
from tests.store.conftest import entries_of, state_of
from tests.store.hibernation.cases import FREE, SIZE, Case, blank, kind_on, make_case, signature, unarmed
from tests.store.hibernation.test_stage import ROOT, loop, needs_root, write

__all__ = ["loop"]

ELSEWHERE = TargetMachine(None)  # another machine, of which nothing is known


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("arm") / "case", compressions=("none", "lzo"))


@pytest.fixture
def case(template: Case, tmp_path: Path) -> Case:
    return template.copied(tmp_path / "case")


@pytest.fixture
def device(case: Case, tmp_path: Path) -> Path:
    """Version 0 is staged on it, and nothing else in the store was."""
    path = blank(tmp_path / "device", SIZE)
    put_on(case, path, 0)
    return path


def put_on(case: Case, path: Path, index: int, force: bool = False) -> None:
    done = stage(case.image(index), path, force=force)
    case.store.record([case.ids[index]], "staged", device=done.device)


def arm_it(case: Case, device: Path, *force: str, reference: str = "") -> ArmResult:
    return arm(case.store, device, ELSEWHERE, reference=reference, force=(*FREE, *force))


def consume(device: Path) -> None:
    """What the kernel does first when it resumes (kernel/power/swap.c, swsusp_check)."""
    content = device.read_bytes()
    assert signature(content) == b"S1SUSPEND\0"
    write(device, 4086, content[4076:4086])


# arm ------------------------------------------------------------------------------------------------------------------


def test_armed_is_what_was_captured(case: Case, device: Path) -> None:
    done = arm_it(case, device)
    assert device.read_bytes() == case.content(0)
    assert decode(device.read_bytes())
    assert done == ArmResult(str(device), case.ids[0], True, ("machine_unknown", "filesystems_unknown"))
    assert state_of(case.store, case.ids[0]) == "armed"


@needs_root
def test_block_device(case: Case, loop: Path) -> None:
    put_on(case, loop, 1)
    arm_it(case, loop, *MACHINE)
    assert loop.read_bytes()[:SIZE] == case.content(1)
    assert kind_on(loop) == "swsuspend"
    assert disarm(loop).changed
    assert kind_on(loop) == "swap"


MACHINE = ("memory_map", "memory_size")


def test_armed_already(case: Case, device: Path) -> None:
    arm_it(case, device)
    entries = entries_of(case.store, case.ids[0])
    assert not arm_it(case, device).changed
    assert entries_of(case.store, case.ids[0]) == entries


def test_refused_without_force(case: Case, device: Path) -> None:
    before = device.read_bytes()
    for force in ((), ("machine_unknown",), ("damaged", "memory_map")):
        with pytest.raises(Refused, match="filesystems_unknown") as caught:
            arm(case.store, device, ELSEWHERE, force=force)
        assert "--force filesystems_unknown" in caught.value.remedy
        assert ("--force machine_unknown" in caught.value.remedy) == ("machine_unknown" not in force)
    assert device.read_bytes() == before
    assert state_of(case.store, case.ids[0]) == "staged"


@pytest.mark.parametrize("where", [4096 + 7, SIZE // 8, SIZE - 1, 1030])
def test_flipped_bit_in_the_staged_copy(case: Case, device: Path, where: int) -> None:
    content = device.read_bytes()
    write(device, where, bytes([content[where] ^ 0x10]))
    kind = Refused if where < 4096 else Damaged
    with pytest.raises(kind, match="another image" if where < 4096 else f"{where // 4096 * 4096:#x} differs from the staged version"):
        arm_it(case, device)
    assert signature(device.read_bytes()) == b"SWAPSPACE2"
    assert state_of(case.store, case.ids[0]) == "staged"


def test_swap_that_was_used_since(case: Case, device: Path) -> None:
    write(device, 4096 * 40, os.urandom(4096 * 30))
    with pytest.raises(Damaged, match="overwritten"):
        arm_it(case, device)
    write(device, 0, swap_header(4096, SIZE // 4096, UUID))
    with pytest.raises(NotFound, match="contains a swap area; no image to arm"):
        arm_it(case, device)


def test_other_image_than_is_named(case: Case, device: Path) -> None:
    with pytest.raises(Refused, match="another image than version"):
        arm_it(case, device, reference=case.ids[1])
    put_on(case, device, 1)
    assert arm_it(case, device).id == case.ids[1]
    write(device, 0, case.content(0)[:4096])
    with pytest.raises(Refused, match="another image than version"):
        arm_it(case, device)


def test_nothing_staged(case: Case, device: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="contains nothing"):
        arm_it(case, blank(tmp_path / "other"))
    copy = tmp_path / "copy"
    copy.write_bytes(device.read_bytes())
    with pytest.raises(NotFound, match="--image"):
        arm_it(case, copy)
    assert arm_it(case, copy, reference=case.ids[0]).changed


def test_damaged_when_it_was_captured(tmp_path: Path) -> None:
    own = make_case(tmp_path / "c", compressions=("lzo",))
    write(own.sources[0], 4060, b"\1\2\3\4")
    version = own.store.put(str(own.sources[0]), Label("m", kind="hibernation"))
    device = blank(tmp_path / "device", SIZE)
    stage(own.store.open_image(version.id), device)
    with pytest.raises(Refused, match="damaged: the kernel's checksum 0x04030201 does not match"):
        arm_it(own, device, reference=version.id)
    assert main(["verify", version.id, "--store", str(own.store.path), "--key-file", str(tmp_path / "c/key")]) == 4


def test_state_log_that_can_not_be_written(case: Case, device: Path) -> None:
    with WriterLock(case.store.path / "locks"), pytest.raises(Locked):
        arm_it(case, device)
    assert signature(device.read_bytes()) == b"SWAPSPACE2"


# once -----------------------------------------------------------------------------------------------------------------


def test_one_state_is_not_resumed_twice(case: Case, device: Path) -> None:
    arm_it(case, device)
    consume(device)
    with pytest.raises(Refused, match=r"already_used: armed .* and may have been resumed since"):
        arm_it(case, device)
    put_on(case, device, 0)  # staging it again changes nothing about that
    with pytest.raises(Refused, match="already_used"):
        arm_it(case, device)
    case.store.record([case.ids[0]], "verified")
    case.store.record([case.ids[0]], "resumed")
    with pytest.raises(Refused, match=r"already_used: resumed \(recorded"):
        arm_it(case, device)
    assert arm_it(case, device, "already_used").forced == ("already_used", "machine_unknown", "filesystems_unknown")


def test_attempt_that_failed_may_be_repeated(case: Case, device: Path) -> None:
    arm_it(case, device)
    consume(device)
    case.store.record([case.ids[0]], "failed", "memory size")
    assert arm_it(case, device).changed
    assert device.read_bytes() == case.content(0)
    case.store.record([case.ids[0]], "resumed")
    case.store.record([case.ids[0]], "failed")
    consume(device)
    with pytest.raises(Refused, match="already_used"):
        arm_it(case, device)


@pytest.mark.parametrize("name", ["nvm; armed", "nvm;disarmed", os.fsdecode(b"nvm\xff;")])
def test_any_path_of_a_device(case: Case, tmp_path: Path, name: str) -> None:
    device = blank(tmp_path / name, SIZE)
    put_on(case, device, 1)
    assert arm_it(case, device).id == case.ids[1]
    consume(device)
    with pytest.raises(Refused, match="already_used: armed .* on " + re.escape(str(device)) + " and may have been resumed since"):
        arm_it(case, device)
    arm_it(case, device, "already_used")
    store = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")]
    assert main(["disarm", str(device), *store]) == 0
    assert arm_it(case, device).changed


# disarm ---------------------------------------------------------------------------------------------------------------


def test_disarm_changes_ten_bytes(case: Case, device: Path) -> None:
    arm_it(case, device)
    done = disarm(device)
    assert done.changed and done.held == "an armed hibernation image"
    assert device.read_bytes() == unarmed(case.content(0))
    stamp = device.stat().st_mtime_ns
    assert not disarm(device).changed
    assert device.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("content", [b"", swap_header(4096, 100, UUID), b"text " * 1000])
def test_disarm_where_nothing_is_armed(tmp_path: Path, content: bytes) -> None:
    device = blank(tmp_path / "device")
    write(device, 0, content)
    before = device.read_bytes()
    assert not disarm(device).changed
    assert device.read_bytes() == before


def test_disarm_refuses_images_of_others(tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    write(device, 4086, b"ULSUSPEND\0")
    with pytest.raises(Refused, match="s2disk"):
        disarm(device)
    write(device, 4086, b"S1SUSPEND\0")
    with pytest.raises(Refused, match="the signature of the swap area is not known"):
        disarm(device)


def test_disarm_noted_is_no_use(case: Case, device: Path) -> None:
    arm_it(case, device)
    assert main(["disarm", str(device), "--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")]) == 0
    assert state_of(case.store, case.ids[0]) == "staged"
    assert arm_it(case, device).changed
    assert main(["disarm", str(device)]) == 0  # not recorded without a store
    with pytest.raises(Refused, match="already_used"):
        arm_it(case, device)


# what happens on the way ------------------------------------------------------------------------------------------------


def test_killed_at_every_step(case: Case, device: Path) -> None:
    before = device.read_bytes()
    script = (
        "from fuse_store.store import Store; from fuse_store.hibernation.arm import arm; import sys\n"
        "from fuse_store.hibernation.preflight import TargetMachine\n"
        "store = Store.open(sys.argv[1], key_file=sys.argv[2])\n"
        "arm(store, sys.argv[3], TargetMachine(None), force=tuple(sys.argv[4:]))\n"
    )
    command = [sys.executable, "-c", script, str(case.store.path), str(case.store.path.parent / "key"), str(device), *FREE]
    for step in range(1, 30):
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "FUSE_STORE_FAULT_POINT": str(step)}, check=False)
        if done.returncode == 0:
            break
        content, recorded = device.read_bytes(), history.resume_history(usage(entries_of(case.store, case.ids[0])))
        assert content in (before, case.content(0))
        assert recorded or content == before, "armed, and not in the state log"
        disarm(device)
        assert device.read_bytes() == before
        case.store.record([case.ids[0]], "failed", "killed")
    assert step > 4 and device.read_bytes() == case.content(0)


@pytest.mark.parametrize("torn", [b"S1APSPACE2", b"SWSUSPEND\0", b"S1SUSPACE2", b"SWAPSPEND\0"])
def test_signature_that_was_written_in_part(case: Case, device: Path, torn: bytes) -> None:
    write(device, 4086, torn)
    assert arm_it(case, device).changed
    assert device.read_bytes() == case.content(0)
    write(device, 4086, torn)
    disarm(device)
    assert device.read_bytes() == unarmed(case.content(0))
    write(device, 4086, torn)
    put_on(case, device, 1)
    assert device.read_bytes() == unarmed(case.content(1))


def test_device_that_fails(case: Case, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = devices.write_at

    def flips(descriptor: int, data: memoryview, at: int) -> None:
        content = bytes(data)
        real(descriptor, memoryview(content.replace(b"S1SUSPEND", b"S1SUSPENE")), at)

    monkeypatch.setattr(devices, "write_at", flips)
    with pytest.raises(Damaged, match="reads back differently"):
        arm_it(case, device)
    assert device.read_bytes() == unarmed(case.content(0))
    assert state_of(case.store, case.ids[0]) == "failed"

    def fails(descriptor: int, data: memoryview, at: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(devices, "write_at", fails)
    with pytest.raises(StoreError, match="Input/output error"):
        arm_it(case, device)
    assert device.read_bytes() == unarmed(case.content(0))


# the commands -----------------------------------------------------------------------------------------------------------


def test_commands_and_the_keys_of_their_json(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from fuse_store.cli.verbs import load

    device = str(blank(tmp_path / "d"))
    options = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key"), "--json"]
    forced = [word for code in FREE for word in ("--force", code)]
    commands: list[tuple[int, list[str]]] = [
        (0, ["stage", case.ids[1], device]), (5, ["preflight", case.ids[1], "--device", device]), (0, ["arm", device, *forced]),
        (0, ["inspect", device]), (0, ["inspect", case.ids[1], "--check"]), (0, ["disarm", device]),
        (0, ["report", case.ids[1], "failed", "--detail", "why"]), (0, ["show", case.ids[1]]),
    ]  # fmt: skip
    for code, command in commands:
        capfd.readouterr()
        assert main([*command, *options]) == code
        record = json.loads(capfd.readouterr().out)
        (verb,) = load(command[0])
        assert list(record) == [name for key in verb.keys if not key.startswith(" ") for name in key.split(", ")]
    assert entries_of(case.store, case.ids[1])[-1]["detail"] == "why"


def test_show_has_the_state_log(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    device = blank(tmp_path / "d; armed", SIZE)
    put_on(case, device, 1)
    options = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")]
    assert main(["disarm", str(device), *options]) == 0
    arm_it(case, device)
    assert main(["disarm", str(device), *options]) == main(["report", case.ids[1], "failed", "--detail", "no power", *options]) == 0
    capfd.readouterr()
    assert main(["show", case.ids[1], *options, "--json"]) == 0
    history = json.loads(capfd.readouterr().out)["history"]
    assert [(entry["state"], entry["detail"], entry["fields"]) for entry in history] == [
        ("captured", "", {}), ("staged", "", {"device": str(device)}), ("armed", "", {"device": str(device)}),
        ("staged", "", {"device": str(device), "action": "disarmed"}), ("failed", "no power", {}),
    ]  # fmt: skip
    assert [entry["time"] for entry in history] == sorted(entry["time"] for entry in history)
    assert main(["show", case.ids[1], *options]) == 0
    *_, table = capfd.readouterr().out.split("\n\n")
    assert [line.split(None, 3)[3:] for line in table.splitlines()[1:]] == [
        [], [f"device {device}"], [f"device {device}"], [f"device {device}, action disarmed"], ["no power"],
    ]  # fmt: skip


def test_arm_knows_its_codes(case: Case, device: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")]
    assert main(["arm", str(device), "--force", "everything", *options]) == 2
    assert "filesystems_changed" in capfd.readouterr().err
    assert main(["arm", str(device), *options]) == 5
    assert signature(device.read_bytes()) == b"SWAPSPACE2"


def test_inspect(case: Case, device: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(device)]) == 0
    assert "kernel                     6.12.7-test" in capfd.readouterr().out
    assert main(["inspect", str(blank(tmp_path / "x")), "--json"]) == 3
    assert json.loads(capfd.readouterr().err)["error"]["type"] == "not_found"
    write(case.sources[1], 4060, b"\1\2\3\4")
    assert main(["inspect", str(case.sources[1]), "--check", "--json"]) == 4
    assert json.loads(capfd.readouterr().out)["crc"] == "wrong"
    assert main(["inspect", str(case.sources[1])]) == 0
