# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock of a restored system. The kernel adds the time that passed on the hardware clock; what it misses is added here.

The hardware clock of a machine may be wrong, and its difference from the system's clock is known from before the snapshot.
"""

from __future__ import annotations

import time
from pathlib import Path

from fuse_store.snapshot.restored import commands

TOLERANCE = 2.0  # seconds: the hardware clock has whole ones
# Program → what tells it that the clock was set.
_PROGRAMS = {
    "chronyd": ("chronyc", "-m", "reset sources", "burst 4/4", "makestep 1 3"),
    "systemd-timesyncd": ("systemctl", "try-restart", "systemd-timesyncd.service"),
}


def hardware(root: Path = Path("/")) -> float | None:
    """Seconds since 1970 on the hardware clock from which the kernel sets the system's; None without one."""
    clocks = sorted((root / "sys/class/rtc").glob("rtc*"), key=lambda clock: (_text(clock / "hctosys") != "1", clock.name))
    for clock in clocks:
        seconds = _text(clock / "since_epoch")
        if seconds.isdecimal():
            return float(seconds) if not _is_local(root) else time.mktime((*time.gmtime(int(seconds))[:8], -1))
    return None


def _is_local(root: Path) -> bool:
    """Whether the hardware clock has the local time (hwclock(8))."""
    return _text(root / "etc/adjtime").splitlines()[2:3] == ["LOCAL"]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def difference(root: Path = Path("/")) -> float | None:
    """Seconds by which the hardware clock is ahead of the system's; None without one."""
    seconds = hardware(root)
    return None if seconds is None else seconds - time.time()


def correct(before: float | None, taken: float, root: Path = Path("/")) -> list[str]:
    """Set the clock if the hardware clock shows that it is wrong. ``before``: how far that was ahead when the snapshot was taken, at
    ``taken`` seconds since 1970; messages of what is not in order. Raises OSError."""
    now = difference(root)
    if now is None:
        return ["there is no hardware clock: the time may be that of the snapshot"]
    ahead = now - (before or 0)
    if abs(ahead) <= TOLERANCE:
        return []
    if time.time() + ahead < taken:
        return [f"the hardware clock is {-ahead:.0f} seconds behind, before the snapshot, and was not heeded: set it"]
    time.clock_settime(time.CLOCK_REALTIME, time.time() + ahead)
    return []


def tell() -> list[str]:
    """Tell the programs that keep the clock right that it may have jumped; a message for each that cannot be told."""
    problems = []
    for name, command in _PROGRAMS.items():
        if commands.running(name) and (problem := commands.run(command).problem):
            problems.append(f"{' '.join(command[:2])}: {problem}")
    return problems
