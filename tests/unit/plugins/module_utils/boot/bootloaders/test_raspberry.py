# SPDX-License-Identifier: GPL-3.0-or-later
"""The Raspberry Pi's firmware: cmdline.txt is changed in place and brought back, whether people or raspi-firmware wrote it."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.raspberry import EXTRA, HOOK
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders.changing import (
    DROP,
    RESUME,
    detected,
    ensure,
    everything,
    forget,
)

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

VERSION = "6.12.48+deb13-arm64"
CMDLINE, CONFIG = "/boot/firmware/cmdline.txt", "/boot/firmware/config.txt"
FIRMWARE = {"/proc/cmdline": "coherent_pool=1M console=ttyS1,115200 root=/dev/mmcblk0p2 rw\n",
            "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0", "/var/lib/dpkg/status": ""}  # fmt: skip
# as raspi-firmware 1.20240424 writes them on Debian 13
DEBIAN = {
    **FIRMWARE,
    CONFIG: """\
# Do not modify this file!
#
# It is automatically generated upon install or update of either the
# firmware or the Linux kernel.

# Switch the CPU from ARMv7 into ARMv8 (aarch64) mode
arm_64bit=1

enable_uart=1
upstream_kernel=1

kernel=vmlinuz-%s
# For details on the initramfs directive, see
# https://www.raspberrypi.org/forums/viewtopic.php?f=63&t=10532
initramfs initrd.img-%s
""" % (VERSION, VERSION),
    CMDLINE: "console=tty0 console=ttyS1,115200 root=/dev/mmcblk0p2 rw fsck.repair=yes net.ifnames=0  rootwait \n",
    **{"%s/%s-%s" % (place, name, VERSION): name for place in ("/boot", "/boot/firmware") for name in ("vmlinuz", "initrd.img")},
    HOOK: "#!/bin/sh\n",
}
# Raspberry Pi OS 12
RPI = "6.6.31+rpt-rpi-v8"
RASPBIAN = {
    **FIRMWARE,
    CONFIG: """\
# For more options and information see
# http://rptl.io/configtxt
dtparam=audio=on
auto_initramfs=1
arm_64bit=1
[cm4]
otg_mode=1
[none]
kernel=broken.img
[all]
""",
    CMDLINE: "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 fsck.repair=yes rootwait quiet",
    "/boot/firmware/kernel8.img": "kernel", "/boot/firmware/initramfs8": "image",
    "/boot/vmlinuz-" + RPI: "kernel", "/boot/initrd.img-" + RPI: "image", "/boot/vmlinuz-6.6.31+rpt-rpi-2712": "other",
}  # fmt: skip

# Ubuntu 26.04, which tries a new kernel in new/ once
UBUNTU, CURRENT = "7.0.0-1004-raspi", "/boot/firmware/current/"
PIBOOT = {
    **FIRMWARE,
    CONFIG: """\
[all]
os_check=0
kernel=vmlinuz
cmdline=cmdline.txt
initramfs initrd.img followkernel
os_prefix=current/

[tryboot]
os_prefix=new/

[pi4]
max_framebuffers=2

