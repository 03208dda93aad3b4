# SPDX-License-Identifier: GPL-3.0-or-later
"""LUKS below a swap area, read from C(/sys), C(/etc/crypttab) and the header on the device. Nothing here writes, or runs a command.

A device is encrypted if one LUKS mapping is open over it. The swap area is then in the mapping.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, devices, identity
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import header

DIRECTORY = "/dev/mapper"
OPENED_BY_ARGUMENT = ("rd.luks.uuid=", "rd.luks.name=", "luks.uuid=", "luks.name=")  # systemd-cryptsetup-generator(8)


@dataclass(frozen=True)
class Mapping:
    """An open LUKS mapping: its C(name), the UUID of the header, and the C(kernel) names of itself and of the device C(below).
    C(line) is its claims.CryptLine, or None."""

    name: str
    uuid: str
    kernel: str
    below: str
    line: claims.CryptLine | None = None

    @property
    def path(self):
        return "%s/%s" % (DIRECTORY, self.name)

    @property
    def key_file(self):
        """The file with the key, as crypttab has it, or ""."""
        key = self.line.key if self.line else ""
        return key if key.startswith("/") and not key.startswith("/dev/") else ""

    @property
    def by_tpm2(self):
        return self.line is not None and any(option.startswith("tpm2-device=") for option in self.line.options)


def luks_uuid(host, name):
    """The UUID of the LUKS header below the swap area C(name): as stable as that of the swap area, and another one.

    Refused C(machine_id_missing).
    """
    return identity.swap_uuid(host, "%s luks" % name)


def swap_device(host, device):
    """Where the swap area is that belongs to C(device): the path of the one LUKS mapping that is open over it, else C(device)."""
    try:
        block = devices.block_device(host, device)
    except Refused:
        return device
    found = over(host, block.name)
    return found[0].path if len(found) == 1 else device


def over(host, name):
    """The Mappings that are open over the device with the kernel name C(name)."""
    holders = [os.path.basename(path) for path in host.glob("/sys/class/block/%s/holders/*" % name)]
    return [mapping for mapping in (_mapping(host, holder) for holder in holders) if mapping]


def below(host, device):
    """The Mappings that C(device) is, or is on, topmost first. Without the device none."""
    try:
        block = devices.block_device(host, device)
    except Refused:
        return []
    return [mapping for mapping in (_mapping(host, name) for name in claims.stack(host, block.name)) if mapping]


def opening_line(host, block):
    """The name of the line of crypttab that opens the LUKS that is on C(block), or "": it gives the device to no other use."""
    found = header.read(host, block.path)
    wanted = ("UUID=%s" % found.uuid, "/dev/disk/by-uuid/%s" % found.uuid) if found and found.uuid else ()
    return next((line.name for line in claims.crypttab(host) if line.source in wanted), "")


def opened_by_argument(mapping, arguments):
    """Whether the kernel command line, C(arguments), names C(mapping) to be opened."""
    return any(word.startswith(OPENED_BY_ARGUMENT) and mapping.uuid in word for word in arguments)


def exposed(host, path):
    """A Refused C(key_exposed) if other users than root can read the key file C(path), or None."""
    try:
        status = os.stat(host.path(path))
    except OSError:
        return None
    if not status.st_mode & 0o077:
        return None
    return Refused(
        "key_exposed",
        "Other users than root can read the key file %s (mode %04o)." % (path, stat.S_IMODE(status.st_mode)),
        "Run: chmod 0600 %s. If they may have read it, change the key: cryptsetup luksChangeKey." % path,
    )


def _mapping(host, kernel):
    """The LUKS Mapping with that kernel name, or None. Its UUID in device mapper is CRYPT-LUKS2-(32 digits)-NAME."""
    kind, _dash, rest = (host.attribute("/sys/class/block/%s/dm/uuid" % kernel) or "").partition("-LUKS")
    digits = rest.partition("-")[2].partition("-")[0]
    slaves = host.glob("/sys/class/block/%s/slaves/*" % kernel)
    if kind != "CRYPT" or len(digits) != 32 or not slaves:
        return None
    name = host.attribute("/sys/class/block/%s/dm/name" % kernel) or kernel
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    line = next((line for line in claims.crypttab(host) if line.name == name), None)
    return Mapping(name, uuid, kernel, os.path.basename(slaves[0]), line)
