# SPDX-License-Identifier: GPL-3.0-or-later
"""Sleep inhibitors of systemd-logind, and the login session that each belongs to.

Source: org.freedesktop.login1(5), Manager.ListInhibitors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
UNSET_SESSION = 4294967295  # include/linux/audit.h AUDIT_SID_UNSET


@dataclass(frozen=True)
class Inhibitor:
    """One lock as logind reports it: C(what) is a colon-separated list, C(mode) is block, block-weak or delay."""

    what: str
    who: str
    why: str
    mode: str
    uid: int
    pid: int

    @property
    def blocks_sleep(self):
        return self.mode == "block" and "sleep" in self.what.split(":")


def inhibitors(host):
    """All inhibitors. Refused C(unknown_inhibitors) if logind does not answer.

    logind keeps a file per inhibitor in a directory. The format is private, but if the directory is empty, there are no
    inhibitors, and logind need not be asked.
    """
    if all(path.endswith(".ref") for path in host.glob("/run/systemd/inhibit/*")):
        return []
    answer = host.run(["busctl", "--json=short", "call", *LOGIND, "ListInhibitors"], ok=None)
    try:
        return [Inhibitor(*entry) for entry in json.loads(answer.out)["data"][0]]
    except (ValueError, LookupError, TypeError):
        raise Refused(
            "unknown_inhibitors",
            "systemd-logind did not list the inhibitors: %s" % ((answer.err or answer.out).strip() or "no answer"),
            "See systemctl status systemd-logind.",
        ) from None


def sleep_inhibitors(host):
    """The inhibitors that block sleep."""
    return [lock for lock in inhibitors(host) if lock.blocks_sleep]


def only_own_session_inhibits(host):
    """Whether all sleep inhibitors belong to the login session of this process.

    Some PAM configurations take an inhibitor for each SSH login.
    """
    locks = sleep_inhibitors(host)
    own = _session(host, "self")
    return bool(locks) and own is not None and all(_session(host, lock.pid) == own for lock in locks)


def holders(host):
    """The holders of sleep inhibitors, as texts for a message; empty if logind does not answer."""
    try:
        return ["%s (PID %s): %s" % (lock.who, lock.pid, lock.why) for lock in sleep_inhibitors(host)]
    except Refused:
        return []


def _session(host, pid):
    """A name of the login session of a process: the session's scope in its cgroup, or its audit session; or None."""
    scope = re.search(r"/session-([^/]+)\.scope", host.read("/proc/%s/cgroup" % pid, ""))
    if scope:
        return "scope " + scope.group(1)
    session = host.attribute("/proc/%s/sessionid" % pid, "")
    return "audit " + session if session.isdigit() and int(session) != UNSET_SESSION else None
