# SPDX-License-Identifier: GPL-3.0-or-later
"""UUID, label and priority of a swap area: their defaults, their limits, and the UUID derived from the machine id."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import uuid as uuids

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

DEFAULT_DEVICE = "/dev/NVM_SWAP"
DEFAULT_LABEL = "NVM_SWAP"
# Above every swap area whose priority the kernel chose (those are negative), below zram (100 in zram-generator and
# zram-tools): NVM is faster than a disk, and pages in zram leave space on the NVM for the image.
DEFAULT_PRIORITY = 10
LABEL_BYTES = 15  # volume_name[16] in util-linux include/swapheader.h, one of them NUL
PRIORITIES = (-1, 32767)  # SWAP_FLAG_PRIO_MASK in include/linux/swap.h; -1 leaves the choice to the kernel
# Separates UUIDs derived here from those that other programs derive from the same machine id.
RULE_NAME = r"^.*/61-nvm-fastboot-(.*)\.rules$"  # _reservation/udev_rule.py
PMEM_DEVICES = 16
NAMESPACE = uuids.UUID("36691cbe-57a3-4c0e-9d0c-3b6f0f4e6a51")


def swap_uuid(host, name):
    """The UUID of the swap area C(name) on this machine: the same in every run, different on every machine.

    RFC 9562 version 8 over HMAC-SHA256 keyed with the machine id, as machine-id(5) recommends for derived ids. Refused
    C(machine_id_missing).
    """
    machine = host.attribute("/etc/machine-id", "")
    if not re.match(r"^[0-9a-f]{32}$", machine):
        raise Refused(
            "machine_id_missing",
            "/etc/machine-id holds no machine id, so no UUID can be derived for %s." % name,
            "Run systemd-machine-id-setup on the machine, or set the option uuid.",
        )
    digest = hmac.new(bytes.fromhex(machine), NAMESPACE.bytes + name.encode("utf-8"), hashlib.sha256).digest()
    bits = int.from_bytes(digest[:16], "big")
    bits = bits & ~(0xF << 76) | (0x8 << 76)
    bits = bits & ~(0x3 << 62) | (0x2 << 62)
    return str(uuids.UUID(int=bits))


def derived_uuids(host):
    """The UUIDs derived on this machine for every reservation that has a udev rule, and for pmem devices by their own name."""
    names = [re.sub(RULE_NAME, r"\1", path) for path in host.glob("/etc/udev/rules.d/61-nvm-fastboot-*.rules")]
    names += ["pmem%d%s" % (number, suffix) for number in range(PMEM_DEVICES) for suffix in ("", "s")]
    try:
        return {swap_uuid(host, name) for name in names}
    except Refused:
        return set()


def chosen_uuid(host, device, uuid=None):
    """C(uuid) in canonical form, or without one the UUID derived for the last part of C(device) (C(NVM_SWAP)).

    Refused C(uuid_invalid) or C(machine_id_missing).
    """
    if uuid is None:
        return swap_uuid(host, os.path.basename(device))
    try:
        parsed = uuids.UUID(uuid)
    except ValueError:
        parsed = None
    if not parsed:
        raise Refused(
            "uuid_invalid",
            "%r is not a UUID." % uuid,
            "Give 32 hexadecimal digits such as 6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11, or omit uuid.",
        )
    if not parsed.int:
        raise Refused("uuid_invalid", "The UUID of zeros identifies nothing.", "Give another UUID, or omit uuid.")
    return str(parsed)


def check_priority(priority):
    """Refused C(priority_invalid) where the kernel does not support the priority."""
    if not PRIORITIES[0] <= priority <= PRIORITIES[1]:
        raise Refused(
            "priority_invalid",
            "%d is not a valid priority of a swap area." % priority,
            "Give 0 to 32767, or -1 to leave the choice to the kernel.",
        )
