# SPDX-License-Identifier: GPL-3.0-or-later
"""What really started the kernel, and what the firmware starts next, where GRUB is installed as well."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot import files as boot_files
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import Firmware
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import leads_elsewhere
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.firmware_tree import (
    GLOBAL,
    PARTITION,
    numbers,
    option,
    text,
)

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

KERNEL = "vmlinuz-6.1.0-50-amd64"
BY_GRUB = "BOOT_IMAGE=/boot/%s root=UUID=0b4c ro quiet\n" % KERNEL
BY_STUB = "ro root=UUID=0b4c quiet initrd=boot\\initrd.img-6.1.0-50-amd64\n"
TYPE = "/proc/sys/kernel/bootloader_type"
SHIM, REFIND = "\\EFI\\debian\\shimx64.efi", "\\EFI\\refind\\refind_x64.efi"
EFI = {"/sys/firmware/efi/fw_platform_size": "64\n"}


def booted(path: str, title: str = "Linux") -> dict[str, Any]:
    return {**EFI, **numbers("BootCurrent", 1), **numbers("BootOrder", 1), **option(1, title, path)}


@pytest.fixture
def installed(host: Host, plant: Plant) -> Host:
    """Debian's GRUB is installed, with its configuration."""
    plant({"/usr/sbin/grub-mkconfig": "default/grub.d", "/boot/grub/grub.cfg": "", "/boot/" + KERNEL: ""})
    os.chmod(host.path("/usr/sbin/grub-mkconfig"), 0o755)
    return host


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/cmdline": BY_GRUB},  # BIOS
        {"/proc/cmdline": BY_GRUB, TYPE: "114\n"},
        {"/proc/cmdline": BY_GRUB, TYPE: "33\n", **booted(SHIM)},  # GRUB 2.12 with EFI starts the stub as well
        {"/proc/cmdline": BY_GRUB, **booted("\\EFI\\BOOT\\BOOTX64.EFI")},
        {"/proc/cmdline": BY_GRUB, **EFI},  # the firmware keeps no BootCurrent
        {"/proc/cmdline": BY_GRUB, **booted(REFIND)},  # rEFInd started GRUB
        {"/proc/cmdline": BY_GRUB, **booted("\\EFI\\Linux\\grubx64.efi")},
        {"/proc/cmdline": BY_GRUB, **booted(SHIM), **text("LoaderInfo", "GRUB 2.12-9+deb13u1")},
        {"/proc/cmdline": "root=UUID=0b4c ro\n", TYPE: "208\n"},  # kexec: the firmware starts GRUB next
        {"/proc/cmdline": BY_GRUB.strip() + " initrd=boot\\initrd.img\n", **booted(SHIM)},  # copied by hand
    ],
)
def test_started_by_grub(installed: Host, plant: Plant, files: dict[str, Any]) -> None:
    plant(files)
    assert bootloaders.detect(installed).name == "grub"


