# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified kernel images: read with bounds, built again beside the old ones, brought back; what starts next."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot import menu, pe
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders import uki_tree
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders.changing import (
    DROP,
    RESUME,
    detected,
    ensure,
    forget,
)
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.firmware_tree import (
    GLOBAL,
    numbers,
    option,
    text,
)

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

MACHINE = "0f4e1c5ad8e44a3e8a3d6f5b2c1d0e9f"
NEW, OLD = "6.12.117+deb13-amd64", "6.12.48+deb13-amd64"
ROOT = "root=UUID=0b4c"
LINE = f"{ROOT} ro quiet"
BUILT = f"{LINE} systemd.machine_id={MACHINE}"
ESP, CMDLINE, CONF = "/boot/efi", "/etc/kernel/cmdline", "/etc/kernel/install.conf"
NEW_ROOT = ESP + "/nvm-fastboot-new"
STUB = text("StubInfo", "systemd-stub 257.13")

loader = partial(detected, name="uki")


def path(version: str) -> str:
    return f"{ESP}/EFI/Linux/{MACHINE}-{version}.efi"


def installed(version: str) -> str:
    return f"/boot/initrd.img-{version}"


def initramfs(version: str) -> bytes:
    return b"initramfs " + version.encode()


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)


class KernelInstall:
    """kernel-install with layout=uki, as Debian's plugins have it: C(made) are its calls, C(spoil) changes what it makes."""

    def __init__(self, host: Host, plant: Plant, transcript: Transcript) -> None:
        self.host, self.plant = host, plant
        self.made: list[str] = []
        self.lines: list[str] = []
        self.spoil: Callable[[bytes], bytes] = lambda content: content
        self.more: dict[str, Any] = {}
        for version in (NEW, OLD):
            for image in (installed(version), installed(version) + ".nvm-fastboot-old"):
                command = f"env BOOT_ROOT={NEW_ROOT} /usr/bin/kernel-install add {version} /boot/vmlinuz-{version} {image}"
                transcript.record(command, effect=partial(self._add, version, image))

    def _add(self, version: str, image: str) -> None:
        self.add(version, image, NEW_ROOT)

    def add(self, version: str, image: str, root: str) -> None:
        self.made.append(version)
        line = self.host.read(CMDLINE)
        if line is None:
            line = self.host.read("/proc/cmdline", "")
        words = " ".join(line.split())
        if "systemd.machine_id=" not in words:
            words += f" systemd.machine_id={MACHINE}"
        self.lines.append(words)
        content = uki_tree.uki(version, words, self.host.read_bytes(image) or b"", **self.more)
        self.plant({f"{root}/EFI/Linux/{MACHINE}-{version}.efi": self.spoil(content)})


@pytest.fixture
def tree(host: Host, plant: Plant) -> Host:
    files: dict[str, Any] = {
        "/etc/machine-id": MACHINE + "\n", "/etc/os-release": uki_tree.OSREL, "/proc/cmdline": BUILT + "\n",
        "/usr/bin/kernel-install": "", "/usr/bin/ukify": "", CONF: "layout=uki\n", CMDLINE: LINE + "\n",
        f"{ESP}/loader/loader.conf": "timeout 3\n", **text("LoaderInfo", "systemd-boot 257.13"), **STUB,
    }  # fmt: skip
    for version in (NEW, OLD):
        files[f"/boot/vmlinuz-{version}"] = "kernel"
        files[installed(version)] = initramfs(version)
        files[path(version)] = uki_tree.uki(version, BUILT, initramfs(version))
    plant(files)
    for name in ("kernel-install", "ukify"):
        os.chmod(host.path("/usr/bin/" + name), 0o755)
    return host


@pytest.fixture
def install(tree: Host, plant: Plant, transcript: Transcript) -> KernelInstall:
    return KernelInstall(tree, plant, transcript)


def snapshot(host: Host) -> dict[str, bytes | None]:
    patterns = ("/boot/efi/*", "/boot/efi/EFI/Linux/*", "/etc/kernel/*", "/var/lib/nvm-fastboot*", "/sys/firmware/efi/efivars/*")
    return {path: host.read_bytes(path) for pattern in patterns for path in host.glob(pattern)}


