# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores with hibernation images, and machines, for the tests of ``fuse_store.hibernation``. The images come from an encoder
written after the kernel's sources; a machine is a recorded tree of /proc and /sys."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuse_store.formats.readable import File
from fuse_store.image import devices
from fuse_store.image.reader import Image
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import encode, machine

SIZE = 12 << 20  # bytes of the device that an image was captured from
ENTRIES = ((0, 0x9FC00, 1, "System RAM"), (0xF0000, 0x10000, 2, "Reserved"), (0x100000, 0x7FEE0000, 1, "System RAM"))
E820 = zlib.crc32(struct.pack("<I", len(ENTRIES)) + b"".join(struct.pack("<QQI", *entry[:3]) for entry in ENTRIES))
FREE = ("filesystems_unknown", "machine_unknown")  # refusals for a file whose version has no filesystem state


@dataclass
class Case:
    """A store, the ids of its versions, and the file that each was captured from."""

    store: Store
    ids: list[str]
    sources: list[Path]

    def image(self, index: int) -> Image:
        image: Image = self.store.open_image(self.ids[index])
        return image

    def copied(self, directory: Path) -> Case:
        """A copy in another directory, which a test may change."""
        shutil.copytree(self.store.path.parent, directory)
        store = Store.open(directory / "store", key_file=directory / "key")
        return Case(store, self.ids, [directory / source.name for source in self.sources])

    def content(self, index: int) -> bytes:
        return self.sources[index].read_bytes()


def kind_on(device: Path) -> str:
    """What blkid recognises there."""
    with File(device) as opened:
        return devices.content_of(opened, device).kind


def make_case(
    directory: Path, *, page_size: int = 4096, store_page_size: int = 4096, compressions: tuple[str, ...] = ("lzo", "none", "lz4"),
    tags: dict[str, str] | None = None, architecture: str = "x86", pages: int = 1200,
) -> Case:  # fmt: skip
    directory.mkdir(exist_ok=True)
    store = Store.create(directory / "store", durability="none", key_file=directory / "key", page_size=store_page_size)
    ids, sources = [], []
    for index, compression in enumerate(compressions):
        encoded = encode(machine(page_size, architecture, pages, seed=index), page_size, architecture, compression, scattered=index)
        if architecture == "x86":
            where = encoded.stream[0] * page_size + 32
            encoded.device[where : where + 8] = struct.pack("<Q", E820)
        source = directory / f"v{index}"
        source.write_bytes(encoded.device.ljust(SIZE, b"\0"))
        version = store.put(str(source), Label("m", kind="hibernation", tags=tags or {}))
        ids.append(version.id)
        sources.append(source)
    return Case(store, ids, sources)


def blank(path: Path, size: int = SIZE + (1 << 20)) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def signature(device: bytes, page_size: int = 4096) -> bytes:
    return device[page_size - 10 : page_size]


def unarmed(device: bytes, page_size: int = 4096) -> bytes:
    """The expected content of a device on which an image was staged."""
    return device[: page_size - 10] + b"SWAPSPACE2" + device[page_size:]


def differing(device: bytes, other: bytes, page_size: int = 4096) -> int:
    """How many pages of two devices differ."""
    return int((np.frombuffer(device, np.uint8) != np.frombuffer(other, np.uint8)).reshape(-1, page_size).any(axis=1).sum())


def make_machine(root: Path, memory_pages: int, **files: str) -> Path:
    """A tree of a machine that accepts the images, but for what ``files`` change: paths, with / as __."""
    content = {
        "proc/sys/kernel/osrelease": "6.12.7-amd64\n", "proc/sys/kernel/arch": "x86_64\n", "proc/cmdline": "root=/dev/vda1 ro\n",
        "proc/sys/kernel/version": "#1 SMP test\n", "proc/sys/kernel/ostype": "Linux\n",
        "proc/zoneinfo": f"Node 0, zone      DMA\n        present  3998\n        managed  3840\nNode 0, zone    DMA32\n"
        f"        present  {memory_pages - 3998}\n",
        "proc/self/smaps": "00400000-00401000 r-xp 0 00:00 0 cat\nSize: 4 kB\nKernelPageSize:        4 kB\n",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "lib/modules/6.12.7-amd64/modules.builtin": "kernel/crypto/lzo.ko\nkernel/drivers/virtio/virtio-pci.ko\n",
    }  # fmt: skip
    for index, (start, length, _type, name) in enumerate(ENTRIES):
        for field, value in (("start", f"{start:#x}"), ("end", f"{start + length - 1:#x}"), ("type", name)):
            content[f"sys/firmware/memmap/{index}/{field}"] = value + "\n"
    content |= {path.replace("__", "/"): text for path, text in files.items()}
    for path, text in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def cpio(files: dict[str, bytes]) -> bytes:
    """A cpio archive, newc."""
    out = b""
    for name, content in {**files, "TRAILER!!!": b""}.items():
        raw = os.fsencode(name) + b"\0"
        fields = (0, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(f"{field:08x}".encode() for field in fields) + raw
        out += b"\0" * (-len(out) % 4) + content
        out += b"\0" * (-len(out) % 4)
    return out


def run(*command: object, input: str | None = None) -> str:
    """What a command prints. Raises if it fails."""
    return subprocess.run([str(word) for word in command], input=input, capture_output=True, text=True, check=True).stdout


def make_filesystem(kind: str, path: Path) -> Path:
    """A file with an empty filesystem, made by mkfs."""
    size = {"xfs": 320, "btrfs": 120}.get(kind, 40) << 20
    with open(path, "wb") as file:
        file.truncate(size)
    options = {"ext4": ["-q", "-F", "-O", "^resize_inode"], "xfs": ["-q", "-f"], "btrfs": ["-q"], "vfat": ["-F", "32"], "f2fs": []}[kind]
    run(f"mkfs.{kind}", *options, path)
    return path


def uuid_of(path: Path) -> str:
    """As blkid shows it."""
    return run("blkid", "-p", "-s", "UUID", "-o", "value", path).strip()
