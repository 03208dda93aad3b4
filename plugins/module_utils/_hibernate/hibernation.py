# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a hibernation that run on the machine itself, and the verdict on whether it slept.

Used by the module C(hibernate), which runs one step per call, and by its action plugin, which strings them together
from the controller: C(prepare) looks for blockers and takes the marker, C(start) hands the hibernation to systemd,
C(check) gathers what the machine knows afterwards. C(decide) turns that into a verdict and touches nothing.

What proves a resume. The kernel copies its memory at one moment; whatever it logs later (the image was created, is
being written, was written: C(swsusp_save) in kernel/power/snapshot.c, C(swsusp_write) in kernel/power/swap.c) is not in
the copy. A memory that holds the marker, has the old boot id, has reached that moment, and knows nothing of what came
after it is the copy, brought back. A memory that does know went on after a failed write. Where the log says nothing
(rotated, or quiet: newer kernels print some of it only with pm_debug_messages), systemd-hibernate.service must have
succeeded since the marker and CLOCK_BOOTTIME must have gained on CLOCK_MONOTONIC, which it does only while the machine
sleeps.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.readiness import blockers as find_blockers
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.inhibitors import LOGIND, inhibitors

OPTIONS = {
    "device": {"type": "path", "default": "/dev/NVM_SWAP"},
    "hibernate_timeout": {"type": "int", "default": 300},
    "resume_timeout": {"type": "int", "default": 600},
    "connect_timeout": {"type": "int", "default": 5},
    "wake_command": {"type": "raw"},
    "wake_delay": {"type": "int", "default": 0},
    "wake_interval": {"type": "int", "default": 5},
    "ignore_inhibitors": {"type": "bool", "default": False},
    "ignore_blockers": {"type": "list", "elements": "str", "default": []},
    "wait": {"type": "bool", "default": True},
}
STEP_OPTIONS = {
    "step": {"type": "str", "choices": ["prepare", "start", "check"]},
    "token": {"type": "str", "no_log": False},
    "marker": {"type": "dict"},
}

BOOT_ID = "/proc/sys/kernel/random/boot_id"
SERVICE = "systemd-hibernate.service"
INHIBITED = "sleep_inhibited"  # the same code whether the readiness check finds it or logind, in the last second
INHIBITED_EXIT = 75  # sysexits.h EX_TEMPFAIL: our own way of saying so from the transient unit
SETTLE_SECONDS = 15  # how long a check waits for systemd's post-resume hooks before it answers "pending"

UNSET_SESSION = 4294967295  # include/linux/audit.h AUDIT_SID_UNSET

# Logged before the memory is copied, or at the latest as part of it (kernel/power/snapshot.c; before 5.6 otherwise).
SNAPSHOT = re.compile(r"PM: (?:hibernation: )?Creating (?:hibernation )?image")
# Logged only by a kernel that went on after the copy, or never meant to sleep (pm_test, a wake-up that rolled it back).
WENT_ON = re.compile(
    r"PM: .*(?:mage created \(|saving image data|Image saving|Wrote \d+ kbytes|rolling back|debug: Waiting for)", re.I
)

