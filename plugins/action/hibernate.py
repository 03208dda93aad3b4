# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""C(nvm.fastboot.hibernate) on the controller: send a machine to sleep, wake it, and return the verdict.

The steps on the machine and the verdict itself are in C(module_utils/_hibernate.py); here is what can only be done
from outside: follow the machine down and up over a connection that dies on the way, and run the command that wakes it.
What is seen from here (it answers, it does not) decides when to ask, never what the verdict is. Whether it answers is
judged by a command run over the connection: a port that accepts TCP may belong to a forwarder in front of a dead
machine.

One host is one worker process of Ansible; nothing here is shared between hosts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import hibernation

display = Display()

MODULE = "nvm.fastboot.hibernate"
PROBE_INTERVAL = 1  # seconds between two looks
FIRST_LOOK = 3  # the unit sleeps one second; a login before it asked logind could take an inhibitor of its own
MISSES = 2  # so many looks in a row without an answer are a machine that is down, and not a network that hiccups
CHECK_INTERVAL = 20  # a machine that answers is asked for its evidence at least this often
PROBE_GRACE = 10  # seconds for a look beyond twice connect_timeout: logging in takes its time on a slow machine
CHECK_BOUND = 120  # seconds for one check, a full module run on a machine that has just come up

# What makes a connection give up soon, as far as its plugin has such an option: name, new value from (old, seconds).
# ssh takes the first value it is given, so that ControlPath of a user who sets it stays; reset() drops such a master.
PATIENCE = (
    ("timeout", lambda old, seconds: seconds),
    ("connection_timeout", lambda old, seconds: seconds),
    ("reconnection_retries", lambda old, seconds: 0),
    (
        "ssh_common_args",
        lambda old, seconds: (
            "%s -o ServerAliveInterval=%d -o ServerAliveCountMax=3 -o ControlPath=none" % (old or "", seconds)
        ).strip(),
    ),
)


class Unanswered(Exception):
    """The machine did not answer within the time that one attempt may take."""


NO_ANSWER = (AnsibleError, Unanswered, OSError, EOFError)


class Course:
    """The moments of one hibernation on the controller's clock, from which the phases follow."""

    def __init__(self):
        self.prepared: float | None = None  # seconds the preparation took
        self.told: float = 0.0  # it was told to hibernate
        self.gone: float | None = None  # the first of the looks it did not answer; only once it counts as down
        self.woken: float | None = None  # the wake command had succeeded
        self.back: float | None = None  # it answered again
        self.ended: float = 0.0
        self.slept: float | None = None  # seconds, from the machine

    def seconds(self):
        off_until = self.back if self.woken is None else self.woken
        return {
            "prepare": _rounded(self.prepared),
            "down": _between(self.told, self.gone),
            "off": _between(self.gone, off_until),
            "up": _between(self.woken, self.back),
            "slept": _rounded(self.slept),
            "total": _between(self.told, self.ended),
        }


