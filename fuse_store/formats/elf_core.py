# SPDX-License-Identifier: GPL-3.0-or-later
"""Core dumps in ELF (elf(5), core(5); Linux fs/binfmt_elf.c): of a process, of a kernel that crashed, of a virtual machine.

Of the memory nothing is read: the program headers tell what is stored, the notes tell of whom. Everything is untrusted: bounds
are checked before anything is read.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fuse_store.errors import Damaged, NotFound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fuse_store.formats.readable import Readable

CORE = "core dump"
ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
PN_XNUM = 0xFFFF  # the number of program headers is in the first section header
NT_PRSTATUS, NT_PRPSINFO, NT_SIGINFO, NT_FILE = 1, 3, 0x53494749, 0x46494C45
MAX_HEADERS = 1 << 18  # program headers: a process has 65530 mappings unless vm.max_map_count is raised
MAX_NOTES = 64 << 20  # bytes of all notes: those of about ten thousand threads
MAX_FILES = 200  # mapped files that are named
ARCHITECTURES = {
    3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv", 258: "loongarch",
}  # fmt: skip
# By whether it is one of 64 bits: program headers, and where in the notes is what.
_HEADERS = {
    True: (("type", 4), ("flags", 4), ("offset", 8), ("vaddr", 8), ("paddr", 8), ("filesz", 8), ("memsz", 8), ("align", 8)),
    False: (("type", 4), ("offset", 4), ("vaddr", 4), ("paddr", 4), ("filesz", 4), ("memsz", 4), ("flags", 4), ("align", 4)),
}
_PRPSINFO = {True: (16, "IIii", 40), False: (8, "HHii", 28)}  # struct elf_prpsinfo: uid, gid, pid, ppid; then pr_fname[16], pr_psargs[80]
_NAME, _ARGUMENTS = 16, 80


@dataclass
class _Found:
    """What the notes say."""

    owner: str = "process"
    threads: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def describe(readable: Readable) -> dict[str, Any]:
    """What a core dump is, as JSON. ``whole``: all that its headers promise is there. Raises NotFound if it is none, Damaged if it
    contradicts itself, and what ``read`` raises."""
    ident = readable.read(0, 64)
    if len(ident) < 52 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise NotFound(CORE, "none is there: no ELF file.", "Name a core dump.")
    wide, order = ident[4] == 2, "<" if ident[5] == 1 else ">"
    kind, machine = struct.unpack_from(order + "HH", ident, 16)
    if kind != ET_CORE:
        raise NotFound(CORE, "none is there: the ELF file is a program or a library.", "Name a core dump.")
    if wide and len(ident) < 64:
        raise Damaged(CORE, "truncated in its header.", "Write it again.")
    headers = _headers(readable, ident, wide, order)
    loads = headers[headers["type"] == PT_LOAD]
    found = _Found()
    left = MAX_NOTES
    for header in headers[headers["type"] == PT_NOTE]:
        start, length = int(header["offset"]), int(header["filesz"])
        if length > left:
            raise Damaged(CORE, f"its notes have more than {MAX_NOTES >> 20} MiB.", "It is none, or damaged.")
        left -= length
        if start + length <= readable.size:
            for name, what, note in _notes(readable.read(start, length), order):
                _take(found, name, what, note, wide, order)
    ends = headers["offset"].astype(object) + headers["filesz"].astype(object)  # no overflow
    places = zip(loads["offset"].tolist(), loads["filesz"].tolist(), strict=True)
    stored = (max(0, min(length, readable.size - at)) for at, length in places)
    return {
        "format": "elf-core",
        "of": found.owner,
        "architecture": ARCHITECTURES.get(machine, f"ELF machine {machine}"),
        **{name: found.values.get(name) for name in ("command", "arguments", "pid", "parent", "user", "group", "signal", "address")},
        "threads": found.threads,
        "kernel": found.values.get("kernel"),
        "memory_size": sum(loads["memsz"].tolist()),
        "stored_size": sum(stored),
        "mappings": len(loads),
        "mapped_files": found.files[:MAX_FILES],
        "whole": bool(max(ends, default=0) <= readable.size),
        "crc": "none",
    }


def _headers(readable: Readable, ident: bytes, wide: bool, order: str) -> NDArray[Any]:
    """The program headers. Raises Damaged."""
    table, sections = struct.unpack_from(order + ("QQ" if wide else "II"), ident, 32 if wide else 28)
    size, count, section_size = struct.unpack_from(order + "HHH", ident, 54 if wide else 42)
    row = np.dtype([(name, f"{order}u{width}") for name, width in _HEADERS[wide]])
    if count == PN_XNUM and section_size:
        first = readable.read(sections, 64) if sections < readable.size else b""
        place = 44 if wide else 28  # sh_info
        if len(first) < place + 4:
            raise Damaged(CORE, "the number of its program headers is missing.", "Write it again.")
        (count,) = struct.unpack_from(order + "I", first, place)
    if size != row.itemsize or not 0 < count <= MAX_HEADERS or table + count * size > readable.size:
        raise Damaged(CORE, f"it cannot have {count} program headers of {size} bytes at {table:#x}.", "Write it again.")
    return np.frombuffer(readable.read(table, count * size), row)


def _notes(content: bytes, order: str) -> Iterator[tuple[bytes, int, memoryview]]:
    """(name, type, description) of each note, up to the first that does not fit."""
    at, view = 0, memoryview(content)
    while at + 12 <= len(content):
        names, length, what = struct.unpack_from(order + "III", content, at)
        start = at + 12 + (names + 3 & ~3)
        if start + length > len(content):
            return
        yield bytes(view[at + 12 : at + 12 + names]).rstrip(b"\0"), what, view[start : start + length]
        at = start + (length + 3 & ~3)


def _take(found: _Found, name: bytes, what: int, note: memoryview, wide: bool, order: str) -> None:
    if name == b"VMCOREINFO":
        found.owner = "kernel"
        lines = dict(line.partition("=")[::2] for line in _text(note[: 1 << 16]).splitlines())
        found.values["kernel"] = lines.get("OSRELEASE")
    elif name == b"QEMU":
        found.owner = "machine" if found.owner == "process" else found.owner
    elif name == b"CORE":
        if what == NT_PRSTATUS and len(note) >= 36:
            found.threads += 1
            if found.threads == 1:
                _set_signal(found, struct.unpack_from(order + "H", note, 12)[0])
        elif what == NT_PRPSINFO:
            _take_process(found, note, wide, order)
        elif what == NT_SIGINFO and len(note) >= 24:
            number, _errno, code = struct.unpack_from(order + "iii", note)
            _set_signal(found, number)
            if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE) and code > 0:  # not sent by another process
                found.values["address"] = struct.unpack_from(order + ("Q" if wide else "I"), note, 16 if wide else 12)[0]
        elif what == NT_FILE:
            found.files = _files(note, wide, order)


def _set_signal(found: _Found, number: int) -> None:
    if number:
        try:
            found.values["signal"] = signal.Signals(number).name
        except ValueError:
            found.values["signal"] = f"signal {number}"


def _take_process(found: _Found, note: memoryview, wide: bool, order: str) -> None:
    at, kinds, text = _PRPSINFO[wide]
    if len(note) < text + _NAME + _ARGUMENTS:
        return
    user, group, pid, parent = struct.unpack_from(order + kinds, note, at)
    found.values |= {
        "user": user, "group": group, "pid": pid, "parent": parent, "command": _text(note[text : text + _NAME]),
        "arguments": _text(note[text + _NAME : text + _NAME + _ARGUMENTS]).strip(),
    }  # fmt: skip


def _files(note: memoryview, wide: bool, order: str) -> list[str]:
    """The names of the mapped files, each once, in the order of their places; NT_FILE: count, page size, (start, end, offset)…, names."""
    word = 8 if wide else 4
    if len(note) < 2 * word:
        return []
    (count,) = struct.unpack_from(order + ("Q" if wide else "I"), note)
    start = (2 + 3 * count) * word
    if start > len(note):
        return []
    names = bytes(note[start:]).split(b"\0", count)[:count]
    return [_text(name) for name in dict.fromkeys(names)]


def _text(content: bytes | memoryview) -> str:
    return bytes(content).partition(b"\0")[0].decode(errors="backslashreplace")
