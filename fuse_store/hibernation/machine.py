# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine tells about itself in /proc and /sys, as far as a hibernation image depends on it. Used by ``preflight``.

All of it is read below a root folder, so that a recorded tree of another machine does as well. What is not told is None:
the kernel may not export it, or the tree may be without it.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from fuse_store.formats.swsusp.info import Info

# arch/x86/kernel/e820.c, e820_type_to_string; a reserved range of the kernel's own is System RAM as well.
E820_TYPES = {
    "System RAM": 1, "Reserved": 2, "ACPI Tables": 3, "ACPI Non-volatile Storage": 4, "Unusable memory": 5,
    "Persistent Memory": 7, "Persistent Memory (legacy)": 12, "Soft Reserved": 0xEFFFFFFF,
}  # fmt: skip
# Architecture of an image → what uname calls machines of it.
MACHINES = {"x86": "x86_64", "arm64": "aarch64", "riscv": "riscv64"}
LARGEST = 64 << 20  # bytes of a file in /proc or /sys
STEP = 64 << 10  # of which are read at once: of some the kernel gives nothing to who asks for megabytes


class Machine:
    """Facts of the machine whose /proc and /sys are below ``root``."""

    def __init__(self, root: Path | str = "/") -> None:
        self.root = Path(root)

    def text(self, path: str) -> str | None:
        """A file below the root, without the blanks around its content; None if it is not there."""
        try:
            with open(self.root / path, "rb", buffering=0) as file:
                parts: list[bytes] = []
                while len(parts) < LARGEST // STEP and (part := file.read(STEP)):
                    parts.append(part)
            return b"".join(parts).decode("utf-8", "replace").strip("\0 \t\n")
        except OSError:
            return None

    @property
    def release(self) -> tuple[int, int] | None:
        """The first two numbers of the kernel's release."""
        found = re.match(r"(\d+)\.(\d+)", self.text("proc/sys/kernel/osrelease") or "")
        return (int(found[1]), int(found[2])) if found else None

    @property
    def architecture(self) -> str | None:
        """As uname calls it. Kernels before 6.1 tell it only themselves."""
        return self.text("proc/sys/kernel/arch") or (os.uname().machine if self.root == Path("/") else None)

    @property
    def memory_map(self) -> bytes | None:
        """The firmware's memory map as an x86 kernel has it: e820_table_firmware, of which its images have a checksum. The
        kernel shows it in /sys/firmware/memmap."""
        entries = []
        try:
            folders = sorted((self.root / "sys/firmware/memmap").iterdir(), key=lambda folder: int(folder.name))
        except (OSError, ValueError):
            return None
        for folder in folders:
            values = [self.text(str(folder.relative_to(self.root) / name)) for name in ("start", "end", "type")]
            try:
                start, end = int(values[0] or "", 16), int(values[1] or "", 16)
                entries.append(struct.pack("<QQI", start, end - start + 1, E820_TYPES[values[2] or ""]))
            except (ValueError, KeyError, struct.error):
                return None
        return struct.pack("<I", len(entries)) + b"".join(entries) if entries else None

    @property
    def present_pages(self) -> int | None:
        """Pages of memory in all zones: get_num_physpages() (Σ node_present_pages)."""
        found = re.findall(r"^\s+present\s+(\d+)$", self.text("proc/zoneinfo") or "", re.MULTILINE)
        return sum(map(int, found)) if found else None

    @property
    def page_size(self) -> int | None:
        found = re.search(r"^KernelPageSize:\s+(\d+) kB", self.text("proc/self/smaps") or "", re.MULTILINE)
        return int(found[1]) << 10 if found else None

    @property
    def parameters(self) -> list[str]:
        """Of the kernel's command line."""
        return (self.text("proc/cmdline") or "").split()

    @property
    def lockdown(self) -> str | None:
        """none, integrity or confidentiality."""
        found = re.search(r"\[(\w+)\]", self.text("sys/kernel/security/lockdown") or "")
        return found[1] if found else None

    @property
    def mounts(self) -> list[tuple[str, str, str, bool]] | None:
        """(number of the device, type, source, whether writable) of each superblock that is mounted anywhere (proc(5)).
        A superblock counts as writable by its own options, whatever the mount's are."""
        content = self.text("proc/1/mountinfo") or self.text("proc/self/mountinfo")
        if content is None:
            return None
        found: dict[tuple[str, str, str], bool] = {}
        for line in content.splitlines():
            left, _dash, right = line.partition(" - ")
            before, after = left.split(), right.split()
            if len(before) >= 6 and len(after) >= 3:
                key = (before[2], after[0], re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), after[1]))
                found[key] = found.get(key, False) or "rw" in after[2].split(",")
        return [(*key, writable) for key, writable in found.items()]

    def device_of(self, number: str) -> Path | None:
        """The block device with a number like 8:1."""
        found = re.search(r"^DEVNAME=(.+)$", self.text(f"sys/dev/block/{number}/uevent") or "", re.MULTILINE)
        return self.root / "dev" / found[1] if found else None

    def block_devices(self) -> Iterator[Path]:
        """Every block device and partition, but for those that others are made of (mdadm, LVM, LUKS)."""
        try:
            names = sorted(entry.name for entry in (self.root / "sys/class/block").iterdir())
        except OSError:
            return
        for name in names:
            size = self.text(f"sys/class/block/{name}/size")
            found = re.search(r"^DEVNAME=(.+)$", self.text(f"sys/class/block/{name}/uevent") or "", re.MULTILINE)
            parts_of_others = self.root / f"sys/class/block/{name}/holders"
            if size not in (None, "0") and found and not (parts_of_others.is_dir() and any(parts_of_others.iterdir())):
                yield self.root / "dev" / found[1]

    def is_builtin(self, module: str) -> bool:
        """Whether the kernel has the module built in."""
        listed = self.text(f"lib/modules/{self.text('proc/sys/kernel/osrelease')}/modules.builtin") or ""
        return any(_module_name(line) == module for line in listed.splitlines())

    def drivers_of(self, device: Path) -> list[str]:
        """The modules that drive a block device and the buses that lead to it."""
        name = device.resolve().name
        folder = (self.root / "sys/class/block" / name).resolve()
        found = []
        while len(folder.parts) > len(self.root.resolve().parts) + 2:
            module = folder / "driver" / "module"
            if module.is_dir():
                found.append(module.resolve().name)
            folder = folder.parent
        return found

    @property
    def initramfs(self) -> Path | None:
        """That of the kernel that runs."""
        release = self.text("proc/sys/kernel/osrelease")
        for name in ("boot/initrd.img-{}", "boot/initramfs-{}.img", "boot/initrd-{}", "lib/modules/{}/initrd"):
            path = self.root / name.format(release)
            if release and path.is_file():
                return path
        return None


def memory_map_sum(info: Info, table: bytes) -> str:
    """What an x86 image would have for this memory map: its CRC, or before Linux 5.13 its MD5."""
    if "e820_digest" in info.record:
        return hashlib.md5(table, usedforsecurity=False).hexdigest()
    return f"{zlib.crc32(table):#010x}"


def recorded_sum(info: Info) -> str:
    """What an x86 image has."""
    return str(info.record["e820_digest"]) if "e820_digest" in info.record else f"{info.record['e820_checksum']:#010x}"


def _module_name(path: str) -> str:
    """Of a file like kernel/drivers/nvdimm/nd_pmem.ko.xz; the kernel takes - and _ for the same."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
