# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a hibernation that run on the machine. The module C(hibernate) runs one step per call.

The action plugin calls them in this order: C(prepare) looks for blockers and writes the marker, C(start) has systemd
hibernate the machine, C(check) observes the machine afterwards and returns the verdict. One run is one thread.
"""

from __future__ import annotations

import json
import time

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.inhibitors import (
    LOGIND,
    holders,
    only_own_session_inhibits,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.readiness import blockers as find_blockers
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.observation import journal, kernel_log, observe
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.status import (
    BOOT_ID,
    SERVICE,
    marker_path,
    parse_units,
    unit_name,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.verdict import (
    INHIBITED,
    INHIBITED_EXIT,
    decide,
    gain,
)

HOOK_SECONDS = 15  # how long a check waits for systemd's post-resume hooks before it returns "pending"
LOG_LINES = 20  # of the kernel log, in the result


def prepare(host, device, token, skip=(), ignore_inhibitors=False, check_mode=False, clock=time.clock_gettime):
    """Look for blockers and, if there are none, write the marker. Returns C({boot_id, blockers, marker}).

    The marker is C({boot_id, boottime, monotonic, realtime, invocation, sequence}). The controller keeps it, and a file in
    /run holds it together with the token. /run is memory: a cold boot loses the file, and an older image does not have it.
    """
    skip = tuple(skip) + ((INHIBITED,) if ignore_inhibitors else ())
    blockers = [dict(blocker) for blocker in find_blockers(host, device, skip=skip)]
    if any(blocker["code"] == INHIBITED for blocker in blockers) and only_own_session_inhibits(host):
        blockers = [blocker for blocker in blockers if blocker["code"] != INHIBITED]
    boot_id = host.attribute(BOOT_ID, "")
    if blockers or check_mode:
        return {"boot_id": boot_id, "blockers": blockers, "marker": None}
    service = parse_units(host.run(["systemctl", "show", SERVICE, "--property=Id,InvocationID"]).out).get(SERVICE, {})
    log = kernel_log(host)
    marker = {
        "boot_id": boot_id,
        "boottime": clock(time.CLOCK_BOOTTIME),
        "monotonic": clock(time.CLOCK_MONOTONIC),
        "realtime": clock(time.CLOCK_REALTIME),
        "invocation": service.get("InvocationID", ""),
        "sequence": log[-1][0] if log else -1,
    }
    host.replace(marker_path(token), json.dumps(dict(marker, token=token), sort_keys=True) + "\n", mode=0o600)
    return {"boot_id": boot_id, "blockers": [], "marker": marker}


def start(host, token, ignore_inhibitors=False):
    """Have systemd hibernate the machine after one second, from a transient unit, so that this step can return first.

    The unit runs C(systemctl hibernate), so that delay inhibitors and sleep hooks run as usual. Block inhibitors are
    checked just before, by the unit itself: up to systemd 256 logind lets root override them, and
    C(--check-inhibitors=yes) also refuses for another user's login, which with C(become) is our own SSH session. An
    inhibitor of our session (PAM) ends with the session, so the unit waits a few seconds for that.

    After= makes systemd keep the record of systemd-hibernate.service while this unit exists. Otherwise systemd drops the
    record as soon as the service has succeeded.
    """
    host.run(
        [
            "systemd-run",
            "--quiet",
            "--no-ask-password",
            "--unit=" + unit_name(token),
            "--description=Hibernate, requested by nvm.fastboot.hibernate",
            "--property=RemainAfterExit=yes",
            "--property=After=" + SERVICE,
            "/bin/sh",
            "-c",
            start_script(ignore_inhibitors),
        ]
    )


def start_script(ignore_inhibitors):
    """The shell script of the transient unit."""
    if ignore_inhibitors:
        return "sleep 1; exec systemctl hibernate -i"
    # No dollar sign: systemd would expand it before the shell does.
    return (
        "sleep 1; for attempt in 1 2 3 4 5 6; do "
        "busctl get-property %s BlockInhibited | grep -q '[\":]sleep[\":]' || exec systemctl hibernate; "
        "sleep 1; done; echo 'A sleep inhibitor is active.'; exit %d" % (" ".join(LOGIND), INHIBITED_EXIT)
    )


def check(host, device, token, marker, patience=HOOK_SECONDS, clock=time.clock_gettime, sleep=time.sleep):
    """Observe the machine, wait up to C(patience) seconds while the attempt is in progress, and return the verdict.

    Returns C({state, verdict, code, message, remedy, boot_id, slept, blockers, kernel}); C(slept) in seconds by the
    machine's own clocks, C(kernel) the log lines that the verdict is based on. After the end, removes unit and marker.
    """
    seen, verdict = _wait_for_end(host, token, marker, patience, clock, sleep)
    if verdict.verdict == "never_slept" and not seen.journal:
        seen.journal = journal(host, token, marker)
        verdict = decide(marker, seen)
    if verdict.code == INHIBITED:
        held = holders(host)
        verdict.message += " Held by: %s." % "; ".join(held) if held else ""
    lost = verdict.verdict == "cold_booted"
    if verdict.state == "ended":
        _clean_up(host, token, seen)
    return {
        "state": verdict.state,
        "verdict": verdict.verdict,
        "code": verdict.code,
        "message": verdict.message,
        "remedy": verdict.remedy,
        "boot_id": seen.boot_id,
        "slept": None if lost else round(gain(marker, seen), 1),
        "blockers": _blockers_after(host, device) if lost else [],
        "kernel": [line for line in seen.log if "PM: " in line or "inconsistent memory map" in line][-LOG_LINES:],
    }


def _wait_for_end(host, token, marker, patience, clock, sleep):
    """The last Observation and the Verdict on it."""
    until = clock(time.CLOCK_MONOTONIC) + patience
    while True:
        seen = observe(host, token, marker, clock)
        verdict = decide(marker, seen)
        if verdict.state == "ended" or clock(time.CLOCK_MONOTONIC) >= until:
            return seen, verdict
        sleep(1)


def _blockers_after(host, device):
    """The blockers of the next hibernation, which may explain a cold boot. A machine that just booted may not know all."""
    try:
        return [dict(blocker) for blocker in find_blockers(host, device)]
    except Refused as refused:
        return [refused.as_dict()]


def _clean_up(host, token, seen):
    host.remove(marker_path(token))
    state = seen.unit.get("ActiveState")
    if state in ("active", "failed"):
        host.run(["systemctl", "stop" if state == "active" else "reset-failed", unit_name(token)], ok=None)
