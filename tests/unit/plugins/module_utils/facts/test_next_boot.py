# SPDX-License-Identifier: GPL-3.0-or-later
"""What boots next, on a recorded machine with GRUB: whether it is this system, and whether its kernel resumes what this one writes."""

from __future__ import annotations

import os
import re
import shlex
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import checks_boot, readiness
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.survey import Survey
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.firmware_tree import numbers, option

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

OLD, NEW = "6.1.0-50-amd64", "6.12.107+deb13-amd64"
CONFIGURATION = "/boot/grub/grub.cfg"
ROWS = (checks_boot.bootloader, checks_boot.next_boot_elsewhere, checks_boot.no_initramfs, checks_boot.next_kernel)


def menu(default: str, initrd: bool = True) -> str:
    entries = "".join(
        "menuentry 'Linux %s' --id 'id-%s' {\n linux /boot/vmlinuz-%s root=UUID=0b4c ro\n%s}\n"
        % (kernel, kernel, kernel, " initrd /boot/initrd.img-%s\n" % kernel if initrd else "")
        for kernel in (NEW, OLD)
    )
    return (
        'if [ -s $prefix/grubenv ]; then\n load_env\nfi\nif [ "${next_entry}" ] ; then\n set default="${next_entry}"\nelse\n'
        ' set default="%s"\nfi\n%smenuentry Windows --id osprober-efi-1 {\n chainloader /EFI/Microsoft/Boot/bootmgfw.efi\n}\n'
        % (default, entries)
    )


def grubenv(**variables: str) -> str:
    return "# GRUB Environment Block\n" + "".join("%s=%s\n" % pair for pair in variables.items()) + "#" * 800


@pytest.fixture
def machine(host: Host, plant: Plant) -> SimpleNamespace:
    """Debian with two kernels, of which C(run) is the running one."""
    plant({"/usr/sbin/grub-mkconfig": "default/grub.d", CONFIGURATION: menu("0"), "/proc/sys/kernel/arch": "x86_64\n"})
    os.chmod(host.path("/usr/sbin/grub-mkconfig"), 0o755)
    for kernel in (OLD, NEW):
        plant({"/boot/vmlinuz-" + kernel: "", "/boot/config-" + kernel: "CONFIG_SUSPEND=y\nCONFIG_HIBERNATION=y\n"})

    def run(kernel: str) -> None:
        plant({
            "/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-%s root=UUID=0b4c ro\n" % kernel,
            "/proc/sys/kernel/osrelease": kernel + "\n",
        })  # fmt: skip

    def found() -> list[Refused]:
        survey = Survey(host, "/dev/NVM_SWAP", 0)
        return [refused for check in ROWS for refused in check(survey)]

    def codes() -> list[str]:
        return [refused.code for refused in found()]

    run(NEW)
    return SimpleNamespace(host=host, plant=plant, run=run, found=found, codes=codes)


def follow(machine: SimpleNamespace, remedy: str) -> None:
    """Do what a remedy says, as far as it concerns GRUB."""
    saved = re.search(r"set saved_entry=(.*)\.$", remedy)
    default = re.search(r"^Set GRUB_DEFAULT=(.*) in ", remedy)
    if "unset next_entry" in remedy:
        machine.plant({"/boot/grub/grubenv": grubenv()})
    elif saved:
        machine.plant({"/boot/grub/grubenv": grubenv(saved_entry=shlex.split(saved.group(1))[0])})
    else:
        assert default, remedy
        machine.plant({CONFIGURATION: menu(shlex.split(default.group(1))[0])})


def test_the_running_kernel_starts_next(machine: SimpleNamespace) -> None:
    assert machine.codes() == []


def test_a_newer_kernel_resumes_the_image_of_an_older_one(machine: SimpleNamespace) -> None:
    """x86: tried with 6.1 and 6.12."""
    machine.run(OLD)
    assert machine.codes() == []


@pytest.mark.parametrize(
    ("default", "files"),
    [
        ("1", {}),
        ("id-" + OLD, {}),
        ("${saved_entry}", {"/etc/default/grub": "GRUB_DEFAULT=saved\n", "/boot/grub/grubenv": grubenv(saved_entry="id-" + OLD)}),
        ("0", {"/boot/grub/grubenv": grubenv(next_entry="Linux " + OLD)}),
    ],
)
def test_an_older_kernel_starts_next(machine: SimpleNamespace, default: str, files: dict[str, str]) -> None:
    machine.plant({CONFIGURATION: menu(default), **files})
    (found,) = machine.found()
    assert found.code == "next_kernel" and OLD in found.message and "older" in found.message
    follow(machine, found.remedy)
    assert machine.codes() == []


