# SPDX-License-Identifier: GPL-3.0-or-later
"""Times of a boot, and the note of the last hibernation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.times import IDENTIFIER, boot_times, noted, phases
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Transcript

SHOW = (
    "systemctl show --property=FirmwareTimestampMonotonic,LoaderTimestampMonotonic,InitRDTimestampMonotonic,UserspaceTimestampMonotonic,"
    "FinishTimestampMonotonic"
)
JOURNAL = "journalctl --quiet --output=json --lines=1 SYSLOG_IDENTIFIER=nvm-fastboot-hibernation _UID=0"
EFI = """FirmwareTimestampMonotonic=4700000
LoaderTimestampMonotonic=600000
InitRDTimestampMonotonic=1300000
UserspaceTimestampMonotonic=3500000
FinishTimestampMonotonic=45200000
"""
NOTE = {"verdict": "resumed", "seconds": {"down": 3.2, "off": None, "total": 33.1}}


def entry(message: object, time: object = "1764464441000000") -> str:
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": time})


def test_the_phases_of_a_boot_with_efi() -> None:
    """As systemd-analyze: 4.1 + 0.6 + 1.3 + 2.2 + 41.7 = 49.9 s."""
    assert phases(EFI) == {"firmware": 4.1, "loader": 0.6, "kernel": 1.3, "initrd": 2.2, "userspace": 41.7, "total": 49.9}


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        (["Firmware", "Loader"], {"firmware": None, "loader": None, "total": 45.2}),  # BIOS
        (["InitRD"], {"initrd": None, "kernel": 3.5, "total": 49.9}),  # no systemd in the initramfs
        (["Finish"], {"userspace": None, "total": None}),  # still starting
        (["Firmware", "Loader", "InitRD", "Userspace", "Finish"], {"kernel": None, "total": None}),
    ],
)
def test_phases_that_a_machine_does_not_tell(without: list[str], expected: dict[str, float | None]) -> None:
    shown = "".join(
        line.partition("=")[0] + "=0\n" if line.startswith(tuple(without)) else line for line in EFI.splitlines(True)
    )
    found = phases(shown)
    assert {name: found[name] for name in expected} == expected


def test_the_module(transcript: Transcript) -> None:
    transcript.record(SHOW, out=EFI)
    transcript.record(JOURNAL, out=entry(json.dumps(NOTE)))
    found = boot_times(Host(transcript, root="/nowhere"))
    assert found["boot"]["total"] == 49.9
    assert found["last_hibernation"] == {"verdict": "resumed", "seconds": {"down": 3.2, "total": 33.1}, "time": "2025-11-30T01:00:41Z"}


def test_without_systemd_or_a_journal(transcript: Transcript) -> None:
    transcript.record(SHOW, out=EFI)
    transcript.record(SHOW, rc=1, err="System has not been booted with systemd as init system")
    transcript.record(JOURNAL, rc=1, err="No journal files were found.")
    assert boot_times(Host(transcript, root="/nowhere"))["last_hibernation"] is None
    with pytest.raises(Refused) as refused:
        boot_times(Host(transcript, root="/nowhere"))
    assert refused.value.code == "command_failed"


@pytest.mark.parametrize(
    "line",
    [
        "", "no json", "[]", entry(None), entry("text"), entry("[]"), entry("{}"), entry(json.dumps({**NOTE, "verdict": "<b>"})),
        entry(json.dumps({**NOTE, "seconds": []})), entry(json.dumps({**NOTE, "seconds": {"up": "x"}})), entry(json.dumps(NOTE), "x"),
        entry(json.dumps({**NOTE, "seconds": {"up": -1}})), entry(json.dumps({**NOTE, "seconds": {"up": 1e300}})),
        entry(json.dumps(NOTE), 10**40), entry([1, 2]), '{"MESSAGE": "{\\"verdict\\":\\"resumed\\",\\"seconds\\":{\\"up\\":NaN}}", '
        '"__REALTIME_TIMESTAMP": "1"}',
    ],
)  # fmt: skip
def test_a_note_that_the_playbook_has_not_written(line: str) -> None:
    assert noted(line) is None


def test_the_playbook_writes_what_is_read() -> None:
    playbooks = Path(__file__).resolve().parents[5] / "playbooks"
    assert "--identifier=" + IDENTIFIER in (playbooks / "hibernate.yml").read_text()
