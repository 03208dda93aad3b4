# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends a machine through a hibernation, and watches it from outside: when it is off, when it is back, what it left behind.

The times are those of the host: from QEMU's start until the guest's SSH server greets, firmware and bootloader included.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.lab import Lab, LabError, Machine
from tests.vm.lab.machine import BOOT_SECONDS, OFF_SECONDS
from tests.vm.play import REPOSITORY, Played, play

PAGE = 4096
SIGNATURE = b"S1SUSPEND\0"


@dataclass
class Cycle:
    """What was seen of one hibernation: seconds from the order to hibernate until the power was off (``hibernate``), from
    power on until it answered on SSH (``resume``) and until its application answered (``served``, if it has one), and
    the bytes of memory in the image in between."""

    hibernate: float = 0.0
    resume: float = 0.0
    served: float | None = None
    image: int | None = None
    power_was_off: bool = False
    off_at: float = 0.0


def wake_command(lab: Lab, machine: Machine, program: Sequence[str] = ("tests.vm.lab", "--lab", "{lab}", "wake")) -> list[str]:
    """The ``wake_command`` for ``machine``: waits until its power is off, and switches it on. Works from any folder."""
    words = [word.format(lab=lab.folder) for word in program]
    return ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", *words, machine.name]


def hibernate(
    lab: Lab,
    machine: Machine,
    variables: Mapping[str, Any] | None = None,
    image_on: str = "nvdimm.img",
    serves: bool = False,
) -> tuple[Played, Cycle]:
    """Hibernate ``machine`` by the collection's playbook and switch it on again. Raises LabError, AssertionError.

    ``serves`` says that an application on it answers by HTTP, which is waited for too.
    """
    wake = wake_command(lab, machine)
    told = 0.0

    def note(event: dict[str, Any]) -> None:
        nonlocal told
        if event["event"] == "start" and event["module"] == "nvm.fastboot.hibernate":
            told = time.monotonic()

    with Watch(machine, image_on, serves) as watch:
        played = play(
            lab, [machine], "nvm.fastboot.hibernate", {"nvm_wake_command": wake, **(variables or {})}, on_event=note
        ).ok()
    told += played.result("hibernate")["seconds"]["prepare"]  # what it looks at before it gives the order
    watch.cycle.hibernate = watch.cycle.off_at - told
    return played, watch.cycle


class Watch:
    """``with Watch(machine) as watch: …`` around what sends the machine to sleep and wakes it; then ``watch.cycle``."""

    def __init__(self, machine: Machine, image_on: str = "nvdimm.img", serves: bool = False) -> None:
        self.cycle = Cycle()
        self._serves = serves
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
            self._until(lambda: self._machine.pid() != self._first, OFF_SECONDS)
            self.cycle.off_at = time.monotonic()
            self.cycle.power_was_off = self._machine.pid() is None
            self.cycle.image = image_size(self._file)
            self._until(self._machine.is_on, OFF_SECONDS)
            self.cycle.resume = self._machine.wait_up()
            if self._serves:
                self.cycle.served = self.cycle.resume + self._machine.wait_served()
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
