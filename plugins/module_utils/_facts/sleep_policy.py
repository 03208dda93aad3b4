# SPDX-License-Identifier: GPL-3.0-or-later
"""What the system's own configuration allows: sleep.conf, masked units, and logind's answer. Nothing here changes anything.

A machine whose administrator forbade hibernation is otherwise ready, and fails with "Access denied" (logind refuses to start
a unit that is not loaded) or "Sleep verb 'hibernate' is not configured". All but C(can_hibernate) reads files only.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import string
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.inhibitors import LOGIND

# systemd, src/basic/constants.h: CONF_PATHS. A file replaces one of the same name in a later directory.
CONFIGURATION = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
NO = ("no", "n", "false", "f", "off", "0")  # src/basic/parse-util.c, parse_boolean()
# systemctl hibernate starts the first, which requires the second, which requires the third.
SERVICE = "systemd-hibernate.service"
UNITS = ("hibernate.target", SERVICE, "sleep.target")
# systemd.unit(5), unit search path: the first file found is the unit.
UNIT_DIRECTORIES = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)
# How a unit that is masked in that directory gets back; {unit}, {path}.
UNMASK = {
    "/etc/systemd/system": "run: systemctl unmask {unit}",
    "/run/systemd/system": "run: systemctl unmask --runtime {unit}",
    # systemd.mask= (systemd-debug-generator(8))
    "/run/systemd/generator.early": "remove systemd.mask={unit} from the kernel command line in the bootloader's settings, and reboot.",
    "/usr/lib/systemd/system": "install the package of {path} again (Debian: apt-get install --reinstall systemd).",
    "/lib/systemd/system": "install the package of {path} again (Debian: apt-get install --reinstall systemd).",
}
UNMASK_ELSEWHERE = "remove {path} and run: systemctl daemon-reload"
SWAP_OFF = tuple("systemd.swap=" + value for value in NO)  # systemd-fstab-generator(8)
# Answers of CanHibernate that say no more than that there are inhibitors (systemd 260), which are looked at apart.
ALLOWED = ("yes", "inhibited", "inhibitor-blocked")
ASK = "busctl call %s CanHibernate" % " ".join(LOGIND)


@dataclass(frozen=True)
class Setting:
    """A setting of sleep.conf(5) or logind.conf(5), with the place that sets it."""

    value: str
    path: str
    line: int

    @property
    def place(self):
        return "%s, line %d" % (self.path, self.line)


def settings(host, file="sleep.conf", wanted="[Sleep]"):
    """The settings in section C(wanted) of a file of systemd and its drop-ins: {name: Setting}; the last assignment counts."""
    found = {}
    for path in _files(host, file):
        section = None
        for number, text in enumerate((host.read(path) or "").splitlines(), 1):
            line = text.strip()
            if line.startswith("["):
                section = line
            name, equals, value = line.partition("=")
            if equals and section == wanted and not line.startswith(("#", ";")):
                found[name.strip()] = Setting(value.strip(), path, number)
    return found


def _files(host, file):
    """The main file, the first that exists (before systemd 254, in /etc alone), and the drop-ins, by name."""
    main = [path for path in ("%s/systemd/%s" % (directory, file) for directory in CONFIGURATION) if host.exists(path)]
    drop_ins: dict[str, str] = {}
    for directory in CONFIGURATION:
        for path in host.glob("%s/systemd/%s.d/*.conf" % (directory, file)):
            drop_ins.setdefault(os.path.basename(path), path)
    return main[:1] + [drop_ins[name] for name in sorted(drop_ins)]


def masked(host):
    """A Refused C(sleep_masked) for each unit of a hibernation that is masked: a link to /dev/null, or an empty file."""
    return [_masked(unit, directory) for unit in UNITS for directory in [_masking(host, unit)] if directory]


def _masking(host, unit):
    """The directory in which C(unit) is masked, or None."""
    for directory in UNIT_DIRECTORIES:
        path = "%s/%s" % (directory, unit)
        if host.exists(path):
            empty = host.real(path) == "/dev/null" or host.read_bytes(path, size=1) == b""
            return directory if empty else None
    return None


def _masked(unit, directory):
    return Refused(
        "sleep_masked",
        "%s is masked (%s/%s), so systemd refuses to hibernate: 'Access denied'." % (unit, directory, unit),
        "If this machine is to hibernate, %s" % _unmask(unit, directory),
    )


def _unmask(unit, directory):
    return UNMASK.get(directory, UNMASK_ELSEWHERE).format(unit=unit, path="%s/%s" % (directory, unit))


def swap_off(host, paths):
    """C((why, remedy)) if systemd does not take a swap area with one of the names C(paths) into use at boot, as clauses, or None."""
    word = next((word for word in host.read("/proc/cmdline", "").split() if word.lower() in SWAP_OFF), None)
    if word:
        return "%s is on the kernel command line" % word, "remove it from the bootloader's settings, and reboot"
    for unit in ["swap.target"] + ["%s.swap" % _escaped(path) for path in paths]:
        directory = _masking(host, unit)
        if directory:
            return "%s is masked (%s/%s)" % (unit, directory, unit), _unmask(shlex.quote(unit), directory).rstrip(".")
    return None


def _escaped(path):
    """C(path) in the name of a unit (systemd.unit(5), "String escaping for inclusion in unit names")."""
    kept = {ord(letter): letter for letter in string.ascii_letters + string.digits + ":_."}
    return "".join({**kept, ord("/"): "-"}.get(byte, "\\x%02x" % byte) for byte in path.strip("/").encode("utf-8", "surrogateescape"))


def disallowed(host):
    """A Refused C(sleep_disallowed) where sleep.conf forbids hibernation; src/shared/sleep-config.c, parse_sleep_config()."""
    setting = settings(host).get("AllowHibernation")
    if setting is None or setting.value.lower() not in NO:
        return []
    return [Refused(
        "sleep_disallowed",
        "systemd is configured not to hibernate: AllowHibernation=%s in %s." % (setting.value, setting.place),
        "If this machine is to hibernate, %s" % _instead(setting),
    )]


def _instead(setting):
    if setting.path.startswith(("/etc/", "/run/")):
        return "remove that line."
    return (
        "override that file, which belongs to a package: write the two lines [Sleep] and AllowHibernation=yes to "
        "/etc/systemd/sleep.conf.d/zz-hibernation.conf."
    )


def replaced(host):
    """A Refused C(sleep_replaced) where systemd-hibernate.service runs another program than systemd-sleep, such as s2disk.

    Its image is in another format, or it makes none; the checks of this collection are of the kernel's.
    """
    command = None
    for path in _unit_files(host, SERVICE):
        for number, text in enumerate((host.read(path) or "").splitlines(), 1):
            name, equals, value = text.strip().partition("=")
            if equals and name.strip() == "ExecStart":
                command = Setting(value.strip(), path, number)
    if command is None or re.search(r"(^|/)systemd-sleep\s+hibernate$", command.value):
        return []
    return [Refused(
        "sleep_replaced",
        "systemd-hibernate.service does not run systemd-sleep, but '%s' (%s)." % (command.value, command.place),
        "Remove that file, or the package that it belongs to, and run: systemctl daemon-reload",
    )]


def _unit_files(host, unit):
    """The file of C(unit) and its drop-ins, in the order in which systemd reads them (systemd.unit(5))."""
    paths = ["%s/%s" % (directory, unit) for directory in UNIT_DIRECTORIES]
    drop_ins: dict[str, str] = {}
    for directory in UNIT_DIRECTORIES:
        for path in host.glob("%s/%s.d/*.conf" % (directory, unit)):
            drop_ins.setdefault(os.path.basename(path), path)
    return [path for path in paths if host.exists(path)][:1] + [drop_ins[name] for name in sorted(drop_ins)]


def can_hibernate(host):
    """What logind answers to CanHibernate (org.freedesktop.login1(5)); None where systemd or logind does not run.

    Without logind, systemctl starts hibernate.target itself.
    """
    if not host.exists("/run/systemd/system") or host.which("busctl") is None:
        return None
    answer = host.run(["busctl", "--json=short", "--timeout=20", "call", *LOGIND, "CanHibernate"], ok=None)
    try:
        return str(json.loads(answer.out)["data"][0])
    except (ValueError, LookupError, TypeError):
        return None


def check(host):
    """Raises the first Refused of C(masked) and C(disallowed)."""
    refusals = masked(host) + disallowed(host)
    if refusals:
        raise refusals[0]