class ActionModule(ActionBase):
    """The action plugin. C(run) is the whole of it, top to bottom; the other methods are its sentences."""

    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        result["changed"] = False
        self._vars = task_vars or {}
        _validation, given = self.validate_argument_spec(argument_spec=hibernation.OPTIONS)
        self._options = given = {name: given[name] for name in hibernation.OPTIONS}
        problem = self._usage_problem()
        if problem:
            return dict(result, failed=True, code="usage", msg=problem, blockers=[])

        self._token = secrets.token_hex(8)
        self._course = course = Course()
        self._status = {}
        began = time.monotonic()
        wanted = ("device", "ignore_blockers", "ignore_inhibitors")
        prepared = self._step("prepare", **{name: given[name] for name in wanted})
        course.prepared = time.monotonic() - began
        for name in ("ansible_facts", "warnings", "deprecations"):
            if prepared.get(name):
                result[name] = prepared[name]
        if prepared.get("failed"):
            return dict(result, **_failure(prepared))
        result.update(boot_id=prepared["boot_id"], blockers=prepared["blockers"])
        if prepared["blockers"]:
            return dict(result, failed=True, **_blocked(prepared["blockers"]))
        if self._task.check_mode:
            return dict(result, changed=True, msg="The machine would hibernate: nothing stands in its way.")

        self._marker = prepared["marker"]
        course.told = time.monotonic()
        refused = self._start(given["ignore_inhibitors"])
        if refused:
            return dict(result, verdict="never_slept", **refused)
        result["changed"] = True
        self._tidy()
        with _impatient(self._connection, given["connect_timeout"]):
            outcome = self._follow()
        course.ended = time.monotonic()
        course.slept = outcome.get("slept")
        return dict(result, seconds=course.seconds(), **self._conclude(outcome))

    # before ----------------------------------------------------------------------------------------------------------

    def _usage_problem(self):
        """What is wrong with the options that a specification of types does not catch, or None."""
        for name in ("hibernate_timeout", "resume_timeout", "connect_timeout", "wake_interval"):
            if self._options[name] < 1:
                return "%s is %d; it must be at least 1 second." % (name, self._options[name])
        if self._options["wake_delay"] < 0:
            return "wake_delay is %d; it must not be negative." % self._options["wake_delay"]
        command = self._options["wake_command"]
        if command is None or command == "":
            self._options["wake_command"] = None
            return None
        if self._connection.transport == "local":
            return "wake_command is set, but the connection is local: the controller cannot wake itself."
        if isinstance(command, str):
            self._options["wake_command"] = str(command)
            return None
        if not isinstance(command, (list, tuple)) or not command:
            return "wake_command is neither a string nor a list of words."
        command = self._options["wake_command"] = [str(word) for word in command]
        found = shutil.which(command[0]) or os.access(os.path.join(self._directory(), command[0]), os.X_OK)
        return None if found else "wake_command names %s, which the controller does not have." % command[0]

    def _start(self, ignore_inhibitors):
        """Start the hibernation. Returns the failure, or None; an answer that was lost is as good as one."""
        try:
            with _bounded(CHECK_BOUND):
                started = self._step("start", ignore_inhibitors=ignore_inhibitors)
        except NO_ANSWER as error:
            display.vv("%s: no answer to the start: %s" % (MODULE, error))
            return None
        return _failure(started) if started.get("failed") else None

    def _tidy(self):
        """Remove Ansible's files on the machine while it can be done: afterwards it may be asleep, or booted afresh."""
        shell = self._connection._shell
        try:
            if shell.tmpdir:
                with _bounded(self._options["connect_timeout"]):
                    self._remove_tmp_path(shell.tmpdir)
        except NO_ANSWER as error:
            display.vv("%s: gone before its temporary files were removed: %s" % (MODULE, error))
        shell.tmpdir = None

    # while it is away ------------------------------------------------------------------------------------------------

    def _follow(self):
        """Follow the machine down and up until there is a verdict. Returns what check() returned, or a failure's dict.

        In both the key C(state) says which: C(ended), C(asleep) (down, and not to be waited for), C(timeout).
        """
        course, given = self._course, self._options
        deadline = course.told + given["hibernate_timeout"]
        limit = deadline + given["resume_timeout"]
        wake = _Wake(given["wake_command"], given["wake_interval"], self._directory())
        misses, first_miss, last_check = 0, course.told, course.told
        last: dict = {}
        _sleep(FIRST_LOOK)
        while True:
            looked = time.monotonic()
            if self._look():
                misses = 0
                if course.gone is not None and course.back is None:
                    course.back = time.monotonic()
                if self._worth_checking() or course.back is not None or looked - last_check >= CHECK_INTERVAL:
                    last_check = time.monotonic()
                    last = self._check() or last
                    if last.get("state") == "ended":
                        return last
            else:
                first_miss = looked if misses == 0 else first_miss
                misses += 1
                if misses >= MISSES and (course.gone is None or course.back is not None):
                    # Down, or down again: a network that hiccups makes a machine seem down that is yet to go.
                    course.gone, course.back = first_miss, None
                    deadline = min(time.monotonic() + given["resume_timeout"], limit)
                    if not self._booted_afresh():
                        course.woken = None
                        wake.arm(first_miss + given["wake_delay"])
                if course.gone is not None and not given["wait"]:
                    return {"state": "asleep"}
            now = time.monotonic()
            if now >= deadline:
                return self._out_of_time(last, wake)
            if course.gone is not None and course.back is None and wake.is_due(now) and wake.run(deadline - now):
                course.woken = time.monotonic()
            _sleep(PROBE_INTERVAL)

    def _look(self):
        """Whether the machine answers. What it answered is in C(self._status): boot id and the units' properties."""
        try:
            with _bounded(2 * self._options["connect_timeout"] + PROBE_GRACE):
                answer = self._low_level_execute_command(hibernation.status_command(self._token), sudoable=False)
        except NO_ANSWER as error:
            display.vvv("%s: no answer: %s" % (MODULE, error))
            _reset(self._connection)
            return False
        boot_id, units = hibernation.parse_status(answer.get("stdout") or "")
        if not boot_id:
            return False
        self._status = {"boot_id": boot_id, "units": units}
        return True

    def _worth_checking(self):
        units = self._status["units"]
        service, unit = units.get(hibernation.SERVICE, {}), units.get(hibernation.unit_name(self._token), {})
        return self._booted_afresh() or hibernation.has_ended(service, unit, self._marker["invocation"])

    def _booted_afresh(self):
        return self._status.get("boot_id", self._marker["boot_id"]) != self._marker["boot_id"]

    def _check(self):
        """The evidence and the verdict on it from the machine, or None where it could not be had (ask again)."""
        try:
            with _bounded(CHECK_BOUND):
                checked = self._step("check", device=self._options["device"], marker=self._marker)
        except NO_ANSWER as error:
            display.vv("%s: no answer to the check: %s" % (MODULE, error))
            _reset(self._connection)
            self._connection._shell.tmpdir = None  # the next attempt makes its own; this one's may be gone
            return None
        if checked.get("failed") or "state" not in checked:
            self._connection._shell.tmpdir = None
            display.vv("%s: the check failed: %s" % (MODULE, checked.get("msg")))
            told = {"message": checked.get("msg", ""), "remedy": checked.get("remedy", "")}
            return {"state": "unknown", **told}
        return checked

    def _out_of_time(self, last, wake):
        """The failure when the time is over: what is known by then decides whether there is a verdict."""
        course, given = self._course, self._options
        if self._booted_afresh():
            return {
                "state": "timeout",
                "verdict": "cold_booted",
                "code": "no_evidence",
                "message": "The machine booted afresh, and what it had in memory is lost. %s" % last.get("message", ""),
                "remedy": last.get("remedy") or "Look at the kernel log of this boot.",
            }
        if course.gone is None:
            return {
                "state": "timeout",
                "verdict": "never_slept",
                "code": last.get("code") or "still_awake",
                "message": "The machine still answers %d seconds after it was told to hibernate. %s"
                % (given["hibernate_timeout"], last.get("message", "")),
                "remedy": "Look at journalctl -b -u %s on the machine; it may still hibernate." % hibernation.SERVICE,
            }
        if course.back is not None:
            return {
                "state": "timeout",
                "code": last.get("code") or "no_evidence",
                "message": "The machine answers again, but what became of its memory could not be found out. %s"
                % last.get("message", ""),
                "remedy": last.get("remedy") or "Look at journalctl -b -u %s on the machine." % hibernation.SERVICE,
            }
        if wake.command and course.woken is None:
            return {
                "state": "timeout",
                "code": "wake_failed",
                "message": "The machine went down, and wake_command did not succeed within %d seconds: %s"
                % (given["resume_timeout"], wake.said or "it was never due"),
                "remedy": "Run it by hand on the controller. The image is where the machine put it; wake the machine.",
            }
        return {
            "state": "timeout",
            "code": "no_answer",
            "message": "The machine went down and did not answer within %d seconds." % given["resume_timeout"],
            "remedy": "Look at its console. If nothing wakes it, set wake_command; if it needs longer, resume_timeout.",
        }

    def _conclude(self, outcome):
        """The part of the result that follows from how it ended."""
        if outcome["state"] == "asleep":
            return {"code": "asleep", "msg": "The machine went down; it was not waited for."}
        answer = {"code": outcome["code"], "kernel": outcome.get("kernel", [])}
        for name in ("verdict", "boot_id", "blockers"):
            if outcome.get(name):
                answer[name] = outcome[name]
        if outcome.get("verdict") == "resumed":
            answer["msg"] = "Resumed with its memory as it was, %.1f seconds after it was told to hibernate." % (
                self._course.ended - self._course.told
            )
            return answer
        return dict(
            answer, failed=True, remedy=outcome["remedy"], msg="%s %s" % (outcome["message"].strip(), outcome["remedy"])
        )

    def _step(self, step, **arguments):
        return self._execute_module(
            module_name=MODULE, module_args=dict(arguments, step=step, token=self._token), task_vars=self._vars
        )

    def _directory(self):
        return self._loader.get_basedir()


