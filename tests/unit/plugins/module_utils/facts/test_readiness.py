# SPDX-License-Identifier: GPL-3.0-or-later
"""Each blocker on a recorded machine: none where all is well, and the right one where one thing is wrong."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders, initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot import drivers as boot_drivers
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import NextBoot
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.overrides import Override
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm, readiness, report, survey
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.inhibitors import LOGIND
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.nvm import Namespace, Region
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import extents

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

MIB = 1 << 20
DEVICE = "/dev/NVM_SWAP"
UUID = "1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5"
PAGE = os.sysconf("SC_PAGE_SIZE")
PHYSICAL_PAGES = 262012  # Σ present of ZONEINFO: QEMU, q35, 1 GiB

CMDLINE = "BOOT_IMAGE=/boot/vmlinuz-6.1.0-56-amd64 root=UUID=0b4c ro quiet resume=UUID=%s\n" % UUID
MEMINFO = """\
MemTotal:         987432 kB
MemFree:          702312 kB
MemAvailable:     801120 kB
Active(anon):        640 kB
Inactive(anon):    48212 kB
SwapTotal:       2097148 kB
"""
SWAPS = """\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/pmem0                              partition\t2097148\t\t0\t\t10
"""
NO_SWAPS = SWAPS.splitlines()[0] + "\n"
ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 12053
  pages free     3840
        boost    0
        min      97
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 942, 942, 942, 942)
Node 0, zone    DMA32
  pages free     171738
        spanned  258048
        present  258014
        managed  243018
Node 0, zone   Normal
  pages free     0
        spanned  0
        present  0
        managed  0
"""
# /sys/firmware/memmap of the same machine
MEMMAP = [
    (0x0, 0x9FBFF, "System RAM"),
    (0x9FC00, 0x9FFFF, "Reserved"),
    (0xF0000, 0xFFFFF, "Reserved"),
    (0x100000, 0x3FFDCFFF, "System RAM"),
    (0x3FFDD000, 0x3FFFFFFF, "Reserved"),
    (0xB0000000, 0xBFFFFFFF, "Reserved"),
    (0xFED1C000, 0xFED1FFFF, "Reserved"),
    (0xFEFFC000, 0xFEFFFFFF, "Reserved"),
    (0xFFFC0000, 0xFFFFFFFF, "Reserved"),
    (0x100000000, 0x17FFFFFFF, "Persistent Memory"),
    (0xFD00000000, 0xFFFFFFFFFF, "Reserved"),
]

NAMESPACE = Namespace(
    dev="namespace0.0", region="region0", name="NVM_SWAP", mode="raw", size=2048 * MIB, uuid=UUID, blockdev="pmem0",
    resource=0x100000000, labelled=True)
REGION = Region(
    dev="region0", size=2048 * MIB, available=0, provider="nfit", persistence="memory_controller", labelled=True,
    resource=0x100000000, namespaces=[NAMESPACE])


@dataclass
class BootEntry:
    title: str
    kernel: str
    arguments: list[str]
    initrds: tuple[str, ...] = ("/boot/initrd.img-6.1.0-56-amd64",)


@dataclass
class Boot:
    """A bootloader and an initramfs tool whose work was done."""

    name: str = "grub"
    firmware: bool = False
    copies: list[str] = field(default_factory=list)
    lists: list[BootEntry] = field(default_factory=lambda: [
        BootEntry("Debian GNU/Linux", "/boot/vmlinuz-6.1.0-56-amd64",
                  ["root=UUID=0b4c", "ro", "quiet", "resume=UUID=" + UUID]),
        BootEntry("Debian GNU/Linux, with Linux 6.1.0-56-amd64 (recovery mode)", "/boot/vmlinuz-6.1.0-56-amd64",
                  ["root=UUID=0b4c", "ro", "single"]),
    ])
    lacking: list[str] = field(default_factory=list)
    others: list[Override] = field(default_factory=list)
    looks: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)

    def entries(self) -> list[BootEntry]:
        return self.lists

    def outdated(self) -> list[str]:
        return self.copies

    def next_boot(self) -> NextBoot:
        return NextBoot([(self.lists[0].title, self.lists[:1])] if self.lists else [], "GRUB's default=0", str)

    def unlock(self, mappings: list[Any]) -> None:
        assert mappings == []

    def value(self, resume: str, file: bool) -> str:
        return "none" if file else resume

    def kernels(self) -> list[str]:
        return ["6.1.0-56-amd64"]

    def image(self, kernel: str) -> str:
        return "/boot/initrd.img-" + kernel

    def overrides(self, kernel: str, resume: str, modules: list[str]) -> list[Override]:
        return self.others

    def remedy(self, override: Override) -> str:
        return "Remove it from /etc/initramfs-tools/%s." % override.name

    def missing(self, kernel: str, resume: str, modules: list[str]) -> list[str]:
        self.looks.append((kernel, resume, tuple(modules)))
        return self.lacking


def swap_header(signature: bytes = b"SWAPSPACE2", image: int = 0) -> bytes:
    """The first page of a swap area (include/linux/swap.h) or of one that holds an image (kernel/power/swap.c)."""
    page = bytearray(PAGE)
    struct.pack_into("=II", page, 1024, 1, 524287)
    page[1036:1052] = bytes.fromhex(UUID.replace("-", ""))
    page[1052:1060] = b"NVM_SWAP"
    if image:
        struct.pack_into("=IIQI", page, PAGE - 40, 0, 0, image, 4)
        page[PAGE - 20:PAGE - 10] = b"SWAPSPACE2"
    page[PAGE - 10:PAGE - 10 + len(signature)] = signature
    return bytes(page)


def pending(pages: int = PHYSICAL_PAGES, checksum: int | None = None, magic: int = 0x23456789ABCDEF02, entry: int = 5) -> bytes:
    """A device with an image: header, swap map in page 3, swsusp_info in page 5."""
    info = bytearray(PAGE)
    struct.pack_into("=QQ", info, 24, magic, checksum or 0)
    struct.pack_into("=Q", info, 400, pages)
    swap_map = struct.pack("=QQ", entry, 6).ljust(PAGE, b"\0")
    blocks = {0: swap_header(b"S1SUSPEND\0", image=3), 3: swap_map, 5: bytes(info)}
    return b"".join(blocks.get(number, bytes(PAGE)) for number in range(16))


