# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a machine, from /proc and /sys, that a hibernation image depends on.

Everything is read below a root directory, so that a recorded tree of another machine can take its place. A fact that the
machine does not report is None: the kernel may not export it, or the tree may lack it. Nothing is cached; safe from any thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuse_store.formats.swsusp.info import Info

# Type of an entry in /sys/firmware/memmap → its number (arch/x86/kernel/e820.c, e820_type_to_string; asm/e820/types.h). A range
# of any other number is an "Unknown E820 type", whose number, and so the checksum, cannot be determined.
E820_TYPES = {
    "System RAM": 1, "Reserved": 2, "ACPI Tables": 3, "ACPI Non-volatile Storage": 4, "Unusable memory": 5,
    "Persistent Memory": 7, "Persistent Memory (legacy)": 12, "Soft Reserved": 0xEFFFFFFF,
}  # fmt: skip
UNAME_MACHINES = {"x86": "x86_64", "arm64": "aarch64", "riscv": "riscv64"}  # architecture of an image → uname -m
MAX_FILE_SIZE = 64 << 20  # bytes of a file in /proc or /sys
READ_SIZE = 64 << 10  # bytes that are read at once: some files return nothing for larger reads


class Machine:
    """The machine whose /proc and /sys are below ``root``."""

    def __init__(self, root: Path | str = "/") -> None:
        self.root = Path(root)

    def text(self, path: str) -> str | None:
        """Content of a file below the root, without surrounding blanks; None if it cannot be read."""
        try:
            with open(self.root / path, "rb", buffering=0) as file:
                parts: list[bytes] = []
                while len(parts) < MAX_FILE_SIZE // READ_SIZE and (part := file.read(READ_SIZE)):
                    parts.append(part)
            return b"".join(parts).decode("utf-8", "replace").strip("\0 \t\n")
        except OSError:
            return None

    @property
    def release(self) -> tuple[int, int] | None:
        """Major and minor version of the kernel."""
        match = re.match(r"(\d+)\.(\d+)", self.text("proc/sys/kernel/osrelease") or "")
        return (int(match[1]), int(match[2])) if match else None

    @property
    def architecture(self) -> str | None:
        """As ``uname -m`` prints it. /proc has it since Linux 6.1."""
        return self.text("proc/sys/kernel/arch") or (os.uname().machine if self.root == Path("/") else None)

    @property
    def memory_map(self) -> bytes | None:
        """The firmware's memory map as an x86 kernel keeps it (e820_table_firmware), of which its images contain a checksum.
        The kernel exports it in /sys/firmware/memmap."""
        entries = []
        try:
            directories = sorted((self.root / "sys/firmware/memmap").iterdir(), key=lambda directory: int(directory.name))
        except (OSError, ValueError):
            return None
        for directory in directories:
            values = [self.text(str(directory.relative_to(self.root) / name)) for name in ("start", "end", "type")]
            try:
                start, end = int(values[0] or "", 16), int(values[1] or "", 16)
                entries.append(struct.pack("<QQI", start, end - start + 1, E820_TYPES[values[2] or ""]))
            except (ValueError, KeyError, struct.error):
                return None
        return struct.pack("<I", len(entries)) + b"".join(entries) if entries else None

    @property
    def present_pages(self) -> int | None:
        """Pages of memory in all zones: get_num_physpages() (Σ node_present_pages)."""
        pages = re.findall(r"^\s+present\s+(\d+)$", self.text("proc/zoneinfo") or "", re.MULTILINE)
        return sum(map(int, pages)) if pages else None

    @property
    def memory_tag(self) -> str | None:
        """The pages of memory, and a digest of the firmware's memory map, as a shell computes it: two machines with the same can resume
        each other's images. The kernel compares the like, with a checksum of its own."""
        if (pages := self.present_pages) is None:
            return None
        try:
            files = sorted(self.root.glob("sys/firmware/memmap/*/*"))
            content = b"".join(file.read_bytes() for file in files)
        except OSError:
            return None
        return f"{pages} {hashlib.sha256(content).hexdigest()}"

    @property
    def memory(self) -> dict[str, int]:
        """The sizes in /proc/meminfo, in bytes, such as MemTotal; empty if it is not reported."""
        fields = re.findall(r"^(\w+):\s+(\d+) kB$", self.text("proc/meminfo") or "", re.MULTILINE)
        return {name: int(number) << 10 for name, number in fields}

    @property
    def page_size(self) -> int | None:
        """In bytes."""
        match = re.search(r"^KernelPageSize:\s+(\d+) kB", self.text("proc/self/smaps") or "", re.MULTILINE)
        return int(match[1]) << 10 if match else None

    @property
    def parameters(self) -> list[str]:
        """Parameters of the kernel's command line."""
        return (self.text("proc/cmdline") or "").split()

    @property
    def lockdown(self) -> str | None:
        """``none``, ``integrity`` or ``confidentiality``; None for a kernel without lockdown."""
        match = re.search(r"\[(\w+)\]", self.text("sys/kernel/security/lockdown") or "")
        return match[1] if match else None

    @property
    def mounts(self) -> list[tuple[str, str, str, bool]] | None:
        """(device number, type, source, writable) of each mounted superblock (proc(5), mountinfo). ``writable`` is that of the
        superblock, not of the mount."""
        content = self.text("proc/1/mountinfo") or self.text("proc/self/mountinfo")
        if content is None:
            return None
        superblocks: dict[tuple[str, str, str], bool] = {}
        for one in mounts_in(content):
            key = (one.number, one.kind, one.source)
            superblocks[key] = superblocks.get(key, False) or one.writable
        return [(*key, writable) for key, writable in superblocks.items()]

    def device_of(self, device_number: str) -> Path | None:
        """The block device with a number like 8:1."""
        return self._device_node(f"sys/dev/block/{device_number}")

    def _device_node(self, directory: str) -> Path | None:
        match = re.search(r"^DEVNAME=(.+)$", self.text(f"{directory}/uevent") or "", re.MULTILINE)
        return self.root / "dev" / match[1] if match else None

    def block_devices(self) -> Iterator[Path]:
        """Every block device and partition, except components of others (mdadm, LVM, LUKS)."""
        try:
            names = sorted(entry.name for entry in (self.root / "sys/class/block").iterdir())
        except OSError:
            return
        for name in names:
            size, node = self.text(f"sys/class/block/{name}/size"), self._device_node(f"sys/class/block/{name}")
            holders = self.root / f"sys/class/block/{name}/holders"
            if size not in (None, "0") and node and not (holders.is_dir() and any(holders.iterdir())):
                yield node

    def is_builtin(self, module: str) -> bool:
        """Whether a module is built into the kernel."""
        builtin = self.text(f"lib/modules/{self.text('proc/sys/kernel/osrelease')}/modules.builtin") or ""
        return any(_module_name(line) == module for line in builtin.splitlines())

    def drivers_of(self, device: Path) -> list[str]:
        """The modules of the drivers of a block device and of the buses above it."""
        name = device.resolve().name
        directory = (self.root / "sys/class/block" / name).resolve()
        modules = []
        while len(directory.parts) > len(self.root.resolve().parts) + 2:
            module = directory / "driver" / "module"
            if module.is_dir():
                modules.append(module.resolve().name)
            directory = directory.parent
        return modules

    @property
    def initramfs(self) -> Path | None:
        """The initramfs of the running kernel."""
        release = self.text("proc/sys/kernel/osrelease")
        for name in ("boot/initrd.img-{}", "boot/initramfs-{}.img", "boot/initrd-{}", "lib/modules/{}/initrd"):
            path = self.root / name.format(release)
            if release and path.is_file():
                return path
        return None