class _Wake:
    """The command on the controller that wakes the machine: when it is due, and what it said."""

    def __init__(self, command, interval, directory):
        self.command = command
        self.interval = interval
        self.directory = directory
        self.due = float("inf")
        self.done = False
        self.said = ""

    def arm(self, due):
        self.due, self.done = due, False

    def is_due(self, now):
        return self.command is not None and not self.done and now >= self.due

    def run(self, bound):
        """Run it for at most C(bound) seconds. Returns whether it succeeded; if not, it is due after the interval.

        Its output goes to a file: a pipe would be kept open by what it leaves running in the background.
        """
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    self.command,
                    shell=isinstance(self.command, str),
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    code = process.wait(timeout=max(bound, 1))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    code = None
            except OSError as error:
                code, self.said = None, str(error)
            else:
                output.seek(0)
                said = output.read().decode("utf-8", "replace").strip()[-1000:] or "it printed nothing"
                self.said = ("it was still running: %s" % said) if code is None else "exit code %d: %s" % (code, said)
        self.done = code == 0
        self.due = time.monotonic() + self.interval
        display.vv("%s: wake_command: %s" % (MODULE, self.said))
        return self.done


@contextlib.contextmanager
def _impatient(connection, seconds):
    """A connection that notices a dead machine within C(seconds), or a few times that; as before at the end."""
    saved = []
    _reset(connection)  # with the options that found the old master
    for name, change in PATIENCE:
        try:
            old = connection.get_option(name)
            connection.set_option(name, change(old, seconds))
        except (KeyError, AttributeError, AnsibleError):
            continue
        saved.append((name, old))
    try:
        yield
    finally:
        _reset(connection)
        for name, old in saved:
            connection.set_option(name, old)


