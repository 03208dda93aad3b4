# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a hibernation on the machine, over recorded logs, units and clocks; and the verdict as a table."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import observation, status, steps

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

BOOT = "7d0d1a5c-2c0f-4a3e-9a2b-3f1b1c1f8b1e"
OTHER_BOOT = "11111111-2222-4333-8444-555555555555"
TOKEN = "00c0ffee00c0ffee"
UNIT = "nvm-fastboot-hibernate-%s.service" % TOKEN
INVOCATION = "5f0e9a2f0a4e4f0c8e6d3f9f9d0a7b11"
SHOW = (
    "systemctl show systemd-hibernate.service %s --property=Id,ActiveState,SubState,Result,InvocationID,ExecMainStatus"
    % UNIT
)
BLOCKER = {"code": "swap_inactive", "message": "The device is no swap area in use.", "remedy": "swapon it."}
INHIBITOR = {"code": "sleep_inhibited", "message": "Sleep is inhibited by backup.", "remedy": "Wait."}

# The kernel's log of a 6.1 machine: what is in the copy of the memory, and what is logged only after the copy was made.
BEFORE = [
    "PM: hibernation: hibernation entry",
    "Filesystems sync: 0.007 seconds",
    "Freezing user space processes",
    "Freezing user space processes completed (elapsed 0.004 seconds)",
    "PM: hibernation: Preallocating image memory",
    "PM: hibernation: Allocated 42350 pages for snapshot",
    "printk: Suspending console(s) (use no_console_suspend to debug)",
    "PM: hibernation: Creating image:",
    "PM: hibernation: Need to copy 41987 pages",
]
AFTER = [
    "PM: hibernation: Image created (41987 pages copied)",
    "PM: Using 1 thread(s) for compression",
    "PM: Compressing and saving image data (41987 pages)...",
    "PM: Image saving progress:   0%",
]
RESTORED = [*BEFORE, "PM: hibernation: Basic memory bitmaps freed", "PM: hibernation: hibernation exit"]
WRITE_FAILED = [*BEFORE, *AFTER, "Write-error on swap-device (259:0:16384)", "PM: hibernation: hibernation exit"]
QUIET = ["Restarting tasks ... done."]


def unit(
    name: str,
    active: str = "inactive",
    sub: str = "dead",
    result: str = "success",
    invocation: str = "",
    status: str = "0",
) -> str:
    return "Result=%s\nExecMainStatus=%s\nId=%s\nActiveState=%s\nSubState=%s\nInvocationID=%s\n" % (
        result,
        status,
        name,
        active,
        sub,
        invocation,
    )


NEVER_RAN = unit("systemd-hibernate.service")
RUNNING = unit("systemd-hibernate.service", "activating", "start", invocation=INVOCATION)
SUCCEEDED = unit("systemd-hibernate.service", invocation=INVOCATION)
FAILED = unit("systemd-hibernate.service", "failed", "failed", "exit-code", INVOCATION, "1")
ASKED = unit(UNIT, "active", "exited", invocation="aa")
ASKING = unit(UNIT, "active", "running", invocation="aa")
REFUSED = unit(UNIT, "failed", "failed", "exit-code", "aa", "1")
INHIBITED = unit(UNIT, "failed", "failed", "exit-code", "aa", "75")

MARKER = {
    "boot_id": BOOT,
    "boottime": 1000.5,
    "monotonic": 1000.5,
    "realtime": 1790000000.0,
    "invocation": "",
    "sequence": 700,
}


def kmsg(lines: list[str] | tuple[Any, ...], first: int = 701, facility: int = 0) -> str:
    return "".join(
        "%d,%d,%d,-;%s\n SUBSYSTEM=none\n" % (facility * 8 + 6, first + number, 1000000 + number, line)
        for number, line in enumerate(lines)
    )


