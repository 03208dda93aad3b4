# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of each condition, what makes them take effect, and the script that decides, run by a real sh."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers import (
    Trigger,
    apply,
    apply_all,
    installed,
    units,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.script import SCRIPT, SCRIPT_TEXT

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

SERVICE = "/etc/systemd/system/nvm-fastboot-%s.service"
TIMER = "/etc/systemd/system/nvm-fastboot-%s.timer"
LINK = "/etc/systemd/system/timers.target.wants/nvm-fastboot-%s.timer"
DROP_IN = "/etc/systemd/logind.conf.d/50-nvm-fastboot-%s.conf"
HUP = "systemctl kill --signal=HUP systemd-logind.service"
NIGHT = Trigger("schedule", "schedule", schedule="Mon..Fri 22:00")
KEY = Trigger("power_key", "power_key")


@pytest.fixture
def systemd(host: Host, transcript: Transcript) -> Transcript:
    """A systemd that takes every command and makes the link of an enabled timer."""

    def _link(name: str, there: bool) -> None:
        path = host.path(LINK % name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if there:
            if not os.path.lexists(path):
                os.symlink(TIMER % name, path)
        elif os.path.lexists(path):
            os.unlink(path)

    transcript.record("systemctl daemon-reload")
    transcript.record(HUP)
    transcript.record("systemd-analyze calendar Mon..Fri 22:00", "Normalized form: Mon..Fri *-*-* 22:00:00\n")
    transcript.record("systemd-analyze calendar daily", "Normalized form: *-*-* 00:00:00\n")
    transcript.record("systemd-analyze timespan 30min", "Original: 30min\n")
    transcript.record("systemd-analyze calendar never", err="Failed to parse calendar specification 'never'", rc=1)
    for name in ("schedule", "late", "battery", "ups", "night"):
        unit = "nvm-fastboot-%s.timer" % name
        transcript.record("systemctl enable " + unit, effect=functools.partial(_link, name, True))
        transcript.record("systemctl restart " + unit)
        transcript.record("systemctl disable --now " + unit, effect=functools.partial(_link, name, False))
    return transcript


def files(host: Host) -> list[str]:
    """Everything below /etc and /usr, directories left out."""
    return sorted(
        os.path.join(directory, name)[len(host.root):]
        for top in ("/etc", "/usr") for directory, _sub, names in os.walk(host.path(top)) for name in names
    )


@pytest.mark.parametrize("trigger", [NIGHT, KEY])
@pytest.mark.parametrize("check_mode", [False, True])
def test_no_trigger_where_the_system_forbids_hibernation(host: Host, plant: Plant, trigger: Trigger, check_mode: bool) -> None:
    plant({"/etc/systemd/sleep.conf.d/a.conf": "[Sleep]\nAllowHibernation=no\n"})
    with pytest.raises(Refused) as caught:
        apply(host, trigger, check_mode=check_mode)
    assert caught.value.code == "sleep_disallowed" and "a.conf, line 2" in caught.value.message
    plant({"/etc/systemd/sleep.conf.d/a.conf": "", "/etc/systemd/system/hibernate.target": ""})
    with pytest.raises(Refused) as caught:
        apply(host, trigger, check_mode=check_mode)
    assert caught.value.code == "sleep_masked"
    assert not apply(host, trigger, present=False).changed


@pytest.mark.parametrize("path, text, warned", [
    ("/etc/systemd/logind.conf.d/99-server.conf", "[Login]\nHandlePowerKey=ignore\n", True),
    ("/usr/lib/systemd/logind.conf.d/60-server.conf", "[Login]\n#\nHandlePowerKey = poweroff\n", True),
    ("/etc/systemd/logind.conf.d/99-server.conf", "[Login]\nHandlePowerKey=hibernate\nHandleLidSwitch=ignore\n", False),
    ("/etc/systemd/logind.conf.d/10-server.conf", "[Login]\nHandlePowerKey=ignore\n", False),
    ("/etc/systemd/logind.conf", "[Login]\nHandlePowerKey=ignore\n", False),
])
@pytest.mark.parametrize("check_mode", [False, True])
def test_a_setting_of_others_that_overrides_the_trigger(
    host: Host, plant: Plant, systemd: Transcript, path: str, text: str, warned: bool, check_mode: bool
) -> None:
    plant({path: text})
    warnings = apply(host, KEY, check_mode=check_mode).warnings
    assert [path in each and "line" in each for each in warnings] == [True] * warned


def test_schedule(host: Host, systemd: Transcript) -> None:
    outcome = apply(host, NIGHT)
    assert outcome.changed
    assert outcome.files == [SERVICE % "schedule", TIMER % "schedule", SCRIPT]
    assert files(host) == sorted(outcome.files + [LINK % "schedule"])
    service = host.read(SERVICE % "schedule")
    assert 'ExecCondition=/usr/local/lib/nvm-fastboot/trigger schedule "Mon..Fri 22:00"\n' in service
    assert "ExecStart=systemctl hibernate\n" in service
    timer = host.read(TIMER % "schedule")
    for line in ("OnCalendar=Mon..Fri 22:00", "Persistent=false", "AccuracySec=1s", "WantedBy=timers.target"):
        assert line + "\n" in timer
    assert os.stat(host.path(SCRIPT)).st_mode & 0o777 == 0o755
    assert systemd.calls == [
        "systemd-analyze calendar Mon..Fri 22:00", "systemctl daemon-reload",
        "systemctl enable nvm-fastboot-schedule.timer", "systemctl restart nvm-fastboot-schedule.timer",
    ]


@pytest.mark.parametrize("trigger", [NIGHT, KEY, Trigger("idle", "idle", idle="30min"), Trigger("battery", "battery")])
def test_second_run_runs_nothing(host: Host, systemd: Transcript, trigger: Trigger) -> None:
    assert apply(host, trigger).changed
    del systemd.calls[:]
    outcome = apply(host, trigger)
    assert not outcome.changed and outcome.diff == [] and systemd.calls == []


def test_power_key(host: Host, systemd: Transcript) -> None:
    apply(host, KEY)
    assert files(host) == [DROP_IN % "power_key"]
    assert "[Login]\nHandlePowerKey=hibernate\n" in host.read(DROP_IN % "power_key")
    assert systemd.calls == [HUP]


def test_long_press_needs_systemd_251(host: Host, systemd: Transcript) -> None:
    long = Trigger("power_key", "power_key", press="long")
    systemd.record("systemctl --version", "systemd 247 (247.3-7+deb11u5)\n+PAM +AUDIT\n")
    with pytest.raises(Refused) as refused:
        apply(host, long)
    assert refused.value.code == "systemd_too_old" and files(host) == []
    systemd.record("systemctl --version", "systemd 257 (257.13-1~deb13u1)\n+PAM +AUDIT\n")
    with pytest.raises(Refused):
        apply(host, long)  # the first answer is given once more
    apply(host, long)
    assert "HandlePowerKeyLongPress=hibernate\n" in host.read(DROP_IN % "power_key")


def test_idle(host: Host, systemd: Transcript) -> None:
    apply(host, Trigger("away", "idle", idle="30min"))
    assert "[Login]\nIdleAction=hibernate\nIdleActionSec=30min\n" in host.read(DROP_IN % "away")
    assert systemd.calls == ["systemd-analyze timespan 30min", HUP]


@pytest.mark.parametrize("trigger, arguments", [
    (Trigger("battery", "battery"), "battery 10"),
    (Trigger("ups", "ups", ups="rack1@localhost", battery_percent=40), "ups rack1@localhost 40"),
])
def test_low_power(host: Host, systemd: Transcript, plant: Plant, trigger: Trigger, arguments: str) -> None:
    plant({"/usr/bin/upsc": "", "/usr/bin/upower": ""})
    for tool in ("upsc", "upower"):
        os.chmod(host.path("/usr/bin/" + tool), 0o755)
    outcome = apply(host, trigger)
    assert outcome.warnings == []
    service = host.read(SERVICE % trigger.name)
    assert "ExecCondition=%s %s\nExecStart=systemctl hibernate -i\n" % (SCRIPT, arguments) in service
    assert "LogLevelMax=notice\n" in service
    assert "OnUnitActiveSec=30s\n" in host.read(TIMER % trigger.name)


def test_units_are_what_systemd_accepts(host: Host, systemd: Transcript, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    apply(host, NIGHT)
    apply(host, Trigger("battery", "battery"))
    units = []
    for name in ("schedule", "battery"):
        for path in (SERVICE % name, TIMER % name):
            unit = tmp_path / "units" / os.path.basename(path)
            unit.parent.mkdir(exist_ok=True)
            unit.write_text(host.read(path).replace(SCRIPT, "/bin/true"))
            units.append(str(unit))
    command = ["systemd-analyze", "verify", "--man=no"] + units
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "nvm-fastboot" not in done.stderr, done.stderr


def test_changed_schedule_restarts_the_timer(host: Host, systemd: Transcript) -> None:
    apply(host, NIGHT)
    del systemd.calls[:]
    assert apply(host, Trigger("schedule", "schedule", schedule="daily")).changed
    assert systemd.calls[-1] == "systemctl restart nvm-fastboot-schedule.timer"
    assert "OnCalendar=daily\n" in host.read(TIMER % "schedule")


def test_disabled_by_hand_is_enabled_again(host: Host, systemd: Transcript) -> None:
    apply(host, NIGHT)
    os.unlink(host.path(LINK % "schedule"))
    assert apply(host, NIGHT).changed
    assert host.exists(LINK % "schedule")


def test_another_condition_replaces_a_trigger_of_the_same_name(host: Host, systemd: Transcript) -> None:
    apply(host, Trigger("night", "schedule", schedule="daily"))
    apply(host, Trigger("night", "power_key"))
    assert files(host) == [DROP_IN % "night"]
    apply(host, Trigger("night", "schedule", schedule="daily"))
    assert files(host) == sorted([SERVICE % "night", TIMER % "night", LINK % "night", SCRIPT])


def test_absent_is_idempotent_and_removes_everything(host: Host, systemd: Transcript) -> None:
    apply(host, NIGHT)
    apply(host, KEY)
    apply(host, Trigger("late", "schedule", schedule="daily"))
    assert apply(host, Trigger("schedule"), present=False).changed
    assert host.exists(SCRIPT), "another trigger uses it"
    apply(host, Trigger("late"), present=False)
    assert files(host) == [DROP_IN % "power_key"]
    assert not host.exists(os.path.dirname(SCRIPT))
    del systemd.calls[:]
    assert apply(host, Trigger("power_key"), present=False).changed
    assert systemd.calls == [HUP] and files(host) == []
    del systemd.calls[:]
    assert not apply(host, Trigger("power_key"), present=False).changed
    assert systemd.calls == []


def test_check_mode(host: Host, systemd: Transcript) -> None:
    outcome = apply(host, NIGHT, check_mode=True)
    assert outcome.changed and len(outcome.diff) == 4 and files(host) == []
    apply(host, NIGHT)
    before = files(host)
    assert apply(host, NIGHT, present=False, check_mode=True).changed
    assert files(host) == before


def test_a_failing_step_restores_everything(host: Host, transcript: Transcript) -> None:
    transcript.record("systemd-analyze calendar Mon..Fri 22:00")
    transcript.record("systemctl daemon-reload")
    transcript.record("systemctl enable nvm-fastboot-schedule.timer", err="Failed to enable unit", rc=1)
    transcript.record("systemctl disable --now nvm-fastboot-schedule.timer")
    with pytest.raises(Refused):
        apply(host, NIGHT)
    assert files(host) == []
    assert transcript.calls[-1] == "systemctl daemon-reload"


@pytest.mark.parametrize("trigger, code", [
    (Trigger("schedule", "schedule"), "option_missing"),
    (Trigger("schedule", "schedule", schedule="never"), "schedule_invalid"),
    (Trigger("schedule", "schedule", schedule="daily\nPersistent=true"), "schedule_invalid"),
    (Trigger("schedule", "schedule", schedule="daily\n"), "schedule_invalid"),
    (Trigger("schedule", "schedule", schedule='daily" %n $HOME'), "schedule_invalid"),
    (Trigger("idle", "idle", idle="30min\nIdleAction=reboot"), "idle_invalid"),
    (Trigger("ups", "ups", ups="a b"), "ups_invalid"),
    (Trigger("ups", "ups", ups="rack1@localhost"), "upsc_missing"),
    (Trigger("../x", "power_key"), "name_invalid"),
    (Trigger("X", "power_key"), "name_invalid"),
    (Trigger("power_key\n", "power_key"), "name_invalid"),
    (Trigger("battery", "battery", battery_percent=0), "battery_percent_invalid"),
])
def test_refusals(host: Host, systemd: Transcript, trigger: Trigger, code: str) -> None:
    with pytest.raises(Refused) as refused:
        apply(host, trigger)
    assert refused.value.code == code and refused.value.remedy
    assert files(host) == []


def test_warnings(host: Host, systemd: Transcript, plant: Plant) -> None:
    plant({"/etc/acpi/events/powerbtn-acpi-support": "event=button[ /]power\n"})
    assert "acpid" in apply(host, KEY).warnings[0]
    assert "UPower" in apply(host, Trigger("battery", "battery")).warnings[0]
    mouse = "/sys/class/power_supply/hidpp_battery_0"
    plant({mouse + "/type": "Battery\n", mouse + "/scope": "Device\n"})
    assert "UPower" in apply(host, Trigger("battery", "battery")).warnings[0]
    plant({"/sys/class/power_supply/BAT0/type": "Battery\n"})
    assert apply(host, Trigger("battery", "battery")).warnings == []
    plant({"/usr/bin/upsc": "", "/etc/nut/upsmon.conf": 'MINSUPPLIES 1\nSHUTDOWNCMD "/sbin/shutdown -h +0"\n'})
    os.chmod(host.path("/usr/bin/upsc"), 0o755)
    ups = Trigger("ups", "ups", ups="rack1@localhost")
    assert "/sbin/shutdown" in apply(host, ups).warnings[0]
    plant({"/etc/nut/upsmon.conf": 'SHUTDOWNCMD "systemctl hibernate"\n'})
    assert apply(host, ups).warnings == []


# the script -----------------------------------------------------------------------------------------------------------

AWAKE = {"busctl": "echo 'b false'", "journalctl": "true"}


class Script:
    """The script under sh, with tools of the test's own on PATH before the machine's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "trigger"
        self.path.write_text(SCRIPT_TEXT)
        (directory / "bin").mkdir()

    def tool(self, name: str, body: str) -> None:
        tool = self.directory / "bin" / name
        tool.write_text("#!/bin/sh\n%s\n" % body)
        tool.chmod(0o755)

    def supply(self, name: str, **attributes: Any) -> None:
        for attribute, value in attributes.items():
            path = self.directory / "sys" / "class" / "power_supply" / name / attribute
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("%s\n" % value)

    def __call__(self, *arguments: Any) -> int:
        environment = {"PATH": "%s/bin:/usr/bin:/bin" % self.directory, "NVM_FASTBOOT_SYS": str(self.directory / "sys")}
        done = subprocess.run(
            ["sh", str(self.path)] + list(arguments), env=environment, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        self.said = done.stdout
        return done.returncode


@pytest.fixture
def script(tmp_path: Path) -> Script:
    made = Script(tmp_path)
    for name, body in AWAKE.items():
        made.tool(name, body)
    made.tool("upower", "exit 1")
    return made


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("minutes, code", [(-1, 0), (-4, 1), (+4, 1)])
def test_scheduled_time_counts_for_two_minutes(script: Script, minutes: int, code: int) -> None:
    """What systemd-analyze itself says of a time that was just now, long ago, or is still to come."""
    command = ["date", "--date=%+d min" % minutes, "+*-*-* %H:%M:%S"]
    at = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert script("schedule", at) == code


@pytest.mark.parametrize("answer, code", [
    ("       From now: 345ms ago", 0),
    ("       From now: now", 0),
    ("       From now: 1min 31s ago", 0),
    ("       From now: 23h left", 1),
    ("", 1),
])
def test_scheduled(script: Script, answer: str, code: int) -> None:
    script.tool("systemd-analyze", """[ "$*" = "--base-time=-120s calendar Mon..Fri 22:00" ] && echo '%s'""" % answer)
    assert script("schedule", "Mon..Fri 22:00") == code


@pytest.mark.parametrize("tool, body", [
    ("busctl", """[ "${5-}" = PreparingForSleep ] && echo 'b true'"""),
    ("journalctl", """[ "$1" = --sync ] || echo 'System returned from sleep state.'"""),
])
def test_not_after_a_resume(script: Script, tool: str, body: str) -> None:
    script.supply("BAT0", type="Battery", status="Discharging", capacity=5)
    assert script("battery", "10") == 0
    assert "hibernating" in script.said
    script.tool(tool, body)
    assert script("battery", "10") == 1
    assert "has just resumed" in script.said


@pytest.mark.parametrize("inhibited, code", [('"shutdown:sleep"', 1), ('"sleep"', 1), ('"idle"', 0), ('""', 0)])
def test_a_schedule_respects_inhibitors_and_a_low_battery_does_not(script: Script, inhibited: str, code: int) -> None:
    script.tool("busctl", "[ $5 = BlockInhibited ] && echo 's %s' || echo 'b false'" % inhibited)
    script.tool("systemd-analyze", "echo 'From now: 3ms ago'")
    script.supply("BAT0", type="Battery", status="Discharging", capacity=5)
    assert script("schedule", "daily") == code
    assert script("battery", "10") == 0


def test_the_journal_is_asked_for_the_last_two_minutes(script: Script) -> None:
    script.supply("BAT0", type="Battery", status="Discharging", capacity=5)
    script.tool("journalctl", 'printf "%%s\\n" "$@" >>%s/asked' % script.directory)
    assert script("battery", "10") == 0
    asked = (script.directory / "asked").read_text().splitlines()
    assert asked[0] == "--sync" and "--since=-120s" in asked
    assert "MESSAGE_ID=8811e6df2a8e40f58a94cea26f8ebf14" in asked
    assert "MESSAGE=PM: hibernation: hibernation exit" in asked


@pytest.mark.parametrize("supplies, code", [
    ({"BAT0": ("Battery", "Discharging", 10)}, 0),
    ({"BAT0": ("Battery", "Discharging", 11)}, 1),
    ({"BAT0": ("Battery", "Charging", 5)}, 1),
    ({"BAT0": ("Battery", "Full", 5)}, 1),
    ({"BAT0": ("Battery", "Not charging", 3), "BAT1": ("Battery", "Discharging", 60)}, 1),
    ({"BAT0": ("Battery", "Not charging", 3), "BAT1": ("Battery", "Discharging", 9)}, 0),
    ({"BAT0": ("Battery", "Discharging", 9), "BAT1": ("Battery", "Charging", 9)}, 1),
    ({"AC": ("Mains", "Discharging", 1)}, 1),
    ({}, 1),
])
def test_battery(script: Script, supplies: dict[str, Any], code: int) -> None:
    for name, (kind, status, capacity) in supplies.items():
        script.supply(name, type=kind, status=status, capacity=capacity)
    assert script("battery", "10") == code


def test_battery_of_a_mouse_does_not_count(script: Script) -> None:
    script.supply("hidpp_battery_0", type="Battery", status="Discharging", capacity=3, scope="Device")
    assert script("battery", "10") == 1


UPOWER = """\
  native-path:          (null)
  power supply:         yes
  updated:              Sat 21 Nov 2026 10:00:00 PM UTC (12 seconds ago)
  has history:          no
  has statistics:       no
  ups
    present:             yes
    state:               %s
    warning-level:       low
    percentage:          %s
    icon-name:          'battery-caution-symbolic'
"""


@pytest.mark.parametrize("state, percentage, code", [
    ("discharging", "8%", 0),
    ("discharging", "8.4%", 0),
    ("discharging", "80%", 1),
    ("charging", "8%", 1),
    ("unknown", "0% (should be ignored)", 1),
    ("discharging", "0% (should be ignored)", 1),
])
def test_upower_is_asked_without_a_battery(script: Script, state: str, percentage: str, code: int) -> None:
    script.tool("upower", "cat <<'END'\n%sEND" % (UPOWER % (state, percentage)))
    assert script("battery", "10") == code


@pytest.mark.parametrize("status, charge, code", [
    ("OB DISCHRG LB", "50", 0),
    ("OB DISCHRG", "40", 0),
    ("OB DISCHRG", "40.0", 0),
    ("OB DISCHRG", "41", 1),
    ("OB DISCHRG", "", 1),
    ("OL CHRG LB", "5", 1),
    ("OL", "5", 1),
])
def test_ups(script: Script, status: str, charge: str, code: int) -> None:
    script.tool("upsc", """case "$1 $2" in
        "rack1@localhost ups.status") echo "%s" ;;
        "rack1@localhost battery.charge") echo "%s" ;;
    esac""" % (status, charge))
    assert script("ups", "rack1@localhost", "40") == code


def test_ups_out_of_reach(script: Script) -> None:
    script.tool("upsc", "echo 'Error: Connection failure: Connection refused' >&2; exit 1")
    assert script("ups", "rack1@localhost", "40") == 1


def test_an_unknown_condition_is_an_error(script: Script) -> None:
    assert script("weather") == 255


def test_names_of_installed_triggers(host: Host, plant: Plant) -> None:
    assert installed(host) == []
    plant({
        units.service_path("night"): "",
        units.timer_path("night"): "",
        units.drop_in_path("power_key"): "",
        "/etc/systemd/system/other.service": "",
    })
    assert installed(host) == ["night", "power_key"]


OPTIONS = {
    "condition": None, "name": None, "schedule": None, "idle": None, "battery_percent": 10, "ups": None, "press": "short",
}  # fmt: skip


def test_absent_without_a_name_removes_every_trigger(host: Host, systemd: Transcript) -> None:
    apply(host, NIGHT)
    apply(host, KEY)
    result = apply_all(host, OPTIONS, present=False, check_mode=False)
    assert result["changed"] and result["names"] == ["power_key", "schedule"] and result["files"] == []
    assert files(host) == []
    assert not apply_all(host, OPTIONS, present=False, check_mode=False)["changed"]


def test_the_condition_is_the_default_of_the_name(host: Host, systemd: Transcript) -> None:
    result = apply_all(host, dict(OPTIONS, condition="power_key"), present=True, check_mode=False)
    assert result["names"] == ["power_key"] and result["files"] == [DROP_IN % "power_key"]
    apply(host, NIGHT)
    apply_all(host, dict(OPTIONS, condition="power_key"), present=False, check_mode=False)
    assert installed(host) == ["schedule"]
