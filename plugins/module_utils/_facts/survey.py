# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a machine that matter for hibernation: one attribute each, read on first access and then cached.

Almost all come from C(/sys), C(/proc) and the first page of the device. A fact that cannot be read raises Refused; an
absent one is None or empty. Sizes are bytes. Not thread-safe.
"""
from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders, compression, drivers, initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._core import sizing
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import inhibitors, memmap, nvm, sleep_policy
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, devices, luks, target

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
UNSET = "0:0"  # /sys/power/resume while no device is set (kernel/power/hibernate.c, resume_show)

# Names in /sys/firmware/memmap (arch/x86/kernel/e820.c, e820_type_to_string) and the numbers they stand for
# (arch/x86/include/asm/e820/types.h). The firmware's own table never holds the kernel's private type 128.
E820_TYPES = {
    "System RAM": 1,
    "Reserved": 2,
    "ACPI Tables": 3,
    "ACPI Non-volatile Storage": 4,
    "Unusable memory": 5,
    "Persistent Memory": 7,
    "Persistent Memory (legacy)": 12,
    "Soft Reserved": 0xEFFFFFFF,
}
X86_64_MAGIC = 0x23456789ABCDEF02  # arch/x86/power/hibernate.c, RESTORE_MAGIC of 64-bit kernels


class Survey:
    """The machine C(host), with C(device), a swap device or a swap file, to hibernate to."""

    def __init__(self, host, device, euid=None):
        self.host = host
        self.device = device
        self.euid = os.geteuid() if euid is None else euid

    # the device ------------------------------------------------------------------------------------------------------

    @property
    def is_file(self):
        """Whether the device is a swap file."""
        return target.is_file(self.device)

    @cached_property
    def target(self):
        """The target.Target, or None if the device does not exist, or the kernel cannot use the swap file."""
        try:
            return target.find(self.host, self.device)
        except Refused:
            return None

    @property
    def block(self):
        """The devices.Block of the device, or of the filesystem with the swap file; None without a target."""
        return self.target and self.target.block

    @cached_property
    def header(self):
        """The headers.Signature of the swap or suspend header, or None."""
        return self.target.header(self.host) if self.target else None

    @cached_property
    def resume_uuid(self):
        """What C(resume=UUID=) has to say to resume from the device, or None."""
        return self.target.uuid(self.host, self.header) if self.target and (self.header or self.is_file) else None

    @cached_property
    def image_pending(self):
        """Whether the device holds a hibernation image that was not resumed."""
        return self.header is not None and self.header.type == "swsuspend"

    @cached_property
    def image(self):
        """The ImageInfo of the image on the device. Refused C(image_unreadable)."""
        return read_image_info(self.host, self.block, self.header)

    @cached_property
    def region(self):
        """The nvm.Region that contains the device, also below mappings and partitions, or None."""
        if self.block is None:
            return None
        names = claims.stack(self.host, self.block.name)
        for region in self.regions:
            for namespace in region.namespaces:
                if namespace.blockdev and os.path.basename(namespace.blockdev) in names:
                    return region
        return None

    @cached_property
    def regions(self):
        return nvm.read_regions(self.host)

    @cached_property
    def align(self):
        """Sizes of reservations are multiples of this: the alignment of the device's region, or of the largest one."""
        regions = [self.region] if self.region else sorted(self.regions, key=lambda region: -region.size)
        return regions[0].align if regions else nvm.DEFAULT_ALIGN

    # swap ------------------------------------------------------------------------------------------------------------

    @cached_property
    def swaps(self):
        """Every active swap area (devices.ActiveSwap)."""
        return devices.active_swaps(self.host)

    @cached_property
    def swap(self):
        """The devices.ActiveSwap on the device, or None."""
        return self.target.swap(self.host) if self.target else None

    # memory ----------------------------------------------------------------------------------------------------------

    @cached_property
    def dram(self):
        return sizing.dram_bytes(self.host)

    @cached_property
    def memory(self):
        """C(/proc/meminfo) as {name: bytes}."""
        values = {}
        for line in (self.host.read("/proc/meminfo") or "").splitlines():
            name, _colon, value = line.partition(":")
            words = value.split()
            if words and words[0].isdigit():
                values[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
        return values

    @cached_property
    def active_anon(self):
        """Bytes that systemd requires to fit (src/shared/hibernate-util.c, enough_swap_for_hibernation)."""
        return self.memory.get("Active(anon)", 0)

    @cached_property
    def image_estimate(self):
        """Maximum size of an image made now, before compression.

        The kernel saves all memory in use, or shrinks it to C(/sys/power/image_size) if that is less and enough can be
        reclaimed (kernel/power/snapshot.c, hibernate_preallocate_memory).
        """
        used = self.memory.get("MemTotal", 0) - self.memory.get("MemFree", 0)
        limit = self.host.attribute("/sys/power/image_size")
        return min(used, int(limit)) if limit else used

    @cached_property
    def physical_pages(self):
        """The kernel's get_num_physpages(): present pages of all zones, as an image records them."""
        text = self.host.read("/proc/zoneinfo") or ""
        return sum(int(count) for count in re.findall(r"^\s+present\s+(\d+)$", text, re.MULTILINE))

    @cached_property
    def e820_checksum(self):
        """The checksum of the firmware's memory map as a 64-bit x86 image records it, or None without such a map.

        arch/x86/power/hibernate.c, compute_e820_crc32(): over e820_table_firmware, which C(/sys/firmware/memmap) shows
        entry by entry in order and which C(memmap=) does not change.
        """
        entries = []
        for path in self.host.glob("/sys/firmware/memmap/*"):
            start, end, kind = (self.host.attribute("%s/%s" % (path, name)) for name in ("start", "end", "type"))
            if kind not in E820_TYPES:
                raise Refused(
                    "unknown_memory_map",
                    "%s has the unknown type %r, so the memory map cannot be compared with that of the pending image."
                    % (path, kind),
                    "Resume the image first, or discard it.",
                )
            first, last = int(start, 16), int(end, 16)
            entries.append((int(os.path.basename(path)), first, last - first + 1, E820_TYPES[kind]))
        if not entries:
            return None
        table = b"".join(struct.pack("<QQI", *entry[1:]) for entry in sorted(entries))
        return zlib.crc32(struct.pack("<I", len(entries)) + table)

    # the kernel ------------------------------------------------------------------------------------------------------

    @cached_property
    def cmdline(self):
        """The words of the running kernel's command line."""
        return (self.host.attribute("/proc/cmdline") or "").split()

    @cached_property
    def cmdline_resume(self):
        """The value of the last C(resume=) on the running kernel's command line, or None."""
        values = [word[len("resume="):] for word in self.cmdline if word.startswith("resume=")]
        return values[-1] if values else None

    @cached_property
    def firmware_map(self):
        """The firmware's memory map (see memmap.firmware_map)."""
        return memmap.firmware_map(self.host)

    @cached_property
    def sleep_settings(self):
        """The settings of sleep.conf(5): {name: sleep_policy.Setting}."""
        return sleep_policy.settings(self.host)

    @property
    def hibernate_mode(self):
        """How systemd powers off after writing the image: the first word of HibernateMode=, see sleep.conf(5)."""
        setting = self.sleep_settings.get("HibernateMode")
        return setting.value.split()[0] if setting and setting.value else "platform"

    @cached_property
    def release(self):
        return self.host.attribute("/proc/sys/kernel/osrelease") or ""

    @cached_property
    def arch(self):
        """The architecture of the kernel, as C(uname -m) has it."""
        return self.host.attribute("/proc/sys/kernel/arch") or os.uname().machine

    @cached_property
    def hibernation(self):
        """C(/sys/power/disk): None for a kernel without hibernation, "[disabled]" if it is not available now.

        kernel/power/hibernate.c, disk_show() and hibernation_available(): combines C(nohibernate), lockdown,
        memfd_secret and CXL memory.
        """
        return self.host.attribute("/sys/power/disk")

    @cached_property
    def resume(self):
        """The resume device of the running kernel, "major:minor"; UNSET, or None without hibernation."""
        return self.host.attribute("/sys/power/resume")

    @cached_property
    def lockdown(self):
        """The lockdown level ("none", "integrity", "confidentiality"), or None for a kernel without it."""
        level = re.search(r"\[(\w+)\]", self.host.attribute("/sys/kernel/security/lockdown") or "")
        return level.group(1) if level else None

    @cached_property
    def efi(self):
        return self.host.exists("/sys/firmware/efi")

    @cached_property
    def secure_boot(self):
        """Whether Secure Boot is on; None without the EFI variable. Its value follows four bytes of attributes."""
        content = self.host.read_bytes(SECURE_BOOT)
        return content[4] == 1 if content and len(content) > 4 else None

    @cached_property
    def inhibitors(self):
        """Every Inhibitor of logind. Refused C(unknown_inhibitors)."""
        return inhibitors.inhibitors(self.host)

    # userspace -------------------------------------------------------------------------------------------------------

    @cached_property
    def systemd(self):
        """The major version of systemd, from the name of its shared library, or None."""
        for pattern in ("/usr/lib/systemd/libsystemd-shared-*.so", "/usr/lib/*/systemd/libsystemd-shared-*.so",
                        "/lib/systemd/libsystemd-shared-*.so"):
            for path in self.host.glob(pattern):
                version = re.search(r"-shared-(\d+)", path)
                if version:
                    return int(version.group(1))
        return None

    @cached_property
    def bootloader(self):
        return bootloaders.detect(self.host)

    @cached_property
    def entries(self):
        """The entries of the generated boot configuration."""
        return self.bootloader.entries()

    @cached_property
    def next_boot(self):
        """What the bootloader starts when no person chooses (bootloaders.NextBoot)."""
        return self.bootloader.next_boot()

    @cached_property
    def next_entries(self):
        """The entries of this system that may start next."""
        return [entry for _title, entries in self.next_boot.choices for entry in entries]

    @cached_property
    def mappings(self):
        """The LUKS mappings that the device is on (luks.Mapping)."""
        return luks.below(self.host, self.block.path) if self.block else []

    @cached_property
    def initramfs(self):
        tool = initramfs.detect(self.host)
        tool.unlock(self.mappings)
        return tool

    @cached_property
    def modules(self):
        """The modules a kernel needs to resume from the device: its drivers, and the decompressor of the next image.

        kernel/power/hibernate.c, hibernate(): the parameter sets the compressor of the image. If the resuming kernel
        lacks it, the image is lost, because the kernel removes the signature before it looks for the compressor.
        """
        modules = drivers.drivers_for(self.host, self.block) + self.target.modules(self.host)
        name = self.host.attribute(compression.COMPRESSOR_PARAMETER)
        if name is None or "hibernate=nocompress" in self.cmdline:
            return modules
        loadable = self.host.glob("/lib/modules/%s/kernel/crypto/%s.ko*" % (self.release, name))
        return modules + [name] if loadable else modules

    @property
    def built_for(self):
        """What images of the initramfs are built for (Initramfs.value)."""
        return self.initramfs.value("UUID=%s" % self.resume_uuid, self.is_file)

    def initramfs_missing(self):
        """Files and settings missing in the initramfs: [(kernel, [missing])], for installed kernels that lack any.

        An initramfs that C(boot_resume) verified and that did not change since is not read again.
        """
        if not self.resume_uuid:
            return []
        tool, built = self.initramfs, self.built_for
        results = [(kernel, tool.missing(kernel, built, self.modules)) for kernel in tool.kernels()]
        return [(kernel, missing) for kernel, missing in results if missing]


@dataclass(frozen=True)
class ImageInfo:
    """Facts in a pending image about the machine that made it. C(e820_checksum) is None if it records none."""

    physical_pages: int
    e820_checksum: int | None


def read_image_info(host, block, header):
    """The ImageInfo of the image on C(block), whose Signature is C(header). Refused C(image_unreadable).

    kernel/power/swap.c: header.image is the first page of the swap map, its entry 0 the page with struct swsusp_info.
    kernel/power/power.h: num_physpages is at offset 400 in that page on 64-bit kernels. On x86 the page starts with struct
    restore_data_record (arch/x86/power/hibernate.c): magic at 24, e820_checksum at 32.
    """
    size = header.page_size
    try:
        with open(host.path(block.path), "rb") as file:
            info = _page(file, _first_entry(_page(file, header.image, size)), size)
    except (OSError, OverflowError, ValueError) as error:
        raise Refused(
            "image_unreadable",
            "%s has the signature of a hibernation image, but the image cannot be read: %s." % (block, error),
            "Writing the image was interrupted, or the device failed (see the kernel log). To discard the image, run "
            "nvm_swap with force=true, or swap_file for a swap file.",
        ) from error
    (pages,) = struct.unpack_from("=Q", info, 400)
    magic, checksum = struct.unpack_from("=QQ", info, 24)
    return ImageInfo(pages, checksum if magic == X86_64_MAGIC else None)


def _page(file, number, size):
    """Page C(number) of an open device. ValueError if it does not exist."""
    if not number:
        raise ValueError("a page reference is empty")
    file.seek(number * size)
    content = file.read(size)
    if len(content) != size:
        raise ValueError("page %d is beyond the end of the device" % number)
    return content


def _first_entry(page):
    return struct.unpack_from("=Q", page)[0]