@pytest.fixture
def machine(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine that is ready: an NFIT NVDIMM, /dev/NVM_SWAP active, resume= set, nothing in the way."""
    plant({
        "/proc/cmdline": CMDLINE,
        "/proc/meminfo": MEMINFO,
        "/proc/swaps": SWAPS,
        "/proc/zoneinfo": ZONEINFO,
        "/proc/sys/kernel/osrelease": "6.1.0-56-amd64\n",
        "/sys/power/disk": "[platform] shutdown reboot suspend test_resume \n",
        "/sys/power/state": "freeze mem disk\n",
        "/sys/power/image_size": "404652032\n",
        "/sys/power/resume": "259:0\n",
        "/sys/power/pm_test": "[none] core processors platform devices freezer\n",
        "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "/sys/class/block/pmem0/dev": "259:0\n",
        "/sys/class/block/pmem0/size": "%d\n" % (2048 * MIB // 512),
        "/dev/pmem0": swap_header(),
        "/boot/initrd.img-6.1.0-56-amd64": b"070701",
        "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": b"",
    })
    for number, (start, end, kind) in enumerate(MEMMAP):
        plant({"/sys/firmware/memmap/%d/%s" % (number, name): text + "\n" for name, text in
               (("start", hex(start)), ("end", hex(end)), ("type", kind))})
    os.symlink("pmem0", host.path(DEVICE))
    boot = Boot()
    regions = [REGION]
    monkeypatch.setattr(boot_drivers, "drivers_for", lambda host, device: ["nd_pmem", "libnvdimm", "nfit"])
    monkeypatch.setattr(bootloaders, "detect", lambda host: boot)
    monkeypatch.setattr(initramfs, "detect", lambda host: boot)
    monkeypatch.setattr(nvm, "read_regions", lambda host: regions)

    def _blockers(skip: tuple[str, ...] = (), device: str = DEVICE, euid: int = 0) -> list[dict[str, str]]:
        blockers: list[dict[str, str]] = readiness.blockers(host, device, skip, survey=survey.Survey(host, device, euid))
        return blockers

    return SimpleNamespace(
        host=host, plant=plant, boot=boot, regions=regions, blockers=_blockers,
        codes=lambda **options: [blocker["code"] for blocker in _blockers(**options)])


def test_ready(machine: SimpleNamespace, transcript: Transcript) -> None:
    assert machine.blockers() == []
    assert transcript.calls == []


def test_every_blocker_says_what_and_what_helps(machine: SimpleNamespace) -> None:
    machine.plant({"/sys/power/resume": "8:1\n", "/proc/cmdline": "noresume\n", "/proc/swaps": NO_SWAPS})
    for blocker in machine.blockers():
        assert set(blocker) == {"code", "message", "remedy"} and all(blocker.values())


def disabled(machine: SimpleNamespace) -> None:
    machine.plant({"/sys/power/disk": "[disabled]\n", "/sys/power/state": "freeze mem\n"})


def test_a_machine_without_systemd(machine: SimpleNamespace) -> None:
    """MX Linux: nobody would carry out systemctl hibernate."""
    machine.plant({"/proc/1/comm": "systemd\n"})
    assert machine.codes() == []
    machine.plant({"/proc/1/comm": "init\n"})
    (found,) = machine.blockers()
    assert found["code"] == "no_systemd" and "'init'" in found["message"]
    machine.plant({"/run/systemd/system/.keep": ""})  # a program in between started it
    assert machine.codes() == []


@pytest.mark.parametrize("line, systemd, codes", [
    ("HibernateState=freeze", "252", ["sleep_mode"]),
    ("HibernateState=standby mem disk", "252", ["sleep_mode"]),  # the kernel has no standby
    ("HibernateState=disk", "252", []),
    ("HibernateState=standby disk", "252", []),
    ("#HibernateState=freeze", "252", []),
    ("HibernateState=freeze", "257", []),  # no effect
])
def test_hibernation_that_is_another_sleep(machine: SimpleNamespace, line: str, systemd: str, codes: list[str]) -> None:
    """sleep.conf of Linux on Chromebooks."""
    os.unlink(machine.host.path("/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so"))
    machine.plant({"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-%s.so" % systemd: b"",
                   "/etc/systemd/sleep.conf": "[Sleep]\nSuspendState=freeze\n%s\n" % line})
    assert machine.codes() == codes


def test_no_hibernation(machine: SimpleNamespace) -> None:
    os.unlink(machine.host.path("/sys/power/disk"))
    assert machine.codes() == ["no_hibernation"]


@pytest.mark.parametrize("word", ["nohibernate", "hibernate=no"])
def test_nohibernate(machine: SimpleNamespace, word: str) -> None:
    disabled(machine)
    machine.plant({"/proc/cmdline": CMDLINE.strip() + " %s\n" % word})
    assert machine.codes() == ["nohibernate"]


@pytest.mark.parametrize("level", ["integrity", "confidentiality"])
def test_lockdown(machine: SimpleNamespace, level: str) -> None:
    disabled(machine)
    text = "none integrity confidentiality\n".replace(level, "[%s]" % level)
    machine.plant({"/sys/kernel/security/lockdown": text})
    assert machine.codes() == ["lockdown"]
    machine.plant({survey.SECURE_BOOT: b"\x06\0\0\0\x01"})
    assert "Secure Boot is enabled" in machine.blockers()[0]["message"]


def test_cxl(machine: SimpleNamespace) -> None:
    disabled(machine)
    machine.plant({"/sys/bus/cxl/devices/mem0/serial": "0x1\n"})
    assert machine.codes() == ["hibernation_disabled"]
    os.symlink("../../drivers/cxl_mem", machine.host.path("/sys/bus/cxl/devices/mem0/driver"))
    assert machine.codes() == ["cxl"]


@pytest.mark.parametrize("mapped", [False, True])
def test_memfd_secret(machine: SimpleNamespace, mapped: bool) -> None:
    disabled(machine)
    maps = "7f0c8a400000-7f0c8a401000 rw-s 00000000 00:10 1033   /secretmem (deleted)\n"
    machine.plant({
        "/proc/731/comm": "keeper\n",
        "/proc/731/status": "Name:\tkeeper\nVmLck:\t       %d kB\n" % (4 * mapped),
        "/proc/731/maps": maps if mapped else "",
    })
    os.makedirs(machine.host.path("/proc/731/fd"))
    os.symlink("/dev/null", machine.host.path("/proc/731/fd/0"))
    if not mapped:
        assert machine.codes() == ["hibernation_disabled"]
        os.symlink("/secretmem (deleted)", machine.host.path("/proc/731/fd/3"))
    assert machine.codes() == ["memfd_secret"]
    assert "731 (keeper)" in machine.blockers()[0]["message"]


def test_causes_are_looked_for_only_where_the_kernel_says_so(machine: SimpleNamespace) -> None:
    """A level of lockdown that the kernel hibernates under all the same is none of our business."""
    machine.plant({"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"})
    assert machine.codes() == []


@pytest.mark.parametrize("word", ["noresume", "hibernate=noresume"])
def test_noresume(machine: SimpleNamespace, word: str) -> None:
    machine.plant({"/proc/cmdline": CMDLINE.strip() + " %s\n" % word})
    assert machine.codes() == ["noresume"]


def test_protect_image_is_fine(machine: SimpleNamespace) -> None:
    machine.plant({"/proc/cmdline": CMDLINE.strip() + " hibernate=protect_image\n"})
    assert machine.codes() == []


def test_pm_test(machine: SimpleNamespace) -> None:
    machine.plant({"/sys/power/pm_test": "none core processors platform [devices] freezer\n"})
    assert machine.codes() == ["pm_test"]


@pytest.mark.parametrize("release, codes", [
    ("6.1.0-56-amd64", ["virtio_pmem"]),
    ("6.12.107+deb13-amd64", ["virtio_pmem"]),
    ("6.18.15-amd64", []),
    ("7.3.4", []),
])
def test_virtio_pmem(machine: SimpleNamespace, release: str, codes: list[str]) -> None:
    machine.regions[:] = [replace(REGION, provider="virtio")]
    machine.plant({"/proc/sys/kernel/osrelease": release + "\n"})
    machine.boot.lists[0].kernel = "/boot/vmlinuz-" + release
    assert machine.codes() == codes


@pytest.mark.parametrize("others, codes", [([], ["virtio_pmem"]), ([{"provider": "e820"}], ["virtio_pmem"]), ([{}], [])])
def test_virtio_pmem_where_the_device_would_be_made(machine: SimpleNamespace, others: list[dict[str, Any]], codes: list[str]) -> None:
    """Told before anything is made of it; the reservation takes another region if there is one."""
    machine.regions[:] = [replace(REGION, provider="virtio"), *(replace(REGION, dev="region1", **other) for other in others)]
    machine.plant({"/proc/sys/kernel/osrelease": "6.1.0-56-amd64\n"})
    found = readiness.blockers(machine.host, "/dev/NVM_NEW")
    assert [each["code"] for each in found if each["code"] == "virtio_pmem"] == codes
    assert all("region0 is on virtio-pmem" in each["message"] for each in found if each["code"] == "virtio_pmem")


LEGACY = {"/sys/firmware/memmap/9/start": "0x100000000\n", "/sys/firmware/memmap/9/end": "0x1ffffffff\n",
          "/sys/firmware/memmap/9/type": "Persistent Memory (legacy)\n"}


@pytest.mark.parametrize("files, codes", [
    ({}, ["nvm_volatile"]),
    (LEGACY, []),  # the firmware says that it is NVM
    ({"/etc/systemd/sleep.conf.d/a.conf": "[Sleep]\nHibernateMode=reboot\n"}, []),
    ({"/etc/systemd/sleep.conf": "[Sleep]\n#HibernateMode=reboot\n"}, ["nvm_volatile"]),
    ({"/usr/lib/systemd/sleep.conf.d/a.conf": "HibernateMode=reboot\n",
      "/etc/systemd/sleep.conf.d/a.conf": "HibernateMode = shutdown\n"}, ["nvm_volatile"]),
])
def test_nvm_that_power_off_erases(machine: SimpleNamespace, files: dict[str, str], codes: list[str]) -> None:
    machine.regions[:] = [replace(REGION, provider="e820", resource=0x100000000)]
    machine.plant(files)
    assert machine.codes() == codes


def test_no_nvm(machine: SimpleNamespace) -> None:
    machine.regions[:] = []
    os.unlink(machine.host.path(DEVICE))
    assert machine.codes() == ["no_nvm", "swap_inactive"]


def test_nvm_too_small(machine: SimpleNamespace) -> None:
    machine.plant({"/proc/meminfo": MEMINFO.replace("Active(anon):        640", "Active(anon):    2097152")})
    found = machine.blockers()
    assert [blocker["code"] for blocker in found] == ["nvm_too_small"]
    assert "2.0 GiB" in found[0]["message"]
    os.unlink(machine.host.path(DEVICE))
    assert machine.codes() == ["swap_inactive", "nvm_too_small"]


def test_swap_too_small(machine: SimpleNamespace) -> None:
    anon = MEMINFO.replace("Active(anon):        640", "Active(anon):     600000")
    machine.plant({"/proc/meminfo": anon})
    assert machine.codes() == []
    machine.plant({"/proc/swaps": SWAPS.replace("2097148\t\t0", "2097148\t\t1500000")})
    assert machine.codes() == ["swap_too_small"]


@pytest.mark.parametrize("active, codes", [(1000000 * 98 // 100, []), (1000000 * 98 // 100 + 1, ["swap_too_small"])])
def test_ninety_eight_percent(machine: SimpleNamespace, active: int, codes: list[str]) -> None:
    machine.plant({
        "/proc/meminfo": MEMINFO.replace("Active(anon):        640", "Active(anon):    %d" % active),
        "/proc/swaps": SWAPS.replace("2097148\t\t0", "1000000\t\t0"),
    })
    assert machine.codes() == codes


def test_an_image_that_is_not_compressed_needs_its_whole_size(machine: SimpleNamespace) -> None:
    """MemTotal - MemFree is 278 MiB; 200 MiB of swap are enough for a compressed image, not for this one."""
    machine.plant({"/proc/swaps": SWAPS.replace("2097148\t\t0", "204800\t\t0")})
    assert machine.codes() == []
    machine.plant({"/proc/cmdline": CMDLINE.strip() + " hibernate=nocompress\n"})
    assert machine.codes() == ["swap_too_small"]
    machine.plant({"/sys/power/image_size": "104857600\n"})
    assert machine.codes() == []


@pytest.mark.parametrize("word, masked, remedy", [
    ("systemd.swap=no", "", "remove it from the bootloader's settings, and reboot."),
    ("", "/etc/systemd/system/swap.target", "run: systemctl unmask swap.target."),  # Kubernetes
    ("", "/etc/systemd/system/dev-disk-by\\x2duuid-%s.swap" % UUID.replace("-", "\\x2d"), "run: systemctl unmask 'dev-disk-by\\x2duuid-"),
    ("", "/etc/systemd/system/dev-pmem0.swap", "run: systemctl unmask dev-pmem0.swap."),
    ("systemd.swap=yes", "/etc/systemd/system/dev-sda3.swap", ""),
])
def test_swap_that_no_boot_takes_into_use(machine: SimpleNamespace, word: str, masked: str, remedy: str) -> None:
    machine.plant({"/proc/swaps": NO_SWAPS, "/proc/cmdline": "%s %s\n" % (CMDLINE.strip(), word), "/etc/systemd/system/x.target": ""})
    if masked:
        os.symlink("/dev/null", machine.host.path(masked))
    (found,) = machine.blockers()
    assert found["remedy"].partition(" To have it in use after each boot, ")[2].startswith(remedy)
    assert ("at a boot: " in found["message"]) == bool(remedy) and found["remedy"].startswith("Run nvm_swap ")


def test_swap_inactive(machine: SimpleNamespace) -> None:
    machine.plant({"/proc/swaps": NO_SWAPS})
    assert machine.codes() == ["swap_inactive"]


def test_a_device_that_others_take_at_the_next_boot(machine: SimpleNamespace) -> None:
    machine.plant({"/etc/crypttab": "cryptswap %s /dev/urandom swap\n" % DEVICE})
    assert machine.codes() == ["device_claimed"]
    assert "/etc/crypttab, line 1" in machine.blockers()[0]["message"]
    machine.plant({"/etc/crypttab": "", "/etc/systemd/zram-generator.conf": "[zram0]\nwriteback-device=%s\n" % DEVICE})
    assert machine.codes() == ["device_claimed"]


def test_a_device_with_a_random_key(machine: SimpleNamespace) -> None:
    machine.plant({"/etc/crypttab": "cs /dev/vdb /dev/urandom swap\n", "/sys/class/block/pmem0/dm/name": "cs\n",
                   "/sys/class/block/pmem0/dm/uuid": "CRYPT-PLAIN-cs\n"})
    assert machine.codes() == ["device_ephemeral"]


@pytest.mark.parametrize("state, files, codes", [
    ("disabled", {}, []),
    ("unlocked", {}, ["nvdimm_locked"]),
    ("locked", {}, ["nvdimm_locked"]),
    ("overwrite", {}, ["nvdimm_locked"]),
    # unlocked by the firmware, as it will be again: the system has no key, so the kernel has frozen the security
    ("unlocked", {"/sys/bus/nd/devices/nmem0/frozen": "1\n"}, []),
    ("frozen", {}, []),
    ("unlocked", {"/sys/bus/nd/devices/nmem0/frozen": "0\n"}, ["nvdimm_locked"]),
    ("frozen", {"/etc/ndctl/keys/nvdimm_8089-a2-1837_host.blob": ""}, ["nvdimm_locked"]),
    ("locked", {"/sys/bus/nd/devices/nmem0/frozen": "1\n"}, ["nvdimm_locked"]),
])
def test_a_dimm_with_a_passphrase(machine: SimpleNamespace, state: str, files: dict[str, str], codes: list[str]) -> None:
    machine.regions[:] = [replace(REGION, security={"nmem0": state})]
    machine.plant(files)
    assert machine.codes() == codes
    for blocker in machine.blockers():
        assert "nmem0" in blocker["message"] and "ndctl remove-passphrase nmem0" in blocker["remedy"]


@pytest.mark.parametrize("flags, codes", [
    ("", []),
    ("smart_notify ", []),
    ("flush_fail smart_event ", []),
    ("not_armed ", ["nvdimm_failing"]),
    ("save_fail restore_fail smart_event ", ["nvdimm_failing"]),
])
@pytest.mark.parametrize("kind", ["nfit", "papr"])
def test_a_dimm_that_does_not_keep_its_contents(machine: SimpleNamespace, kind: str, flags: str, codes: list[str]) -> None:
    machine.regions[:] = [replace(REGION, dimms=["nmem0", "nmem1"])]
    machine.plant({"/sys/bus/nd/devices/nmem1/%s/flags" % kind: flags + "\n"})
    assert machine.codes() == codes
    assert all("nmem1" in blocker["message"] and flags.split(maxsplit=1)[0] in blocker["message"] for blocker in machine.blockers())


def test_a_hibernation_by_another_program(machine: SimpleNamespace) -> None:
    machine.plant({"/etc/systemd/system/systemd-hibernate.service": "[Service]\nExecStart=/usr/sbin/s2disk\n"})
    assert machine.codes() == ["sleep_replaced"]


def test_dimms_of_other_regions(machine: SimpleNamespace) -> None:
    other = replace(REGION, dev="region1", namespaces=[], security={"nmem1": "locked"})
    machine.regions.append(other)
    assert machine.codes() == []
    machine.regions[:] = [other]
    os.unlink(machine.host.path(DEVICE))
    assert machine.codes() == ["nvdimm_locked", "swap_inactive"]


def test_the_region_of_a_partition_or_a_mapping(machine: SimpleNamespace) -> None:
    """dm-0 on pmem0, which is ordinary memory: as volatile as pmem0 itself."""
    machine.regions[:] = [replace(REGION, provider="e820", resource=0x100000000)]
    machine.plant({"/sys/class/block/dm-0/dev": "253:0\n", "/sys/class/block/dm-0/size": "1024\n", "/dev/dm-0": swap_header()})
    os.makedirs(machine.host.path("/sys/class/block/dm-0/slaves/pmem0"))
    assert "nvm_volatile" in machine.codes(device="/dev/dm-0")


def test_nvm_without_a_driver(machine: SimpleNamespace) -> None:
    machine.regions[:] = []
    os.unlink(machine.host.path(DEVICE))
    machine.plant({"/sys/firmware/acpi/tables/NFIT": ""})
    assert machine.codes() == ["nvm_unusable", "swap_inactive"]


def test_a_device_that_is_in_use(machine: SimpleNamespace) -> None:
    machine.plant({"/proc/swaps": NO_SWAPS, "/sys/class/block/pmem0/holders/dm-0/x": ""})
    assert machine.codes() == ["device_in_use", "swap_inactive"]
    assert "held by dm-0" in machine.blockers()[0]["message"]


@pytest.mark.parametrize("kind", ["LVM2_member", "linux_raid_member", "zfs_member", "bcache", "mpath_member", "crypto_LUKS", "xfs"])
def test_a_device_that_holds_something_else(machine: SimpleNamespace, kind: str) -> None:
    machine.plant({"/proc/swaps": NO_SWAPS, "/dev/pmem0": bytes(65536), "/run/udev/data/b259:0": "I:1\nE:ID_FS_TYPE=%s\n" % kind})
    assert machine.codes()[:2] == ["holds_filesystem", "swap_inactive"]
    assert kind in machine.blockers()[0]["message"]
    machine.plant({"/dev/pmem0": swap_header()})
    assert machine.codes() == ["swap_inactive"]


@pytest.mark.parametrize("target, codes", [("pmem0", []), ("vdb", ["uuid_elsewhere"]), (None, ["uuid_elsewhere"])])
def test_what_the_uuid_leads_to(machine: SimpleNamespace, target: str | None, codes: list[str]) -> None:
    machine.plant({"/dev/disk/by-uuid/other": "", "/dev/vdb": ""})
    if target:
        os.symlink("../../" + target, machine.host.path("/dev/disk/by-uuid/" + UUID))
    assert machine.codes() == codes
    assert all((target or "does not exist") in blocker["message"] for blocker in machine.blockers())


# resume --------------------------------------------------------------------------------------------------------------


def test_resume_unset_in_the_running_kernel(machine: SimpleNamespace) -> None:
    machine.plant({"/sys/power/resume": "0:0\n"})
    found = machine.blockers()
    assert [blocker["code"] for blocker in found] == ["resume_unset"]
    assert "reboot" in found[0]["remedy"]


def test_resume_elsewhere_in_the_running_kernel(machine: SimpleNamespace) -> None:
    machine.plant({"/sys/power/resume": "254:2\n"})
    assert machine.codes() == ["resume_elsewhere"]


HELPER = "/usr/local/lib/hibernate-installer/set-resume.sh"


@pytest.mark.parametrize("files, place", [
    ({"/etc/tmpfiles.d/hibernation_resume.conf": "# Path Mode UID GID Age Argument\nw    /sys/power/resume  -  -  -  -  254:2\n"},
     "/etc/tmpfiles.d/hibernation_resume.conf, line 2"),
    ({"/etc/sysfs.conf": "power/image_size = 0\npower/resume_offset = 34816\n"}, "/etc/sysfs.conf, line 2"),
    ({"/etc/rc.local": "echo 254:2 | tee /sys/power/resume >/dev/null\n"}, "/etc/rc.local, line 1"),
    ({"/etc/systemd/system/a.service": "[Service]\nExecStart=/bin/sh -c 'echo 254:2 >/sys/power/resume'\n"},
     "/etc/systemd/system/a.service, line 2"),
    ({"/etc/systemd/system/a.service": "[Service]\nExecStart=-%s x\n" % HELPER, HELPER: "#!/bin/sh\necho 254:2 > /sys/power/resume\n"},
     HELPER + ", line 2"),
    ({"/etc/tmpfiles.d/a.conf": "w /sys/power/image_size - - - - 0\n#w /sys/power/resume - - - - 254:2\n"}, ""),
    ({"/etc/rc.local": "cat /sys/power/resume\n"}, ""),
])
def test_what_sets_another_place_at_each_boot_has_to_go(machine: SimpleNamespace, files: dict[str, str], place: str) -> None:
    """boot_resume and a reboot alone do not help: it runs after the initramfs."""
    machine.plant(files)
    for values in ({"/sys/power/resume": "254:2\n"}, {"/sys/power/resume": "0:0\n"},
                   {"/sys/power/resume": "259:0\n", "/sys/power/resume_offset": "34816\n"}):
        machine.plant(values)
        (found,) = machine.blockers()
        assert found["remedy"].startswith("Remove %s, which sets it again at each boot. Run boot_resume" % place if place else "Run boot_")
    machine.plant({"/sys/power/resume_offset": "0\n"})
    assert machine.codes() == []


@pytest.mark.parametrize("offset, codes", [("0", []), ("34816", ["resume_elsewhere"])])
def test_resume_offset_in_the_running_kernel(machine: SimpleNamespace, offset: str, codes: list[str]) -> None:
    machine.plant({"/sys/power/resume_offset": offset + "\n"})
    assert machine.codes() == codes
    for blocker in machine.blockers():  # the offset comes from a setting that the next boot reads as well
        assert blocker["remedy"].startswith("Run boot_resume") and "and reboot" in blocker["remedy"]


@pytest.mark.parametrize("arguments, codes", [
    (["ro", "quiet"], ["resume_unset"]),
    (["resume=" + DEVICE], []),
    (["resume=/dev/pmem0"], []),
    (["resume=259:0"], []),
    (["resume=LABEL=NVM_SWAP"], []),
    (["resume=PARTUUID=77aa"], []),
    (["resume=UUID=" + "0" * 36], ["resume_elsewhere"]),
    (["resume=/dev/vda2"], ["resume_elsewhere"]),
    (["resume=/dev/vda2", "resume=UUID=" + UUID], []),
    (["resume=UUID=" + UUID, "resume=/dev/vda2"], ["resume_elsewhere"]),
    (["resume=UUID=" + UUID, "noresume"], ["noresume"]),
    (["resume=UUID=" + UUID, "resume_offset=34816"], ["resume_elsewhere"]),
    (["resume=UUID=" + UUID, "resume_offset=34816", "resume_offset=0"], []),
])
def test_resume_of_the_next_boot(machine: SimpleNamespace, arguments: list[str], codes: list[str]) -> None:
    os.makedirs(machine.host.path("/dev/disk/by-partuuid"))
    os.symlink("../../pmem0", machine.host.path("/dev/disk/by-partuuid/77aa"))
    machine.boot.lists[0].arguments = arguments
    assert machine.codes() == codes


def test_every_kernel_has_to_resume(machine: SimpleNamespace) -> None:
    machine.boot.lists.append(BootEntry("Debian, with Linux 6.1.0-57-amd64", "/boot/vmlinuz-6.1.0-57-amd64", ["ro"]))
    found = machine.blockers()
    assert [blocker["code"] for blocker in found] == ["resume_unset"]
    assert "6.1.0-57-amd64" in found[0]["message"] and "recovery" not in found[0]["message"]


def test_no_entry_at_all(machine: SimpleNamespace) -> None:
    del machine.boot.lists[:]
    assert machine.codes() == ["unknown_boot_entries"]


def test_unknown_bootloader(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def _refuse(host: Host) -> None:
        raise Refused("bootloader_unknown", "No bootloader was found.", "Set it up by hand.")

    monkeypatch.setattr(bootloaders, "detect", _refuse)
    assert machine.codes() == ["bootloader_unknown"]


ZRAM = "/dev/zram0                              partition\t4194300\t\t0\t\t100\n"
DISK = "/dev/vda2                               partition\t1048572\t\t0\t\t%d\n"


@pytest.mark.parametrize("resume, others, codes", [
    ("259:0", ZRAM + DISK % 50, []),
    ("0:0", ZRAM, ["resume_unset"]),
    ("0:0", DISK % -2, ["resume_unset"]),
    ("0:0", DISK % 50, ["resume_unset", "other_swap_first"]),
])
def test_other_swap_first(machine: SimpleNamespace, resume: str, others: str, codes: list[str]) -> None:
    machine.plant({"/sys/power/resume": resume + "\n", "/proc/swaps": SWAPS + others})
    assert machine.codes() == codes


# the initramfs -------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_initramfs_that_is_out_of_date(machine: SimpleNamespace) -> None:
    machine.boot.copies = ["the entry 'Debian' loads /efi/initrd.img, which is not the same as /boot/initrd.img-6.1.0-56-amd64"]
    (blocker,) = machine.blockers()
    assert blocker["code"] == "initramfs_outdated" and "/efi/initrd.img" in blocker["message"]
    assert "boot_resume" in blocker["remedy"]


def test_initramfs_drivers(machine: SimpleNamespace) -> None:
    machine.boot.lacking = ["nfit", "nd_pmem"]
    found = machine.blockers()
    assert [blocker["code"] for blocker in found] == ["initramfs_drivers"]
    assert "6.1.0-56-amd64" in found[0]["message"] and "nfit, nd_pmem" in found[0]["message"]


def test_files_that_the_next_boot_does_not_read(machine: SimpleNamespace) -> None:
    """The cause alone: what is in those files says nothing."""
    machine.boot.lacking.append("nd_pmem")
    machine.boot.lists.clear()
    machine.plant({"/proc/self/mountinfo": "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n", "/etc/fstab": "UUID=2 /boot ext4 noauto 0 2\n"})
    assert machine.codes() == ["boot_not_mounted"]
    overlay = "22 1 0:30 / / rw - overlay o rw,lowerdir=/media/ro,upperdir=/media/rw/o,workdir=/w\n25 22 0:31 / /media/rw rw - tmpfs t rw\n"
    machine.plant({"/proc/self/mountinfo": overlay, "/etc/fstab": ""})
    assert machine.codes() == ["root_is_overlay"]


def test_settings_of_others_in_the_initramfs(machine: SimpleNamespace) -> None:
    machine.boot.others.append(Override("conf/conf.d/zzz", "resume_offset=3471360", "which is the place of a swap file"))
    (blocker,) = machine.blockers()
    assert blocker["code"] == "initramfs_overridden" and blocker["remedy"] == "Remove it from /etc/initramfs-tools/conf/conf.d/zzz."
    assert "6.1.0-56-amd64" in blocker["message"] and "conf/conf.d/zzz has resume_offset=3471360" in blocker["message"]
    assert machine.blockers(skip=("initramfs_overridden",)) == []


def test_what_the_initramfs_is_looked_into_for(machine: SimpleNamespace) -> None:
    kernel, drivers = "6.1.0-56-amd64", ("nd_pmem", "libnvdimm", "nfit")
    assert machine.codes() == []
    assert machine.boot.looks == [(kernel, "UUID=" + UUID, drivers)]
    machine.plant({"/sys/module/hibernate/parameters/compressor": "lz4\n",
                   "/lib/modules/%s/kernel/crypto/lz4.ko.xz" % kernel: ""})
    assert machine.codes() == []
    assert machine.boot.looks[1] == (kernel, "UUID=" + UUID, drivers + ("lz4",))
    machine.plant({"/proc/cmdline": CMDLINE.strip() + " hibernate=nocompress\n"})
    machine.codes()
    assert machine.boot.looks[2][2] == drivers


def test_initramfs_can_be_skipped(machine: SimpleNamespace) -> None:
    machine.boot.lacking = ["nfit"]
    assert machine.codes(skip=("initramfs_drivers",)) == []
    assert machine.boot.looks == []


# a pending image -----------------------------------------------------------------------------------------------------


def with_image(machine: SimpleNamespace, **options: Any) -> None:
    checksum = survey.Survey(machine.host, DEVICE, 0).e820_checksum
    machine.plant({"/proc/swaps": NO_SWAPS,
                   "/dev/pmem0": pending(**dict({"checksum": checksum}, **options))})


def test_image_pending(machine: SimpleNamespace) -> None:
    with_image(machine)
    assert machine.codes() == ["image_pending", "swap_inactive"]


def test_checksum_of_the_memory_map(machine: SimpleNamespace) -> None:
    """The kernel's own sum: CRC-32 over the number of entries and {address, size, type}, packed."""
    numbers = {"System RAM": 1, "Reserved": 2, "Persistent Memory": 7}
    table = struct.pack("<I", len(MEMMAP)) + b"".join(
        struct.pack("<QQI", start, end - start + 1, numbers[kind]) for start, end, kind in MEMMAP)
    assert survey.Survey(machine.host, DEVICE, 0).e820_checksum == zlib.crc32(table)


def test_memory_size_changed(machine: SimpleNamespace) -> None:
    with_image(machine, pages=PHYSICAL_PAGES + 16384)
    assert machine.codes() == ["image_pending", "memory_map_changed", "swap_inactive"]
    assert "262012" in machine.blockers()[1]["message"]


def test_memory_map_changed(machine: SimpleNamespace) -> None:
    with_image(machine)
    machine.plant({"/sys/firmware/memmap/3/end": "0x3ffdbfff\n", "/sys/firmware/memmap/4/start": "0x3ffdc000\n"})
    assert machine.codes() == ["image_pending", "memory_map_changed", "swap_inactive"]


def test_an_image_of_another_architecture_has_no_checksum(machine: SimpleNamespace) -> None:
    with_image(machine, magic=0, checksum=1)
    assert machine.codes() == ["image_pending", "swap_inactive"]


def test_unknown_type_in_the_memory_map(machine: SimpleNamespace) -> None:
    with_image(machine)
    machine.plant({"/sys/firmware/memmap/4/type": "Something New\n"})
    assert machine.codes() == ["image_pending", "unknown_memory_map", "swap_inactive"]


@pytest.mark.parametrize("entry", [0, 1 << 40])
def test_image_that_was_cut_off(machine: SimpleNamespace, entry: int) -> None:
    with_image(machine, entry=entry)
    assert machine.codes() == ["image_pending", "image_unreadable", "swap_inactive"]


# policy --------------------------------------------------------------------------------------------------------------

LIST = "busctl --json=short call %s ListInhibitors" % " ".join(LOGIND)


def inhibitors(transcript: Transcript, *entries: tuple[object, ...]) -> None:
    transcript.record(LIST, json.dumps({"type": "a(ssssuu)", "data": [[list(entry) for entry in entries]]}) + "\n")


@pytest.mark.parametrize("what, mode, codes", [
    ("sleep", "block", ["sleep_inhibited"]),
    ("shutdown:sleep:idle", "block", ["sleep_inhibited"]),
    ("shutdown", "block", []),
    ("handle-lid-switch", "block", []),
    ("sleep", "delay", []),
    ("sleep", "block-weak", []),
])
def test_sleep_inhibited(machine: SimpleNamespace, transcript: Transcript, what: str, mode: str, codes: list[str]) -> None:
    machine.plant({"/run/systemd/inhibit/4": "WHAT=%s\n" % what, "/run/systemd/inhibit/4.ref": ""})
    inhibitors(transcript, (what, "apt", "packages are being installed", mode, 0, 912))
    assert machine.codes() == codes
    assert machine.codes(skip=("sleep_inhibited",)) == []


def test_logind_that_does_not_answer(machine: SimpleNamespace, transcript: Transcript) -> None:
    machine.plant({"/run/systemd/inhibit/4": "WHAT=sleep\n"})
    transcript.record(LIST, err="Call failed: Connection timed out", rc=1)
    assert machine.codes() == ["unknown_inhibitors"]


CAN = "busctl --json=short --timeout=20 call %s CanHibernate" % " ".join(LOGIND)


@pytest.mark.parametrize("unit", ["hibernate.target", "sleep.target", "systemd-hibernate.service"])
def test_masked_units(machine: SimpleNamespace, unit: str) -> None:
    os.makedirs(machine.host.path("/etc/systemd/system"))
    os.symlink("/dev/null", machine.host.path("/etc/systemd/system/" + unit))
    assert machine.codes() == ["sleep_masked"]
    assert machine.codes(skip=("sleep_masked",)) == []


@pytest.mark.parametrize("text, codes", [
    ("AllowHibernation=no", ["sleep_disallowed"]),
    ("AllowHibernation=yes", []),
    ("HibernateMode=shutdown", []),
    ("HibernateMode=", []),
    ("HibernateMode=suspend", ["sleep_mode"]),
    ("HibernateMode=test_resume", ["sleep_mode"]),
    ("HibernateMode=firmware platform", []),
    ("HibernateMode=firmware", ["sleep_mode"]),
])
def test_sleep_conf(machine: SimpleNamespace, text: str, codes: list[str]) -> None:
    machine.plant({"/etc/systemd/sleep.conf.d/a.conf": "[Sleep]\n%s\n" % text})
    assert machine.codes() == codes
    assert all("/etc/systemd/sleep.conf.d/a.conf, line 2" in blocker["message"] for blocker in machine.blockers())


@pytest.mark.parametrize("answer, codes", [
    ("yes", []),
    ("na", ["logind_refuses"]),
    ("no", ["logind_refuses"]),
    ("challenge", ["logind_refuses"]),
    ("inhibited", []),
    ("inhibitor-blocked", []),
])
def test_what_logind_answers(machine: SimpleNamespace, transcript: Transcript, answer: str, codes: list[str]) -> None:
    machine.plant({"/run/systemd/system/x": "", "/usr/bin/busctl": ""})
    os.chmod(machine.host.path("/usr/bin/busctl"), 0o755)
    transcript.record(CAN, json.dumps({"type": "s", "data": [answer]}))
    assert machine.codes() == codes
    assert all("'%s'" % answer in blocker["message"] for blocker in machine.blockers())
    del transcript.calls[:]
    machine.plant({"/proc/swaps": NO_SWAPS})  # a cause that is known: logind need not be asked
    assert machine.codes() == ["swap_inactive"] and transcript.calls == []
    # what is ignored by its name does not come back as a refusal of logind
    assert machine.codes(skip=("swap_inactive",)) == [] and transcript.calls == []


def test_without_root(machine: SimpleNamespace) -> None:
    machine.boot.lacking = ["nfit"]
    assert machine.codes(euid=1000) == ["not_root"]


# the report ----------------------------------------------------------------------------------------------------------


def test_report(machine: SimpleNamespace, transcript: Transcript) -> None:
    found = report.report(machine.host, DEVICE, euid=0)
    json.dumps(found)
    assert found["ready"] and found["blockers"] == [] and transcript.calls == []
    assert found["nvm"] == 2048 * MIB
    assert 900 * MIB < found["dram"] <= 1024 * MIB <= found["recommended_size"]
    assert found["regions"][0]["namespaces"][0]["blockdev"] == "pmem0"
    assert found["swaps"] == [
        {"path": "/dev/pmem0", "kind": "partition", "size": 2097148 << 10, "used": 0, "priority": 10}]
    assert found["memory"] == {"active_anon": 640 << 10, "image": (987432 - 702312) << 10}
    assert (found["bootloader"], found["initramfs"], found["kernels"]) == ("grub", "grub", ["6.1.0-56-amd64"])
    assert found["resume"] == {"configured": ["UUID=" + UUID], "running": "259:0", "cmdline": "UUID=" + UUID}
    assert found["pending_image"] is None and found["swap_file"] is None
    assert found["boot"] == {"efi": False, "secure_boot": None, "lockdown": "none"}
    assert (found["kernel"], found["systemd"], found["ndctl_installed"]) == ("6.1.0-56-amd64", 252, False)


def test_report_without_a_look_into_the_initramfs(machine: SimpleNamespace) -> None:
    machine.boot.lacking = ["nfit"]
    codes = [blocker["code"] for blocker in report.report(machine.host, DEVICE, euid=0)["blockers"]]
    assert codes == ["initramfs_drivers"]
    found = report.report(machine.host, DEVICE, skip=codes, euid=0)
    assert found["ready"] and found["blockers"] == []


def test_report_of_a_machine_that_lacks_everything(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant({"/proc/meminfo": MEMINFO, "/proc/zoneinfo": ZONEINFO, "/proc/swaps": NO_SWAPS})

    def _refuse(host: Host) -> None:
        raise Refused("unknown", "Nothing is known.", "Nothing helps.")

    monkeypatch.setattr(bootloaders, "detect", _refuse)
    monkeypatch.setattr(initramfs, "detect", _refuse)
    found = report.report(host, DEVICE, euid=0)
    assert not found["ready"] and found["bootloader"] is None and found["kernels"] == [] and found["nvm"] == 0
    assert [blocker["code"] for blocker in found["blockers"]] == ["no_nvm", "no_hibernation", "swap_inactive", "unknown"]


# a swap file ----------------------------------------------------------------------------------------------------------

FILE = "/swapfile"
ROOT = "0b4c6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
PLACE = 5000  # the page of /dev/vda1 at which the file begins


@pytest.fixture
def with_file(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The machine without NVM, whose swap file on its root filesystem is ready."""
    machine.regions.clear()
    os.unlink(machine.host.path(DEVICE))
    machine.plant({
        "/dev/vda1": bytes(PLACE * PAGE) + swap_header() + bytes(PAGE),
        "/sys/class/block/vda1/dev": "254:1\n",
        "/sys/class/block/vda1/size": "%d\n" % (20 << 21),
        "/proc/self/mountinfo": "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n",
        "/etc/fstab": "UUID=%s / ext4 defaults 0 1\n/swapfile swap swap defaults 0 0\n" % ROOT,
        "/proc/swaps": SWAPS.splitlines()[0] + "\n/swapfile file 2097148 0 10\n",
        "/sys/power/resume": "254:1\n",
        "/sys/power/resume_offset": "%d\n" % PLACE,
        FILE: "",
    })
    os.truncate(machine.host.path(FILE), 2048 * MIB)
    os.makedirs(machine.host.path("/dev/disk/by-uuid"), exist_ok=True)
    os.symlink("../../vda1", machine.host.path("/dev/disk/by-uuid/" + ROOT))
    machine.place = [extents.Extent(0, PLACE * PAGE, 2048 * MIB)]
    monkeypatch.setattr(extents, "of_file", lambda handle, kind, size, page: machine.place)
    machine.boot.lists[0].arguments[3:] = ["resume=UUID=" + ROOT, "resume_offset=%d" % PLACE]
    machine.plant({"/proc/cmdline": "root=UUID=%s ro quiet resume=UUID=%s resume_offset=%d\n" % (ROOT, ROOT, PLACE)})
    return machine


def test_a_swap_file_is_ready(with_file: SimpleNamespace, transcript: Transcript) -> None:
    assert with_file.blockers(device=FILE) == []
    assert [look[1] for look in with_file.boot.looks] == ["none"], "hooks/resume takes a filesystem for no resume device"
    found = report.report(with_file.host, FILE, euid=0)
    assert found["ready"] and found["swap_file"] == {"block_device": "/dev/vda1", "offset": PLACE, "running": PLACE}
    assert transcript.calls == []


@pytest.mark.parametrize(("change", "code", "said"), [
    ({"/sys/power/resume_offset": "4000\n"}, "swap_file_moved", "page 4000 of /dev/vda1"),
    ({"/sys/power/resume_offset": "0\n"}, "swap_file_moved", "page 0"),
    ({"/sys/power/resume": "254:2\n"}, "resume_elsewhere", "254:2"),
    ({"/sys/power/resume": "0:0\n"}, "resume_unset", "0:0"),
    ({"/proc/swaps": NO_SWAPS}, "swap_inactive", "/swapfile"),
    ({"/proc/meminfo": MEMINFO.replace("Active(anon):", "Active(anon):   9999999 kB\nOther:")}, "swap_too_small", "/swapfile"),
    ({"/proc/self/mountinfo": "22 1 0:9 / / rw - overlay overlay rw,upperdir=/run/x\n"}, "filesystem_unsupported", "overlay"),
    ({"/dev/vda1": bytes(PLACE * PAGE) + swap_header(b"S1SUSPEND\0", image=PLACE + 1) + bytes(PAGE)}, "image_pending", "/swapfile"),
])  # fmt: skip
def test_what_blocks_a_swap_file(with_file: SimpleNamespace, change: dict[str, Any], code: str, said: str) -> None:
    with_file.plant(change)
    found = {blocker["code"]: blocker for blocker in with_file.blockers(device=FILE)}
    assert code in found and said in found[code]["message"], found
    assert "nvm_" not in found[code]["remedy"]


def test_a_swap_file_that_was_moved_since_it_was_configured(with_file: SimpleNamespace) -> None:
    with_file.place[0] = extents.Extent(0, (PLACE + 1) * PAGE, 2048 * MIB)
    with_file.plant({"/dev/vda1": bytes((PLACE + 1) * PAGE) + swap_header() + bytes(PAGE)})
    found = with_file.blockers(device=FILE)
    assert [blocker["code"] for blocker in found] == ["swap_file_moved", "swap_file_moved"]
    running, configured = (blocker["message"] for blocker in found)
    assert "The running kernel" in running and "The next boot" in configured and "page %d" % (PLACE + 1) in running
    assert all("boot_resume for /swapfile" in blocker["remedy"] for blocker in found)


def test_a_swap_file_whose_place_no_entry_has(with_file: SimpleNamespace) -> None:
    with_file.boot.lists[0].arguments.pop()
    assert with_file.codes(device=FILE) == ["swap_file_moved"]


def test_a_swap_file_that_is_missing(with_file: SimpleNamespace) -> None:
    os.unlink(with_file.host.path(FILE))
    assert with_file.codes(device=FILE) == ["swap_file_missing"]


def test_a_file_that_is_no_swap_area(with_file: SimpleNamespace) -> None:
    with_file.plant({"/dev/vda1": bytes((PLACE + 1) * PAGE), "/proc/swaps": NO_SWAPS})
    assert with_file.codes(device=FILE) == ["not_swap"], "resume= leads to it"


def test_a_swap_file_that_the_kernel_cannot_use(with_file: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def _hole(*_arguments: object) -> None:
        raise extents.Unusable("has a hole at byte 0")

    monkeypatch.setattr(extents, "of_file", _hole)
    assert with_file.codes(device=FILE) == ["swap_file_unusable"]


@pytest.mark.parametrize(("root", "codes"), [(True, []), (False, ["swap_file_unusable"])])
def test_a_swap_file_on_an_encrypted_filesystem(with_file: SimpleNamespace, root: bool, codes: list[str]) -> None:
    """The initramfs unlocks the root filesystem before it resumes, and no other."""
    path = FILE if root else "/srv" + FILE
    with_file.plant({
        "/sys/class/block/vda1/dm/uuid": "CRYPT-LUKS2-0b4c-root\n",
        "/etc/crypttab": "root UUID=1234 none luks\n",
        "/sys/class/block/vda2/dev": "254:2\n", "/dev/vda2": "", path: bytes(MIB),
        "/proc/self/mountinfo": "22 1 254:1 / / rw - ext4 /dev/%s rw\n" % ("vda1" if root else "vda2")
        + ("" if root else "23 1 254:1 / /srv rw - ext4 /dev/vda1 rw\n"),
        "/proc/swaps": SWAPS.splitlines()[0] + "\n%s file 2097148 0 10\n" % path,
    })
    assert with_file.codes(device=path, skip=("swap_too_small",)) == codes


def test_report_of_a_pending_image(machine: SimpleNamespace) -> None:
    with_image(machine)
    found = report.report(machine.host, DEVICE, euid=0)
    assert found["pending_image"] == {"device": DEVICE, "type": "swsuspend", "uuid": UUID}


# cases that the tests of the store read as well ------------------------------------------------------------------------


def recorded(name: str) -> list[dict[str, Any]]:
    with open(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4, "cases", name + ".json")) as file:
        cases: list[dict[str, Any]] = json.load(file)["cases"]
    return cases


@pytest.mark.parametrize("case", recorded("memory_maps"), ids=lambda case: case["name"])
def test_recorded_memory_maps(host: Host, plant: Plant, case: dict[str, Any]) -> None:
    for number, entry in enumerate(case["entries"]):
        plant({"/sys/firmware/memmap/%d/%s" % (number, name): text + "\n"
               for name, text in zip(("start", "end", "type"), entry)})
    facts = survey.Survey(host, DEVICE, 0)
    if case["crc32"] is None:
        with pytest.raises(Refused) as caught:
            print(facts.e820_checksum)
        assert caught.value.code == "unknown_memory_map"
    else:
        assert "%#010x" % facts.e820_checksum == case["crc32"]


def test_every_type_of_a_memory_map_is_in_a_recorded_case() -> None:
    kinds = {kind for case in recorded("memory_maps") if case["crc32"] for _start, _end, kind in case["entries"]}
    assert kinds == set(survey.E820_TYPES)


@pytest.mark.parametrize("case", recorded("kernel_command_lines"), ids=lambda case: case["cmdline"])
def test_recorded_kernel_command_lines(machine: SimpleNamespace, case: dict[str, Any]) -> None:
    if not case["hibernates"]:
        disabled(machine)
    machine.plant({"/proc/cmdline": case["cmdline"] + "\n"})
    expected = [] if case["resumes"] else ["noresume"] if case["hibernates"] else ["nohibernate"]
    assert machine.codes() == expected


@pytest.mark.parametrize("case", recorded("lockdown"), ids=lambda case: str(case["level"]))
def test_recorded_lockdown(machine: SimpleNamespace, case: dict[str, Any]) -> None:
    if case["content"] is None:
        os.unlink(machine.host.path("/sys/kernel/security/lockdown"))
    else:
        machine.plant({"/sys/kernel/security/lockdown": case["content"]})
    if not case["allowed"]:
        disabled(machine)
    assert survey.Survey(machine.host, DEVICE, 0).lockdown == case["level"]
    assert machine.codes() == ([] if case["allowed"] else ["lockdown"])


@pytest.mark.parametrize("case", recorded("swap_headers"), ids=lambda case: case["name"])
def test_recorded_swap_headers(machine: SimpleNamespace, case: dict[str, Any]) -> None:
    content = bytearray(65536)
    for offset, digits in case["bytes"].items():
        piece = bytes.fromhex(digits)
        content[int(offset):int(offset) + len(piece)] = piece
    machine.plant({"/dev/pmem0": bytes(content)})
    facts = survey.Survey(machine.host, DEVICE, 0)
    assert facts.image_pending == (case["holds"] in ("image", "other image"))
    if case["holds"] == "nothing":
        assert facts.header is None
    elif case["holds"] != "other image":
        assert facts.header.type == ("swap" if case["holds"] == "swap" else "swsuspend")
        assert (facts.header.page_size, facts.header.uuid, facts.header.label) == (
            case["page_size"], case["uuid"], case["label"])
    if case["holds"] == "image":
        assert (facts.header.format, facts.header.image, facts.header.flags) == (
            "s1suspend", case["image"], case["flags"])