@pytest.mark.parametrize(
    ("files", "name", "sign"),
    [
        ({"/proc/cmdline": BY_STUB, **booted("\\" + KERNEL, "Debian by stub")}, "EFI stub", "Debian by stub"),
        ({"/proc/cmdline": "BOOT_IMAGE=/vmlinuz-linux root=UUID=1 rw initrd=/initramfs-linux.img\n",
          **booted("\\EFI\\debian\\vmlinuz.efi"), "/boot/efi/EFI/debian/vmlinuz.efi": ""}, "EFI stub", "vmlinuz.efi"),
        ({"/proc/cmdline": "root=UUID=1 ro\n", **booted("\\EFI\\Linux\\debian-6.1.efi")}, "unified kernel image", "debian-6.1.efi"),
        ({"/proc/cmdline": "root=UUID=1 ro\n", **booted(SHIM), **text("StubInfo", "systemd-stub 257.13")}, "unified", "StubInfo"),
        ({"/proc/cmdline": "initrd=\\a root=UUID=1\n", **booted("\\EFI\\systemd\\systemd-bootx64.efi")}, "systemd-boot", "BOOT_IMAGE"),
        ({"/proc/cmdline": "root=/dev/vda1 ro\n", TYPE: "176\n"}, "QEMU", "BOOT_IMAGE"),
        ({"/proc/cmdline": "BOOT_IMAGE=vmlinuz initrd=initrd.img root=/dev/sda1\n", TYPE: "50\n"}, "Syslinux", "initrd=initrd.img"),
        ({"/proc/cmdline": "root=/dev/mmcblk0p2 console=serial0\n", "/proc/device-tree/model": "Board"}, "another loader", "BOOT_IMAGE"),
        ({"/proc/cmdline": "root=/dev/sda1\n", TYPE: "144\n", "/sys/hypervisor/type": "xen\n"}, "Xen", "BOOT_IMAGE"),
        ({"/proc/cmdline": "root=/dev/sda1\n", **EFI, **text("LoaderInfo", "Limine 8.0")}, "Limine 8.0", "BOOT_IMAGE"),
    ],
)  # fmt: skip
def test_another_loader_is_refused_by_name(installed: Host, plant: Plant, files: dict[str, Any], name: str, sign: str) -> None:
    plant(files)
    with pytest.raises(Refused) as refused:
        bootloaders.detect(installed)
    assert refused.value.code == "bootloader_unsupported"
    assert name in refused.value.message and (sign in refused.value.message or name == "systemd-boot")
    assert "efibootmgr" in refused.value.remedy


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/cmdline": BY_STUB, **booted(REFIND, "rEFInd Boot Manager")},
        {"/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz " + BY_STUB, **booted(REFIND)},
        {"/proc/cmdline": "BOOT_IMAGE=/x " + BY_STUB, **booted("\\EFI\\refind\\shimx64.efi")},
        # installed as the fallback: its files tell
        {"/proc/cmdline": BY_STUB, **booted("\\EFI\\BOOT\\BOOTX64.EFI"), "/boot/refind_linux.conf": ""},
    ],
)  # fmt: skip
def test_started_by_refind(installed: Host, plant: Plant, files: dict[str, Any]) -> None:
    plant(files)
    assert bootloaders.detect(installed).name == "refind"


PROXMOX = {
    "/etc/kernel/proxmox-boot-uuids": "EA72-BD09\nEA73-473A\n",
    "/proc/self/mountinfo": "25 1 0:25 / / rw - zfs rpool/ROOT/pve-1 rw\n",
}


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/cmdline": "BOOT_IMAGE=/vmlinuz-6.8.12-9-pve root=ZFS=/ROOT/pve-1 ro\n", **booted("\\EFI\\proxmox\\shimx64.efi")},
        {"/proc/cmdline": "initrd=\\EFI\\proxmox\\6.8.12-9-pve\\initrd.img-6.8.12-9-pve root=ZFS=rpool/ROOT/pve-1\n",
         **booted("\\EFI\\systemd\\systemd-bootx64.efi"), **text("LoaderInfo", "systemd-boot 252")},
    ],
)  # fmt: skip
def test_copies_of_proxmox_are_refused_by_name(installed: Host, plant: Plant, files: dict[str, Any]) -> None:
    """They are on partitions that are not to be mounted at /boot."""
    plant({**PROXMOX, **files})
    boot_files.check(installed)
    with pytest.raises(Refused) as refused:
        bootloaders.detect(installed)
    assert refused.value.code == "bootloader_unsupported" and "proxmox-boot-tool" in refused.value.message
    assert "proxmox-boot-tool refresh" in refused.value.remedy


