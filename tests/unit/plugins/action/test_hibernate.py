# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin against a machine that is a timetable only: no network, no waiting, no processes but wake_command.

C(Machine) answers as the real one would at a moment of a clock that only C(sleep) advances.
"""

from __future__ import annotations

import signal
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

from ansible_collections.nvm.fastboot.plugins.action import hibernate
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import follow, status, wake
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import options as hibernate_options
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.alarm import Unanswered, bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Act = Callable[..., dict[str, Any]]
    Button = Callable[..., list[tuple[Any, float]]]
    from pathlib import Path

BOOT = "7d0d1a5c-2c0f-4a3e-9a2b-3f1b1c1f8b1e"
OTHER_BOOT = "11111111-2222-4333-8444-555555555555"
MARKER = {"boot_id": BOOT, "boottime": 5.0, "monotonic": 5.0, "realtime": 5.0, "invocation": "old", "sequence": 7}
BLOCKER = {"code": "swap_inactive", "message": "The device is no swap area in use.", "remedy": "swapon it."}
INHIBITOR = {"code": "sleep_inhibited", "message": "Sleep is inhibited by backup.", "remedy": "Wait."}

PENDING = {
    "state": "pending",
    "verdict": "",
    "code": "in_progress",
    "message": "The hibernation is still in progress.",
    "remedy": "",
}


def ended(
    verdict: str,
    code: str | None = None,
    message: str = "",
    remedy: str = "",
    boot_id: str = BOOT,
    slept: float | None = 20.0,
    blockers: list[dict[str, Any]] | tuple[Any, ...] = (),
) -> dict[str, Any]:
    return {
        "state": "ended",
        "verdict": verdict,
        "code": code or verdict,
        "message": message,
        "remedy": remedy,
        "boot_id": boot_id,
        "slept": slept,
        "blockers": list(blockers),
        "kernel": ["PM: hibernation: Creating image:"],
    }


RESUMED = ended("resumed")
COLD = ended(
    "cold_booted", "no_image_found", "The machine booted without resuming.", "Run nvm_info.", OTHER_BOOT, None, [BLOCKER]
)
WRITE_FAILED = ended(
    "never_slept", "write_failed", "The machine did not hibernate: Write-error.", "Check the device.", slept=1.0
)
INHIBITED = ended("inhibited", "sleep_inhibited", "The machine did not hibernate: inhibited.", "Wait.", slept=0.0)


class Connection:
    """A connection with the options of ssh that matter here."""

    transport = "ssh"

    def __init__(self) -> None:
        self._shell = SimpleNamespace(tmpdir=None)
        self.options: dict[str, Any] = {"timeout": 10, "reconnection_retries": 3, "ssh_common_args": "-o ProxyJump=gate"}
        self.history: list[tuple[str, dict[str, Any]]] = []

    def get_option(self, name: str) -> Any:
        return self.options[name]

    def set_option(self, name: str, value: Any) -> None:
        self.options[name] = value

    def reset(self) -> None:
        self.history.append(("reset", dict(self.options)))


class Machine:
    """C(timetable) is a list of (seconds since the start, mode); a mode is one of

    C(up), C(ended) (systemd says it is over), C(new) (another boot), C(dead) (no connection), C(silent) (the
    connection stands and nothing comes back). C(checks) are what the check step answers in turn; the last one stays.
    """

    def __init__(
        self,
        timetable: Sequence[tuple[float, str]] = (),
        checks: Sequence[Any] = (RESUMED,),
        prepared: dict[str, Any] | None = None,
        started: Any = None,
    ) -> None:
        self.timetable = list(timetable)
        self.checks = list(checks)
        self.prepared = prepared or {"boot_id": BOOT, "blockers": [], "marker": MARKER}
        self.started = started or {"changed": True}
        self.now = 100.0
        self.told: float | None = None
        self.steps: list[dict[str, Any]] = []
        self.timeouts: list[int] = []
        self.connection = Connection()

    def mode(self) -> str:
        current = "up"
        for moment, mode in self.timetable:
            if self.told is not None and self.now - self.told >= moment:
                current = mode
        return current

    def wakes(self, after: int = 10) -> None:
        """The power button: up again C(after) seconds from now."""
        assert self.told is not None
        self.timetable.append((self.now - self.told + after, "ended"))

    def reach(self) -> None:
        self.timeouts.append(self.connection.options["timeout"])
        if self.mode() == "dead":
            self.now += 1
            raise AnsibleConnectionFailure("ssh: connect to host port 22: Connection refused")
        if self.mode() == "silent":
            raise Unanswered("no answer")

    def low_level(self, command: str, sudoable: bool = True) -> dict[str, Any]:
        self.reach()
        if command.startswith("rm"):
            return {"rc": 0, "stdout": ""}
        assert command == status.status_command(self.token) and not sudoable
        over = self.mode() in ("ended", "new")
        return {
            "rc": 0,
            "stdout": "%s\nId=%s\nActiveState=%s\nInvocationID=%s\n\nId=%s\nActiveState=active\nSubState=exited\n"
            % (
                OTHER_BOOT if self.mode() == "new" else BOOT,
                status.SERVICE,
                "inactive" if over else "activating",
                "new" if over else "old",
                status.unit_name(self.token),
            ),
        }

    def module(self, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        assert module_name == "nvm.fastboot.hibernate"
        self.steps.append(module_args)
        self.token = module_args["token"]
        self.now += 2
        self.reach()
        self.connection._shell.tmpdir = "/root/.ansible/tmp/x"
        if module_args["step"] == "prepare":
            return dict(self.prepared)
        if module_args["step"] == "start":
            self.told = self.now
            return self._give(self.started)
        assert module_args["marker"] == MARKER
        answer = self.checks.pop(0) if len(self.checks) > 1 else self.checks[0]
        return self._give(answer)

    @staticmethod
    def _give(answer: Any) -> dict[str, Any]:
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def names(self) -> list[str]:
        return [step["step"] for step in self.steps]


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Act:
    """C(act(machine, **options)) runs the action on the machine, over machine.connection, and returns the result."""

    def _act(machine: Machine, check_mode: bool = False, transport: str = "ssh", **options: Any) -> dict[str, Any]:
        connection = machine.connection
        connection.transport = transport
        task = SimpleNamespace(
            action="nvm.fastboot.hibernate",
            args=dict(options),
            async_val=0,
            check_mode=check_mode,
            diff=False,
            resolved_action="nvm.fastboot.hibernate",
            delegate_to=None,
            environment=[],
        )
        loader = SimpleNamespace(get_basedir=lambda: str(tmp_path))
        plugin = hibernate.ActionModule(task, connection, SimpleNamespace(), loader, None, None)
        plugin._load_name = "nvm.fastboot.hibernate"
        monkeypatch.setattr(plugin, "_execute_module", machine.module)
        monkeypatch.setattr(plugin, "_low_level_execute_command", machine.low_level)
        monkeypatch.setattr(plugin, "_remove_tmp_path", lambda path: machine.low_level("rm " + path))
        clock = SimpleNamespace(
            monotonic=lambda: machine.now, sleep=lambda seconds: setattr(machine, "now", machine.now + seconds)
        )
        for module in (hibernate, follow, wake):
            monkeypatch.setattr(module, "time", clock)
        result: dict[str, Any] = plugin.run(task_vars={})
        return result

    return _act


@pytest.fixture
def button(monkeypatch: pytest.MonkeyPatch) -> Button:
    """C(button(machine, [1, 0])) makes wake_command a button: it exits with each code in turn; 0 wakes the machine."""
    pressed: list[tuple[Any, float]] = []

    def _button(machine: Machine, codes: list[int], after: int = 10) -> list[tuple[Any, float]]:
        codes = list(codes)

        class Process:
            pid = 1

            def __init__(self, command: list[str] | str, **options: Any) -> None:
                assert options["stdin"] == subprocess.DEVNULL and options["start_new_session"]
                assert machine.told is not None
                pressed.append((command, machine.now - machine.told))
                options["stdout"].write(b"no carrier")

            def wait(self, timeout: float) -> int:
                code = codes.pop(0) if len(codes) > 1 else codes[0]
                if code == 0:
                    machine.wakes(after)
                return code

        monkeypatch.setattr(subprocess, "Popen", Process)
        return pressed

    return _button


# verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timetable", "checks", "verdict", "code"),
    [
        pytest.param([(4, "dead"), (30, "ended")], [RESUMED], "resumed", "resumed", id="resumed"),
        pytest.param(
            [(4, "silent"), (30, "ended")], [RESUMED], "resumed", "resumed", id="resumed, port forwarder stays open"
        ),
        pytest.param(
            [(4, "dead"), (30, "up")], [PENDING, PENDING, RESUMED], "resumed", "resumed", id="resumed, slow hooks"
        ),
        pytest.param([(4, "dead"), (30, "new")], [COLD], "cold_booted", "no_image_found", id="cold boot"),
        pytest.param([(4, "new")], [COLD], "cold_booted", "no_image_found", id="cold boot too quick to be seen"),
        pytest.param([(2, "ended")], [RESUMED], "resumed", "resumed", id="slept too shortly to be seen"),
        pytest.param([(2, "ended")], [WRITE_FAILED], "never_slept", "write_failed", id="failed at once"),
        pytest.param(
            [(4, "dead"), (20, "ended")], [WRITE_FAILED], "never_slept", "write_failed", id="failed while writing"
        ),
        pytest.param([(2, "ended")], [INHIBITED], "inhibited", "sleep_inhibited", id="inhibited in the last second"),
        pytest.param([], [PENDING], "never_slept", "in_progress", id="never ends"),
        pytest.param([], [PENDING, RESUMED], "resumed", "resumed", id="resumed, and systemd forgot its service"),
        pytest.param(
            [(4, "dead"), (7, "up"), (12, "dead"), (40, "ended")],
            [PENDING, PENDING, RESUMED],
            "resumed",
            "resumed",
            id="the network hiccups first",
        ),
        pytest.param(
            [(4, "dead"), (30, "new")],
            [AnsibleConnectionFailure("booting"), COLD],
            "cold_booted",
            "no_image_found",
            id="connection lost during the check",
        ),
        pytest.param(
            [(4, "dead"), (30, "new")],
            [{"failed": True, "msg": "no python"}],
            "cold_booted",
            "no_evidence",
            id="cold boot, and no check succeeds",
        ),
        pytest.param([(4, "dead")], [RESUMED], None, "no_answer", id="never comes back"),
        pytest.param(
            [(4, "dead"), (30, "ended")],
            [{"failed": True, "msg": "no python"}],
            None,
            "no_evidence",
            id="comes back, and no check succeeds",
        ),
    ],
)
def test_verdicts(
    act: Act, timetable: list[tuple[Any, ...]], checks: list[Any], verdict: str | None, code: str
) -> None:
    machine = Machine(timetable, checks)
    result = act(machine, hibernate_timeout=60, resume_timeout=120)
    assert result.get("verdict") == verdict
    assert result["code"] == code
    assert result["changed"] is True
    assert bool(result.get("failed")) is (verdict != "resumed")
    assert result["msg"] and (verdict == "resumed" or result["remedy"])
    assert machine.now < 100 + 60 + 120 + 40


def test_the_phases_of_a_resume(act: Act, button: Button) -> None:
    machine = Machine([(8, "dead")])
    pressed = button(machine, [1, 1, 0], after=12)
    result = act(machine, wake_command="press", wake_delay=5, wake_interval=4)
    seconds = result["seconds"]
    assert result["verdict"] == "resumed" and not result.get("failed")
    assert [command for command, _when in pressed] == ["press"] * 3
    assert pressed[1][1] - pressed[0][1] >= 4
    assert seconds["prepare"] == 2.0
    assert 8 <= seconds["down"] <= 12
    assert seconds["off"] >= 5 + 2 * 4
    assert 11 <= seconds["up"] <= 14
    assert seconds["slept"] == 20.0
    assert seconds["total"] >= seconds["down"] + seconds["off"] + seconds["up"]
    assert result["boot_id"] == BOOT and result["kernel"] == RESUMED["kernel"] and result["blockers"] == []


def test_a_wake_command_that_never_succeeds(act: Act, button: Button) -> None:
    machine = Machine([(4, "dead")])
    pressed = button(machine, [3])
    result = act(machine, wake_command=["/bin/sh", "wake"], resume_timeout=60, wake_interval=20)
    assert (result["failed"], result["code"], "verdict" in result) == (True, "wake_failed", False)
    assert "exit code 3: no carrier" in result["msg"]
    assert 3 <= len(pressed) <= 4 and pressed[0][0] == ["/bin/sh", "wake"]


def test_a_machine_that_is_down_after_a_network_outage_is_woken_again(
    act: Act, button: Button, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine([(4, "dead"), (8, "up"), (14, "dead")], [PENDING, PENDING, RESUMED])
    pressed = []

    class Process:
        def __init__(self, command: str, **options: Any) -> None:
            pressed.append(machine.now)

        def wait(self, timeout: float) -> int:
            if len(pressed) == 2:
                machine.wakes()
            return 0

    button(machine, [0])
    monkeypatch.setattr(subprocess, "Popen", Process)
    assert act(machine, wake_command="press")["verdict"] == "resumed"
    assert len(pressed) == 2


def test_without_waiting(act: Act) -> None:
    machine = Machine([(4, "dead")])
    result = act(machine, wait=False, wake_command="press")
    assert result["changed"] and "verdict" not in result and not result.get("failed")
    assert result["code"] == "asleep" and result["seconds"]["down"] is not None and result["seconds"]["up"] is None
    assert machine.names() == ["prepare", "start"]
    assert machine.connection._shell.tmpdir is None  # or Ansible's own cleaning up would find the host unreachable


def test_without_waiting_a_failure_is_still_one(act: Act) -> None:
    result = act(Machine([(2, "ended")], [WRITE_FAILED]), wait=False)
    assert result["failed"] and result["verdict"] == "never_slept"


# before anything happens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("blockers", "verdict"),
    [([BLOCKER], "never_slept"), ([INHIBITOR], "inhibited"), ([INHIBITOR, BLOCKER], "never_slept")],
)
def test_blockers(act: Act, check_mode: bool, blockers: list[dict[str, Any]], verdict: str) -> None:
    machine = Machine(prepared={"boot_id": BOOT, "blockers": blockers, "marker": None})
    result = act(machine, check_mode=check_mode)
    assert result["failed"] and not result["changed"]
    assert result["verdict"] == verdict and result["blockers"] == blockers
    assert all(blocker["message"] in result["msg"] for blocker in blockers)
    assert machine.names() == ["prepare"]


def test_check_mode(act: Act) -> None:
    machine = Machine(prepared={"boot_id": BOOT, "blockers": [], "marker": None})
    result = act(machine, check_mode=True)
    assert result["changed"] and not result.get("failed") and "verdict" not in result
    assert machine.names() == ["prepare"]


def test_options_reach_the_steps(act: Act) -> None:
    machine = Machine([(4, "dead"), (9, "ended")])
    act(machine, device="/dev/NVM_B", ignore_inhibitors=True, ignore_blockers=["pm_test"])
    prepare, start, check = machine.steps
    assert (prepare["device"], prepare["ignore_inhibitors"], prepare["ignore_blockers"]) == (
        "/dev/NVM_B",
        True,
        ["pm_test"],
    )
    assert start["ignore_inhibitors"] is True and check["device"] == "/dev/NVM_B"
    assert len({step["token"] for step in machine.steps}) == 1
    assert set(prepare) | set(start) | set(check) <= set(hibernate_options.OPTIONS) | set(hibernate_options.STEP_OPTIONS)


def test_a_preparation_that_fails(act: Act) -> None:
    machine = Machine(
        prepared={"failed": True, "msg": "busctl is broken.", "code": "command_failed", "remedy": "Mend it."}
    )
    result = act(machine)
    assert result["failed"] and result["msg"] == "busctl is broken." and result["code"] == "command_failed"
    assert machine.names() == ["prepare"]


def test_a_start_that_fails(act: Act) -> None:
    machine = Machine(
        started={"failed": True, "msg": "systemd-run exited with 1.", "code": "command_failed", "remedy": "Look."}
    )
    result = act(machine)
    assert result["failed"] and result["verdict"] == "never_slept" and not result["changed"]


def test_a_start_whose_answer_is_lost(act: Act) -> None:
    machine = Machine([(0, "dead"), (9, "ended")], started=AnsibleConnectionFailure("gone"))
    assert act(machine)["verdict"] == "resumed"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"wake_command": 7}, "neither a string nor a list"),
        ({"wake_command": []}, "neither a string nor a list"),
        ({"wake_command": ["no-such-command-anywhere"]}, "no-such-command-anywhere"),
        ({"resume_timeout": 0}, "resume_timeout is 0"),
        ({"wake_delay": -1}, "wake_delay is -1"),
        ({"wake_command": "press", "transport": "local"}, "cannot wake itself"),
    ],
)
def test_usage(act: Act, options: dict[str, Any], told: str) -> None:
    machine = Machine()
    result = act(machine, **options)
    assert result["failed"] and told in result["msg"] and machine.steps == []


def test_steps_are_refused_in_playbooks(act: Act) -> None:
    with pytest.raises(Exception, match="step"):
        act(Machine(), step="start")


# the connection ------------------------------------------------------------------------------------------------------


def test_connection_options_change_only_while_the_plugin_waits(act: Act) -> None:
    machine = Machine([(4, "dead"), (20, "ended")])
    act(machine, connect_timeout=3)
    assert machine.connection.options == Connection().options
    assert set(machine.timeouts) == {10, 3}
    first, *during, last = [options for _what, options in machine.connection.history]
    assert first == Connection().options, "the old master must be found by the old options"
    for options in [*during, last]:
        assert options["reconnection_retries"] == 0 and options["timeout"] == 3
        assert options["ssh_common_args"].startswith("-o ProxyJump=gate -o ServerAliveInterval=3 ")
        assert "ControlPath=none" in options["ssh_common_args"]


def test_connection_options_are_restored_after_an_exception(act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine([(4, "dead")], [RESUMED])

    def interrupted(*_arguments: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "low_level", interrupted)
    with pytest.raises(KeyboardInterrupt):
        act(machine)
    assert machine.connection.options == Connection().options


def test_a_connection_without_such_options() -> None:
    class Bare:
        reset = ConnectionBase.reset  # only warns

        def get_option(self, name: str) -> None:
            raise KeyError(name)

    with hibernate._impatient(Bare(), 5):
        pass


# what hangs ----------------------------------------------------------------------------------------------------------


def test_a_hanging_call_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(Unanswered), bounded(0.1):
        time.sleep(30)
    assert time.monotonic() - began < 5
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_alarm_of_a_task_is_restored() -> None:
    def task_alarm(*_arguments: Any) -> None:
        raise TimeoutError("the task's own")

    before = signal.signal(signal.SIGALRM, task_alarm)
    try:
        signal.alarm(20)
        with bounded(5):
            pass
        assert 15 < signal.getitimer(signal.ITIMER_REAL)[0] <= 20
        assert signal.getsignal(signal.SIGALRM) is task_alarm
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError), bounded(10):  # task_alarm comes first
            time.sleep(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("command", "succeeds", "output"),
    [
        ("echo pressed; exit 0", True, "exit code 0: pressed"),
        (["sh", "-c", "echo stuck >&2; exit 4"], False, "exit code 4: stuck"),
        ("echo waiting; sleep 30", False, "still running: waiting"),
        ("sleep 3 & echo in the background", True, "exit code 0: in the background"),
        (["/nonexistent"], False, "No such file"),
    ],
)
def test_wake_command(tmp_path: Path, command: list[str] | str, succeeds: bool, output: str) -> None:
    wake_command = wake.WakeCommand(command, 5, str(tmp_path))
    assert not wake_command.is_due(time.monotonic())
    wake_command.arm(0)
    assert wake_command.is_due(time.monotonic())
    began = time.monotonic()
    assert wake_command.run(0.5) is succeeds
    assert time.monotonic() - began < 10
    assert output in wake_command.output
    assert not wake_command.is_due(time.monotonic())
