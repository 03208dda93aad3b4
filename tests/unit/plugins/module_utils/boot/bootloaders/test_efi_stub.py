# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot options of the firmware that start the kernel itself: command lines within variables, copies of the initramfs, what starts next."""

from __future__ import annotations

import errno
import os
import random
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.efi_stub import EfiStub, variables
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders.changing import (
    DROP,
    RESUME,
    detected,
    ensure,
    forget,
)
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.firmware_tree import (
    GLOBAL,
    PARTITION,
    numbers,
    option,
)

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

VERSION = "6.12.117+deb13-amd64"
INITRD = "initrd=\\EFI\\debian\\initrd.img"
LINE = "root=UUID=0b4c ro quiet " + INITRD
IMAGE, COPY = f"/boot/initrd.img-{VERSION}", "/boot/efi/EFI/debian/initrd.img"
STUB = "\\EFI\\debian\\vmlinuz.efi"

loader = partial(detected, name="efi-stub")


def kernel(version: str = VERSION) -> bytes:
    """The beginning of a kernel for x86, with its version."""
    head = bytearray(b"MZ" + bytes(0x600))
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = struct.pack("<H", 0x200)
    text = version.encode() + b" (debian-kernel@lists.debian.org) #1 SMP\0"
    head[0x400 : 0x400 + len(text)] = text
    return bytes(head)


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)


@pytest.fixture
def tree(host: Host, plant: Plant) -> Host:
    plant({
        "/proc/cmdline": LINE + "\n", f"/boot/vmlinuz-{VERSION}": kernel(), IMAGE: "initramfs", COPY: "initramfs",
        "/boot/efi/EFI/debian/vmlinuz.efi": kernel(), "/boot/grub/grub.cfg": "", "/usr/sbin/grub-mkconfig": "default/grub.d",
        "/boot/efi/EFI/debian/shimx64.efi": "",
        **numbers("BootCurrent", 3), **numbers("BootOrder", 3, 1), **option(1, "debian", "\\EFI\\debian\\shimx64.efi"),
        **option(3, "Debian by stub", STUB, data=LINE),
    })  # fmt: skip
    os.chmod(host.path("/usr/sbin/grub-mkconfig"), 0o755)
    return host


def snapshot(host: Host) -> dict[str, bytes | None]:
    paths = [*host.glob("/sys/firmware/efi/efivars/*"), *host.glob("/boot/efi/EFI/debian/*"), *host.glob("/var/lib/nvm-fastboot*")]
    return {path: host.read_bytes(path) for path in paths}


def built_again(host: Host, plant: Plant, content: str = "built since") -> None:
    """As Initramfs.rebuild leaves it until the run is over."""
    plant({IMAGE + ".nvm-fastboot-old": host.read(IMAGE), IMAGE: content})


def test_the_command_line_within_the_option(tree: Host) -> None:
    before = snapshot(tree)
    assert ensure(tree)
    (entry,) = loader(tree).entries()
    assert entry.kernel == f"/boot/vmlinuz-{VERSION}" and entry.arguments[-1] == RESUME and entry.initrds == (COPY,)
    changed = {path for path, content in snapshot(tree).items() if before.get(path) != content}
    assert changed == {GLOBAL % "Boot0003"}
    assert tree.read_bytes(GLOBAL % "Boot0003") == option(3, "Debian by stub", STUB, data=f"{LINE} {RESUME}")[GLOBAL % "Boot0003"]
    assert not ensure(tree)
    assert forget(tree)
    assert snapshot(tree) == before
    assert not forget(tree)


@pytest.mark.parametrize("data", [LINE + "\0", LINE + "\0\0\0", LINE.replace(" quiet", ' resume=/dev/sda5  dyndbg="file x +p"\t') + " "])
def test_other_forms_come_back_byte_for_byte(tree: Host, plant: Plant, data: str) -> None:
    plant(option(3, "Debian by stub", STUB, data=data))
    before = snapshot(tree)
    ensure(tree)
    (entry,) = loader(tree).entries()
    assert entry.arguments[-1] == RESUME and "resume=/dev/sda5" not in entry.arguments
    content = tree.read_bytes(GLOBAL % "Boot0003") or b""
    assert content.decode("utf-16-le", "replace").endswith(RESUME + "\0" * data.count("\0") + " " * data.endswith(" "))
    forget(tree)
    assert snapshot(tree) == before