@pytest.mark.parametrize("mounted", ["", "26 25 8:2 / /boot rw - ext4 /dev/sda2 rw\n"])
def test_proxmox_with_grub_that_reads_boot(installed: Host, plant: Plant, mounted: str) -> None:
    plant({**PROXMOX, "/proc/cmdline": "BOOT_IMAGE=%s/%s root=/dev/sda1 ro\n" % ("" if mounted else "/boot", KERNEL),
           "/proc/self/mountinfo": "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounted, **EFI})  # fmt: skip
    boot_files.check(installed)
    assert bootloaders.detect(installed).name == "grub"


def test_the_grub_of_another_system(installed: Host, plant: Plant) -> None:
    """Fedora's GRUB starts this Debian through an entry of os-prober: its own grub.cfg counts, not ours."""
    plant({
        "/proc/cmdline": BY_GRUB,
        **booted("\\EFI\\fedora\\shimx64.efi"),
        "/boot/efi/EFI/fedora/grub.cfg": "search --no-floppy --root-dev-only --fs-uuid --set=dev ffff\nset prefix=($dev)/grub2\n",
        "/boot/efi/EFI/debian/grub.cfg": "search.fs_uuid 0b4c root hd0,gpt2\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n",
        "/proc/self/mountinfo": "25 1 8:2 / / rw - ext4 /dev/sda2 rw\n30 25 8:1 / /boot/efi rw - vfat /dev/sda1 rw\n",
        "/dev/sda2": b"", "/dev/sda3": b"",
    })  # fmt: skip
    os.makedirs(installed.path("/dev/disk/by-uuid"))
    os.symlink("../../sda2", installed.path("/dev/disk/by-uuid/0b4c"))
    os.symlink("../../sda3", installed.path("/dev/disk/by-uuid/ffff"))
    with pytest.raises(Refused) as refused:
        bootloaders.detect(installed)
    assert refused.value.code == "bootloader_unsupported" and "/boot/efi/EFI/fedora/grub.cfg" in refused.value.message
    fedora, debian = (Firmware(installed).option(1), option(1, "debian", SHIM))
    plant(debian)
    assert bootloaders.detect(installed).name == "grub"
    assert leads_elsewhere(installed, "/boot/grub/grub.cfg", replace(fedora, number=2))


@pytest.mark.parametrize(
    ("current", "path", "elsewhere"),
    [
        (SHIM, SHIM, False),
        (SHIM, "\\EFI\\debian\\grubx64.efi", False),  # the same, without shim
        (SHIM, "\\EFI\\BOOT\\BOOTX64.EFI", False),
        (SHIM, "\\EFI\\arch\\grubx64.efi", True),
        (SHIM, REFIND, True),
        (SHIM, "\\EFI\\Microsoft\\Boot\\bootmgfw.efi", True),
        (None, SHIM, False),  # this boot began with the fallback of a drive, before the entry was made
        (None, "\\EFI\\Microsoft\\Boot\\bootmgfw.efi", True),
    ],
)
def test_where_a_boot_option_leads(host: Host, plant: Plant, current: str | None, path: str, elsewhere: bool) -> None:
    plant({**numbers("BootCurrent", 1), **option(1, "this", current), **option(2, "next", path)})
    assert leads_elsewhere(host, "/boot/grub/grub.cfg", Firmware(host).option(2)) == elsewhere


# what the firmware starts next ----------------------------------------------------------------------------------------


def first(host: Host) -> tuple[str, str] | None:
    found = Firmware(host).next()
    return (found[0].title, found[1]) if found else None


def test_boot_options(host: Host, plant: Plant) -> None:
    plant({**option(0, "Windows", "\\EFI\\Microsoft\\Boot\\bootmgfw.efi", data="WINDOWS"), **option(2, "PXE", None)})
    windows, network = (Firmware(host).option(number) for number in (0, 2))
    assert (windows.title, windows.path, windows.partition) == ("Windows", "/EFI/Microsoft/Boot/bootmgfw.efi", PARTITION)
    assert (network.title, network.path, network.active) == ("PXE", None, True)
    assert Firmware(host).option(7) is None and Firmware(host).current() is None and first(host) is None


def test_options_that_the_firmware_passes_over(host: Host, plant: Plant) -> None:
    other = "11111111-5a0c-4c3f-9e43-3b1d2f3f7c11"
    plant({
        **numbers("BootOrder", 0, 1, 2, 3, 4, 5), "/dev/disk/by-partuuid/" + PARTITION: b"", "/boot/efi/EFI/debian/shimx64.efi": b"",
        **option(0, "network", None), **option(1, "off", SHIM, active=False), **option(2, "unplugged", SHIM, other),
        **option(3, "removed", "\\EFI\\arch\\grubx64.efi"), **option(4, "debian", SHIM),
    })  # fmt: skip
    assert first(host) == ("debian", "BootOrder")
    plant({"/boot/efi/EFI/arch/grubx64.efi": b""})
    assert first(host) == ("removed", "BootOrder")
    plant(numbers("BootNext", 4))
    assert first(host) == ("debian", "BootNext")


@pytest.mark.parametrize("content", [b"", b"\7\0\0\0", b"\7\0\0\0" + b"\1\0\0\0\xff\xff", b"\7\0\0\0" + bytes(range(256)) * 8])
def test_a_damaged_option_is_none(host: Host, plant: Plant, content: bytes) -> None:
    plant({**numbers("BootCurrent", 1), GLOBAL % "Boot0001": content})
    found = Firmware(host).current()
    assert found is None or found.path is None
