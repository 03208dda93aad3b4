# SPDX-License-Identifier: GPL-3.0-or-later
"""Set a trigger up or remove it: compare the files, change those that differ, and have systemd read them.

If the state is right already, no command runs. A step that fails reverts the earlier ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._core.part import STATE, Part
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import sleep_policy
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers import conditions, units
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.conditions import Trigger
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.script import SCRIPT


@dataclass
class Outcome:
    """The result of a run: the transaction's diff, the files of the trigger, and warnings for the user."""

    changed: bool
    diff: list
    files: list
    warnings: list = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The difference between the machine and the requested state of the trigger C(name)."""

    name: str
    wanted: dict  # {path: text} of the trigger's files; empty to remove the trigger
    stale: dict  # {path: text, or None to remove the file} of the files that differ
    enable: bool  # the timer is not enabled, and has to be
    disable: bool  # there is a timer, and must not be

    @property
    def is_empty(self):
        return not (self.stale or self.enable or self.disable)

    @property
    def changes_units(self):
        return self.disable or any(path.startswith(units.UNITS + "/") for path in self.stale)

    @property
    def changes_logind(self):
        return units.drop_in_path(self.name) in self.stale

    @property
    def starts_timer(self):
        return units.timer_path(self.name) in self.wanted and (self.enable or self.changes_units)

    @property
    def removes_script(self):
        return SCRIPT in self.stale and SCRIPT not in self.wanted


def apply_all(host, options, present, check_mode):
    """Apply the module's options to one trigger, or, to remove triggers without a name, to all on the machine.

    Returns the module's result.
    """
    name = options["name"] or options["condition"]
    names = [name] if name else units.installed(host)
    outcomes = [apply(host, Trigger(**dict(options, name=name)), present, check_mode) for name in names]
    return {
        "changed": any(outcome.changed for outcome in outcomes),
        "diff": [change for outcome in outcomes for change in outcome.diff],
        "names": names,
        "files": [path for outcome in outcomes for path in outcome.files],
        "warnings": [text for outcome in outcomes for text in outcome.warnings],
    }


def apply(host, trigger, present=True, check_mode=False):
    """Bring the trigger into the state C(present), or absent. Returns an Outcome; raises Refused."""
    conditions.check_name(trigger)
    if not present:
        return _apply(host, make_plan(host, trigger.name, {}), check_mode, [])
    conditions.check_options(trigger)
    sleep_policy.check(host)
    condition = conditions.CONDITIONS[trigger.condition]
    if condition.require:
        condition.require(host, trigger)
    warnings = condition.warn(host) if condition.warn else []
    plan = make_plan(host, trigger.name, condition.files(trigger))
    warnings = warnings + _overridden(host, plan)
    if condition.validate and not plan.is_empty:
        condition.validate(host, trigger)
    return _apply(host, plan, check_mode, warnings)


def _overridden(host, plan):
    """A warning for each setting of the plan's drop-in of logind.conf that a file read later sets to another value."""
    path = units.drop_in_path(plan.name)
    effective = sleep_policy.settings(host, "logind.conf", "[Login]")
    warnings = []
    for line in plan.wanted.get(path, "").splitlines():
        name, _equals, value = line.partition("=")
        other = effective.get(name)
        later = other and other.path.split("/")[-2] == "logind.conf.d" and os.path.basename(other.path) > os.path.basename(path)
        if later and other.value != value:
            warnings.append("%s=%s in %s overrides this trigger, which does nothing. Remove that line." % (
                name, other.value, other.place))
    return warnings


def make_plan(host, name, wanted):
    """The Plan that gives the trigger C(name) the files C(wanted), and no others."""
    timer, link = units.timer_path(name), units.timer_link(name)
    contents = {path: wanted.get(path) for path in (units.service_path(name), timer, units.drop_in_path(name))}
    if SCRIPT in wanted or not units.used_by_others(host, name):
        contents = dict({SCRIPT: wanted.get(SCRIPT)}, **contents)
    return Plan(
        name=name,
        wanted=wanted,
        stale={path: text for path, text in contents.items() if host.read(path) != text},
        enable=timer in wanted and not host.exists(link),
        disable=timer not in wanted and (host.exists(link) or host.exists(timer)),
    )


def _apply(host, plan, check_mode, warnings):
    files = sorted(plan.wanted)
    if plan.is_empty:
        return Outcome(False, [], files, warnings)
    with Transaction(host, check_mode) as transaction:
        if plan.enable or plan.disable:
            states = ("enabled", "disabled") if plan.disable else ("disabled", "enabled")
            transaction.note(units.timer_unit(plan.name), *states)
        if check_mode:
            _write(transaction, plan)
        else:
            _change(transaction, plan)
    return Outcome(transaction.changed, transaction.diff, files, warnings)


def _change(transaction, plan):
    """The commands around the writing of the files."""
    host, name = transaction.host, plan.name
    # Registered first, so called last: after the files are restored.
    transaction.on_failure(lambda: _reload(host, plan, ok=None))
    if plan.disable:
        _disable(host, name)
        transaction.on_failure(lambda: _enable(host, name, ok=None))
    _write(transaction, plan)
    _reload(host, plan, ok=(0,) if plan.wanted else None)
    if plan.starts_timer:
        if plan.enable:
            transaction.on_failure(lambda: _disable(host, name))
        _enable(host, name)
    if plan.removes_script:
        _remove_if_empty(host, os.path.dirname(SCRIPT))


def _write(transaction, plan):
    for path, text in plan.stale.items():
        transaction.write(path, text, 0o755 if path == SCRIPT else 0o644)


def _enable(host, name, ok=(0,)):
    """Enable and restart the timer: a timer reads a changed time only when started."""
    host.run(["systemctl", "enable", units.timer_unit(name)], ok=ok)
    host.run(["systemctl", "restart", units.timer_unit(name)], ok=ok)


def _disable(host, name):
    host.run(["systemctl", "disable", "--now", units.timer_unit(name)], ok=None)


def _reload(host, plan, ok):
    """Have systemd read the unit files, and logind its configuration.

    logind reads its configuration again on SIGHUP (src/login/logind.c, manager_dispatch_reload_signal, in Debian's 252
    and 257) and keeps all sessions. C(systemctl reload) needs ExecReload=, which its unit does not have in 252.
    """
    if plan.changes_units:
        host.run(["systemctl", "daemon-reload"], ok=ok)
    if plan.changes_logind:
        host.run(["systemctl", "kill", "--signal=HUP", "systemd-logind.service"], ok=ok)


def _remove_if_empty(host, directory):
    try:
        os.rmdir(host.path(directory))
    except OSError:
        pass  # not empty


def _part(transaction, params):
    """apply_all() as a part: each trigger undoes its own changes, and C(transaction) is told of them."""
    options = {name: value for name, value in params.items() if name != "state"}
    result = apply_all(transaction.host, options, params["state"] == "present", transaction.check_mode)
    transaction.diff.extend(result.pop("diff"))
    return result


PART = Part(
    {
        "condition": {"type": "str", "choices": list(conditions.CONDITIONS)},
        "name": {"type": "str"},
        "schedule": {"type": "str"},
        "idle": {"type": "str"},
        "battery_percent": {"type": "int", "default": 10},
        "ups": {"type": "str"},
        "press": {"type": "str", "choices": ["short", "long"], "default": "short"},
        "state": STATE,
    },
    _part,
    required_if=(("state", "present", ("condition",)),),
)