class Clock:
    """The machine's clocks; C(slept) seconds were spent asleep."""

    def __init__(self, monotonic: float = 1010.0, slept: float = 0.0) -> None:
        self.monotonic = monotonic
        self.slept = slept

    def __call__(self, which: int) -> float:
        if which == time.CLOCK_BOOTTIME:
            return self.monotonic + self.slept
        return 1790000100.0 if which == time.CLOCK_REALTIME else self.monotonic

    def sleep(self, seconds: int) -> None:
        self.monotonic += seconds


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The readiness check finds what the list holds."""
    found: list[dict[str, str]] = []

    def blockers(host: Host, device: str, skip: tuple[str, ...] = (), **more: Any) -> list[dict[str, Any]]:
        return [blocker for blocker in found if blocker["code"] not in skip]

    monkeypatch.setattr(steps, "find_blockers", blockers)
    return found


def check(
    host: Host,
    plant: Plant,
    transcript: Transcript,
    log: list[str],
    units: str,
    clock: Clock,
    boot: str = BOOT,
    token: str | None = TOKEN,
    old: list[str] | tuple[Any, ...] = (),
) -> dict[str, Any]:
    files = {status.BOOT_ID: boot + "\n", "/dev/kmsg": kmsg(old, 690) + kmsg(log)}
    if token is not None:
        files[status.marker_path(TOKEN)] = json.dumps(dict(MARKER, token=token)) + "\n"
    plant(files)
    transcript.record(SHOW, units)
    transcript.record("systemctl stop " + UNIT)
    transcript.record("systemctl reset-failed " + UNIT)
    answer: dict[str, Any] = steps.check(host, "/dev/NVM_SWAP", TOKEN, MARKER, clock=clock, sleep=clock.sleep)
    return answer


JOURNAL = (
    "journalctl --quiet --no-pager --boot --output=cat --lines=40 --since=@1790000000 --unit=systemd-hibernate.service "
    "--unit=" + UNIT
)
BUSCTL = (
    "busctl --json=short call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager "
    "ListInhibitors"
)


@pytest.mark.parametrize(
    ("log", "units", "slept", "state", "verdict", "code"),
    [
        pytest.param(RESTORED, [SUCCEEDED, ASKED], 31.0, "ended", "resumed", "resumed", id="resumed"),
        pytest.param(RESTORED, [SUCCEEDED, ASKED], 0.0, "ended", "resumed", "resumed", id="resumed, no RTC"),
        pytest.param(QUIET, [SUCCEEDED, ASKED], 31.0, "ended", "resumed", "resumed", id="resumed, kernel logs nothing"),
        pytest.param(
            RESTORED, [NEVER_RAN, ASKED], 31.0, "ended", "resumed", "resumed", id="resumed, service collected"
        ),
        pytest.param(RESTORED, [FAILED, ASKED], 31.0, "ended", "resumed", "resumed", id="resumed, then a hook failed"),
        pytest.param(RESTORED, [RUNNING, ASKED], 31.0, "pending", "", "in_progress", id="hooks still run"),
        pytest.param([], [NEVER_RAN, ASKING], 0.0, "pending", "", "in_progress", id="about to ask"),
        pytest.param([], [NEVER_RAN, ASKED], 0.0, "pending", "", "not_begun", id="delayed by an inhibitor"),
        pytest.param(WRITE_FAILED, [FAILED, ASKED], 1.0, "ended", "never_slept", "write_failed", id="write failed"),
        pytest.param(
            WRITE_FAILED,
            [SUCCEEDED, ASKED],
            40.0,
            "ended",
            "never_slept",
            "write_failed",
            id="write failed without an error",
        ),
        pytest.param(
            [*BEFORE, *AFTER, "PM: hibernation: Wakeup event detected during hibernation, rolling back."],
            [SUCCEEDED, ASKED],
            1.0,
            "ended",
            "never_slept",
            "woken",
            id="rolled back",
        ),
        pytest.param(
            QUIET, [SUCCEEDED, ASKED], 1.0, "ended", "never_slept", "hibernation_failed", id="success without sleep"
        ),
        pytest.param(
            [
                "PM: hibernation: hibernation entry",
                "PM: hibernation: hibernation debug: Waiting for 5 second(s).",
                "PM: hibernation: hibernation exit",
            ],
            [SUCCEEDED, ASKED],
            5.0,
            "ended",
            "never_slept",
            "hibernation_failed",
            id="pm_test",
        ),
        pytest.param(
            [
                "Freezing user space processes",
                "Freezing user space processes failed after 20.003 seconds (1 tasks refusing)",
            ],
            [FAILED, ASKED],
            0.0,
            "ended",
            "never_slept",
            "freeze_failed",
            id="freezing failed",
        ),
        pytest.param(
            ["PM: hibernation: Cannot find swap device, try swapon -a"],
            [FAILED, ASKED],
            0.0,
            "ended",
            "never_slept",
            "swap_missing",
            id="no swap",
        ),
        pytest.param(
            ["PM: hibernation: Creating image:", "PM: hibernation: Not enough free memory"],
            [FAILED, ASKED],
            1.0,
            "ended",
            "never_slept",
            "memory",
            id="no memory for the copy",
        ),
        pytest.param([], [NEVER_RAN, INHIBITED], 0.0, "ended", "inhibited", "sleep_inhibited", id="inhibited"),
    ],
)
def test_verdict_on_the_same_boot(
    host: Host,
    plant: Plant,
    transcript: Transcript,
    log: list[str],
    units: list[str],
    slept: float,
    state: str,
    verdict: str,
    code: str,
) -> None:
    transcript.record(JOURNAL, "Starting systemd-hibernate.service - System Hibernate...\n")
    transcript.record(BUSCTL, rc=1)
    answer = check(host, plant, transcript, log, "\n".join(units), Clock(slept=slept))
    assert (answer["state"], answer["verdict"], answer["code"]) == (state, verdict, code)
    assert answer["boot_id"] == BOOT
    assert answer["slept"] == slept
    assert host.exists(status.marker_path(TOKEN)) is (state == "pending")


def test_a_log_from_before_the_marker_proves_nothing(host: Host, plant: Plant, transcript: Transcript) -> None:
    transcript.record(JOURNAL)
    answer = check(host, plant, transcript, [], FAILED + "\n" + ASKED, Clock(slept=3.0), old=RESTORED[-8:])
    assert answer["verdict"] == "never_slept"


def test_what_user_space_writes_into_the_kernel_log_proves_nothing(host: Host, plant: Plant) -> None:
    plant({"/dev/kmsg": kmsg(["PM: hibernation: Creating image:"], facility=3) + kmsg(["x"], 702)})
    assert observation.kernel_log(host) == [(702, "x")]


def test_no_kernel_log(host: Host) -> None:
    assert observation.kernel_log(host) == []


def test_cold_boot(host: Host, plant: Plant, transcript: Transcript, ready: list[Any]) -> None:
    ready.append(BLOCKER)
    answer = check(host, plant, transcript, ["Linux version 6.1.0"], "", Clock(50.0), boot=OTHER_BOOT, token=None)
    assert (answer["state"], answer["verdict"], answer["code"]) == ("ended", "cold_booted", "no_image_found")
    assert answer["blockers"] == [BLOCKER]
    assert transcript.calls == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("PM: hibernation: Image mismatch: memory size", "image_mismatch"),
        ("PM: Invalid image CRC32!", "image_damaged"),
        ("Hibernate inconsistent memory map detected!", "image_mismatch"),
        ("PM: hibernation: Failed to load image, recovering.", "image_refused"),
        ("PM: Error -14 resuming", "image_refused"),
    ],
)
def test_cold_boot_with_an_image_that_the_kernel_refused(
    host: Host, plant: Plant, transcript: Transcript, ready: list[Any], line: str, code: str
) -> None:
    # The sequence numbers of a new boot begin at 0, below the marker's.
    plant({status.BOOT_ID: OTHER_BOOT + "\n", "/dev/kmsg": kmsg(["Linux version 6.1.0", line], 0)})
    answer = steps.check(host, "/dev/NVM_SWAP", TOKEN, MARKER, clock=Clock(50.0))
    assert (answer["verdict"], answer["code"]) == ("cold_booted", code)
    assert line.rstrip(".!") in answer["message"]
    assert answer["kernel"] == [line]


def test_an_older_image_of_the_same_boot_is_a_loss(host: Host, plant: Plant, transcript: Transcript) -> None:
    answer = check(host, plant, transcript, RESTORED, NEVER_RAN, Clock(monotonic=400.0, slept=700.0), token=None)
    assert (answer["verdict"], answer["code"]) == ("cold_booted", "older_image")


def test_a_removed_marker_proves_nothing(host: Host, plant: Plant, transcript: Transcript) -> None:
    transcript.record(JOURNAL)
    answer = check(host, plant, transcript, RESTORED, SUCCEEDED, Clock(slept=30.0), token=None)
    assert (answer["verdict"], answer["code"]) == ("never_slept", "marker_missing")


def test_a_marker_of_another_hibernation_does_not_count(host: Host, plant: Plant, transcript: Transcript) -> None:
    transcript.record(JOURNAL)
    answer = check(host, plant, transcript, RESTORED, SUCCEEDED, Clock(slept=30.0), token="beef")
    assert answer["code"] == "marker_missing"


@pytest.mark.parametrize(
    ("journal", "verdict", "code", "told"),
    [
        (
            "Starting System Hibernate...\n"
            "Not enough suitable swap space for hibernation available on compatible block devices\n"
            "systemd-hibernate.service: Main process exited, code=exited, status=1/FAILURE\n",
            "never_slept",
            "swap_too_small",
            "Not enough suitable swap space",
        ),
        (
            "Call to Hibernate failed: Access denied to root due to active block inhibitor\n",
            "inhibited",
            "sleep_inhibited",
            "active block inhibitor",
        ),
        (
            'Call to Hibernate failed: Sleep verb "hibernate" not supported\n',
            "never_slept",
            "not_possible",
            "not supported",
        ),
        (
            "Failed to put system to sleep. System resumed again: Input/output error\n"
            "Failed to start systemd-hibernate.service - System Hibernate.\n",
            "never_slept",
            "write_failed",
            "Input/output error",
        ),
        (
            "Something quite new\nsystemd-hibernate.service: Failed with result 'exit-code'.\n",
            "never_slept",
            "hibernation_failed",
            "Something quite new.",
        ),
        ("", "never_slept", "hibernation_failed", "neither the kernel nor systemd logged a reason"),
    ],
)
def test_the_reason_comes_from_the_journal(
    host: Host, plant: Plant, transcript: Transcript, journal: str, verdict: str, code: str, told: str
) -> None:
    transcript.record(JOURNAL, journal)
    row = ["sleep:idle", "backup", "nightly run", "block", 0, 812]
    plant({"/run/systemd/inhibit/4": "WHAT=sleep:idle\n"})
    transcript.record(BUSCTL, json.dumps({"type": "a(ssssuu)", "data": [[row]]}))
    answer = check(host, plant, transcript, [], NEVER_RAN + "\n" + REFUSED, Clock())
    assert (answer["verdict"], answer["code"]) == (verdict, code)
    assert told in answer["message"]
    assert ("backup (PID 812): nightly run" in answer["message"]) is (verdict == "inhibited")
    assert "systemctl reset-failed " + UNIT in transcript.calls


def test_a_check_waits_for_the_hooks(host: Host, plant: Plant, transcript: Transcript) -> None:
    transcript.record(SHOW, RUNNING + "\n" + ASKED)
    transcript.record(SHOW, RUNNING + "\n" + ASKED)
    clock = Clock(slept=20.0)
    answer = check(host, plant, transcript, RESTORED, SUCCEEDED + "\n" + ASKED, clock)
    assert answer["verdict"] == "resumed"
    assert clock.monotonic == 1012.0


# prepare -------------------------------------------------------------------------------------------------------------

SHOW_SERVICE = "systemctl show systemd-hibernate.service --property=Id,InvocationID"


def test_prepare_writes_the_marker(host: Host, plant: Plant, transcript: Transcript, ready: list[Any]) -> None:
    plant({status.BOOT_ID: BOOT + "\n", "/dev/kmsg": kmsg(["Linux version 6.1.0", "x"], 4)})
    transcript.record(SHOW_SERVICE, "Id=systemd-hibernate.service\nInvocationID=%s\n" % INVOCATION)
    answer = steps.prepare(host, "/dev/NVM_SWAP", TOKEN, clock=Clock(1000.5, 12.0))
    assert answer["blockers"] == []
    assert answer["marker"] == {
        "boot_id": BOOT,
        "boottime": 1012.5,
        "monotonic": 1000.5,
        "realtime": 1790000100.0,
        "invocation": INVOCATION,
        "sequence": 5,
    }
    assert json.loads(host.read("/run/nvm-fastboot/hibernate-" + TOKEN))["token"] == TOKEN


@pytest.mark.parametrize("check_mode", [True, False])
def test_prepare_with_blockers_writes_nothing(
    host: Host, plant: Plant, transcript: Transcript, ready: list[Any], check_mode: bool
) -> None:
    ready.append(BLOCKER)
    plant({status.BOOT_ID: BOOT + "\n"})
    answer = steps.prepare(host, "/dev/NVM_SWAP", TOKEN, check_mode=check_mode)
    assert answer == {"boot_id": BOOT, "blockers": [BLOCKER], "marker": None}
    assert transcript.calls == [] and not host.exists("/run")


def test_prepare_in_check_mode_writes_nothing(
    host: Host, plant: Plant, transcript: Transcript, ready: list[Any]
) -> None:
    plant({status.BOOT_ID: BOOT + "\n"})
    assert steps.prepare(host, "/dev/NVM_SWAP", TOKEN, check_mode=True)["blockers"] == []
    assert transcript.calls == [] and not host.exists("/run")


def test_prepare_ignores_given_blockers(host: Host, plant: Plant, transcript: Transcript, ready: list[Any]) -> None:
    ready.extend([BLOCKER, INHIBITOR])
    plant({status.BOOT_ID: BOOT + "\n"})
    transcript.record(SHOW_SERVICE, "Id=systemd-hibernate.service\nInvocationID=\n")
    answer = steps.prepare(host, "/dev/NVM_SWAP", TOKEN, ["swap_inactive"], ignore_inhibitors=True)
    assert answer["blockers"] == [] and answer["marker"]["sequence"] == -1


@pytest.mark.parametrize(
    ("holder", "ours", "blocked"),
    [
        (
            {"cgroup": "0::/user.slice/user-0.slice/session-5.scope\n"},
            {"cgroup": "0::/user.slice/user-0.slice/session-5.scope\n"},
            False,
        ),
        (
            {"cgroup": "0::/system.slice/ssh.service\n", "sessionid": "5"},
            {"cgroup": "0::/system.slice/ssh.service\n", "sessionid": "5"},
            False,
        ),
        (
            {"cgroup": "0::/system.slice/backup.service\n", "sessionid": "4294967295"},
            {"cgroup": "0::/system.slice/ssh.service\n", "sessionid": "4294967295"},
            True,
        ),
        (
            {"cgroup": "0::/user.slice/user-0.slice/session-4.scope\n"},
            {"cgroup": "0::/user.slice/user-0.slice/session-5.scope\n"},
            True,
        ),
    ],
)
def test_an_inhibitor_of_the_own_login_session_is_ignored(
    host: Host,
    plant: Plant,
    transcript: Transcript,
    ready: list[Any],
    holder: dict[str, Any],
    ours: dict[str, Any],
    blocked: bool,
) -> None:
    ready.append(INHIBITOR)
    files = {status.BOOT_ID: BOOT + "\n"}
    files["/run/systemd/inhibit/4"] = "WHAT=shutdown:sleep\n"
    files.update({"/proc/812/" + name: text for name, text in holder.items()})
    files.update({"/proc/self/" + name: text for name, text in ours.items()})
    plant(files)
    row = ["shutdown:sleep", "ssh", "a user is logged in", "block", 0, 812]
    delay = ["sleep", "NetworkManager", "needs to turn off networks", "delay", 0, 400]
    transcript.record(BUSCTL, json.dumps({"type": "a(ssssuu)", "data": [[row, delay]]}))
    transcript.record(SHOW_SERVICE, "Id=systemd-hibernate.service\nInvocationID=\n")
    answer = steps.prepare(host, "/dev/NVM_SWAP", TOKEN)
    assert bool(answer["blockers"]) is blocked


# start ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore", [True, False])
def test_start(host: Host, monkeypatch: pytest.MonkeyPatch, ignore: bool) -> None:
    calls = []

    def run(argv: list[str], data: str | None) -> tuple[int, str, str]:
        calls.append(argv)
        return 0, "", ""

    monkeypatch.setattr(host, "_run", run)
    steps.start(host, TOKEN, ignore_inhibitors=ignore)
    (argv,) = calls
    assert argv[0] == "systemd-run" and "--unit=" + UNIT in argv and argv[-3:-1] == ["/bin/sh", "-c"]
    script = argv[-1]
    assert script.startswith("sleep 1; ")
    assert ("systemctl hibernate -i" in script) is ignore
    assert ("BlockInhibited" in script) is not ignore
    assert "$" not in script and "%" not in script


@pytest.mark.parametrize(
    ("held", "code", "asked"),
    [
        ('s "sleep"', 75, False),
        ('s "shutdown:sleep:idle"', 75, False),
        ('s "handle-power-key"', 0, True),
        ("", 0, True),
    ],
)
def test_the_start_script_in_a_shell(tmp_path: Path, held: str, code: int, asked: bool) -> None:
    import subprocess

    for name, body in (
        ("sleep", ""),
        ("busctl", "echo '%s'" % held),
        ("systemctl", 'echo asked "$@" >> %s/asked' % tmp_path),
    ):
        (tmp_path / name).write_text("#!/bin/sh\n%s\n" % body)
        (tmp_path / name).chmod(0o755)
    script = steps.start_script(False)
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": "%s:/usr/bin:/bin" % tmp_path}, capture_output=True, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "asked").exists() is asked


# what the controller sees ---------------------------------------------------------------------------------------------


def test_status() -> None:
    text = "Welcome!\r\n%s\r\n%s\n%s" % (BOOT, FAILED.replace("\n", "\r\n"), ASKED.replace("\n", "\r\n"))
    boot_id, units = status.parse_status(text)
    assert boot_id == BOOT
    assert units["systemd-hibernate.service"]["Result"] == "exit-code"
    assert units[UNIT]["SubState"] == "exited"
    assert status.parse_status("cat: /proc/sys/kernel/random/boot_id: No such file") == ("", {})


@pytest.mark.parametrize(
    ("service", "unit_text", "since", "ended"),
    [
        (NEVER_RAN, ASKED, "", False),
        (RUNNING, ASKED, "", False),
        (SUCCEEDED, ASKED, "", True),
        (SUCCEEDED, ASKED, INVOCATION, False),
        (FAILED, ASKED, "", True),
        (FAILED, ASKING, INVOCATION, False),
        (NEVER_RAN, REFUSED, "", True),
    ],
)
def test_has_ended(service: str, unit_text: str, since: str, ended: bool) -> None:
    units = status.parse_units(service + "\n" + unit_text)
    assert status.has_ended(units["systemd-hibernate.service"], units[UNIT], since) is ended
