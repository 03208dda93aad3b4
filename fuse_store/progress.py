# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of operations that take more than a second: reported by every layer, shown by ``cli``. Not thread-safe: one thread calls it."""

from __future__ import annotations

import time
from typing import Any, Protocol

DELAY = 1.0  # seconds until a bar appears
INTERVAL = 0.1  # seconds between two updates of the bar


class Progress(Protocol):
    """Call ``start``, then ``at`` any number of times, then ``finish``; then maybe ``start`` again. ``total`` and ``done`` count
    bytes, or the given ``unit``; ``total`` is None if unknown. ``finish`` may be called when nothing was started."""

    def start(self, label: str, total: int | None, unit: str = "bytes") -> None: ...

    def at(self, done: int) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
        pass

    def at(self, done: int) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT = Silent()


class Terminal:
    """A bar with rate and remaining time on standard error. rich draws it, and is imported when the first bar appears."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._next = float("inf")
        self._began = 0.0
        self._started: tuple[str, int | None, str] = ("", None, "")

    def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
        self.finish()
        self._began = time.monotonic()
        self._next = self._began + DELAY
        self._started = (label, total, unit)

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL
        if self._bar is None:
            self._show(done)
        self._bar.update(self._task, completed=done)

    def finish(self) -> None:
        self._next = float("inf")
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        label, total, unit = self._started
        columns: tuple[ProgressColumn, ...] = (DownloadColumn(binary_units=True), TransferSpeedColumn())
        if unit != "bytes":
            columns = (MofNCompleteColumn(), TextColumn(unit))
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=total, completed=done)
        # The work began before the bar appeared; without this, rate and remaining time would be computed from a tenth of a second.
        self._bar.tasks[0].start_time -= time.monotonic() - self._began
        self._bar.start()
