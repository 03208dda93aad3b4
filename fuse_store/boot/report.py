# SPDX-License-Identifier: GPL-3.0-or-later
"""What the last boot did on a device with slots, as its initramfs wrote it down. docs/boot-selection.md has the form of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import NotFound
from fuse_store.formats.readable import File, Readable
from fuse_store.hibernation.slots.layout import EDGE, REPORT
from fuse_store.hibernation.slots.text import unframed

NAME = "fuse-store-boot 1"
SIZE = REPORT[1] - 1024  # bytes; behind it is the choice for the next boot


@dataclass(frozen=True)
class Report:
    """``time``: seconds since 1970; ``kernel``, ``event``: as the initramfs found them; ``selected``: the slot that was to be resumed, and
    ``image``, the id of what was in it; ``passed``: (slot, why not) of others; ``reason``: why a normal boot followed; ``records``: what
    kernels had left in pstore; ``lines``: all of it. What is missing is empty or None."""

    time: int | None
    kernel: str
    event: str
    selected: int | None
    image: str
    passed: tuple[tuple[int, str], ...]
    reason: str
    records: tuple[str, ...]
    lines: tuple[str, ...]


def read(device: Path | str) -> Report:
    """Raises NotFound if there is none, or no device; UsageError, StoreError."""
    with File(device) as file:
        file.drop_cache(0, EDGE)  # a system that was resumed has in it what was there when its image was made
        return read_from(file, str(device))


def read_from(readable: Readable, name: str) -> Report:
    """``name`` is for messages. Raises NotFound."""
    try:
        text = unframed(NAME, readable.read(REPORT[0], SIZE)).decode("ascii")
    except ValueError:
        raise NotFound(
            f"device {name}", "has no boot report.",
            "One is there after the next boot: 'fuse-store boot install' prints what has to be run.",
        ) from None  # fmt: skip
    return parse(text)


def parse(text: str) -> Report:
    lines = tuple(line for line in text.split("\n") if line)
    values = {key: [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == key] for key in KEYS}
    first = {key: found[0] if found else "" for key, found in values.items()}
    selected, _space, image = first["selected"].partition(" ")
    passed = (one.partition(" ") for one in values["passed"])
    return Report(
        _number(first["time"]), first["kernel"], first["event"], _number(selected), image,
        tuple((int(number), reason) for number, _space, reason in passed if _number(number) is not None), first["normal"],
        tuple(one.partition(" ")[0] for one in values["record"]), lines,
    )  # fmt: skip


KEYS = ("time", "kernel", "event", "passed", "selected", "normal", "record")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else None
