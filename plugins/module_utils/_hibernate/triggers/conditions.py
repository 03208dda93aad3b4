# SPDX-License-Identifier: GPL-3.0-or-later
"""The conditions of a trigger as a table: the option each needs, the checks, and the files.

Adding a condition takes one row in C(CONDITIONS). systemd-logind acts by itself on an idle machine and on the power key;
for the other conditions a timer starts a service, whose C(ExecCondition=) decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers import units

LONG_PRESS_SINCE = 251  # systemd's NEWS: HandlePowerKeyLongPress=


@dataclass(frozen=True)
class Trigger:
    """The trigger to set up. C(condition) is None where only C(name) matters (C(state: absent))."""

    name: str
    condition: str | None = None
    schedule: str | None = None
    idle: str | None = None
    battery_percent: int = 10
    ups: str | None = None
    press: str = "short"


@dataclass(frozen=True)
class Condition:
    """A row of the table. The functions raise Refused."""

    needs: str | None  # the option without which the condition has no meaning
    files: Callable[[Trigger], dict]  # {path: text}
    validate: Callable[[Host, Trigger], None] | None = None  # runs commands; called only before a change
    require: Callable[[Host, Trigger], None] | None = None  # runs no command; called every time
    warn: Callable[[Host], list] | None = None  # returns texts


# names and values -----------------------------------------------------------------------------------------------------

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")  # part of unit and file names
SAFE = {  # values that need no quoting in a unit file, without specifiers and line breaks
    "schedule": re.compile(r"[A-Za-z0-9 *:.,/~_+-]{1,200}\Z"),  # systemd.time(7), time zones included
    "idle": re.compile(r"[A-Za-z0-9 .]{1,60}\Z"),
    "ups": re.compile(r"[A-Za-z0-9_.-]{1,60}(@[A-Za-z0-9_.:\[\]-]{1,120})?\Z"),  # upsc(8): name[@host[:port]]
}


def check_name(trigger):
    """Refused C(name_invalid) for a name that cannot be part of a unit's name."""
    if not NAME.match(trigger.name):
        raise Refused(
            "name_invalid",
            "%r is not a valid trigger name: the name becomes part of the name of a systemd unit." % trigger.name,
            "Use at most 64 lower-case letters, digits, '-' and '_', and start with a letter or digit.",
        )


def check_options(trigger):
    """Refused C(battery_percent_invalid), C(option_missing) or C(OPTION_invalid)."""
    if not 1 <= trigger.battery_percent <= 99:
        raise Refused(
            "battery_percent_invalid",
            "battery_percent is %d; the valid range is 1 to 99." % trigger.battery_percent,
            "Set battery_percent to a value from 1 to 99.",
        )
    option = CONDITIONS[trigger.condition].needs
    if option is None:
        return
    value = getattr(trigger, option)
    if not value:
        raise Refused(
            "option_missing",
            "The condition '%s' requires the option '%s'." % (trigger.condition, option),
            "Set '%s'; the module's documentation has an example." % option,
        )
    if not SAFE[option].match(value):
        raise Refused(
            option + "_invalid",
            "%r is not a valid value of '%s'." % (value, option),
            "The module's documentation describes the syntax.",
        )


def _validated_by_systemd(verb, option, manual):
    """A validator that calls C(systemd-analyze VERB): the parser that also reads the value later."""

    def _validate(host, trigger):
        value = getattr(trigger, option)
        answer = host.run(["systemd-analyze", verb, value], ok=None)
        if answer.rc != 0:
            raise Refused(
                option + "_invalid",
                "systemd cannot parse %s %r: %s." % (option, value, (answer.err or answer.out).strip()),
                "See %s. Run 'systemd-analyze %s' to test a value." % (manual, verb),
            )

    return _validate


