# SPDX-License-Identifier: GPL-3.0-or-later
"""/dev/snapshot of a small machine, whose memory is made up; the device that an image is written to is one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Sequence

import pytest

from fuse_store.snapshot import filesystems, memory, restored, standstill, swap, taking
from fuse_store.snapshot.memory import Memory
from tests.fuzz.swsusp_encoder import machine, stream_of

PAGE = 4096
STREAM = stream_of(machine(PAGE, "x86", 300))


class Kernel:
    """/dev/snapshot of a machine with an image of 300 pages of memory; it fails at a call if told so."""

    calls: list[str] = []  # noqa: RUF012
    fails = ""
    resumed = False
    stream = STREAM

    def __init__(self) -> None:
        Kernel.calls = []
        self.left = list(self.stream)

    def _call(self, name: str) -> None:
        Kernel.calls.append(name)
        if name == Kernel.fails:
            raise OSError(errno.EIO, "Input/output error")

    def prefer(self, size: int) -> None:
        assert size > len(self.stream) * PAGE

    def freeze(self) -> None:
        self._call("freeze")

    def create(self) -> bool:
        self._call("create")
        return not self.resumed

    def size(self) -> int:
        return len(self.stream) * PAGE

    def read(self, pages: Sequence[memoryview]) -> int:
        self._call("read")
        number = min(len(pages), len(self.left))
        for page in pages[:number]:
            page[:] = self.left.pop(0)
        return number * PAGE

    def free(self) -> None:
        self._call("free")

    def unfreeze(self) -> None:
        self._call("unfreeze")

    def close(self) -> None:
        if Kernel.calls:  # else it was opened only to see whether it can be
            self._call("close")


class NoGuard:
    """Of a machine without filesystems."""

    def prepare(self) -> None: ...

    def record(self) -> dict[str, str]:
        return {"guard.none": "1"}

    def close(self) -> None: ...


class Around:
    """What is called before and after a snapshot, with how far the kernel was then."""

    calls: list[tuple[str, restored.Context, int]]

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, context: restored.Context) -> tuple[str, ...]:
        Around.calls.append((self.name, dataclasses.replace(context), len(Kernel.calls)))
        return (f"told {self.name}",)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the kernel's, on a machine with 8 MiB of memory of which 1.25 MiB are in use, nothing mounted writable, and no swap."""
    monkeypatch.setattr(standstill, "SnapshotDevice", Kernel)
    monkeypatch.setattr(Memory, "of", lambda machine, swapped=0: Memory(8 << 20, 5 << 18, 5 << 18, swapped))
    monkeypatch.setattr(memory, "free_caches", lambda machine, preferred: None)  # those of the host
    monkeypatch.setattr(standstill, "locked_in_memory", contextlib.nullcontext)  # that of all tests: test_the_process_stays_in_memory
    monkeypatch.setattr(filesystems, "writable", lambda machine: [])
    monkeypatch.setattr(swap, "in_use", lambda machine: [])
    monkeypatch.setattr(taking, "Guard", NoGuard)
    Around.calls = []
    for name in ("before_snapshot", "after_created", "after_restored", "after_failed"):  # they would change the host
        monkeypatch.setattr(restored, name, Around(name))
    for name, value in (("fails", ""), ("resumed", False), ("stream", STREAM)):
        monkeypatch.setattr(Kernel, name, value)
