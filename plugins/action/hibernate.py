# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""C(nvm.fastboot.hibernate) on the controller: hibernate a machine, wake it, and return the verdict.

This file connects C(module_utils/_hibernate) to Ansible: the steps run as modules on the machine, and the connection gets
options with which it notices a dead machine. C(follow) has the course of a hibernation, C(verdict) the verdict.

Each host has a worker process of its own; hosts share nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import time

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import options as hibernate_options
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import status
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.alarm import Unanswered, bounded
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.follow import Follower
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.timeline import Timeline
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.verdict import INHIBITED
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.wake import WakeCommand

display = Display()

MODULE = "nvm.fastboot.hibernate"
LOOK_GRACE = 10  # seconds for a look in addition to twice connect_timeout: a login on a slow machine takes time
CHECK_BOUND = 120  # seconds for one check: a full module run on a machine that has just booted
RESET_BOUND = 30  # seconds

# Options that make a connection give up soon, if its plugin has them: name, new value from (old, seconds).
# ssh uses the first value of an option, so a ControlPath of the user stays; reset() closes that master.
IMPATIENT_OPTIONS = (
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

NO_ANSWER = (AnsibleError, Unanswered, OSError, EOFError)


class ActionModule(ActionBase):
    """The action plugin. C(run) is the whole course; the other methods are its steps."""

    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        result["changed"] = False
        self._vars = task_vars or {}
        _validation, given = self.validate_argument_spec(argument_spec=hibernate_options.OPTIONS)
        self._options = given = {name: given[name] for name in hibernate_options.OPTIONS}
        problem = hibernate_options.problem(given, self._connection.transport, self._directory())
        if problem:
            return dict(result, failed=True, code="usage", msg=problem, blockers=[])

        self._token = secrets.token_hex(8)
        self._timeline = timeline = Timeline()
        began = time.monotonic()
        names = ("device", "ignore_blockers", "ignore_inhibitors")
        prepared = self._step("prepare", **{name: given[name] for name in names})
        timeline.prepared = time.monotonic() - began
        for name in ("ansible_facts", "warnings", "deprecations"):
            if prepared.get(name):
                result[name] = prepared[name]
        if prepared.get("failed"):
            return dict(result, **_failure(prepared))
        result.update(boot_id=prepared["boot_id"], blockers=prepared["blockers"])
        if prepared["blockers"]:
            return dict(result, failed=True, **_blocked(prepared["blockers"]))
        if self._task.check_mode:
            return dict(result, changed=True, msg="The machine would hibernate: there are no blockers.")

        timeline.requested = time.monotonic()
        refused = self._start(given["ignore_inhibitors"])
        if refused:
            return dict(result, verdict="never_slept", **refused)
        result["changed"] = True
        self._remove_files()
        with _impatient(self._connection, given["connect_timeout"]):
            outcome = self._follow(prepared["marker"])
        timeline.ended = time.monotonic()
        timeline.slept = outcome.get("slept")
        return dict(result, seconds=timeline.seconds(), **self._conclude(outcome))

    # the course ------------------------------------------------------------------------------------------------------

    def _start(self, ignore_inhibitors):
        """Start the hibernation. Returns the failure, or None. A lost answer counts as success: the machine may be down."""
        try:
            with bounded(CHECK_BOUND):
                started = self._step("start", ignore_inhibitors=ignore_inhibitors)
        except NO_ANSWER as error:
            display.vv("%s: no answer to the start: %s" % (MODULE, error))
            return None
        return _failure(started) if started.get("failed") else None

    def _remove_files(self):
        """Remove Ansible's files on the machine now: later the machine may be asleep, or newly booted."""
        shell = self._connection._shell
        try:
            if shell.tmpdir:
                with bounded(self._options["connect_timeout"]):
                    self._remove_tmp_path(shell.tmpdir)
        except NO_ANSWER as error:
            display.vv("%s: down before its temporary files were removed: %s" % (MODULE, error))
        shell.tmpdir = None

    def _follow(self, marker):
        given = self._options
        wake = WakeCommand(
            given["wake_command"],
            given["wake_interval"],
            self._directory(),
            lambda output: display.vv("%s: wake_command: %s" % (MODULE, output)),
        )
        return Follower(
            self._look, lambda: self._check(marker), self._token, marker, given, wake, self._timeline
        ).run()

    def _look(self):
        """The machine's C((boot id, units)), or None without an answer."""
        try:
            with bounded(2 * self._options["connect_timeout"] + LOOK_GRACE):
                answer = self._low_level_execute_command(status.status_command(self._token), sudoable=False)
        except NO_ANSWER as error:
            display.vvv("%s: no answer: %s" % (MODULE, error))
            _reset(self._connection)
            return None
        boot_id, units = status.parse_status(answer.get("stdout") or "")
        return (boot_id, units) if boot_id else None

    def _check(self, marker):
        """What the step C(check) returned, or None without an answer."""
        try:
            with bounded(CHECK_BOUND):
                checked = self._step("check", device=self._options["device"], marker=marker)
        except NO_ANSWER as error:
            display.vv("%s: no answer to the check: %s" % (MODULE, error))
            _reset(self._connection)
            self._connection._shell.tmpdir = None  # may no longer exist; the next attempt creates another
            return None
        if checked.get("failed") or "state" not in checked:
            self._connection._shell.tmpdir = None
            display.vv("%s: the check failed: %s" % (MODULE, checked.get("msg")))
            return {"state": "unknown", "message": checked.get("msg", ""), "remedy": checked.get("remedy", "")}
        return checked

    def _conclude(self, outcome):
        """The part of the result that depends on the outcome."""
        if outcome["state"] == "asleep":
            return {"code": "asleep", "msg": "The machine went down. Not waiting for it (wait: false)."}
        answer = {"code": outcome["code"], "kernel": outcome.get("kernel", [])}
        for name in ("verdict", "boot_id", "blockers"):
            if outcome.get(name):
                answer[name] = outcome[name]
        if outcome.get("verdict") == "resumed":
            elapsed = self._timeline.ended - self._timeline.requested
            answer["msg"] = "Resumed with its memory intact, %.1f seconds after the request to hibernate." % elapsed
            return answer
        message = "%s %s" % (outcome["message"].strip(), outcome["remedy"])
        return dict(answer, failed=True, remedy=outcome["remedy"], msg=message)

    def _step(self, step, **arguments):
        return self._execute_module(
            module_name=MODULE, module_args=dict(arguments, step=step, token=self._token), task_vars=self._vars
        )

    def _directory(self):
        return self._loader.get_basedir()


# the connection ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _impatient(connection, seconds):
    """A connection that notices a dead machine within a few times C(seconds). Restores the options at the end."""
    saved = []
    _reset(connection)  # with the options that started the current master
    for name, change in IMPATIENT_OPTIONS:
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
    """Close what the connection keeps open, if its plugin supports that."""
    if getattr(type(connection), "reset", None) in (None, ConnectionBase.reset):
        return
    try:
        with bounded(RESET_BOUND):
            connection.reset()
    except NO_ANSWER as error:
        display.vvv("%s: reset: %s" % (MODULE, error))


# failures ------------------------------------------------------------------------------------------------------------


def _blocked(blockers):
    """The failure before the hibernation; the verdict is C(inhibited) only if all blockers are inhibitors."""
    inhibited = all(blocker["code"] == INHIBITED for blocker in blockers)
    return {
        "verdict": "inhibited" if inhibited else "never_slept",
        "code": blockers[0]["code"],
        "remedy": blockers[0]["remedy"],
        "msg": "The machine was not hibernated. "
        + " ".join("%s %s" % (blocker["message"], blocker["remedy"]) for blocker in blockers),
    }


def _failure(answer):
    """A failed module run, as a result of this plugin."""
    names = ("code", "remedy", "exception", "module_stdout", "module_stderr", "rc")
    kept = {name: answer[name] for name in names if name in answer}
    return dict(kept, failed=True, msg=answer.get("msg", "The module failed without a message."))