def test_two_purposes_and_a_change_by_hand(tree: Host, plant: Plant) -> None:
    before = snapshot(tree)
    ensure(tree)
    ensure(tree, "memmap-X", ("memmap=512M!1G",), ())
    assert loader(tree).entries()[0].arguments[-2:] == [RESUME, "memmap=512M!1G"]
    assert forget(tree) and forget(tree, "memmap-X")
    assert snapshot(tree) == before
    ensure(tree)
    plant(option(3, "Debian by stub", STUB, data=f"{LINE} {RESUME} splash"))
    forget(tree)
    assert tree.read_bytes(GLOBAL % "Boot0003") == option(3, "Debian by stub", STUB, data=f"{LINE} splash")[GLOBAL % "Boot0003"]


def test_check_mode_and_a_failure_change_nothing(tree: Host, plant: Plant) -> None:
    before = snapshot(tree)
    tx = Transaction(tree, check_mode=True)
    assert loader(tree).ensure(tx, "resume", [RESUME], DROP)
    assert RESUME in tx.diff[0]["after"] and snapshot(tree) == before
    built_again(tree, plant)
    with pytest.raises(RuntimeError), Transaction(tree) as tx:
        loader(tree).ensure(tx, "resume", [RESUME], DROP)
        assert tree.read(COPY) == "built since"
        raise RuntimeError
    assert snapshot(tree) == before


def test_options_of_others_are_left_alone(tree: Host, plant: Plant) -> None:
    other = "11111111-5a0c-4c3f-9e43-3b1d2f3f7c11"
    plant({
        **option(4, "Arch", STUB, data="root=UUID=ffff rw " + INITRD), **option(5, "live", STUB, data="boot=live " + INITRD),
        **option(6, "gone", "\\EFI\\arch\\vmlinuz-linux", data=LINE), **option(7, "off", STUB, active=False, data=LINE),
        **option(8, "other drive", STUB, other, data=LINE), **option(9, "program", "\\EFI\\debian\\shimx64.efi", data=LINE),
        **option(10, "no text", STUB, data=""), "/dev/sda1": b"", "/dev/sda2": b"", "/dev/sdb1": b"",
        "/proc/self/mountinfo": "25 1 8:2 / / rw - ext4 /dev/sda2 rw\n30 25 8:1 / /boot/efi rw - vfat /dev/sda1 rw\n",
    })  # fmt: skip
    for directory, name, device in (("uuid", "0b4c", "sda2"), ("partuuid", PARTITION, "sda1"), ("partuuid", other, "sdb1")):
        os.makedirs(tree.path(f"/dev/disk/by-{directory}"), exist_ok=True)
        os.symlink(f"../../{device}", tree.path(f"/dev/disk/by-{directory}/{name}"))
    before = snapshot(tree)
    ensure(tree)
    assert {path for path, content in before.items() if tree.read_bytes(path) != content} == {GLOBAL % "Boot0003"}


def test_a_copy_of_an_image_that_was_built_again(tree: Host, plant: Plant) -> None:
    ensure(tree)
    built_again(tree, plant)
    problems = loader(tree).check(loader(tree).entries(), [RESUME], DROP)
    assert len(problems) == 1 and IMAGE in problems[0] and COPY in problems[0]
    assert ensure(tree)
    assert tree.read(COPY) == "built since" and loader(tree).check(loader(tree).entries(), [RESUME], DROP) == []
    assert not ensure(tree)
    with Transaction(tree) as tx:
        bootloader = loader(tree)
        bootloader.forget(tx, "resume")
        built_again(tree, plant, "as before")
        bootloader.after_hooks(tx)
    assert tree.read(COPY) == "as before"


def test_a_copy_of_something_else_is_not_overwritten(tree: Host, plant: Plant) -> None:
    plant({COPY: "of the administrator"})
    before = snapshot(tree)
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "bootloader_incomplete" and f"Copy {IMAGE} to {COPY}" in refused.value.remedy
    assert snapshot(tree) == before


def test_a_full_partition(tree: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    built_again(tree, plant)
    before = snapshot(tree)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255]))
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "boot_full" and snapshot(tree) == before