def _reset(connection):
    """Drop what the connection keeps open, if it keeps anything."""
    if getattr(type(connection), "reset", None) in (None, ConnectionBase.reset):
        return
    try:
        with _bounded(30):
            connection.reset()
    except NO_ANSWER as error:
        display.vvv("%s: reset: %s" % (MODULE, error))


@contextlib.contextmanager
def _bounded(seconds):
    """Raise Unanswered in the block once it has taken C(seconds), whatever it hangs on.

    By SIGALRM, the only thing that ends a blocking call of any connection plugin. The alarm of a task's own C(timeout)
    is put back with what is left of it, and keeps its place where it comes first.
    """
    left, _interval = signal.getitimer(signal.ITIMER_REAL)
    if threading.current_thread() is not threading.main_thread() or 0 < left <= seconds:
        yield
        return
    over = False

    def expire(_signal, _frame):
        if not over:
            raise Unanswered("no answer within %d seconds" % seconds)

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001))


def _blocked(blockers):
    """The failure before anything was done; C(inhibited) only if nothing but inhibitors is in the way."""
    inhibited = all(blocker["code"] == hibernation.INHIBITED for blocker in blockers)
    return {
        "verdict": "inhibited" if inhibited else "never_slept",
        "code": blockers[0]["code"],
        "remedy": blockers[0]["remedy"],
        "msg": "The machine was not hibernated. "
        + " ".join("%s %s" % (blocker["message"], blocker["remedy"]) for blocker in blockers),
    }


def _failure(answer):
    """What a failed module run said, in the form of a failure of ours."""
    names = ("code", "remedy", "exception", "module_stdout", "module_stderr", "rc")
    kept = {name: answer[name] for name in names if name in answer}
    return dict(kept, failed=True, msg=answer.get("msg", "The module failed without a message."))


def _sleep(seconds):
    time.sleep(seconds)


def _rounded(seconds):
    return None if seconds is None else round(seconds, 1)


def _between(first, then):
    return None if first is None or then is None else _rounded(max(then - first, 0.0))