def refusal(host: Host) -> Refused:
    """What ensure refuses, in check mode as well, and with nothing changed."""
    before = snapshot(host)
    with pytest.raises(Refused) as checked:
        loader(host).ensure(Transaction(host, check_mode=True), "resume", [RESUME], DROP)
    with pytest.raises(Refused) as refused:
        ensure(host)
    assert snapshot(host) == before
    assert (refused.value.code, refused.value.message) == (checked.value.code, checked.value.message) and refused.value.remedy
    return refused.value


# configured and brought back -----------------------------------------------------------------------------------------


def test_images_are_built_again_with_the_arguments(tree: Host, install: KernelInstall) -> None:
    before = snapshot(tree)
    assert ensure(tree)
    entries = loader(tree).entries()
    assert [each.kernel for each in entries] == [f"/boot/vmlinuz-{NEW}", f"/boot/vmlinuz-{OLD}"]
    assert all(RESUME in each.arguments and each.initrds for each in entries)
    assert tree.read(CMDLINE) == f"{LINE} {RESUME}\n"
    assert loader(tree).check(entries, [RESUME], DROP) == []
    assert not ensure(tree) and sorted(install.made) == [NEW, OLD]
    assert forget(tree)
    assert snapshot(tree) == before
    assert not forget(tree) and len(install.made) == 4


def test_check_mode_changes_nothing(tree: Host, install: KernelInstall) -> None:
    before = snapshot(tree)
    tx = Transaction(tree, check_mode=True)
    assert loader(tree).ensure(tx, "resume", [RESUME], DROP)
    assert len(tx.diff) == 3 and all(RESUME in each["after"] and RESUME not in each["before"] for each in tx.diff)
    assert snapshot(tree) == before and install.made == []
    ensure(tree)
    tx = Transaction(tree, check_mode=True)
    assert loader(tree).forget(tx, "resume")
    assert len(tx.diff) == 3 and all(RESUME not in each["after"] and RESUME in each["before"] for each in tx.diff)


@pytest.mark.parametrize("foreign", ["", " resume=/dev/sda5 resume_offset=7"])
def test_without_a_file_for_the_command_line(tree: Host, plant: Plant, install: KernelInstall, foreign: str) -> None:
    """kernel-install takes the one of the running kernel, which has the arguments while they are removed."""
    tree.remove(CMDLINE)
    line = f"{LINE}{foreign} systemd.machine_id={MACHINE}"
    plant({"/proc/cmdline": line + "\n", **{path(version): uki_tree.uki(version, line, initramfs(version)) for version in (NEW, OLD)}})
    before = snapshot(tree)
    ensure(tree)
    assert all(RESUME in each.arguments and "resume=/dev/sda5" not in each.arguments for each in loader(tree).entries())
    plant({"/proc/cmdline": f"{LINE} systemd.machine_id={MACHINE} {RESUME}\n"})  # rebooted since
    with Transaction(tree) as tx:
        bootloader = loader(tree)
        bootloader.forget(tx, "resume")
        assert snapshot(tree) == before
        plant({installed(NEW): "built since"})
        install.add(NEW, installed(NEW), ESP)  # Debian's hook
        assert RESUME in loader(tree).entries()[0].arguments
        bootloader.after_hooks(tx)
    assert [each.arguments for each in loader(tree).entries()] == [line.split()] * 2
    assert not tree.exists(CMDLINE) and not tree.exists("/var/lib/nvm-fastboot")


def test_two_purposes(tree: Host, install: KernelInstall) -> None:
    before = snapshot(tree)
    ensure(tree)
    ensure(tree, "memmap-X", ("memmap=512M!1G",), ())
    assert all({RESUME, "memmap=512M!1G"} <= set(each.arguments) for each in loader(tree).entries())
    assert loader(tree).owned("memmap-X") == ["memmap=512M!1G"]
    forget(tree)
    assert all(RESUME not in each.arguments and "memmap=512M!1G" in each.arguments for each in loader(tree).entries())
    forget(tree, "memmap-X")
    assert snapshot(tree) == before


