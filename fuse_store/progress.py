# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of what takes more than a second. The domain calls it; ``cli`` decides whether anybody sees it."""

from __future__ import annotations

import time
from typing import Any, Protocol

PATIENCE = 1.0  # seconds until a bar appears
STEP = 0.1  # seconds between two updates of it


class Progress(Protocol):
    """``start``, any number of ``at``, ``finish``; and again. Numbers are bytes, or what ``unit`` says; ``total`` is None if
    nobody knows it. Called from one thread. ``finish`` may be called when nothing was started."""

    def start(self, label: str, total: int | None, unit: str = "bytes") -> None: ...

    def at(self, done: int) -> None: ...

    def finish(self) -> None: ...


class Silent:
    def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
        pass

    def at(self, done: int) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT = Silent()


class Terminal:
    """A bar with rate and time left on standard error, by rich, which is not imported before a bar is needed."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._next = float("inf")
        self._began = 0.0
        self._what: tuple[str, int | None, str] = ("", None, "")

    def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
        self.finish()
        self._began = time.monotonic()
        self._next = self._began + PATIENCE
        self._what = (label, total, unit)

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + STEP
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

        label, total, unit = self._what
        columns: tuple[ProgressColumn, ...] = (DownloadColumn(binary_units=True), TransferSpeedColumn())
        if unit != "bytes":
            columns = (MofNCompleteColumn(), TextColumn(unit))
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=total, completed=done)
        # It began before the bar did: else the first rate and the time left would be those of a tenth of a second.
        self._bar.tasks[0].start_time -= time.monotonic() - self._began
        self._bar.start()
