# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with /dev/NVM_SWAP, and commands that do to its files what the real ones do to devices: LUKS headers, keys, mappings, swap."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import uuid as uuids
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import area
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import identity, luks

MACHINE = "8e7b3b3f2c0d4c2f9a52f0f4f8a3c1d6"
OTHER = "0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
SIZE, DATA, PAGE = 64 << 20, 1 << 20, 4096
MAPPER, KEY_FILE = "/dev/mapper/NVM_SWAP", "/etc/cryptsetup-keys.d/NVM_SWAP.key"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
KINDS = (("crypto_LUKS", 0, b"LUKS\xba\xbe"), ("swap", 4086, b"SWAPSPACE2"), ("ext4", 1080, b"\x53\xef"))
TOOLS = {
    "initramfs-tools": (
        "/usr/sbin/mkinitramfs", "/usr/share/initramfs-tools/hook-functions", "/usr/share/initramfs-tools/hooks/cryptroot",
        "/etc/kernel/postinst.d/initramfs-tools",
    ),
    "dracut": (
        "/usr/bin/dracut", "/usr/lib/dracut/dracut-functions.sh", "/etc/kernel/postinst.d/dracut", "/usr/bin/systemd-cryptsetup",
        "/usr/bin/systemd-cryptenroll", "/usr/bin/tpm2", "/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
    ),
}  # fmt: skip


def luks_header(uuid: str, data: int = DATA, tokens: Sequence[str] = (), size: int = 16384) -> bytes:
    """Both copies, as cryptsetup writes them."""
    content = {
        "keyslots": {"0": {"type": "luks2"}},
        "tokens": {str(number): {"type": kind} for number, kind in enumerate(tokens)},
        "segments": {"0": {"type": "crypt", "offset": str(data), "size": "dynamic", "encryption": "aes-xts-plain64"}},
        "digests": {"0": {"salt": base64.b64encode(b"s" * 32).decode()}},
        "config": {"json_size": str(size - 4096)},
    }
    copies = []
    for magic, offset in ((b"LUKS\xba\xbe", 0), (b"SKUL\xba\xbe", size)):
        binary = bytearray(4096)
        struct.pack_into(
            ">6sHQQ48s32s64s40s48sQ", binary, 0, magic, 2, size, 3, b"NVM_SWAP", b"sha256", b"x" * 64, uuid.encode(), b"", offset
        )
        rest = json.dumps(content).encode().ljust(size - 4096, b"\0")
        binary[448:480] = hashlib.sha256(bytes(binary) + rest).digest()
        copies.append(bytes(binary) + rest)
    return b"".join(copies)


