# SPDX-License-Identifier: GPL-3.0-or-later
"""Who keeps the machine from sleeping: systemd-logind's inhibitors.

Used by _survey.py (what blocks a hibernation) and by _hibernate.py (who blocked one, and whether it was us).
org.freedesktop.login1(5), Manager.ListInhibitors.
"""
from __future__ import annotations

import json
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")


@dataclass(frozen=True)
class Inhibitor:
    """One lock, as logind tells it: C(what) is a colon-separated list, C(mode) is block, block-weak or delay."""

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
    """Every Inhibitor there is. Refused C(unknown_inhibitors) where logind does not answer.

    logind keeps a file for each in a directory of its own, whose form is private; that it is empty is enough to know
    that there is nothing to ask about.
    """
    if all(path.endswith(".ref") for path in host.glob("/run/systemd/inhibit/*")):
        return []
    answer = host.run(["busctl", "--json=short", "call", *LOGIND, "ListInhibitors"], ok=None)
    try:
        return [Inhibitor(*entry) for entry in json.loads(answer.out)["data"][0]]
    except (ValueError, LookupError, TypeError):
        raise Refused(
            "unknown_inhibitors",
            "systemd-logind did not say who inhibits sleep: %s" % ((answer.err or answer.out).strip() or "no answer"),
            "See systemctl status systemd-logind.",
        ) from None