def test_an_initramfs_that_was_built_again(tree: Host, plant: Plant, install: KernelInstall) -> None:
    ensure(tree)
    plant({installed(NEW): "built since"})
    problems = loader(tree).check(loader(tree).entries(), [RESUME], DROP)
    assert len(problems) == 1 and path(NEW) in problems[0] and installed(NEW) in problems[0]
    install.made.clear()
    assert ensure(tree) and install.made == [NEW]
    assert loader(tree).check(loader(tree).entries(), [RESUME], DROP) == []


@pytest.mark.parametrize("content", [b"microcode!!!" + initramfs(NEW), initramfs(NEW) + b"\0", initramfs(NEW) + b"\0\0\0"])
def test_the_initramfs_may_be_behind_microcode_and_padded(tree: Host, plant: Plant, content: bytes) -> None:
    plant({path(NEW): uki_tree.uki(NEW, BUILT, content)})
    assert loader(tree).outdated() == []
    plant({path(NEW): uki_tree.uki(NEW, BUILT, content + b"more")})
    assert len(loader(tree).outdated()) == 1


def test_an_image_without_initramfs_is_built_again(tree: Host, plant: Plant, install: KernelInstall) -> None:
    plant({path(NEW): uki_tree.uki(NEW, f"{BUILT} {RESUME}", b"")})
    bootloader = loader(tree)
    assert any("without an initramfs" in problem for problem in bootloader.check(bootloader.entries(), [RESUME]))
    ensure(tree)
    assert loader(tree).check(loader(tree).entries(), [RESUME], DROP) == []


def test_counters_of_tries_stay(tree: Host, plant: Plant, install: KernelInstall) -> None:
    counted = path(NEW).replace(".efi", "+2-1.efi")
    os.rename(tree.path(path(NEW)), tree.path(counted))
    install_add = install.add

    def add(version: str, image: str, root: str) -> None:
        install_add(version, image, root)
        made = f"{root}/EFI/Linux/{MACHINE}-{version}"
        os.rename(tree.path(made + ".efi"), tree.path(made + "+3.efi"))  # /etc/kernel/tries

    install.add = add  # type: ignore[method-assign]
    before = snapshot(tree)
    ensure(tree)
    assert {os.path.basename(each) for each in tree.glob(f"{ESP}/EFI/Linux/*")} == {os.path.basename(each) for each in (counted, path(OLD))}
    forget(tree)
    assert snapshot(tree) == before


def test_a_damaged_image_is_built_again(tree: Host, plant: Plant, install: KernelInstall) -> None:
    plant({path(OLD): uki_tree.uki(OLD, BUILT, initramfs(OLD))[:700]})
    assert any("damaged" in problem for problem in loader(tree).check(loader(tree).entries(), [RESUME]))
    ensure(tree)
    assert all(RESUME in each.arguments for each in loader(tree).entries()) and len(loader(tree).entries()) == 2


def test_profiles_are_entries_of_their_own(tree: Host, plant: Plant) -> None:
    more = ((".profile", b"ID=main\n"), (".profile", b"ID=rescue\n"), (".cmdline", f"{ROOT} rescue".encode()))
    plant({path(NEW): uki_tree.uki(NEW, f"{BUILT} {RESUME}", initramfs(NEW), *more)})
    first, second = loader(tree).entries()[:2]
    assert first.arguments == [*BUILT.split(), RESUME] and second.arguments == [ROOT, "rescue"] and "profile 1" in second.title


# failures ------------------------------------------------------------------------------------------------------------


def test_a_failure_undoes_everything(tree: Host, plant: Plant, install: KernelInstall) -> None:
    before = snapshot(tree)
    plant({installed(NEW) + ".nvm-fastboot-old": initramfs(NEW), installed(NEW): "built since"})
    with pytest.raises(RuntimeError), Transaction(tree) as tx:
        loader(tree).ensure(tx, "resume", [RESUME], DROP)
        assert all(RESUME in each.arguments for each in loader(tree).entries())
        raise RuntimeError
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda content: content[:900], "made none"),
        (lambda content: content.replace(RESUME.encode(), b"x" * len(RESUME)), "its command line is"),
        (lambda content: content.replace(b"initramfs", b"something"), "another initramfs"),
    ],
)
def test_a_new_image_that_is_not_as_it_should_be(tree: Host, install: KernelInstall, spoil: Callable[[bytes], bytes], cause: str) -> None:
    before = snapshot(tree)
    install.spoil = spoil
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "bootloader_incomplete" and cause in refused.value.message
    assert snapshot(tree) == before


