# SPDX-License-Identifier: GPL-3.0-or-later
"""Core dumps: those of the running kernel, made ones of every shape, and what is none."""

from __future__ import annotations

import platform
import re
import resource
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.formats import elf_core
from fuse_store.formats.readable import File
from fuse_store.image import kind as kinds
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.fuzz.core_encoder import core, note, process_notes

# Three threads beside the first one, and then an address that nothing is at.
PROGRAM = """
import ctypes, threading, time
for _number in range(3):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
time.sleep(0.1)
ctypes.string_at(0x123)
"""
SHAPES = [(True, "<", 62), (True, ">", 22), (False, "<", 3), (False, ">", 20)]


@dataclass
class Bytes:
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0
        return self.content[offset : offset + length]


def described(content: bytes) -> dict[str, Any]:
    return elf_core.describe(Bytes(content))


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize(("wide", "order", "machine"), SHAPES)
def test_a_process(wide: bool, order: str, machine: int, extended: bool) -> None:
    found = described(core(wide, order, machine, process_notes(wide, order), extended=extended))
    assert found == {
        "format": "elf-core", "of": "process", "architecture": elf_core.ARCHITECTURES[machine], "command": "app",
        "arguments": "app --fast", "pid": 4711, "parent": 1, "user": 1000, "group": 100, "signal": "SIGSEGV", "address": 0x1234,
        "threads": 2, "kernel": None, "memory_size": 12288, "stored_size": 4096, "mappings": 2,
        "mapped_files": ["/bin/app", "/lib/c\\xff"], "whole": True, "crc": "none",
    }  # fmt: skip


def test_a_kernel_and_a_virtual_machine() -> None:
    cpu = note("<", b"CORE", 1, bytes(336))
    crashed = described(core(True, "<", 62, cpu * 4 + note("<", b"VMCOREINFO", 0, b"OSRELEASE=6.1.0-50-amd64\nPAGESIZE=4096\n")))
    assert (crashed["of"], crashed["kernel"], crashed["threads"], crashed["signal"]) == ("kernel", "6.1.0-50-amd64", 4, None)
    virtual = described(core(True, "<", 62, cpu * 2 + note("<", b"QEMU", 0, bytes(400))))
    assert (virtual["of"], virtual["threads"], virtual["command"]) == ("machine", 2, None)


def test_one_that_is_truncated() -> None:
    whole = core(True, "<", 62, process_notes(True, "<"))
    for cut, known in ((1, True), (4096, True), (4097, False)):
        found = described(whole[:-cut])
        assert not found["whole"] and (found["command"] == "app") == known and found["stored_size"] == max(0, 4096 - cut)
    for size in (63, 64, 100, 200):
        with pytest.raises(Damaged):
            described(whole[:size])


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"x" * 100, core(True, "<", 62, b"", kind=2), core(True, "<", 62, b"", kind=3), b"\x7fELF\x03\x01" + bytes(60)],
)
def test_what_is_none(content: bytes) -> None:
    with pytest.raises(NotFound):
        described(content)
    assert not re.search(kinds.row_of("core").sign, content)


def test_bounds() -> None:
    """Numbers that promise more than there is cost no memory."""
    good = core(True, "<", 62, process_notes(True, "<"))
    tracemalloc.start()
    try:
        end = len(good)
        for at, kind, value in ((56, "H", 0), (56, "H", 60000), (54, "H", 57), (32, "Q", 1 << 63), (32, "Q", end), (96, "Q", 1 << 40)):
            changed = bytearray(good)
            struct.pack_into("<" + kind, changed, at, value)
            with pytest.raises(Damaged):
                described(bytes(changed))
        huge = bytearray(core(True, "<", 62, b"", extended=True))
        struct.pack_into("<I", huge, 64 + 44, 0xFFFFFFFF)
        with pytest.raises(Damaged):
            described(bytes(huge))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_that_was_changed_is_described_or_refused(data: st.DataObject) -> None:
    wide, order, machine = data.draw(st.sampled_from(SHAPES))
    content = bytearray(core(wide, order, machine, process_notes(wide, order), extended=data.draw(st.booleans())))
    for _change in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(content), 1400) - 1))
        content[at : at + 1] = data.draw(st.binary(max_size=3))
    try:
        found = described(bytes(content))
    except StoreError:
        return
    assert found["format"] == "elf-core" and found["mappings"] >= 0 and len(found["mapped_files"]) <= elf_core.MAX_FILES


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the kernel writes for PROGRAM."""
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        pytest.skip("the kernel gives core dumps to a program (core_pattern)")
    folder = tmp_path_factory.mktemp("core")

    def unlimited() -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, preexec_fn=unlimited, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -11
    (file,) = folder.iterdir()
    return file


def test_a_core_of_this_kernel(dumped: Path) -> None:
    with File(dumped) as file:
        found = kinds.inspect(file, 0, False, SILENT)
    assert (found["of"], found["signal"], found["address"], found["threads"], found["whole"]) == ("process", "SIGSEGV", 0x123, 4, True)
    assert sys.executable in found["arguments"] or found["command"].startswith("python")
    assert any("libc" in name for name in found["mapped_files"])
    assert 0 < found["stored_size"] <= found["memory_size"]


def test_it_is_recognised_in_a_store(store: Store, dumped: Path, tmp_path: Path) -> None:
    warned: list[str] = []
    made = store.put(str(dumped), Label("m", kind="core"), warn=warned.append)
    assert made.recognised == "core" and not warned
    assert {key: made.tags[key] for key in ("signal", "architecture")} == {"signal": "SIGSEGV", "architecture": platform.machine()}
    called_otherwise = store.put(str(dumped), Label("m", kind="file"))
    assert called_otherwise.recognised == "core" and "signal" not in called_otherwise.tags
    cut = tmp_path / "cut"
    cut.write_bytes(dumped.read_bytes()[:-5000])
    truncated = store.put(str(cut), Label("m", kind="core"), warn=warned.append)
    assert truncated.recognised == "" and truncated.tags["signal"] == "SIGSEGV"
    assert warned == [f"no core image found in {cut}: it is truncated, as by a limit (ulimit -c)."]
    plain = tmp_path / "plain"
    plain.write_bytes(b"text")
    store.put(str(plain), Label("m", kind="core"), warn=warned.append)
    assert "no ELF file" in warned[-1]


def test_one_through_a_pipe_tells_whether_it_is_whole(store: Store, dumped: Path, tmp_path: Path) -> None:
    from fuse_store.image.inputs import run_command

    with run_command(["cat", str(dumped)]) as piped:
        made = store.put(piped, Label("m", kind="core"))
    assert made.recognised == "core" and made.tags["signal"] == "SIGSEGV"
