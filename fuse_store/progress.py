# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of what takes more than a second. The domain calls it; ``cli`` decides whether anybody sees it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """``start``, any number of ``at``, ``finish``. Sizes in bytes; ``total`` is None if nobody knows it."""

    def start(self, label: str, total: int | None) -> None: ...

    def at(self, done: int) -> None: ...

    def finish(self) -> None: ...


class Silent:
    def start(self, label: str, total: int | None) -> None:
        pass

    def at(self, done: int) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT = Silent()


class Terminal:
    """A bar with rate and time left on standard error, by rich, which is imported when it is first needed."""

    def start(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()

    def at(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def finish(self) -> None:
        self._bar.stop()