def test_a_command_that_fails(tree: Host, transcript: Transcript) -> None:
    before = snapshot(tree)
    command = f"env BOOT_ROOT={NEW_ROOT} /usr/bin/kernel-install add {NEW} /boot/vmlinuz-{NEW} {installed(NEW)}"
    transcript.record(command, rc=1, err="no stub")
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "command_failed" and snapshot(tree) == before


def test_a_full_partition(tree: Host, install: KernelInstall, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(tree)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255]))
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "boot_full" and snapshot(tree) == before


def test_interrupted_while_a_command_line_was_lent(
    tree: Host, plant: Plant, install: KernelInstall, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.remove(CMDLINE)
    before = snapshot(tree)
    ensure(tree)
    plant({"/proc/cmdline": f"{BUILT} {RESUME}\n"})
    real = Host.remove

    def cut(self: Host, path: str) -> bool:
        if path == CMDLINE and self.read(CMDLINE) == BUILT + "\n":
            raise SystemExit("the power is cut")
        return bool(real(self, path))

    monkeypatch.setattr(Host, "remove", cut)
    with pytest.raises(SystemExit):
        loader(tree).forget(Transaction(tree), "resume")
    assert tree.exists(CMDLINE)
    monkeypatch.setattr(Host, "remove", real)
    forget(tree, leftovers=(RESUME,))
    assert snapshot(tree) == before


# what cannot be built again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({CONF: "# layout=uki\n"}, "layout=auto"),
        ({CONF: "layout=uki\nuki_generator=dracut\n"}, "dracut makes it"),
        ({"/etc/kernel/install.conf.d/50-local.conf": "layout=bls\n"}, "layout=bls"),
        ({f"{ESP}/EFI/Linux/by-hand.efi": uki_tree.uki(NEW, BUILT, initramfs(NEW))}, "which calls it"),
        ({path("6.1.0-1-amd64"): uki_tree.uki("6.1.0-1-amd64", BUILT, b"x")}, "is not in /boot"),
        ({path(NEW): uki_tree.uki(NEW, BUILT, initramfs(NEW), signed=True)}, "it is signed"),
        ({path(NEW): uki_tree.uki(NEW, BUILT, initramfs(NEW), (".pcrsig", b"{}"))}, "it is signed"),
        ({f"{ESP}/loader/addons/swap.addon.efi": uki_tree.pe((".cmdline", b"resume=/dev/sda5"))}, "adds resume=/dev/sda5"),
    ],
)  # fmt: skip
def test_refused_by_its_cause(tree: Host, plant: Plant, files: dict[str, Any], cause: str) -> None:
    plant(files)
    refused = refusal(tree)
    assert refused.code == "bootloader_incomplete" and cause in refused.message


def test_without_the_programs(tree: Host) -> None:
    tree.remove("/usr/bin/ukify")
    assert "ukify is not there" in refusal(tree).message
    tree.remove("/usr/bin/kernel-install")
    assert "kernel-install is not there" in refusal(tree).message


def test_a_signed_image_stays_signed(tree: Host, plant: Plant, install: KernelInstall) -> None:
    plant({path(version): uki_tree.uki(version, BUILT, initramfs(version), signed=True) for version in (NEW, OLD)})
    plant({"/etc/kernel/uki.conf": "[UKI]\nSecureBootPrivateKey=/etc/kernel/key.pem\nSecureBootCertificate=/etc/kernel/cert.pem\n"})
    before = snapshot(tree)
    with pytest.raises(Refused) as refused:
        ensure(tree)  # the key is not there, say
    assert "the earlier one is signed, and it is not" in refused.value.message and snapshot(tree) == before
    install.more = {"signed": True}
    ensure(tree)
    assert all(pe.read(tree.path(path(version))).signed for version in (NEW, OLD))
    forget(tree)
    assert snapshot(tree) == before