# What the kernel (kernel/power), systemd-sleep, logind or systemctl say when it fails, first match wins.
REASONS = (
    (r"inhibit", INHIBITED, "Wait until what it protects is done, or set ignore_inhibitors."),
    (r"Freezing .*(?:failed|aborted)", "freeze_failed", "A process could not be stopped; the kernel log names it."),
    (r"Wakeup event|rolling back", "woken", "A device woke the machine; disarm it in /sys/.../power/wakeup."),
    (
        r"Cannot find swap device|Swap header not found|No (?:swap space|possible swap)|resume device is missing",
        "swap_missing",
        "Turn the swap on the device on and let resume= name it; nvm_info lists what is amiss.",
    ),
    (r"[Nn]ot enough.* swap|No space left", "swap_too_small", "Reserve more, or free memory first."),
    (
        r"Not enough free memory|Memory allocation failed|Cannot allocate memory|Error -12 ",
        "memory",
        "The copy needs as much free memory as it is large; stop something.",
    ),
    (
        r"Write-error|I/O error|Error -\d+ (?:writing|saving)|Input/output error",
        "write_failed",
        "The device did not take the image; the kernel log says where. The memory is as it was.",
    ),
    (
        r"(?:failed|unable) to (?:freeze|suspend|power off|hibernate)|Some devices failed",
        "device_failed",
        "A driver refused; the kernel log names the device.",
    ),
    (
        r"not supported|not configured|No valid 'resume='|resume= is not set|'noresume'|Operation not permitted",
        "not_possible",
        "nvm_info lists what stands in the way.",
    ),
)
# What systemd itself logs of every unit.
ROUTINE = re.compile(
    r"^(?:Starting|Started|Stopped|Finished|Failed to start) "
    r"|: (?:Deactivated|Succeeded|Main process exited|Failed with)"
)
# What a kernel says at boot when it finds an image and does not take it (kernel/power/{snapshot,swap,hibernate}.c).
REJECTIONS = (
    (
        r"PM: .*Image mismatch",
        "image_mismatch",
        "Memory size, memmap= or kernel changed in between. Change them only while no image is pending.",
    ),
    (r"PM: .*Invalid image CRC", "image_damaged", "The device does not give back what was written; check it."),
    (r"inconsistent memory map", "image_mismatch", "The firmware's memory map changed in between."),
    (
        r"PM: .*(?:Failed to load (?:hibernation )?image|resume failed|Error -?\d+ resuming)",
        "image_refused",
        "The kernel log of this boot says why; a driver or a decompressor may be missing in the initramfs.",
    ),
)


@dataclass
class Now:
    """What the machine knows of itself at one moment after the marker."""

    boot_id: str
    boottime: float
    monotonic: float
    marked: bool  # the marker's file is there and holds the token
    service: dict = field(default_factory=dict)  # properties of systemd-hibernate.service
    unit: dict = field(default_factory=dict)  # properties of the transient unit that asked for the hibernation
    log: list = field(default_factory=list)  # the kernel's messages since the marker
    journal: list = field(default_factory=list)  # the journal of both units since the marker


@dataclass
class Verdict:
    """C(state) is C(pending) (still under way: ask again) or C(ended); the rest as the action plugin returns it."""

    state: str
    verdict: str = ""
    code: str = ""
    message: str = ""
    remedy: str = ""


def unit_name(token):
    return "nvm-fastboot-hibernate-%s.service" % token


def marker_path(token):
    return "/run/nvm-fastboot/hibernate-%s" % token


def status_command(token):
    """The shell command with which the controller looks in cheaply, without Python and without root."""
    return "cat %s && systemctl show %s" % (BOOT_ID, " ".join(_properties(token)))


