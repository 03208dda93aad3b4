# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a machine from the controller: down, asleep, woken, and up again, until there is a verdict.

What the controller sees (the machine answers, or does not) only decides when to ask the machine; the verdict comes from
the machine. The controller counts an answer only from a command that ran over the connection: a port that accepts TCP may
belong to a forwarder in front of a dead machine. One object per hibernation, used by one thread.
"""

from __future__ import annotations

import time

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.status import SERVICE, has_ended, unit_name
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.verdict import LOST

LOOK_INTERVAL = 1  # seconds between two looks
FIRST_LOOK = 3  # seconds: the unit sleeps for one; a login before it asks logind could take an inhibitor of its own
MISSES = 2  # consecutive looks without an answer after which the machine counts as down, not the network
CHECK_INTERVAL = 20  # seconds: an answering machine is checked at least this often
SEE_JOURNAL = "See journalctl -b -u %s on the machine." % SERVICE


class Follower:
    """C(run) follows one hibernation.

    C(look()) returns the machine's C((boot id, units)), or None without an answer. C(check()) returns what the step
    C(check) returned, or None without an answer. C(options) are the module's, C(wake) a WakeCommand, C(timeline) a
    Timeline with C(requested) set.
    """

    def __init__(self, look, check, token, marker, options, wake, timeline):
        self._look = look
        self._check = check
        self._unit = unit_name(token)
        self._marker = marker
        self._options = options
        self._wake = wake
        self._timeline = timeline
        self._boot_id, self._units = marker["boot_id"], {}
        self._misses, self._first_miss = 0, timeline.requested
        self._last_check, self._answer = timeline.requested, {}
        self._deadline = timeline.requested + options["hibernate_timeout"]
        self._limit = self._deadline + options["resume_timeout"]

    def run(self):
        """What C(check()) returned at the end, or a dict of the same form if the time is over.

        Its key C(state) is C(ended), C(asleep) (down, with C(wait) off), or C(timeout).
        """
        time.sleep(FIRST_LOOK)
        while True:
            looked = time.monotonic()
            status = self._look()
            outcome = self._unanswered(looked) if status is None else self._answered(looked, *status)
            if outcome:
                return outcome
            now = time.monotonic()
            if now >= self._deadline:
                return self._out_of_time()
            if self._timeline.is_down and self._wake.is_due(now) and self._wake.run(self._deadline - now):
                self._timeline.woken = time.monotonic()
            time.sleep(LOOK_INTERVAL)

    def _answered(self, looked, boot_id, units):
        self._boot_id, self._units = boot_id, units
        self._misses = 0
        timeline = self._timeline
        if timeline.is_down:
            timeline.up = time.monotonic()
        due = looked - self._last_check >= CHECK_INTERVAL
        if due or timeline.up is not None or self._is_new_boot() or self._systemd_has_ended():
            self._last_check = time.monotonic()
            self._answer = self._check() or self._answer
            if self._answer.get("state") == "ended":
                return self._answer
        return None

    def _unanswered(self, looked):
        if self._misses == 0:
            self._first_miss = looked
        self._misses += 1
        timeline = self._timeline
        if self._misses >= MISSES and not timeline.is_down:
            # Down, or down again: a short network outage makes a machine seem down before it is.
            timeline.down, timeline.up = self._first_miss, None
            self._deadline = min(time.monotonic() + self._options["resume_timeout"], self._limit)
            if not self._is_new_boot():
                timeline.woken = None
                self._wake.arm(self._first_miss + self._options["wake_delay"])
        if timeline.down is not None and not self._options["wait"]:
            return {"state": "asleep"}
        return None

    def _systemd_has_ended(self):
        service, unit = self._units.get(SERVICE, {}), self._units.get(self._unit, {})
        return has_ended(service, unit, self._marker["invocation"])

    def _is_new_boot(self):
        return self._boot_id != self._marker["boot_id"]

    # the time is over ------------------------------------------------------------------------------------------------

    def _out_of_time(self):
        """The failure at the deadline. Whether there is a verdict depends on what is known by then."""
        timeline = self._timeline
        if self._is_new_boot():
            return self._timed_out("no_evidence", LOST + ".", "See the kernel log of this boot.", "cold_booted")
        if timeline.down is None:
            return self._still_awake()
        if timeline.up is not None:
            message = "The machine answers again, but the state of its memory is unknown."
            return self._timed_out(self._answer.get("code") or "no_evidence", message, SEE_JOURNAL)
        seconds = self._options["resume_timeout"]
        if self._wake.command and timeline.woken is None:
            return {
                "state": "timeout",
                "code": "wake_failed",
                "message": "The machine went down, and wake_command did not succeed within %d seconds: %s"
                % (seconds, self._wake.output or "not run"),
                "remedy": "Run wake_command by hand on the controller. The image is on the device; wake the machine.",
            }
        return {
            "state": "timeout",
            "code": "no_answer",
            "message": "The machine went down and did not answer within %d seconds." % seconds,
            "remedy": "Check its console. Set wake_command if nothing wakes it, or increase resume_timeout.",
        }

    def _still_awake(self):
        message = "The machine still answers %d seconds after the request to hibernate."
        failure = self._timed_out(
            self._answer.get("code") or "still_awake",
            message % self._options["hibernate_timeout"],
            "",
            "never_slept",
        )
        return dict(failure, remedy=SEE_JOURNAL + " The machine may still hibernate.")

    def _timed_out(self, code, message, remedy, verdict=None):
        """A failure that passes on what the last check said."""
        failure = {
            "state": "timeout",
            "code": code,
            "message": "%s %s" % (message, self._answer.get("message", "")),
            "remedy": self._answer.get("remedy") or remedy,
        }
        return dict(failure, verdict=verdict) if verdict else failure