def test_an_entry_of_type_1_that_is_left(tree: Host, plant: Plant, install: KernelInstall) -> None:
    entry = f"{ESP}/loader/entries/{MACHINE}-{OLD}.conf"
    plant({entry: f"title Debian\nversion {OLD}\nmachine-id {MACHINE}\noptions {LINE}\nlinux /linux\ninitrd /initrd\n",
           f"{ESP}/linux": "kernel", f"{ESP}/initrd": initramfs(OLD)})  # fmt: skip
    ensure(tree)
    assert RESUME in tree.read(entry, "") and len(loader(tree).entries()) == 3
    plant({f"{ESP}/initrd": "an earlier one"})
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "bootloader_incomplete" and f"Remove {entry}" in refused.value.remedy


# whose it is, and what starts it -------------------------------------------------------------------------------------


def test_images_of_others_are_left_alone(tree: Host, plant: Plant, install: KernelInstall) -> None:
    directory = f"{ESP}/EFI/Linux/"
    others = {
        directory + "arch.efi": uki_tree.uki("7.0", BUILT, b"x", osrel="ID=arch\n"),
        directory + "elsewhere.efi": uki_tree.uki(NEW, "root=UUID=other", b"x"),
        directory + "f" * 32 + f"-{NEW}.efi": uki_tree.uki(NEW, LINE, b"x"),
        directory + "machine.efi": uki_tree.uki(NEW, f"{LINE} systemd.machine_id={'e' * 32}", b"x"),
        directory + "live.efi": uki_tree.uki(NEW, "boot=live", b"x"),
        directory + "memtest.efi": uki_tree.pe((".text", b"memtest")),
        directory + "damaged.efi": b"MZ",
    }
    plant(others)
    ensure(tree)
    assert {each: tree.read_bytes(each) for each in others} == others
    assert len(loader(tree).entries()) == 2


@pytest.mark.parametrize(
    ("files", "titles", "reason"),
    [
        ({}, [NEW], "first entry"),
        (text("LoaderEntryDefault", f"{MACHINE}-{OLD}.efi"), [OLD], "LoaderEntryDefault"),
        (text("LoaderEntryOneShot", f"{MACHINE}-{OLD}.EFI"), [OLD], "OneShot"),
        ({f"{ESP}/loader/loader.conf": f"default {MACHINE}-{OLD[:7]}*\n"}, [OLD], "loader.conf"),
        ({**option(3, "UKI", f"\\EFI\\Linux\\{MACHINE}-{OLD}.efi"), **numbers("BootNext", 3)}, [OLD], "BootNext"),
        ({f"{ESP}/EFI/Linux/arch.efi": uki_tree.uki("7", "root=UUID=x", b"x", osrel="ID=arch\n")}, [], "first entry"),
        ({f"{ESP}/EFI/Linux/zorin.efi": uki_tree.uki("7", "root=UUID=x", b"x", osrel="ID=zorin\n")}, [NEW], "first entry"),
    ],
)  # fmt: skip
def test_what_starts_next(tree: Host, plant: Plant, files: dict[str, Any], titles: list[str], reason: str) -> None:
    plant({**numbers("BootCurrent", 1), **numbers("BootOrder", 1), **option(1, "Linux Boot Manager", "\\EFI\\systemd\\systemd-bootx64.efi"),
           f"{ESP}/EFI/systemd/systemd-bootx64.efi": "", **files})  # fmt: skip
    boot = loader(tree).next_boot()
    assert [entry.kernel for _title, entries in boot.choices for entry in entries] == [f"/boot/vmlinuz-{title}" for title in titles]
    assert (reason in boot.reason and "Run: " in boot.remedy(f"/boot/vmlinuz-{OLD}")) or "BootNext" in boot.reason


def test_an_image_without_tries_is_last(tree: Host) -> None:
    os.rename(tree.path(path(NEW)), tree.path(path(NEW).replace(".efi", "+0-3.efi")))
    assert [entry.kernel for _title, entries in loader(tree).next_boot().choices for entry in entries] == [f"/boot/vmlinuz-{OLD}"]