def parse_status(text):
    """(boot id, units by name) out of what status_command printed; the boot id is '' where it printed none."""
    text = text.replace("\r", "")
    boot_id = re.search(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", text, re.MULTILINE)
    return (boot_id.group(), parse_units(text[boot_id.end() :])) if boot_id else ("", {})


def parse_units(text):
    """C({unit name: {property: value}}) out of systemctl show; blank lines stand between the units."""
    units = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in properties:
            units[properties["Id"]] = properties
    return units


def has_ended(service, unit, invocation):
    """Whether systemd says that the attempt is over: refused, or the service ran since C(invocation) and stopped."""
    if unit.get("ActiveState") == "failed":
        return True
    ran = service.get("InvocationID", "") not in ("", invocation)
    return ran and service.get("ActiveState") in ("inactive", "failed")


# the steps -----------------------------------------------------------------------------------------------------------


def prepare(host, device, token, skip=(), ignore_inhibitors=False, check_mode=False, clock=time.clock_gettime):
    """Look for blockers and, if there are none, leave the marker. Returns C({boot_id, blockers, marker}).

    The marker is C({boot_id, boottime, monotonic, realtime, invocation, sequence}); the controller keeps it, and a file
    in /run (memory, so it is gone after a cold boot, and missing from an older image) holds it under the token's name.
    """
    skip = tuple(skip) + ((INHIBITED,) if ignore_inhibitors else ())
    found = [dict(blocker) for blocker in find_blockers(host, device, skip=skip)]
    if any(blocker["code"] == INHIBITED for blocker in found) and _only_our_session_inhibits(host):
        found = [blocker for blocker in found if blocker["code"] != INHIBITED]
    boot_id = host.attribute(BOOT_ID, "")
    if found or check_mode:
        return {"boot_id": boot_id, "blockers": found, "marker": None}
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
    """Have systemd hibernate the machine in a second, from a transient unit, so that this step's answer gets through.

    logind is asked as by any other C(systemctl hibernate), so that delay inhibitors and sleep hooks run. Block
    inhibitors are looked for here, just before, because logind lets root pass them up to systemd 256, and because
    C(--check-inhibitors=yes) refuses for any other user's login as well: with C(become), for our own SSH session. One
    that our session holds (PAM) goes when the session does, so they get a few seconds to go.

    After= makes systemd keep the record of systemd-hibernate.service as long as this unit exists, which without it
    would be dropped as soon as the service has succeeded.
    """
    host.run(
        [
            "systemd-run",
            "--quiet",
            "--no-ask-password",
            "--unit=" + unit_name(token),
            "--description=Hibernate, as asked by nvm.fastboot.hibernate",
            "--property=RemainAfterExit=yes",
            "--property=After=" + SERVICE,
            "/bin/sh",
            "-c",
            _start_script(ignore_inhibitors),
        ]
    )


def check(host, device, token, marker, settle=SETTLE_SECONDS, clock=time.clock_gettime, sleep=time.sleep):
    """Gather the evidence, wait a little while the attempt is still under way, and return the verdict as a dict.

    C({state, verdict, code, message, remedy, boot_id, slept, blockers, kernel}); C(slept) in seconds, by the machine's
    own clocks, C(kernel) the log lines that the verdict stands on. Once it has ended, unit and marker are removed.
    """
    until = clock(time.CLOCK_MONOTONIC) + settle
    while True:
        now = observe(host, token, marker, clock)
        verdict = decide(marker, now)
        if verdict.state == "ended" or clock(time.CLOCK_MONOTONIC) >= until:
            break
        sleep(1)
    if verdict.verdict == "never_slept" and not now.journal:
        now.journal = _journal(host, token, marker)
        verdict = decide(marker, now)
    if verdict.code == INHIBITED:
        held = _holders(host)
        verdict.message += " Held by: %s." % "; ".join(held) if held else ""
    lost = verdict.verdict == "cold_booted"
    if verdict.state == "ended":
        _forget(host, token, now)
    return {
        "state": verdict.state,
        "verdict": verdict.verdict,
        "code": verdict.code,
        "message": verdict.message,
        "remedy": verdict.remedy,
        "boot_id": now.boot_id,
        "slept": None if lost else round(_gain(marker, now), 1),
        "blockers": _blockers_now(host, device) if lost else [],
        "kernel": [line for line in now.log if "PM: " in line or "inconsistent memory map" in line][-20:],
    }


# the verdict ---------------------------------------------------------------------------------------------------------


def decide(marker, now):
    """The Verdict on C(now), a Now, given the marker. Pure: the same evidence always gives the same verdict."""
    if now.boot_id != marker["boot_id"]:
        return _lost(now)
    if not now.marked:
        return _unmarked(marker, now)
    if _busy(now):
        return Verdict("pending", code="in_progress", message="The hibernation is still under way.")
    if _restored(marker, now):
        return Verdict("ended", "resumed", "resumed", "The machine slept, and its memory came back.")
    went_on = [line for line in now.log if WENT_ON.search(line)]
    if now.unit.get("ActiveState") == "failed" or _ran(marker, now) or went_on:
        return _failed(now)
    return Verdict("pending", code="not_begun", message="systemd took the request and has not begun with it.")


def _busy(now):
    active = now.unit.get("ActiveState")
    return (
        now.service.get("ActiveState") in ("activating", "deactivating", "reloading")
        or active == "activating"
        or (active == "active" and now.unit.get("SubState") == "running")
    )


def _ran(marker, now):
    return now.service.get("InvocationID", "") not in ("", marker["invocation"])


def _gain(marker, now):
    """Seconds that CLOCK_BOOTTIME gained on CLOCK_MONOTONIC since the marker: the time asleep, to one second or so."""
    return max(0.0, (now.boottime - now.monotonic) - (marker["boottime"] - marker["monotonic"]))


def _restored(marker, now):
    if any(WENT_ON.search(line) for line in now.log):
        return False
    copied = any(SNAPSHOT.search(line) for line in now.log)
    # The clock read around a sleep has a resolution of one second (the RTC), so a gain of one may be no sleep at all.
    slept = _gain(marker, now) >= 2
    succeeded = _ran(marker, now) and now.service.get("Result") == "success"
    return (copied or slept) if succeeded else (copied and slept)


def _failed(now):
    lines = now.log + now.journal
    if now.unit.get("ExecMainStatus") == str(INHIBITED_EXIT):
        return Verdict(
            "ended",
            "inhibited",
            INHIBITED,
            "The machine did not hibernate: a sleep inhibitor is in force.",
            REASONS[0][2],
        )
    for pattern, code, remedy in REASONS:
        for line in lines:
            if re.search(pattern, line):
                verdict = "inhibited" if code == INHIBITED else "never_slept"
                return Verdict("ended", verdict, code, "The machine did not hibernate: %s" % _sentence(line), remedy)
    told = [line for line in now.journal if not ROUTINE.search(line)]
    cause = told[-1] if told else "neither the kernel nor systemd says why"
    return Verdict(
        "ended",
        "never_slept",
        "hibernation_failed",
        "The machine did not hibernate: %s" % _sentence(cause),
        "Look at journalctl -b -u %s and at the kernel log on the machine." % SERVICE,
    )


def _lost(now):
    for pattern, code, remedy in REJECTIONS:
        for line in now.log:
            if re.search(pattern, line):
                return Verdict(
                    "ended",
                    "cold_booted",
                    code,
                    "The machine booted afresh, and what it had in memory is lost: %s" % _sentence(line),
                    remedy,
                )
    return Verdict(
        "ended",
        "cold_booted",
        "no_image_found",
        "The machine booted afresh, and what it had in memory is lost: its kernel found no image to resume. Either the "
        "initramfs lacks the device's drivers, resume= names another device, the power was cut before the image was "
        "whole, or the device does not keep its content without power (memmap= on ordinary memory).",
        "The blockers returned with this say what is amiss now; run nvm_info, and the role again.",
    )


def _unmarked(marker, now):
    if now.monotonic < marker["monotonic"]:
        return Verdict(
            "ended",
            "cold_booted",
            "older_image",
            "The machine resumed an older image of the same boot: its memory is from before this hibernation.",
            "Stage only the image that is to be resumed, and hibernate onto a device that nothing else arms.",
        )
    return Verdict(
        "ended",
        "never_slept",
        "marker_missing",
        "The marker in /run/nvm-fastboot is gone, so that nothing proves that the machine slept.",
        "Find what cleans /run on the machine, and hibernate again.",
    )


def _sentence(line):
    return line.strip().rstrip(".") + "."


# evidence ------------------------------------------------------------------------------------------------------------


def observe(host, token, marker, clock=time.clock_gettime):
    """The machine as it is now, a Now, with the log since the marker. Runs one command, none after a cold boot."""
    boot_id = host.attribute(BOOT_ID, "")
    log = kernel_log(host)
    now = Now(boot_id, clock(time.CLOCK_BOOTTIME), clock(time.CLOCK_MONOTONIC), _is_marked(host, token))
    if boot_id != marker["boot_id"]:
        now.log = [text for _sequence, text in log]
        return now
    now.log = [text for sequence, text in log if sequence > marker["sequence"]]
    units = parse_units(host.run(["systemctl", "show"] + _properties(token)).out)
    now.service, now.unit = units.get(SERVICE, {}), units.get(unit_name(token), {})
    return now


def kernel_log(host):
    """The kernel's messages as (sequence number, text), oldest first; empty where /dev/kmsg cannot be read.

    Format: Documentation/ABI/testing/dev-kmsg. A read gives one record; one that was overwritten meanwhile gives EPIPE.
    """
    chunks = []
    try:
        handle = os.open(host.path("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        while True:
            try:
                chunk = os.read(handle, 8192)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue
                break  # EAGAIN: no more
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        os.close(handle)
    records = []
    for line in b"".join(chunks).decode("utf-8", "replace").splitlines():
        prefix, semicolon, text = line.partition(";")
        fields = prefix.split(",")
        if not semicolon or line.startswith(" ") or len(fields) < 4 or not (fields[0] + fields[1]).isdigit():
            continue  # a property of the record before
        # User space may log as well (facility in the upper bits); what it says proves nothing about the kernel.
        if int(fields[0]) >> 3 == 0:
            records.append((int(fields[1]), text))
    return records


def _sleep_inhibitors(host):
    return [lock for lock in inhibitors(host) if lock.blocks_sleep]


def _only_our_session_inhibits(host):
    """Whether every inhibitor belongs to the login this runs in, as some PAM set-ups take one for each SSH login."""
    locks = _sleep_inhibitors(host)
    ours = _session(host, "self")
    return bool(locks) and ours is not None and all(_session(host, lock.pid) == ours for lock in locks)


def _holders(host):
    """Who inhibits sleep now, for the message of a verdict, which stands whether logind says it or not."""
    try:
        return ["%s (PID %s): %s" % (lock.who, lock.pid, lock.why) for lock in _sleep_inhibitors(host)]
    except Refused:
        return []


def _session(host, pid):
    """What names the login a process belongs to: the session's scope in its cgroup, or its audit session."""
    scope = re.search(r"/session-([^/]+)\.scope", host.read("/proc/%s/cgroup" % pid, ""))
    if scope:
        return "scope " + scope.group(1)
    number = host.attribute("/proc/%s/sessionid" % pid, "")
    return "audit " + number if number.isdigit() and int(number) != UNSET_SESSION else None


def _is_marked(host, token):
    try:
        return json.loads(host.read(marker_path(token), "")).get("token") == token
    except (ValueError, AttributeError):
        return False


def _properties(token):
    return [SERVICE, unit_name(token), "--property=Id,ActiveState,SubState,Result,InvocationID,ExecMainStatus"]


def _journal(host, token, marker):
    """What both units logged since the marker. Messages of systemd itself about them (exit codes) are in it as well."""
    result = host.run(
        [
            "journalctl",
            "--quiet",
            "--no-pager",
            "--boot",
            "--output=cat",
            "--lines=40",
            "--since=@%d" % int(marker["realtime"]),
            "--unit=" + SERVICE,
            "--unit=" + unit_name(token),
        ],
        ok=None,
    )
    return [line for line in result.out.splitlines() if line.strip()] if result.rc == 0 else []


def _blockers_now(host, device):
    """What would stop the next hibernation, as a hint to what lost this one; a machine just booted may not know yet."""
    try:
        return [dict(blocker) for blocker in find_blockers(host, device)]
    except Refused as refused:
        return [refused.as_dict()]


def _forget(host, token, now):
    host.remove(marker_path(token))
    state = now.unit.get("ActiveState")
    if state in ("active", "failed"):
        host.run(["systemctl", "stop" if state == "active" else "reset-failed", unit_name(token)], ok=None)


def _start_script(ignore_inhibitors):
    if ignore_inhibitors:
        return "sleep 1; exec systemctl hibernate -i"
    # No dollar sign in it: systemd would expand it as one of its own variables before the shell sees it.
    return (
        "sleep 1; for attempt in 1 2 3 4 5 6; do "
        "busctl get-property %s BlockInhibited | grep -q '[\":]sleep[\":]' || exec systemctl hibernate; "
        "sleep 1; done; echo 'A sleep inhibitor is in force.'; exit %d" % (" ".join(LOGIND), INHIBITED_EXIT)
    )
