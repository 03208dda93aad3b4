# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of one hibernation on the machine, and their state as C(systemctl show) prints it.

A token, chosen at random by the controller, names the hibernation: its transient unit and its marker file. Pure
functions, for the machine and for the controller.
"""

from __future__ import annotations

import re

BOOT_ID = "/proc/sys/kernel/random/boot_id"
SERVICE = "systemd-hibernate.service"


def unit_name(token):
    """The transient unit that requests the hibernation."""
    return "nvm-fastboot-hibernate-%s.service" % token


def marker_path(token):
    return "/run/nvm-fastboot/hibernate-%s" % token


def properties(token):
    """The arguments of C(systemctl show) for both units."""
    return [SERVICE, unit_name(token), "--property=Id,ActiveState,SubState,Result,InvocationID,ExecMainStatus"]


def status_command(token):
    """The shell command with which the controller reads boot id and units, without Python and without root."""
    return "cat %s && systemctl show %s" % (BOOT_ID, " ".join(properties(token)))


def parse_status(text):
    """C((boot id, units by name)) from the output of C(status_command); the boot id is '' if the output has none."""
    text = text.replace("\r", "")
    boot_id = re.search(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", text, re.MULTILINE)
    return (boot_id.group(), parse_units(text[boot_id.end() :])) if boot_id else ("", {})


def parse_units(text):
    """C({unit name: {property: value}}) from the output of C(systemctl show), with blank lines between the units."""
    units = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            units[values["Id"]] = values
    return units


def has_ended(service, unit, invocation):
    """Whether the attempt is over: refused, or the service ran since C(invocation) and stopped."""
    if unit.get("ActiveState") == "failed":
        return True
    return has_run(service, invocation) and service.get("ActiveState") in ("inactive", "failed")


def has_run(service, invocation):
    """Whether the service was started since C(invocation)."""
    return service.get("InvocationID", "") not in ("", invocation)
