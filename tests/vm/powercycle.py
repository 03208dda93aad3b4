# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches a machine from outside while it goes off and comes back: when, and what was on its NVDIMM in between.

The times are those of the host: from QEMU's start until the guest's SSH server greets, firmware and bootloader included.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.vm.lab import LabError, Machine
from tests.vm.lab.machine import BOOT_SECONDS, OFF_SECONDS

PAGE = 4096
SIGNATURE = b"S1SUSPEND\0"


@dataclass
class Cycle:
    """Seconds until the power was off, and from power on until it answered; bytes of the hibernation image in between."""

    until_off: float = 0.0
    until_up: float = 0.0
    image: int | None = None
    power_was_off: bool = False


class Watch:
    """``with Watch(machine) as watch: …`` around what sends the machine to sleep and wakes it; then ``watch.cycle``."""

    def __init__(self, machine: Machine, image_on: str = "nvdimm.img") -> None:
        self.cycle = Cycle()
        self._machine = machine
        self._file = machine.folder / image_on
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._first = self._machine.pid()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._thread.join(BOOT_SECONDS)
            if self._failure:
                raise self._failure

    def _run(self) -> None:
        try:
            started = time.monotonic()
            self._until(lambda: self._machine.pid() != self._first, OFF_SECONDS)
            self.cycle.until_off = time.monotonic() - started
            self.cycle.power_was_off = self._machine.pid() is None
            self.cycle.image = image_size(self._file)
            self._until(self._machine.is_on, OFF_SECONDS)
            self.cycle.until_up = self._machine.wait_up()
        except LabError as error:
            self._failure = error

    def _until(self, done: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise LabError(f"{self._machine.name} did not go off and on")
            time.sleep(0.02)


def image_size(path: Path) -> int | None:
    """Bytes of memory that the hibernation image on the swap area in file ``path`` holds; None if there is no image.

    kernel/power/swap.c: the header's ``image`` is the block of the first swap map page, whose first entry is the block
    of ``struct swsusp_info``; its ``size`` is at 432 on 64-bit machines (kernel/power/power.h).
    """
    with open(path, "rb") as file:
        header = file.read(PAGE)
        if header[PAGE - 10 :] != SIGNATURE:
            return None
        (first_map,) = struct.unpack_from("<Q", header, PAGE - 32)
        file.seek(first_map * PAGE)
        (info,) = struct.unpack("<Q", file.read(8))
        file.seek(info * PAGE + 432)
        return int(struct.unpack("<Q", file.read(8))[0])
