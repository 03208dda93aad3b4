# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the machine took to boot, by systemd's own clock, and how its last hibernation ended, which the playbook C(hibernate) notes
in the journal.

The phases are those of systemd-analyze(1) (src/analyze/analyze-time-data.c): firmware and loader are before the kernel's clock starts.
A machine that resumed has the times of the boot that its memory is from.
"""
from __future__ import annotations

import json
from datetime import datetime, timezone

IDENTIFIER = "nvm-fastboot-hibernation"  # of the note in the journal (playbooks/hibernate.yml)
PHASES = ("firmware", "loader", "kernel", "initrd", "userspace", "total")
VERDICTS = ("resumed", "cold_booted", "never_slept", "inhibited")
MAX_SECONDS = 7 * 24 * 3600
_PROPERTIES = {  # of the manager, in microseconds
    "FirmwareTimestampMonotonic": "firmware",  # before the kernel
    "LoaderTimestampMonotonic": "loader",  # before the kernel
    "InitRDTimestampMonotonic": "initrd",
    "UserspaceTimestampMonotonic": "userspace",
    "FinishTimestampMonotonic": "finish",
}


def boot_times(host):
    """What the module C(nvm_boot_times) returns. Raises Refused without systemd."""
    shown = host.run([host.tool("systemctl"), "show", "--property=" + ",".join(_PROPERTIES)]).out
    journal = host.run(
        [host.tool("journalctl"), "--quiet", "--output=json", "--lines=1", "SYSLOG_IDENTIFIER=" + IDENTIFIER, "_UID=0"], ok=None
    )
    return {"boot": phases(shown), "last_hibernation": noted(journal.out if journal.rc == 0 else "")}


def phases(shown):
    """Seconds by phase, as far as they are known, from the output of C(systemctl show): C(None) for one that the machine does not
    tell, or that is not over."""
    seconds = {}
    for line in shown.splitlines():
        name, _equals, value = line.partition("=")
        if name in _PROPERTIES and value.isdigit() and int(value):
            seconds[_PROPERTIES[name]] = int(value) / 1e6
    firmware, loader, initrd, userspace, finish = (
        seconds.get(name) for name in ("firmware", "loader", "initrd", "userspace", "finish")
    )
    found = {
        "firmware": _between(loader, firmware),
        "loader": loader,
        "kernel": initrd or userspace,
        "initrd": _between(initrd, userspace),
        "userspace": _between(userspace, finish),
        "total": finish + (firmware or loader or 0) if finish else None,
    }
    return {name: None if found[name] is None else round(found[name], 3) for name in PHASES}


def _between(earlier, later):
    return later - earlier if earlier and later and later >= earlier else None


def noted(line):
    """The last hibernation, from an entry of the journal as JSON: C(verdict), C(seconds) by phase, C(time) (UTC); C(None) if there is
    none, or one that the playbook has not written."""
    try:
        entry = json.loads(line)
        note = json.loads(entry["MESSAGE"])
        time = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, timezone.utc)
        seconds = {str(name): float(value) for name, value in note["seconds"].items() if value is not None}
        known = note["verdict"] in VERDICTS and all(0 <= value <= MAX_SECONDS for value in seconds.values())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, OSError):
        return None
    if not known:
        return None
    return {"verdict": note["verdict"], "seconds": seconds, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ")}
