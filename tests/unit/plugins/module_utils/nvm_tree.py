# SPDX-License-Identifier: GPL-3.0-or-later
"""A recorded /sys of NVM: regions, namespaces and their block devices, as drivers/nvdimm lays them out."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host

MIB = 1 << 20
GIB = 1 << 30
NFIT = "LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00"
ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
      nr_active_anon 41
  pages free     3840
        boost    0
        min      60
        low      75
        high     90
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 940, 940, 940, 940)
  pagesets
    cpu: 0
              count: 0
Node 0, zone    DMA32
  pages free     150423
        boost    0
        min      3900
        spanned  258014
        present  258014
        managed  240720
        cma      0
Node 0, zone   Normal
  pages free     0
        spanned  0
        present  0
        managed  0
Node 0, zone   Device
  pages free     0
        spanned  262144
        present  0
        managed  0
"""
DRAM = (3998 + 258014) * 4096  # of a guest with 1 GiB, as seen under QEMU


class Tree:
    """Plants regions one after the other below a Host's root."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.root = Path(host.path("/"))
        self.minor = 0
        self.write("/proc/zoneinfo", ZONEINFO)
        self.write("/proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
        self.write("/proc/self/mountinfo", "")
        self.write("/proc/cmdline", "BOOT_IMAGE=/vmlinuz-6.1.0-56-amd64 root=/dev/vda1 ro\n")

    def write(self, path: str, content: str | bytes) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def link(self, path: str, target: str) -> None:
        """A symbolic link at C(path) to the absolute C(target), relative as sysfs has them."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.symlink_to(os.path.relpath(self.root / target.lstrip("/"), place.parent))

    def device(self, path: str, **attributes: object) -> None:
        """A device of the bus "nd" at /sys/devices/C(path)."""
        for name, value in attributes.items():
            self.write("/sys/devices/%s/%s" % (path, name), "%s\n" % value)
        self.link("/sys/bus/nd/devices/%s" % os.path.basename(path), "/sys/devices/%s" % path)

    def region(
        self,
        number: int = 0,
        size: int = 2 * GIB,
        provider: str = "ACPI.NFIT",
        parent: str = NFIT,
        labelled: bool = False,
        available: int = 0,
        resource: int = 0x100000000,
        dimms: tuple[str, ...] = ("nmem0",),
        slots: int | None = None,
        **more: object,
    ) -> str:
        """A region on a bus of its own; C(slots) are the free label slots of its DIMMs."""
        bus = "%s/ndbus%d" % (parent, number)
        self.device(bus, provider=provider)
        for dimm in dimms:
            attributes = {} if slots is None else {"available_slots": slots}
            self.device("%s/%s" % (bus, dimm), state="idle", **attributes)
        path = "%s/region%d" % (bus, number)
        mappings = {"mapping%d" % at: "%s,0,%d,0" % (dimm, size) for at, dimm in enumerate(dimms)}
        self.device(
            path,
            size=size,
            nstype=5 if labelled else 4,
            mappings=len(dimms),
            devtype="nd_pmem",
            read_only=0,
            align="0x1000000",
            resource="0x%x" % resource,
            available_size=available,
            max_available_extent=available,
            **mappings,
            **more,
        )
        return path

    def namespace(
        self,
        region: str,
        index: int = 0,
        size: int = 2 * GIB,
        mode: str = "raw",
        name: str | None = None,
        uuid: str | None = None,
        resource: int | None = None,
        enabled: bool = True,
    ) -> str:
        """A namespace of C(region), a path that region() returned, with its block device."""
        number = region.rpartition("region")[2]
        dev = "namespace%s.%d" % (number, index)
        path = "%s/%s" % (region, dev)
        claim = {"sector": "btt", "fsdax": "pfn", "devdax": "dax", "raw": ""}[mode]
        claim = claim and "%s%s.%d" % (claim, number, index)
        attributes = {"size": size, "holder": claim, "holder_class": claim[:3]}
        attributes["mode"] = {"sector": "safe", "fsdax": "memory", "devdax": "dax", "raw": "raw"}[mode]
        if name is not None:
            attributes.update(alt_name=name, uuid=uuid or "")
        if size:
            attributes["resource"] = "0x%x" % (resource or 0x100000000)
        self.device(path, **attributes)
        if claim:
            claimed = "%s/%s" % (region, claim)
            self.device(claimed, namespace=dev, uuid="" if name is None and not uuid else uuid or "", size=size)
        if enabled and size and mode != "devdax":
            holder = "%s/%s" % (region, claim) if claim else path
            disk = "pmem%s%s%s" % (number, ".%d" % index if index else "", "s" if mode == "sector" else "")
            self.block("%s/block/%s" % (holder, disk), disk, size)
        return path

    def block(self, path: str, disk: str, size: int) -> None:
        self.write("/sys/devices/%s/dev" % path, "259:%d\n" % self.minor)
        self.write("/sys/devices/%s/size" % path, "%d\n" % (size // 512))
        self.write("/sys/devices/%s/ro" % path, "0\n")
        self.link("/sys/class/block/%s" % disk, "/sys/devices/%s" % path)
        self.link("/sys/dev/block/259:%d" % self.minor, "/sys/devices/%s" % path)
        self.write("/dev/%s" % disk, b"\0" * 8192)
        self.minor += 1

    def forget(self, name: str) -> None:
        """Take a device of the bus away again."""
        (self.root / "sys/bus/nd/devices" / name).unlink()

    def firmware(self, *entries: tuple[int, int, str]) -> None:
        """/sys/firmware/memmap of (start, inclusive end, type)."""
        for number, (start, end, kind) in enumerate(entries):
            for name, value in (("start", "0x%x" % start), ("end", "0x%x" % end), ("type", kind)):
                self.write("/sys/firmware/memmap/%d/%s" % (number, name), "%s\n" % value)


# q35 with 1 GiB under SeaBIOS
FIRMWARE_1G = (
    (0x0, 0x9FBFF, "System RAM"),
    (0x9FC00, 0x9FFFF, "Reserved"),
    (0xF0000, 0xFFFFF, "Reserved"),
    (0x100000, 0x3FFDBFFF, "System RAM"),
    (0x3FFDC000, 0x3FFFFFFF, "Reserved"),
    (0xB0000000, 0xBFFFFFFF, "Reserved"),
    (0xFED1C000, 0xFED1FFFF, "Reserved"),
    (0xFEFFC000, 0xFEFFFFFF, "Reserved"),
    (0xFFFC0000, 0xFFFFFFFF, "Reserved"),
)
# the same with 6 GiB
FIRMWARE_6G = (
    (0x0, 0x9FBFF, "System RAM"),
    (0x9FC00, 0x9FFFF, "Reserved"),
    (0xF0000, 0xFFFFF, "Reserved"),
    (0x100000, 0x7FFDBFFF, "System RAM"),
    (0x7FFDC000, 0x7FFFFFFF, "Reserved"),
    (0xB0000000, 0xBFFFFFFF, "Reserved"),
    (0xFED1C000, 0xFED1FFFF, "Reserved"),
    (0xFEFFC000, 0xFEFFFFFF, "Reserved"),
    (0xFFFC0000, 0xFFFFFFFF, "Reserved"),
    (0x100000000, 0x1FFFFFFFF, "System RAM"),
)
