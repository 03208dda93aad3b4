# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes: parsing and formatting them, the size of ordinary memory, and the size of a reservation for it.

Sizes are bytes, and units are binary everywhere: K is 1024 bytes.
"""
from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

KIB, MIB, GIB, TIB, PIB = (1 << shift for shift in (10, 20, 30, 40, 50))
UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": PIB}
SIZE = r"^([0-9]+(?:\.[0-9]+)?) *(?:([KMGTPkmgtp])(?:iB)?)?$"
MAX_SIZE = 1 << 63  # the kernel's loff_t


def parse_size(value):
    """C(value) ("16G", "512M", "1.5T", "16GiB", a number of bytes) as bytes. Refused C(size_invalid).

    "GB" is rejected, because it is ambiguous (10^9 or 2^30).
    """
    match = re.match(SIZE, str(value).strip())
    number, unit = match.groups() if match and not isinstance(value, bool) else ("0", None)
    whole, _dot, fraction = number.partition(".")
    scale = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * UNITS[(unit or "").upper()], scale)
    if rest or not 0 < size < MAX_SIZE:
        raise Refused(
            "size_invalid",
            "%r is not a size." % (value,),
            "Give a number of bytes, or a number with a binary unit, such as 512M, 16G or 1.5T.",
        )
    return size


def format_size(size):
    """C(size) as text, such as "16.0 GiB"."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return "%d bytes" % size if unit == "bytes" else "%.1f %s" % (value, unit)


def round_up(size, align):
    return -(-size // align) * align


def round_down(size, align):
    return size // align * align


def dram_bytes(host, page_size=None):
    """Bytes of ordinary memory: RAM that the kernel manages, without NVM that is online as RAM.

    The present pages of all zones but C(Device) (mm/vmstat.c, zoneinfo_show_print; pages of pmem are in that zone),
    which exclude memory reserved by the firmware and by C(memmap=), minus NVM added by C(dax/kmem)
    (drivers/dax/kmem.c). Refused C(dram_unknown).
    """
    pages = 0
    zone = None
    for line in host.read("/proc/zoneinfo", "").splitlines():
        header = re.match(r"^Node\s+\d+, zone\s+(\S+)$", line)
        if header:
            zone = header.group(1)
        present = re.match(r"^\s+present\s+(\d+)$", line)
        if present and zone != "Device":
            pages += int(present.group(1))
    if not pages:
        raise Refused(
            "dram_unknown",
            "/proc/zoneinfo does not contain the size of the memory.",
            "Set the option size to a number of bytes instead of auto.",
        )
    return pages * (page_size or os.sysconf("SC_PAGE_SIZE")) - _lent(host)


def reservation_size(dram, multiple, align):
    """C(multiple) times C(dram) bytes, rounded up to a multiple of C(align)."""
    return round_up(dram * multiple, align)


def _lent(host):
    """Bytes of NVM online as RAM: "System RAM (kmem)" in C(/proc/iomem), as far as its memory blocks are online."""
    ranges = [
        (int(start, 16), int(end, 16) + 1)
        for start, end in re.findall(
            r"^\s*([0-9a-f]+)-([0-9a-f]+) : System RAM \(kmem\)$", host.read("/proc/iomem", ""), re.MULTILINE
        )
    ]
    if not ranges:
        return 0
    directory = "/sys/devices/system/memory"
    block = int(host.attribute("%s/block_size_bytes" % directory, "0"), 16)
    if not block:
        return sum(end - start for start, end in ranges)
    online = 0
    for start, end in ranges:
        for number in range(start // block, -(-end // block)):
            if host.attribute("%s/memory%d/state" % (directory, number), "online") == "online":
                online += min(end, (number + 1) * block) - max(start, number * block)
    return online