def swap_header(uuid: str, magic: bytes = b"SWAPSPACE2", size: int = SIZE) -> bytes:
    content = bytearray(PAGE)
    struct.pack_into("=III", content, 1024, 1, size // PAGE - 1, 0)
    content[1036:1052] = uuids.UUID(uuid).bytes
    content[1052:1068] = b"NVM_SWAP".ljust(16, b"\0")
    if magic.startswith(b"S1SUSPEND"):
        struct.pack_into("=QI10s", content, PAGE - 32, 16384, 4, b"SWAPSPACE2")
    content[-10:] = magic.ljust(10, b"\0")
    return bytes(content)


def _move(source: str, target: str) -> None:
    """As atomic_move of a module does: an existing file keeps its mode."""
    if os.path.exists(target):
        shutil.copymode(target, source)
    os.replace(source, target)


class Machine:
    """C(keys): what opens the header. C(calls), C(inputs): what was run, and given on standard input."""

    def __init__(self, root: Path, tool: str = "initramfs-tools") -> None:
        self.host = Host(self._run, _move, root=str(root))
        self.keys: set[bytes] = set()
        self.calls: list[str] = []
        self.inputs: list[bytes | str | None] = []
        self.fails: dict[str, int] = {}
        for path in TOOLS[tool]:
            self.write(path, b"")
        for path in ("/usr/sbin/cryptsetup", "/etc/crypttab"):
            self.write(path, b"")
        os.chmod(self.host.path("/usr/sbin/cryptsetup"), 0o755)
        self.write("/etc/machine-id", (MACHINE + "\n").encode())
        self.write("/proc/swaps", SWAPS.encode())
        self.write("/proc/meminfo", b"MemAvailable:       204800 kB\n")
        self._device("pmem0", "259:0", SIZE)
        os.symlink("pmem0", self.host.path("/dev/NVM_SWAP"))
        self.swap_uuid = identity.swap_uuid(self.host, "NVM_SWAP")
        self.luks_uuid = luks.luks_uuid(self.host, "NVM_SWAP")

    # files -----------------------------------------------------------------------------------------------------------

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        target = Path(self.host.path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)

    def text(self, path: str) -> str | None:
        text: str | None = self.host.read(path)
        return text

    def mode(self, path: str) -> int:
        return os.stat(self.host.path(path)).st_mode & 0o7777

    def on(self, name: str, content: bytes, offset: int = 0) -> None:
        with open(self.host.path("/dev/" + name), "r+b") as device:
            device.seek(offset)
            device.write(content)

    def start(self, name: str, size: int = PAGE) -> bytes:
        content: bytes = self.host.read_bytes("/dev/" + name, size=size)
        return content

    def _device(self, name: str, number: str, size: int) -> None:
        self.write("/dev/" + name, b"")
        os.truncate(self.host.path("/dev/" + name), size)
        for attribute, value in (("dev", number), ("size", str(size // 512)), ("ro", "0")):
            self.write("/sys/class/block/%s/%s" % (name, attribute), (value + "\n").encode())

    def encrypted(self, *keys: bytes, line: str = "none luks,initramfs,nofail", uuid: str = "", is_open: bool = True) -> Machine:
        """The machine as a run leaves it."""
        self.on("pmem0", luks_header(uuid or self.luks_uuid))
        self.keys = set(keys)
        self.write("/etc/crypttab", ("NVM_SWAP UUID=%s %s\n" % (uuid or self.luks_uuid, line)).encode())
        if is_open:
            self.open("NVM_SWAP", uuid)
            self.on("dm-0", swap_header(self.swap_uuid, size=SIZE - DATA))
            self.swapped("/dev/dm-0")
        return self

    def open(self, name: str = "NVM_SWAP", uuid: str = "") -> None:
        self._device("dm-0", "253:0", SIZE - DATA)
        block = "/sys/class/block/dm-0/"
        identity = "CRYPT-LUKS2-%s-%s\n" % ((uuid or self.luks_uuid).replace("-", ""), name)
        self.write(block + "dm/uuid", identity.encode())
        self.write(block + "dm/name", (name + "\n").encode())
        self.write(block + "slaves/pmem0", b"")
        self.write("/sys/class/block/pmem0/holders/dm-0", b"")
        os.makedirs(self.host.path("/dev/mapper"), exist_ok=True)
        os.symlink("../dm-0", self.host.path("/dev/mapper/" + name))

    def swapped(self, path: str = "") -> None:
        line = "%s\tpartition\t%d\t0\t10\n" % (path, (SIZE - DATA) // 1024) if path else ""
        self.write("/proc/swaps", (SWAPS + line).encode())

    # commands --------------------------------------------------------------------------------------------------------

    def _run(self, argv: Sequence[str], data: bytes | str | None = None) -> tuple[int, str, str]:
        words = [os.path.basename(argv[0]), *argv[1:]]
        self.calls.append(" ".join(words))
        self.inputs.append(data)
        name = words[0] if words[0] != "cryptsetup" else words[1]
        if name in self.fails:
            return self.fails[name], "", "%s failed" % name
        return getattr(self, "_" + name.replace("-", "_"))([word for word in words[1:] if word != "--batch-mode"], data) or (0, "", "")

    def _key(self, words: Sequence[str], data: Any) -> bytes:
        path = next(word.partition("=")[2] for word in words if word.startswith(("--key-file=", "--unlock-key-file=")))
        content: bytes = data if path in ("-", "/dev/stdin") else self.host.read_bytes(path)
        assert isinstance(content, bytes)
        return content

    def _luksFormat(self, words: Sequence[str], data: Any) -> None:
        self.on("pmem0", luks_header(words[words.index("--uuid") + 1]))
        self.keys = {self._key(words, data)}

    def _luksAddKey(self, words: Sequence[str], data: Any) -> tuple[int, str, str]:
        if self._key(words, data) not in self.keys:
            return 2, "", "No key available with this passphrase."
        self.keys.add(self.host.read_bytes(words[-1]))
        return 0, "", ""

    def _open(self, words: Sequence[str], data: Any) -> tuple[int, str, str]:
        if self._key(words, data) not in self.keys:
            return 2, "", "No key available with this passphrase."
        if "--test-passphrase" not in words:
            self.open(words[-1])
        return 0, "", ""

    def _close(self, words: Sequence[str], data: Any) -> None:
        os.unlink(self.host.path("/dev/mapper/" + words[-1]))
        os.unlink(self.host.path("/dev/dm-0"))
        os.unlink(self.host.path("/sys/class/block/pmem0/holders/dm-0"))
        shutil.rmtree(self.host.path("/sys/class/block/dm-0"))

    def _systemd_cryptenroll(self, words: Sequence[str], data: Any) -> None:
        assert self._key(words, data) in self.keys
        self.on("pmem0", luks_header(self.luks_uuid, tokens=["systemd-tpm2"]))

    def _blkid(self, words: Sequence[str], data: Any) -> tuple[int, str, str]:
        start = self.start(os.path.basename(words[-1]))
        kind = next((kind for kind, place, magic in KINDS if start[place : place + len(magic)] == magic), "")
        return (0, "TYPE=%s\n" % kind, "") if kind else (2, "", "")

    def _mkswap(self, words: Sequence[str], data: Any) -> None:
        self.on(os.path.basename(words[-1]), swap_header(words[words.index("-U") + 1], size=SIZE - DATA))

    def _wipefs(self, words: Sequence[str], data: Any) -> None:
        self.on("pmem0", bytes(65536))

    def _swapon(self, words: Sequence[str], data: Any) -> None:
        self.swapped(words[-1])

    def _swapoff(self, words: Sequence[str], data: Any) -> None:
        self.swapped()

    def _systemctl(self, words: Sequence[str], data: Any) -> None:
        assert list(words) == ["daemon-reload"]

    # the module ------------------------------------------------------------------------------------------------------

    def present(self, check: bool = False, **options: Any) -> tuple[Transaction, dict[str, Any]]:
        with Transaction(self.host, check) as transaction:
            result = area.present(transaction, "/dev/NVM_SWAP", **{"encryption": "luks", **options})
        return transaction, result

    def absent(self, check: bool = False, **options: Any) -> tuple[Transaction, dict[str, Any]]:
        with Transaction(self.host, check) as transaction:
            result = area.absent(transaction, "/dev/NVM_SWAP", **options)
        return transaction, result

    def refused(self, verb: str = "present", **options: Any) -> Refused:
        """The error; nothing on the devices and in /etc was changed, and check mode says the same."""
        errors = []
        before = self._state()
        for check in (True, False):
            with pytest.raises(Refused) as caught:
                getattr(self, verb)(check=check, **options)
            assert caught.value.message and caught.value.remedy
            assert self._state() == before
            errors.append(caught.value)
        assert errors[0].code == errors[1].code
        return errors[1]

    def _state(self) -> list[Any]:
        etc = sorted(path for path in Path(self.host.path("/etc")).rglob("*") if path.is_file())
        mapping = self.start("dm-0") if self.host.exists("/dev/dm-0") else None
        return [self.start("pmem0", 1 << 21), mapping, self.text("/proc/swaps"), [(str(path), path.read_bytes()) for path in etc]]