def memory_map_sum(info: Info, table: bytes) -> str:
    """The checksum that an x86 image made with this memory map would contain: CRC-32, before Linux 5.13 MD5."""
    if "e820_digest" in info.record:
        return hashlib.md5(table, usedforsecurity=False).hexdigest()
    return f"{zlib.crc32(table):#010x}"


def recorded_sum(info: Info) -> str:
    """The checksum of the memory map in an x86 image."""
    return str(info.record["e820_digest"]) if "e820_digest" in info.record else f"{info.record['e820_checksum']:#010x}"


@dataclass(frozen=True)
class Mounted:
    """A line of mountinfo (proc(5)): ``number`` of the device, as 8:1; ``kind``, ``source`` and ``options`` of the superblock; the mount
    ``point``."""

    number: str
    kind: str
    source: str
    options: frozenset[str]
    point: str

    @property
    def writable(self) -> bool:
        """Whether the superblock is."""
        return "rw" in self.options


def mounts_in(mountinfo: str) -> Iterator[Mounted]:
    """What is mounted, the first ones first."""
    for line in mountinfo.splitlines():
        left, _dash, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) >= 6 and len(after) >= 3:
            yield Mounted(before[2], after[0], unescaped(after[1]), frozenset(after[2].split(",")), unescaped(before[4]))


def unescaped(path: str) -> str:
    """A path as it is: mountinfo and swaps in /proc have blanks and the like as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _module_name(path: str) -> str:
    """Name of the module in a file like kernel/drivers/nvdimm/nd-pmem.ko.xz; the kernel treats - and _ alike."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
