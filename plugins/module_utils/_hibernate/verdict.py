# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on a hibernation: did the machine sleep, and was its memory restored? Pure functions of an Observation.

Proof of a resume. The kernel copies its memory at one moment. All that it logs later (image created, being written,
written: C(swsusp_save) in kernel/power/snapshot.c, C(swsusp_write) in kernel/power/swap.c) is not in the copy. If the
memory holds the marker, has the old boot id, has logged the moment of the copy and none of the later messages, then it is
the restored copy. If it has the later messages, the machine went on after a failed write. If the log is rotated or quiet
(newer kernels print some of these messages only with pm_debug_messages), systemd-hibernate.service must have succeeded
since the marker, and CLOCK_BOOTTIME must have gained on CLOCK_MONOTONIC, which happens only during sleep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.status import SERVICE, has_run

INHIBITED = "sleep_inhibited"  # the same code from the readiness check and from logind just before the hibernation
INHIBITED_EXIT = 75  # sysexits.h EX_TEMPFAIL: how the transient unit reports an inhibitor

# Logged before the memory is copied, or at the latest in the copy (kernel/power/snapshot.c; other text before 5.6).
SNAPSHOT = re.compile(r"PM: (?:hibernation: )?Creating (?:hibernation )?image")
# Logged only by a kernel that went on after the copy, or that did not sleep (pm_test, a wake-up that rolled back).
WENT_ON = re.compile(
    r"PM: .*(?:mage created \(|saving image data|Image saving|Wrote \d+ kbytes|rolling back|debug: Waiting for)", re.I
)
MINIMUM_GAIN = 2  # seconds: the clock read around a sleep (the RTC) has a resolution of one second

# Messages of the kernel (kernel/power), systemd-sleep, logind or systemctl on failure; the first match counts.
REASONS = (
    (r"inhibit", INHIBITED, "Wait until the inhibitor is released, or set ignore_inhibitors."),
    (r"Freezing .*(?:failed|aborted)", "freeze_failed", "A process could not be frozen; the kernel log names it."),
    (r"Wakeup event|rolling back", "woken", "A device woke the machine. Disable it in /sys/.../power/wakeup."),
    (
        r"Cannot find swap device|Swap header not found|No (?:swap space|possible swap)|resume device is missing",
        "swap_missing",
        "Activate the swap area on the device and set resume=. Run nvm_info to list the blockers.",
    ),
    (r"[Nn]ot enough.* swap|No space left", "swap_too_small", "Reserve more NVM, or free memory first."),
    (
        r"Not enough free memory|Memory allocation failed|Cannot allocate memory|Error -12 ",
        "memory",
        "The copy of the memory needs as much free memory. Stop some processes.",
    ),
    (
        r"Write-error|I/O error|Error -\d+ (?:writing|saving)|Input/output error",
        "write_failed",
        "Writing the image to the device failed; see the kernel log. The running system is unchanged.",
    ),
    (
        r"(?:failed|unable) to (?:freeze|suspend|power off|hibernate)|Some devices failed",
        "device_failed",
        "A driver failed to suspend its device; the kernel log names the device.",
    ),
    (
        r"not supported|not configured|disabled by config|is masked|Access denied|No valid 'resume='|resume= is not set|"
        r"'noresume'|Operation not permitted",
        "not_possible",
        "Run nvm_info to list the blockers.",
    ),
)
# What systemd logs about any unit.
ROUTINE = re.compile(
    r"^(?:Starting|Started|Stopped|Finished|Failed to start) "
    r"|: (?:Deactivated|Succeeded|Main process exited|Failed with)"
)
# Messages of a booting kernel that rejects an image (kernel/power/{snapshot,swap,hibernate}.c).
REJECTIONS = (
    (
        r"PM: .*Image mismatch",
        "image_mismatch",
        "The memory size, memmap= or the kernel changed. Do not change them while an image is pending.",
    ),
    (r"PM: .*Invalid image CRC", "image_damaged", "The device returned other data than was written. Check the device."),
    (r"inconsistent memory map", "image_mismatch", "The firmware's memory map changed."),
    (
        r"PM: .*(?:Failed to load (?:hibernation )?image|resume failed|Error -?\d+ resuming)",
        "image_refused",
        "See the kernel log of this boot. The initramfs may lack a driver or a decompressor.",
    ),
)
LOST = "The machine booted without resuming, and its previous memory is lost"


