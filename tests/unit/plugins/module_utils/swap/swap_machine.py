# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with the device /dev/NVM_SWAP, recorded as files and commands, and swap headers to write to it."""

from __future__ import annotations

import functools
import os
import struct
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import area

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

PAGE = 4096
SIZE = 1 << 20
MACHINE = "8e7b3b3f2c0d4c2f9a52f0f4f8a3c1d6"
OURS = "6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11"
OTHER = "0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
BLKID = "blkid -p -o export /dev/pmem0"
MKSWAP = "mkswap -U %s -L NVM_SWAP /dev/pmem0" % OURS
MKSWAP_FORCED = "mkswap -f -U %s -L NVM_SWAP /dev/pmem0" % OURS
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
EXT4 = (
    "DEVNAME=/dev/pmem0\nLABEL=my\\ data\nUUID=%s\nVERSION=1.0\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n" % OTHER
)
GPT = "DEVNAME=/dev/pmem0\nPTUUID=%s\nPTTYPE=gpt\n" % OTHER
BLKID_SWAP = "DEVNAME=/dev/pmem0\nUUID=%s\nVERSION=1\nTYPE=swap\nUSAGE=other\n" % OURS


def header(
    identity: str = OURS,
    label: str = "NVM_SWAP",
    page: int = PAGE,
    size: int = SIZE,
    magic: bytes = b"SWAPSPACE2",
    version: int = 1,
    last: int | None = None,
) -> bytes:
    """The first page as mkswap writes it; for S1SUSPEND as the kernel leaves it (an image at block 16384)."""
    content = bytearray(page)
    struct.pack_into("=III", content, 1024, version, size // page - 1 if last is None else last, 0)
    content[1036:1052] = uuid.UUID(identity).bytes
    content[1052:1068] = label.encode().ljust(16, b"\0")
    if magic.startswith(b"S1SUSPEND"):
        struct.pack_into("=QI10s", content, page - 32, 16384, 4, b"SWAPSPACE2")
    content[page - 10 : page] = magic.ljust(10, b"\0")
    return bytes(content)


class Machine:
    """/dev/NVM_SWAP → pmem0 of 1 MiB, and what /proc says of it."""

    def __init__(self, host: Host, plant: Plant, transcript: Transcript) -> None:
        self.host, self.plant, self.transcript = host, plant, transcript
        plant(
            {
                "/dev/pmem0": b"",
                "/etc/machine-id": MACHINE + "\n",
                "/sys/class/block/pmem0/dev": "259:0\n",
                "/sys/class/block/pmem0/size": "%d\n" % (SIZE // 512),
                "/sys/class/block/pmem0/ro": "0\n",
                "/proc/swaps": SWAPS,
                "/proc/meminfo": "MemTotal:        2015000 kB\nMemFree:  1000 kB\nMemAvailable:       2048 kB\n",
                "/proc/self/mountinfo": "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n",
            }
        )
        os.symlink("pmem0", host.path("/dev/NVM_SWAP"))
        self.write(b"")

    def write(self, content: bytes, size: int = SIZE) -> None:
        with open(self.host.path("/dev/pmem0"), "r+b") as device:
            device.write(content)
            device.truncate(size)

    def content(self) -> bytes:
        content = self.host.read_bytes("/dev/pmem0")
        assert isinstance(content, bytes)
        return content

    def swaps(self, priority: str | int | None = None, used: int = 0, path: str = "/dev/pmem0") -> None:
        line = "%-40s%-16s%d\t\t%d\t\t%s\n" % (path, "partition", SIZE // 1024 - 4, used, priority)
        self.plant({"/proc/swaps": SWAPS + ("" if priority is None else line)})

    def answers(self, *commands: str) -> None:
        """Record the commands that change something, with the effect each has."""
        effects: dict[str, Callable[[], object]] = {
            "mkswap": lambda: self.write(header()),
            "swaplabel": lambda: self.write(header()),
            "wipefs": lambda: self.write(bytes(65536)),
            "swapoff": self.swaps,
        }
        for command in commands:
            words = command.split()
            effect = effects.get(words[0])
            if words[0] == "swapon":
                effect = functools.partial(self.swaps, words[2] if words[1] == "-p" else -2)
            self.transcript.record(command, effect=effect)

    def present(self, check: bool = False, **options: Any) -> tuple[Transaction, dict[str, Any]]:
        with Transaction(self.host, check) as transaction:
            result = area.present(transaction, "/dev/NVM_SWAP", **{"uuid": OURS, **options})
        return transaction, result

    def absent(self, check: bool = False, **options: Any) -> tuple[Transaction, dict[str, Any]]:
        with Transaction(self.host, check) as transaction:
            result = area.absent(transaction, "/dev/NVM_SWAP", **{"uuid": OURS, **options})
        return transaction, result

    def refused(self, verb: str = "present", **options: Any) -> str:
        before = self.content()
        with pytest.raises(Refused) as caught:
            getattr(self, verb)(**options)
        assert caught.value.message and caught.value.remedy
        assert self.content() == before
        return str(caught.value.code)