@pytest.fixture
def directly(tree: Host, plant: Plant) -> Host:
    """The firmware starts the image itself."""
    tree.remove("/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
    tree.remove(f"{ESP}/loader/loader.conf")
    plant({
        **numbers("BootCurrent", 1), **numbers("BootOrder", 1, 2), **option(1, "new", f"\\EFI\\Linux\\{MACHINE}-{NEW}.efi"),
        **option(2, "GRUB", "\\EFI\\debian\\grubx64.efi"), f"{ESP}/EFI/debian/grubx64.efi": "", "/boot/grub/grub.cfg": "",
    })  # fmt: skip
    return tree


def test_started_by_the_firmware(directly: Host, plant: Plant, install: KernelInstall) -> None:
    before = snapshot(directly)
    ensure(directly)
    boot = loader(directly).next_boot()
    assert [(title, len(entries)) for title, entries in boot.choices] == [("new", 1)] and "BootOrder" in boot.reason
    plant(numbers("BootNext", 2))
    boot = loader(directly).next_boot()
    assert boot.choices == [("GRUB", [])] and "--bootorder with 0001" in boot.remedy(None)
    directly.remove(GLOBAL % "BootNext")
    forget(directly)
    assert snapshot(directly) == before


def test_a_boot_option_with_a_command_line_of_its_own(directly: Host, plant: Plant, install: KernelInstall) -> None:
    """The stub takes it instead of the one inside."""
    image = f"\\EFI\\Linux\\{MACHINE}-{NEW}.efi"
    plant(option(1, "new", image, data=LINE + " splash"))
    before = snapshot(directly)
    ensure(directly)
    assert directly.read_bytes(GLOBAL % "Boot0001") == option(1, "new", image, data=f"{LINE} splash {RESUME}")[GLOBAL % "Boot0001"]
    (entry,) = [entry for _title, entries in loader(directly).next_boot().choices for entry in entries]
    assert entry.arguments == [*LINE.split(), "splash", RESUME]
    forget(directly)
    assert snapshot(directly) == before


def test_addons(tree: Host, plant: Plant) -> None:
    plant({f"{path(NEW)}.extra.d/debug.addon.efi": uki_tree.pe((".cmdline", b"debug")),
           f"{ESP}/loader/addons/quiet.addon.efi": uki_tree.pe((".cmdline", b"noresume"))})  # fmt: skip
    first, second = loader(tree).entries()
    assert first.arguments[-2:] == ["debug", "noresume"] and second.arguments[-1] == "noresume"
    assert loader(tree).find_setting(("noresume",)) == (f"{ESP}/loader/addons/quiet.addon.efi", "noresume")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({**text("LoaderInfo", "rEFInd 0.14"), **numbers("BootCurrent", 1), **option(1, "x", "\\EFI\\refind\\refind_x64.efi")}, ""),
        ({**text("LoaderInfo", "GRUB 2.12"), **text("StubInfo", "")}, "grub"),
    ],
)  # fmt: skip
def test_another_loader_starts_it(tree: Host, plant: Plant, files: dict[str, Any], name: str) -> None:
    plant({"/boot/grub/grub.cfg": "", "/usr/sbin/grub-mkconfig": "default/grub.d", **files})
    plant({"/proc/cmdline": f"BOOT_IMAGE=/vmlinuz {LINE}\n"})
    os.chmod(tree.path("/usr/sbin/grub-mkconfig"), 0o755)
    if name:
        assert bootloaders.detect(tree).name == name
        return
    with pytest.raises(Refused) as refused:
        bootloaders.detect(tree)
    assert refused.value.code == "bootloader_unsupported" and "unified kernel image" in refused.value.message


def test_its_partition_must_be_mounted(host: Host, plant: Plant) -> None:
    plant({**STUB, "/proc/cmdline": BUILT})
    with pytest.raises(Refused) as refused:
        bootloaders.detect(host)
    assert refused.value.code == "boot_not_mounted"


def test_removal_after_the_machine_got_grub(tree: Host, plant: Plant, install: KernelInstall) -> None:
    before = snapshot(tree)
    ensure(tree)
    plant({**text("LoaderInfo", "GRUB 2.06"), **text("StubInfo", ""), "/boot/grub/grub.cfg": ""})
    plant({"/usr/sbin/grub-mkconfig": "default/grub.d", "/proc/cmdline": f"BOOT_IMAGE=/vmlinuz {LINE}\n"})
    os.chmod(tree.path("/usr/sbin/grub-mkconfig"), 0o755)
    assert bootloaders.detect(tree).name == "grub"
    with Transaction(tree) as tx:
        bootloaders.forget(tx, bootloaders.detect_for_removal(tree, "resume"), "resume")
    plant({**text("LoaderInfo", "systemd-boot 257.13"), **STUB})
    assert snapshot(tree) == before