@pytest.mark.parametrize(("number", "remedy"), [(errno.EROFS, "remount,rw"), (errno.ENOSPC, "efibootmgr"), (errno.EINVAL, "firmware")])
def test_firmware_that_refuses(tree: Host, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str) -> None:
    def refuse(path: str, content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    before = snapshot(tree)
    monkeypatch.setattr(variables, "_set", refuse)
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "firmware_refused" and "Boot0003" in refused.value.message and remedy in refused.value.remedy
    assert snapshot(tree) == before


def test_firmware_that_stores_something_else(tree: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = snapshot(tree), variables._set

    def store(path: str, content: bytes) -> None:
        real(path, content if RESUME.encode("utf-16-le") not in content else content[:-2])

    monkeypatch.setattr(variables, "_set", store)
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert "stored something else" in refused.value.message and snapshot(tree) == before


def test_settings_of_others(tree: Host, plant: Plant) -> None:
    plant(option(3, "Debian by stub", STUB, data=LINE + " noresume"))
    assert loader(tree).find_setting(("noresume",)) == (GLOBAL % "Boot0003", "noresume")


def test_without_initramfs(tree: Host, plant: Plant) -> None:
    plant(option(3, "Debian by stub", STUB, data="root=UUID=0b4c ro"))
    ensure(tree)
    assert any("without an initramfs" in problem for problem in loader(tree).check(loader(tree).entries(), [RESUME]))


def test_what_starts_next(tree: Host, plant: Plant) -> None:
    boot = loader(tree).next_boot()
    assert [(title, len(entries)) for title, entries in boot.choices] == [("Debian by stub", 1)] and "BootOrder" in boot.reason
    plant(numbers("BootNext", 1))
    boot = loader(tree).next_boot()
    assert boot.choices == [("debian", [])] and "BootNext" in boot.reason and "0003" in boot.remedy(None)
    tree.remove(GLOBAL % "BootNext")
    tree.remove(GLOBAL % "BootOrder")
    assert [title for title, entries in loader(tree).next_boot().choices if entries] == ["Debian by stub"]


def test_a_kernel_without_a_version_in_it(tree: Host, plant: Plant) -> None:
    plant({f"/boot/vmlinuz-{VERSION}": "for arm64", "/boot/efi/EFI/debian/vmlinuz.efi": "for arm64"})
    assert loader(tree).entries()[0].kernel == f"/boot/vmlinuz-{VERSION}"
    plant({"/boot/efi/EFI/debian/vmlinuz.efi": "another"})
    assert loader(tree).entries()[0].kernel == "/boot/efi/EFI/debian/vmlinuz.efi"


def test_its_partition_must_be_mounted(tree: Host) -> None:
    for path in tree.glob("/boot/efi/EFI/debian/*"):
        tree.remove(path)
    with pytest.raises(Refused) as refused:
        bootloaders.detect(tree)
    assert refused.value.code == "boot_not_mounted"


def test_removal_after_the_machine_was_started_by_grub(tree: Host, plant: Plant) -> None:
    before = snapshot(tree)
    ensure(tree)
    plant({"/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=UUID=0b4c\n", **numbers("BootCurrent", 1)})
    assert bootloaders.detect(tree).name == "grub"
    with Transaction(tree) as tx:
        bootloaders.forget(tx, bootloaders.detect_for_removal(tree, "resume"), "resume")
    plant(numbers("BootCurrent", 3))
    assert snapshot(tree) == before


def test_variables_of_random_bytes(tree: Host, plant: Plant) -> None:
    generator = random.Random(15)
    path = GLOBAL % "Boot0003"
    whole = tree.read_bytes(path) or b""
    for _round in range(300):
        content: Any = bytearray(whole)
        for _change in range(generator.randrange(1, 20)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        plant({path: bytes(content[: generator.randrange(len(content))] if generator.random() < 0.3 else content)})
        before = snapshot(tree)
        try:
            bootloader = EfiStub(tree)
            with Transaction(tree) as tx:
                bootloader.ensure(tx, "resume", [RESUME], DROP)
            bootloader.next_boot()
        except Refused:
            pass
        with Transaction(tree) as tx:
            EfiStub(tree).forget(tx, "resume")
        assert snapshot(tree) == before