def test_a_kernel_without_hibernation_starts_next(machine: SimpleNamespace) -> None:
    machine.run(OLD)
    machine.plant({"/boot/config-" + NEW: "CONFIG_SUSPEND=y\n# CONFIG_HIBERNATION is not set\n"})
    (found,) = machine.found()
    assert found.code == "next_kernel" and "without hibernation" in found.message
    follow(machine, found.remedy)
    assert machine.codes() == []


def test_a_kernel_without_hibernation_that_no_one_chose_is_no_blocker(machine: SimpleNamespace) -> None:
    machine.plant({"/boot/config-" + OLD: "# CONFIG_HIBERNATION is not set\n"})
    assert machine.codes() == []


def test_a_kernel_whose_configuration_is_not_there(machine: SimpleNamespace) -> None:
    machine.run(OLD)
    os.unlink(machine.host.path("/boot/config-" + NEW))
    assert machine.codes() == ["next_kernel"]
    machine.plant({"/lib/modules/%s/build/.config" % NEW: "CONFIG_HIBERNATION=y\n"})
    assert machine.codes() == []


def test_the_images_of_old_kernels_are_their_own(machine: SimpleNamespace) -> None:
    machine.run("5.10.0-30-amd64")
    (found,) = machine.found()
    assert found.code == "next_kernel" and found.remedy.startswith("Reboot")


def test_other_architectures_resume_their_own_build(machine: SimpleNamespace) -> None:
    machine.run(OLD)
    machine.plant({"/proc/sys/kernel/arch": "aarch64\n"})
    (found,) = machine.found()
    assert found.code == "next_kernel" and "aarch64" in found.message and found.remedy.startswith("Reboot")
    machine.run(NEW)
    machine.plant({"/proc/stat": "cpu 1\nbtime %d\n" % (time.time() + 60)})
    assert machine.codes() == []
    machine.plant({"/proc/stat": "cpu 1\nbtime %d\n" % (time.time() - 3600)})  # the package was upgraded since
    assert machine.codes() == ["next_kernel"]


@pytest.mark.parametrize(
    ("default", "files"),
    [
        ("2", {}),
        ("${saved_entry}", {"/etc/default/grub": "GRUB_DEFAULT=saved\n", "/boot/grub/grubenv": grubenv(saved_entry="Windows")}),
        ("0", {"/boot/grub/grubenv": grubenv(next_entry="osprober-efi-1")}),
    ],
)
def test_another_system_starts_next(machine: SimpleNamespace, default: str, files: dict[str, str]) -> None:
    machine.plant({CONFIGURATION: menu(default), **files})
    (found,) = machine.found()
    assert found.code == "next_boot_elsewhere" and "Windows" in found.message
    follow(machine, found.remedy)
    assert machine.codes() == []


def test_the_firmware_starts_another_system_next(machine: SimpleNamespace) -> None:
    machine.plant({
        **numbers("BootCurrent", 1), **numbers("BootOrder", 0, 1), **option(1, "debian", "\\EFI\\debian\\shimx64.efi"),
        **option(0, "Windows Boot Manager", "\\EFI\\Microsoft\\Boot\\bootmgfw.efi"),
    })  # fmt: skip
    (found,) = machine.found()
    assert found.code == "next_boot_elsewhere" and "Windows Boot Manager" in found.message and "0001 first" in found.remedy
    machine.plant(numbers("BootOrder", 1, 0))
    assert machine.codes() == []
    machine.plant(numbers("BootNext", 0))
    (found,) = machine.found()
    assert "--delete-bootnext" in found.remedy
    machine.plant({**option(2, "network", None), **numbers("BootOrder", 2, 1, 0), **numbers("BootNext")})
    assert machine.codes() == []  # the network did not answer this time either