def test_removal_of_what_systemd_boot_has_alone(tree: Host, plant: Plant) -> None:
    """There are no images any more: the machine went back to entries of type 1."""
    for version in (NEW, OLD):
        tree.remove(path(version))
    plant({f"{ESP}/loader/entries/x.conf": f"title Debian\noptions {LINE}\nlinux /linux\n", f"{ESP}/linux": "kernel"})
    plant(text("StubInfo", ""))
    with Transaction(tree) as tx:
        bootloader = bootloaders.detect(tree)
        assert bootloader.name == "systemd-boot"
        bootloader.ensure(tx, "resume", [RESUME], DROP)
    assert bootloaders.detect_for_removal(tree, "resume").name == "systemd-boot"


# reading PE files ----------------------------------------------------------------------------------------------------


def read(host: Host, plant: Plant, content: bytes) -> Any:
    plant({"/x.efi": content})
    return pe.read(host.path("/x.efi"))


def test_a_pe_file(host: Host, plant: Plant) -> None:
    found = read(host, plant, uki_tree.uki(NEW, LINE, b"1234567"))
    (sections,) = found.variants()
    assert found.text(sections[".cmdline"]) == LINE and sections[".initrd"].size == 7 and not found.signed
    assert read(host, plant, uki_tree.uki(NEW, LINE, b"1", signed=True)).signed


@pytest.mark.parametrize("content", [b"", b"MZ", b"MZ" + bytes(58) + b"\xff\xff\xff\xff", b"#!/bin/sh\n", bytes(1 << 16)])
def test_no_pe_file(host: Host, plant: Plant, content: bytes) -> None:
    assert read(host, plant, content) is None


def test_sizes_are_checked_before_anything_is_read(host: Host, plant: Plant) -> None:
    whole = uki_tree.uki(NEW, LINE, b"x")
    section = 0x40 + 24 + 240
    for place in (section + 16, section + 20):  # size and place of the first section
        assert read(host, plant, whole[:place] + struct.pack("<I", 0xFFFFFFF0) + whole[place + 4 :]) is not None or place == section + 20
    assert read(host, plant, whole[: 0x40 + 6] + struct.pack("<H", 0xFFFF) + whole[0x40 + 8 :]) is None
    huge = read(host, plant, uki_tree.pe((".linux", b"x"), (".cmdline", b"x" * (pe.TEXT + 1))))
    assert huge.text(huge.variants()[0][".cmdline"]) == ""


def test_files_of_random_bytes(tree: Host, plant: Plant, install: KernelInstall) -> None:
    generator = random.Random(15)
    whole = uki_tree.uki(NEW, BUILT, initramfs(NEW), (".profile", b""), (".pcrsig", b"x"), signed=True)
    head = len(whole) - 6 * 512
    for _round in range(200):
        content: Any = bytearray(whole)
        for _change in range(generator.randrange(1, 8)):
            content[generator.randrange(head if generator.random() < 0.8 else len(content))] = generator.randrange(256)
        plant({path(NEW): bytes(content[: generator.randrange(len(content))] if generator.random() < 0.2 else content)})
        bootloader = loader(tree)
        bootloader.next_boot()
        bootloader.outdated()
        try:
            bootloader.ensure(Transaction(tree, check_mode=True), "resume", [RESUME], DROP)
        except Refused as refused:
            assert refused.code == "bootloader_incomplete"


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("6.12.48+deb13", "6.12.117+deb13"), ("1~rc1", "1"), ("1", "1.1"), ("1-1", "1.1"), ("009", "10"), ("a", "b"), ("1.a", "1.1"),
     ("x-6.12.0.efi", "x-7.0.efi"), ("1^a", "1.1"), ("1", "1" * 5000), ("", "1"), ("~", "")],
)  # fmt: skip
def test_versions(lower: str, higher: str) -> None:
    assert (menu.versions(lower, higher), menu.versions(higher, lower), menu.versions(higher, higher)) == (-1, 1, 0)