@dataclass
class Verdict:
    """C(state) is C(pending) (still in progress: ask again) or C(ended); the rest is what the action plugin returns."""

    state: str
    verdict: str = ""
    code: str = ""
    message: str = ""
    remedy: str = ""


def decide(marker, seen):
    """The Verdict on C(seen), an Observation, given the marker. The same observation always gives the same verdict."""
    if seen.boot_id != marker["boot_id"]:
        return _cold_booted(seen)
    if not seen.marked:
        return _marker_missing(marker, seen)
    if _in_progress(seen):
        return Verdict("pending", code="in_progress", message="The hibernation is still in progress.")
    if _restored(marker, seen):
        return Verdict("ended", "resumed", "resumed", "The machine slept and its memory was restored.")
    went_on = any(WENT_ON.search(line) for line in seen.log)
    if seen.unit.get("ActiveState") == "failed" or has_run(seen.service, marker["invocation"]) or went_on:
        return _never_slept(seen)
    return Verdict("pending", code="not_begun", message="systemd has accepted the request and not started yet.")


def gain(marker, seen):
    """Seconds that CLOCK_BOOTTIME gained on CLOCK_MONOTONIC since the marker: the time asleep, to about one second."""
    return max(0.0, (seen.boottime - seen.monotonic) - (marker["boottime"] - marker["monotonic"]))


def _in_progress(seen):
    active = seen.unit.get("ActiveState")
    return (
        seen.service.get("ActiveState") in ("activating", "deactivating", "reloading")
        or active == "activating"
        or (active == "active" and seen.unit.get("SubState") == "running")
    )


def _restored(marker, seen):
    if any(WENT_ON.search(line) for line in seen.log):
        return False
    copied = any(SNAPSHOT.search(line) for line in seen.log)
    slept = gain(marker, seen) >= MINIMUM_GAIN
    succeeded = has_run(seen.service, marker["invocation"]) and seen.service.get("Result") == "success"
    return (copied or slept) if succeeded else (copied and slept)


def _never_slept(seen):
    if seen.unit.get("ExecMainStatus") == str(INHIBITED_EXIT):
        message = "The machine did not hibernate: a sleep inhibitor is active."
        return Verdict("ended", "inhibited", INHIBITED, message, REASONS[0][2])
    for pattern, code, remedy in REASONS:
        for line in seen.log + seen.journal:
            if re.search(pattern, line):
                verdict = "inhibited" if code == INHIBITED else "never_slept"
                return Verdict("ended", verdict, code, "The machine did not hibernate: %s" % _sentence(line), remedy)
    notable = [line for line in seen.journal if not ROUTINE.search(line)]
    cause = notable[-1] if notable else "neither the kernel nor systemd logged a reason"
    return Verdict(
        "ended",
        "never_slept",
        "hibernation_failed",
        "The machine did not hibernate: %s" % _sentence(cause),
        "See journalctl -b -u %s and the kernel log on the machine." % SERVICE,
    )


def _cold_booted(seen):
    for pattern, code, remedy in REJECTIONS:
        for line in seen.log:
            if re.search(pattern, line):
                return Verdict("ended", "cold_booted", code, "%s: %s" % (LOST, _sentence(line)), remedy)
    return Verdict(
        "ended",
        "cold_booted",
        "no_image_found",
        LOST + ": the kernel found no image. Possible causes: the initramfs lacks the device's drivers, resume= names another "
        "device, the power was cut before the image was complete, or the device loses its content without power (memmap= on "
        "ordinary memory).",
        "See the returned blockers. Run nvm_info, then the role hibernate_to_nvm.",
    )


def _marker_missing(marker, seen):
    if seen.monotonic < marker["monotonic"]:
        return Verdict(
            "ended",
            "cold_booted",
            "older_image",
            "The machine resumed an older image of the same boot, from before this hibernation.",
            "Stage only the image to resume, and hibernate to a device that nothing else arms.",
        )
    return Verdict(
        "ended",
        "never_slept",
        "marker_missing",
        "The marker in /run/nvm-fastboot is missing, so there is no proof that the machine slept.",
        "Find the process that cleans /run on the machine, and hibernate again.",
    )


def _sentence(line):
    return line.strip().rstrip(".") + "."
