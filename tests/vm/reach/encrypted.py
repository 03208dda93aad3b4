# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine whose swap area is encrypted: what is in its memory is in the mapping after a hibernation, and not on the NVM."""

from __future__ import annotations

import mmap
import secrets

from tests.vm import evidence
from tests.vm.lab import Machine

COPIES = 4096  # of the marker, in 256 KiB of memory
MAPPING = "/dev/mapper/NVM_SWAP"


def hibernate(machine: Machine) -> str:
    """Send the machine to sleep with a marker in its memory, wait until it is off, and look for the marker on the NVM. Returns it."""
    marker = secrets.token_hex(32)
    machine.ssh(f"python3 -c 'import sys; print(sys.stdin.read().strip() * {COPIES})' >/run/secret", stdin=marker)
    machine.ssh("systemd-run -q --on-active=1s systemctl hibernate")
    machine.wait_off()
    assert evidence.signature(machine) not in (evidence.IMAGE, evidence.PLAIN), "the swap area is in the clear"
    with open(machine.folder / "nvdimm.img", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as nvm:
        assert nvm[:6] == b"LUKS\xba\xbe"
        assert nvm.find(marker.encode()) < 0, "the memory is on the NVM in the clear"
    return marker


def holds(machine: Machine, marker: str) -> None:
    """The image that was resumed had the marker, so it would have been seen: it is in the mapping still."""
    found = machine.ssh(f"grep -azcF -f - {MAPPING} || true", stdin=marker, timeout=600)
    assert int(found) > 0, "the image had no marker"
    assert machine.ssh("stat -c %a /boot/initrd.img-$(uname -r)").strip() == "600"
