# SPDX-License-Identifier: GPL-3.0-or-later
"""Real filesystems on loop devices, for what only a kernel can answer: where a file is on its device."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import extents

MIB = 1 << 20
OPTIONS = {"ext4": ("-b", "4096"), "xfs": (), "btrfs": ()}  # mkfs.ext4 makes smaller blocks on a small device
KINDS = tuple(OPTIONS)
SETFLAGS = 0x40086602


def possible(kind: str) -> bool:
    """Whether this process may mount a filesystem of that kind."""
    return os.geteuid() == 0 and bool(shutil.which("mkfs." + kind) and shutil.which("losetup")) and os.path.exists("/dev/loop-control")


@contextlib.contextmanager
def mounted(directory: Path, kind: str, size: int = 400 * MIB, *options: str) -> Iterator[tuple[Path, str]]:
    """(place, device) of an empty filesystem. The place is not below /dev, as a temporary directory may be."""
    image, place = directory / (kind + ".img"), Path(tempfile.mkdtemp(dir="/var/tmp"))
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs." + kind, "-q", *(options or OPTIONS[kind]), str(image)], check=True, capture_output=True)
    device = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", device, str(place)], check=True)
        try:
            yield place, device
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()
        place.rmdir()


def allocate(path: Path, kind: str, size: int) -> None:
    """A file of that many bytes as swap files are made."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if kind == "btrfs":
            nocow(handle)
        os.posix_fallocate(handle, 0, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def nocow(handle: int) -> None:
    flags = struct.unpack("=L", fcntl.ioctl(handle, extents.GETFLAGS, bytes(8))[:4])[0]
    fcntl.ioctl(handle, SETFLAGS, struct.pack("=LL", flags | extents.NOCOW, 0))


def real_host() -> Host:
    """This machine."""

    def run(argv: list[str], data: Any) -> tuple[int, str, str]:
        done = subprocess.run(argv, input=data, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return Host(run)