def _require_long_press(host, trigger):
    if trigger.press != "long":
        return
    match = re.match(r"systemd (\d+)", host.run(["systemctl", "--version"]).out)
    version = int(match.group(1)) if match else 0
    if version < LONG_PRESS_SINCE:
        raise Refused(
            "systemd_too_old",
            "systemd %s does not distinguish a long press of the power key." % (version or "(unknown version)"),
            "Set 'press: short', or upgrade to systemd %d or later." % LONG_PRESS_SINCE,
        )


def _require_upsc(host, trigger):
    if host.which("upsc") is None:
        raise Refused(
            "upsc_missing",
            "The condition 'ups' reads the state of %s with 'upsc', which is not installed." % trigger.ups,
            "Install Network UPS Tools (Debian: nut-client) and configure it, or use the condition 'battery', which uses "
            "UPower.",
        )


def _warn_battery(host):
    if host.which("upower") is not None:
        return []
    for supply in host.glob("/sys/class/power_supply/*"):
        system = host.attribute(supply + "/scope") != "Device"
        if system and host.attribute(supply + "/type") in ("Battery", "UPS"):
            return []
    return ["The kernel detects no battery and UPower is not installed: this trigger never hibernates the machine."]


def _warn_ups(host):
    """upsmon(8) acts on a low battery too, at about the same moment."""
    settings = (host.read("/etc/nut/upsmon.conf") or "").splitlines()
    command = [line for line in settings if line.split()[:1] == ["SHUTDOWNCMD"]]
    if not command or "hibernate" in command[-1]:
        return []
    return [
        "upsmon shuts the machine down when the UPS reports a low battery (%s in /etc/nut/upsmon.conf). Set battery_percent "
        "well above the UPS's battery.charge.low, or set SHUTDOWNCMD to 'systemctl hibernate'." % command[-1].strip()
    ]


def _warn_acpid(host):
    """acpid reads the same button; Debian's own rule powers the machine off."""
    rules = host.glob("/etc/acpi/events/powerbtn*")
    if not rules:
        return []
    return ["acpid handles the power key too (%s). Remove that rule, or both act on each press." % ", ".join(rules)]


# the files ------------------------------------------------------------------------------------------------------------


def _schedule_files(trigger):
    arguments = 'schedule "%s"' % trigger.schedule
    return units.timed(trigger.name, trigger.schedule, arguments, units.CALENDAR % trigger.schedule)


def _idle_files(trigger):
    return units.logind(trigger.name, [("IdleAction", "hibernate"), ("IdleActionSec", trigger.idle)])


def _low_power_files(trigger, title, arguments):
    """With C(-i), because power fails whether or not sleep is inhibited."""
    return units.timed(trigger.name, title, arguments, units.POLL, flags=" -i", log=units.QUIET)


def _battery_files(trigger):
    percent = trigger.battery_percent
    return _low_power_files(trigger, "battery at %d percent" % percent, "battery %d" % percent)


def _ups_files(trigger):
    arguments = "ups %s %d" % (trigger.ups, trigger.battery_percent)
    return _low_power_files(trigger, "UPS %s low" % trigger.ups, arguments)


def _power_key_files(trigger):
    setting = "HandlePowerKeyLongPress" if trigger.press == "long" else "HandlePowerKey"
    return units.logind(trigger.name, [(setting, "hibernate")])


CONDITIONS = {
    "schedule": Condition(
        needs="schedule",
        files=_schedule_files,
        validate=_validated_by_systemd("calendar", "schedule", "systemd.time(7), CALENDAR EVENTS"),
    ),
    "idle": Condition(
        needs="idle",
        files=_idle_files,
        validate=_validated_by_systemd("timespan", "idle", "systemd.time(7), PARSING TIME SPANS"),
    ),
    "battery": Condition(needs=None, files=_battery_files, warn=_warn_battery),
    "ups": Condition(needs="ups", files=_ups_files, require=_require_upsc, warn=_warn_ups),
    "power_key": Condition(needs=None, files=_power_key_files, validate=_require_long_press, warn=_warn_acpid),
}