def test_a_kernel_that_starts_without_initramfs(machine: SimpleNamespace) -> None:
    machine.plant({CONFIGURATION: menu("0", initrd=False)})
    (found,) = machine.found()
    assert found.code == "no_initramfs" and "update-initramfs -c -k " in found.remedy
    machine.plant({"/etc/default/grub": "GRUB_FORCE_PARTUUID=1\n", "/etc/grub.d/10_linux": "$GRUB_FORCE_PARTUUID"})
    (found,) = machine.found()
    assert "Remove GRUB_FORCE_PARTUUID from /etc/default/grub" in found.remedy


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"/proc/cmdline": "ro root=UUID=0b4c initrd=boot\\initrd.img\n", **numbers("BootCurrent", 1),
          **option(1, "Limine", "\\EFI\\limine\\limine_x64.efi")}, "bootloader_unsupported"),
        ({CONFIGURATION: menu("0", initrd=False)}, "no_initramfs"),
    ],
)  # fmt: skip
def test_causes_come_without_their_consequences(machine: SimpleNamespace, files: dict[str, Any], code: str) -> None:
    """Not the advice to run boot_resume and reboot, again and again."""
    machine.plant({
        "/sys/power/resume": "0:0\n", "/sys/power/disk": "[platform]\n", "/sys/class/block/pmem0/dev": "259:0\n", "/dev/pmem0": bytes(8192),
        "/sys/class/block/pmem0/size": "4096\n", "/proc/meminfo": "MemTotal: 1 kB\n", "/proc/zoneinfo": "", **files,
    })  # fmt: skip
    os.symlink("pmem0", machine.host.path("/dev/NVM_SWAP"))
    skip = ("no_nvm", "swap_inactive", "nvm_too_small", "initramfs_drivers", "initramfs_overridden", "sleep_inhibited")
    survey = Survey(machine.host, "/dev/NVM_SWAP", 0)
    found = readiness.blockers(machine.host, "/dev/NVM_SWAP", skip, survey)
    codes = [each["code"] for each in found]
    assert code in codes and not any("reboot. If it is still unset" in each["remedy"] for each in found)
    machine.run(NEW)
    machine.plant({CONFIGURATION: menu("0"), **numbers("BootCurrent")})
    survey = Survey(machine.host, "/dev/NVM_SWAP", 0)
    found = readiness.blockers(machine.host, "/dev/NVM_SWAP", skip, survey)
    assert any("reboot. If it is still unset" in each["remedy"] for each in found)


@pytest.mark.parametrize(
    ("loaded", "codes"),
    [
        ("/boot/initrd.img-" + NEW, []),
        ("/initrd.img-" + NEW, []),  # /boot is a filesystem
        ("/@/boot/initrd.img-" + NEW, []),
        ("/initrd.img", []),  # a link
        ("/boot/microcode.bin /boot/initrd.img-" + NEW, []),
        ("/boot/same.img", []),
        ("/boot/initrd.img-%s.bak" % NEW, ["initramfs_outdated"]),
        ("/boot/custom/initrd.img", ["initramfs_outdated"]),
        ("/elsewhere.img", []),  # of a filesystem that is not mounted
    ],
)
def test_the_entry_that_starts_next_loads_the_image_that_was_looked_into(machine: SimpleNamespace, loaded: str, codes: list[str]) -> None:
    """custom.cfg may have an entry with a copy of an earlier image."""
    machine.plant({
        "/boot/initrd.img-" + NEW: "image", "/boot/same.img": "image", "/boot/initrd.img-%s.bak" % NEW: "before",
        "/boot/microcode.bin": "x", "/boot/custom/initrd.img": "mine",
        "/boot/grub/custom.cfg": "menuentry mine {\n linux /boot/vmlinuz-%s root=UUID=0b4c\n"
        " initrd %s\n}\nset default=mine\n" % (NEW, loaded), CONFIGURATION: menu("0") + "source $prefix/custom.cfg\n",
        "/usr/sbin/mkinitramfs": "", "/usr/share/initramfs-tools/hook-functions": "",
    })  # fmt: skip
    for name in ("/initrd.img", "/boot/initrd.img"):
        os.symlink(machine.host.path("/boot/initrd.img-" + NEW), machine.host.path(name))
    survey = Survey(machine.host, "/dev/NVM_SWAP", 0)
    found = checks_boot.other_initramfs(survey)
    assert [refused.code for refused in found] == codes and machine.codes() == []
    assert all("'mine'" in refused.message and "Have that entry load /boot/initrd.img-%s," % NEW in refused.remedy for refused in found)