[all]
arm_64bit=1
""",
    CURRENT + "cmdline.txt": "multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable rootfstype=ext4 rootwait fixrtc\n",
    CURRENT + "vmlinuz": "kernel", CURRENT + "initrd.img": "image",
    "/boot/vmlinuz-" + UBUNTU: "kernel", "/boot/initrd.img-" + UBUNTU: "image",
    "/boot/firmware/new/cmdline.txt": "untouched", "/boot/firmware/new/vmlinuz": "next", "/boot/firmware/new/initrd.img": "next",
}  # fmt: skip

loader = partial(detected, name="raspberry")


@pytest.fixture(params=[DEBIAN, RASPBIAN, PIBOOT], ids=["debian", "raspbian", "ubuntu"])
def tree(request: pytest.FixtureRequest, host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    plant(request.param)
    return host


@pytest.fixture
def debian(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    plant(DEBIAN)
    return host


def test_changed_and_brought_back(tree: Host) -> None:
    before = everything(tree)
    assert ensure(tree) and not ensure(tree)
    [entry] = loader(tree).entries()
    assert entry.kernel in ("/boot/vmlinuz-" + VERSION, "/boot/vmlinuz-" + RPI, "/boot/vmlinuz-" + UBUNTU)
    assert entry.arguments[-1] == RESUME and len(entry.initrds) == 1
    assert loader(tree).check([entry], [RESUME], DROP) == []
    path = next(path for path in (CMDLINE, CURRENT + "cmdline.txt") if tree.exists(path))
    assert tree.read(path, "").count("\n") == before[tree.path(path)].count(b"\n")
    [(title, [choice])] = loader(tree).next_boot().choices
    assert choice == entry and title.endswith("with cmdline.txt")
    assert forget(tree) and not forget(tree)
    assert everything(tree) == before


def test_what_raspi_firmware_writes_again(debian: Host, plant: Plant) -> None:
    """Its hook runs with each initramfs, and puts what is in a file of its own at the end."""
    plant({EXTRA: "quiet\n"})
    ensure(debian)
    assert debian.read(EXTRA) == "quiet %s\n" % RESUME
    plant({CMDLINE: DEBIAN[CMDLINE].rstrip() + " quiet %s\n" % RESUME})
    assert not ensure(debian)
    assert forget(debian)
    assert debian.read(EXTRA) == "quiet\n" and RESUME not in debian.read(CMDLINE, "")


def test_the_end_of_the_command_line_is_no_file_before(debian: Host) -> None:
    ensure(debian)
    assert debian.read(EXTRA) == RESUME
    forget(debian)
    assert not debian.exists(EXTRA)


def test_the_hook_writes_what_was_brought_back(debian: Host, plant: Plant) -> None:
    """The initramfs is built without our settings after the command line was brought back."""
    plant({CMDLINE: DEBIAN[CMDLINE].rstrip() + " by-hand\n"})
    ensure(debian)
    with Transaction(debian) as tx:
        found = loader(debian)
        found.forget(tx, "resume")
        plant({CMDLINE: DEBIAN[CMDLINE]})
        found.after_hooks(tx)
    assert debian.read(CMDLINE, "").endswith(" by-hand\n")


def test_a_copy_that_is_out_of_date(debian: Host, plant: Plant, transcript: Transcript) -> None:
    ensure(debian)
    plant({"/boot/initrd.img-" + VERSION: "new"})
    assert loader(debian).check(loader(debian).entries(), [RESUME], DROP) == [
        "/boot/firmware/initrd.img-%s is not the same as /boot/initrd.img-%s" % (VERSION, VERSION)]
    transcript.record(HOOK, effect=lambda: plant({"/boot/firmware/initrd.img-" + VERSION: "new", CMDLINE: DEBIAN[CMDLINE]}))
    assert ensure(debian) and not ensure(debian)
    assert loader(debian).check(loader(debian).entries(), [RESUME], DROP) == []


def test_a_copy_that_no_hook_makes(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    plant({**RASPBIAN, "/boot/initrd.img-" + RPI: "new"})
    assert ensure(host) and not ensure(host)
    assert host.read("/boot/firmware/initramfs8") == "new"


@pytest.mark.parametrize(
    ("config", "kernels", "lines"),
    [
        ("[pi4]\nkernel=a.img\n", ["kernel8.img", "a.img"], ["cmdline.txt"]),
        ("kernel=a.img\n[pi4]\nkernel=b.img\n[all]\nkernel=kernel8.img\n", ["kernel8.img"], ["cmdline.txt"]),
        ("[pi4]\ncmdline=other.txt\n[none]\ncmdline=x\n", ["kernel8.img"], ["cmdline.txt", "other.txt"]),
        ("include more.txt\n", ["b.img"], ["other.txt"]),
        ("include config.txt\nKERNEL\n[all\n=\n", ["kernel8.img"], ["cmdline.txt"]),
    ],
)
def test_what_config_txt_may_start(host: Host, plant: Plant, config: str, kernels: list[str], lines: list[str]) -> None:
    plant({**RASPBIAN, CONFIG: config, **{"/boot/firmware/%s" % name: name for name in ("a.img", "b.img", "more.txt", "other.txt")},
           "/boot/firmware/more.txt": "kernel=b.img\r\ncmdline=other.txt\r\n"})  # fmt: skip
    found = loader(host)
    titles = [title for title, _entries in found.next_boot().choices]
    assert titles == ["%s with %s" % (kernel, line) for line in lines for kernel in kernels]
    assert [os.path.basename(place.path) for place in found.places()] == lines


def test_another_system(debian: Host, plant: Plant) -> None:
    plant({CMDLINE: "root=/dev/mmcblk1p2 rw\n", "/dev/mmcblk0p2": "", "/dev/mmcblk1p2": ""})
    assert loader(debian).entries() == []
    assert [entries for _title, entries in loader(debian).next_boot().choices] == [[]]


def test_a_conflicting_setting(debian: Host, plant: Plant) -> None:
    ensure(debian)
    assert loader(debian).find_setting(("noresume",)) is None
    plant({EXTRA: "noresume " + RESUME})
    assert loader(debian).find_setting(("noresume",)) == (EXTRA, "noresume")


def test_no_initramfs(host: Host, plant: Plant) -> None:
    plant({**RASPBIAN, CONFIG: RASPBIAN[CONFIG].replace("auto_initramfs=1\n", "")})
    ensure(host)
    [problem] = loader(host).check(loader(host).entries(), [RESUME], DROP)
    assert problem.endswith("starts the kernel without an initramfs")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"/proc/device-tree/chosen/u-boot,version": "2025.01", "/boot/extlinux/extlinux.conf": ""}, "extlinux"),
        ({"/sys/firmware/efi/fw_platform_size": "64\n", "/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-1 root=/dev/mmcblk0p2\n",
          "/usr/sbin/grub-mkconfig": "default/grub.d", "/boot/grub/grub.cfg": ""}, "grub"),
    ],
)  # fmt: skip
def test_other_loaders_on_the_board(host: Host, plant: Plant, files: dict[str, Any], name: str) -> None:
    plant({**DEBIAN, **files})
    if "/usr/sbin/grub-mkconfig" in files:
        os.chmod(host.path("/usr/sbin/grub-mkconfig"), 0o755)
    assert bootloaders.detect(host).name == name


def test_not_mounted(host: Host, plant: Plant) -> None:
    plant(FIRMWARE)
    with pytest.raises(Refused) as refused:
        bootloaders.detect(host)
    assert refused.value.code == "boot_not_mounted" and "/boot/firmware" in refused.value.remedy
