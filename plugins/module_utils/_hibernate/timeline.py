# SPDX-License-Identifier: GPL-3.0-or-later
"""The phases of a hibernation on the controller's clock."""

from __future__ import annotations


class Timeline:
    """The moments of one hibernation, in seconds of C(time.monotonic), and the phases between them."""

    def __init__(self):
        self.prepared: float | None = None  # duration of the preparation, seconds
        self.requested: float = 0.0  # the hibernation was requested
        self.down: float | None = None  # the first look without an answer; set only once the machine counts as down
        self.woken: float | None = None  # the wake command succeeded
        self.up: float | None = None  # the machine answered again
        self.ended: float = 0.0
        self.slept: float | None = None  # duration, seconds, measured by the machine

    @property
    def is_down(self):
        return self.down is not None and self.up is None

    def seconds(self):
        """The duration of each phase, as the module returns it; None for a phase that did not take place."""
        off_end = self.up if self.woken is None else self.woken
        return {
            "prepare": _rounded(self.prepared),
            "down": _between(self.requested, self.down),
            "off": _between(self.down, off_end),
            "up": _between(self.woken, self.up),
            "slept": _rounded(self.slept),
            "total": _between(self.requested, self.ended),
        }


def _rounded(seconds):
    return None if seconds is None else round(seconds, 1)


def _between(first, then):
    return None if first is None or then is None else _rounded(max(then - first, 0.0))
