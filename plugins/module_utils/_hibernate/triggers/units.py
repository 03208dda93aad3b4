# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a trigger: where they are, and their text.

A trigger is either a service and a timer with the script, or a drop-in of C(logind.conf). Pure functions, except
C(installed), which lists a machine's files.
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.script import SCRIPT, SCRIPT_TEXT

UNITS = "/etc/systemd/system"
WANTS = UNITS + "/timers.target.wants"
DROP_INS = "/etc/systemd/logind.conf.d"
HEADER = "# Written by the Ansible module nvm.fastboot.hibernate_trigger; changes here are overwritten.\n"

SERVICE = """\
[Unit]
Description=Hibernate ({title})
Documentation=man:systemd.special(7)

[Service]
Type=oneshot
ExecCondition={script} {arguments}
ExecStart=systemctl hibernate{flags}
{log}"""

TIMER = """\
[Unit]
Description=Check whether to hibernate ({title})

[Timer]
{when}
[Install]
WantedBy=timers.target
"""

CALENDAR = "OnCalendar=%s\nAccuracySec=1s\nPersistent=false\nWakeSystem=false\n"
POLL = "OnBootSec=1min\nOnUnitActiveSec=30s\nAccuracySec=5s\n"
# LogLevelMax= also limits the manager's own messages about a unit: a check every 30 seconds must not fill the journal.
QUIET = "LogLevelMax=notice\n"


def service_path(name):
    return "%s/nvm-fastboot-%s.service" % (UNITS, name)


def timer_unit(name):
    return "nvm-fastboot-%s.timer" % name


def timer_path(name):
    return "%s/%s" % (UNITS, timer_unit(name))


def timer_link(name):
    """The symbolic link that C(systemctl enable) creates."""
    return "%s/%s" % (WANTS, timer_unit(name))


def drop_in_path(name):
    return "%s/50-nvm-fastboot-%s.conf" % (DROP_INS, name)


def installed(host):
    """The names of the triggers on C(host), sorted, taken from the names of their files."""
    patterns = (
        (service_path("*"), r"nvm-fastboot-(.+)\.service$"),
        (drop_in_path("*"), r"50-nvm-fastboot-(.+)\.conf$"),
    )
    names: set[str] = set()
    for paths, pattern in patterns:
        matches = [re.match(pattern, os.path.basename(path)) for path in host.glob(paths)]
        names.update(match.group(1) for match in matches if match)
    return sorted(names)


def used_by_others(host, name):
    """Whether a service other than that of the trigger C(name) uses the script."""
    services = host.glob(service_path("*"))
    return any(SCRIPT in (host.read(path) or "") for path in services if path != service_path(name))


def timed(name, title, arguments, when, flags="", log=""):
    """C({path: text}) of a trigger with a timer: the script, the service and the timer."""
    service = SERVICE.format(title=title, script=SCRIPT, arguments=arguments, flags=flags, log=log)
    return {
        SCRIPT: SCRIPT_TEXT,
        service_path(name): HEADER + service,
        timer_path(name): HEADER + TIMER.format(title=title, when=when),
    }


def logind(name, settings):
    """C({path: text}) of a trigger that systemd-logind watches itself; C(settings) as in logind.conf(5)."""
    lines = ["[Login]"] + ["%s=%s" % item for item in settings]
    return {drop_in_path(name): HEADER + "\n".join(lines) + "\n"}
