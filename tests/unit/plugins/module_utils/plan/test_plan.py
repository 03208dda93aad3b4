# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: every part looked at in one run, with nothing changed. tests/unit/roles plays the role with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._plan.plan import PARTS, plan

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

FSTAB = "/dev/vda1 / ext4 defaults 0 1\n"
UUID = "6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11"
LINE = "UUID=%s swap swap defaults,nofail,pri=%d 0 0\n"
POWER_KEY = {"condition": "power_key"}
IDLE = {"condition": "idle", "idle": "30min"}


@pytest.fixture
def machine(host: Host, plant: Plant) -> Host:
    plant({"/etc/fstab": FSTAB + LINE % (UUID, 10), "/etc/machine-id": "0123456789abcdef0123456789abcdef\n", "/proc/swaps": ""})
    return host


def fstab(**options: Any) -> dict[str, Any]:
    return {"fstab_swap": {"uuid": UUID, **options}}


def files(host: Host) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(host.root).rglob("*") if path.is_file()}


def test_nothing_to_do(machine: Host) -> None:
    found = plan(machine, [fstab(), {"hibernate_trigger": []}, {"hibernate_trigger": {**POWER_KEY, "state": "absent"}}])
    assert found["would_change"] == found["diff"] == found["reboot_in_vain"] == [] and not found["reboot_required"]
    assert found["parts"]["fstab_swap"] == {"path": "/etc/fstab", "uuid": UUID, "line": (LINE % (UUID, 10)).strip()}
    assert "blockers" not in found, "no device was given"


def test_what_would_change_and_nothing_does(machine: Host, transcript: Transcript) -> None:
    transcript.record("systemd-analyze timespan 30min", out="μs: 1800000000\n")
    before = files(machine)
    found = plan(machine, [{"hibernate_trigger": [POWER_KEY, {"name": "other", "state": "absent"}, IDLE]}, fstab(priority=20)])
    assert found["would_change"] == ["hibernate_trigger", "fstab_swap"] and files(machine) == before
    assert [names["names"] for names in found["parts"]["hibernate_trigger"]] == [["power_key"], ["other"], ["idle"]]
    logind, idle, table = found["diff"]
    assert "HandlePowerKey=hibernate" in logind["after"] and "IdleAction=hibernate" in idle["after"]
    assert (table["before_header"], table["before"], table["after"]) == (
        "/etc/fstab", FSTAB + LINE % (UUID, 10), FSTAB + LINE % (UUID, 20),
    )  # fmt: skip


def test_the_first_that_refuses_says_so_as_its_module_does(machine: Host) -> None:
    for parts in ([{"nvm_swap": {"label": "x" * 16}}, fstab(priority=-5)], [fstab(), {"nvm_swap": {"label": "x" * 16}}]):
        with pytest.raises(Refused) as refused:
            plan(machine, parts)
        assert refused.value.code == "label_invalid", refused.value


MISTAKES: list[tuple[Any, str, str]] = [
    ({}, "part_invalid", "nothing"),
    ({"nvm_info": {}}, "part_invalid", "nvm_info"),
    ({"nvm_swap": {}, "fstab_swap": {}}, "part_invalid", "nvm_swap, fstab_swap"),
    ({"nvm_swap": None}, "options_invalid", "nvm_swap are None"),
    ({"nvm_swap": ["x"]}, "options_invalid", "nvm_swap are 'x'"),
    ({"nvm_swap": {"prio": 1}}, "options_invalid", "nvm_swap: prio."),
    ({"nvm_swap": {"priority": "high"}}, "options_invalid", "high"),
    ({"nvm_reservation": {"mode": "fast"}}, "options_invalid", "raw, sector"),
    ({"hibernate_trigger": {"name": "a"}}, "options_invalid", "condition"),
]


@pytest.mark.parametrize(("part", "code", "text"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_told_before_the_first_look(machine: Host, part: Any, code: str, text: str) -> None:
    refusing = {"nvm_swap": {"label": "x" * 16}}
    with pytest.raises(Refused) as refused:
        plan(machine, [refusing, part])
    assert refused.value.code == code and text in refused.value.message and refused.value.remedy


def test_blockers(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are built next are not looked into."""
    asked: list[Any] = []

    def blockers(host: Host, device: str, skip: tuple[str, ...]) -> list[str]:
        asked.append((device, skip))
        return ["one"]

    monkeypatch.setattr("ansible_collections.nvm.fastboot.plugins.module_utils._facts.readiness.blockers", blockers)
    for priority in (10, 20):
        assert plan(machine, [fstab(priority=priority)], "/dev/pmem1")["blockers"] == ["one"]
    assert asked == [("/dev/pmem1", ()), ("/dev/pmem1", ("initramfs_drivers", "initramfs_outdated", "initramfs_overridden"))]


def test_every_part_has_both_states() -> None:
    for part in PARTS.values():
        assert part.options["state"]["choices"] == ["present", "absent"]


def test_a_passphrase_is_not_among_what_is_logged(machine: Host) -> None:
    with pytest.raises(Refused) as refused:
        plan(machine, [{"nvm_swap": {"encryption": "luks", "passphrase": "secret"}}])
    assert refused.value.code == "part_invalid" and "secret" not in refused.value.message
    assert "no_log" in PARTS["nvm_swap"].options["passphrase"]
