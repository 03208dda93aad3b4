# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd-boot: entries and the command line of kernels to come, changed in place and brought back; what boots next."""

from __future__ import annotations

import json
import os
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import command_lines
from ansible_collections.nvm.fastboot.plugins.module_utils._core import records
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders.changing import (
    DROP,
    RESUME,
    detected,
    ensure,
    forget,
)
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders.uki_tree import uki
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.firmware_tree import text

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

MACHINE = "0f4e1c5ad8e44a3e8a3d6f5b2c1d0e9f"
NEW, OLD = "6.1.0-50-amd64", "6.1.0-48-amd64"
ROOT = "root=UUID=0b4c"
ENTRIES, CONF = "/boot/efi/loader/entries", "/boot/efi/loader/loader.conf"
RECORD = records.path("command-lines")

loader = partial(detected, name="systemd-boot")


def entry(version: str, options: str = ROOT + " ro quiet systemd.machine_id=" + MACHINE, **more: str) -> str:
    """As Debian's kernel-install writes it."""
    words = {
        "title": "Debian GNU/Linux 12 (bookworm)", "version": version, "machine-id": MACHINE, "sort-key": "debian", "options": options,
        "linux": f"/{MACHINE}/{version}/linux", "initrd": f"/{MACHINE}/{version}/initrd.img-{version}", **more,
    }  # fmt: skip
    return "".join(f"{key:<10} {value}\n" for key, value in words.items() if value)


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)


@pytest.fixture
def tree(host: Host, plant: Plant) -> Host:
    files: dict[str, Any] = {
        "/etc/machine-id": MACHINE + "\n",
        "/proc/cmdline": f"initrd=\\x\\initrd.img {ROOT} ro quiet\n",
        CONF: "#timeout 3\n",
        "/usr/bin/kernel-install": "",
        **text("LoaderInfo", "systemd-boot 252.39"),
    }
    for version in (NEW, OLD):
        files[f"/boot/vmlinuz-{version}"] = "kernel"
        files[f"/boot/initrd.img-{version}"] = "initramfs " + version
        files[f"/boot/efi/{MACHINE}/{version}/linux"] = "kernel"
        files[f"/boot/efi/{MACHINE}/{version}/initrd.img-{version}"] = "initramfs " + version
        files[f"{ENTRIES}/{MACHINE}-{version}.conf"] = entry(version)
    plant(files)
    os.chmod(host.path("/usr/bin/kernel-install"), 0o755)
    return host


def snapshot(host: Host) -> dict[str, str]:
    """Every file of the boot configuration."""
    paths = [*host.glob(ENTRIES + "/*"), *host.glob("/etc/kernel/*"), *host.glob("/var/lib/nvm-fastboot*")]
    return {path: host.read(path, "directory") for path in paths}


def test_entries_and_kernels_to_come_get_the_arguments(tree: Host) -> None:
    before = snapshot(tree)
    assert ensure(tree)
    entries = loader(tree).entries()
    assert [each.kernel for each in entries] == [f"/boot/vmlinuz-{OLD}", f"/boot/vmlinuz-{NEW}"]
    assert all(each.arguments[-1] == RESUME and each.initrds for each in entries), entries
    assert tree.read("/etc/kernel/cmdline") == f"{ROOT} ro quiet {RESUME}\n"
    assert f"options    {ROOT} ro quiet systemd.machine_id={MACHINE} {RESUME}\n" in tree.read(f"{ENTRIES}/{MACHINE}-{NEW}.conf")
    assert not ensure(tree)
    assert forget(tree)
    assert snapshot(tree) == before
    assert not forget(tree)


def test_an_entry_by_hand_that_does_not_say_its_version(tree: Host, plant: Plant) -> None:
    """Its kernel is told by the content of the copy; the copy of the initramfs is compared, and replaced."""
    for version in (NEW, OLD):
        os.unlink(tree.path(f"{ENTRIES}/{MACHINE}-{version}.conf"))
    plant({
        f"/boot/vmlinuz-{NEW}": "the newer kernel", "/boot/efi/EFI/debian/vmlinuz.efi": "the newer kernel",
        "/boot/efi/EFI/debian/initrd.img": "initramfs of last week",
        f"{ENTRIES}/debian.conf": f"title Debian\nlinux /EFI/debian/vmlinuz.efi\ninitrd /EFI/debian/initrd.img\noptions {ROOT} ro\n",
    })  # fmt: skip
    (entry,) = loader(tree).entries()
    assert entry.kernel == f"/boot/vmlinuz-{NEW}"
    (problem,) = loader(tree).outdated()
    assert f"loads /boot/efi/EFI/debian/initrd.img, which is not the same as /boot/initrd.img-{NEW}" in problem
    assert ensure(tree) and not ensure(tree)
    assert loader(tree).outdated() == [] and tree.read("/boot/efi/EFI/debian/initrd.img") == f"initramfs {NEW}"
    assert loader(tree).entries()[0].arguments == [ROOT, "ro", RESUME]


def test_entries_that_kernelstub_writes_again(tree: Host, plant: Plant) -> None:
    """Pop!_OS."""
    plant({"/etc/kernelstub/configuration": '{"user": {"kernel_options": ["quiet"]}}', "/usr/bin/kernelstub": ""})
    assert loader(tree)  # the program is not there
    os.chmod(tree.path("/usr/bin/kernelstub"), 0o755)
    with pytest.raises(Refused) as refused:
        bootloaders.detect(tree)
    assert refused.value.code == "bootloader_unsupported" and "kernelstub --add-options" in refused.value.remedy


def test_check_mode_changes_nothing(tree: Host) -> None:
    before = snapshot(tree)
    tx = Transaction(tree, check_mode=True)
    assert loader(tree).ensure(tx, "resume", [RESUME], DROP)
    assert len(tx.diff) == 3 and snapshot(tree) == before


def test_two_purposes_in_any_order(tree: Host) -> None:
    before = snapshot(tree)
    for first, second in (("resume", "memmap-X"), ("memmap-X", "resume")):
        ensure(tree)
        ensure(tree, "memmap-X", ("memmap=512M!1G",), ())
        assert loader(tree).entries()[0].arguments[-2:] == [RESUME, "memmap=512M!1G"]
        assert loader(tree).owned("memmap-X") == ["memmap=512M!1G"]
        assert forget(tree, first)
        assert len([word for word in loader(tree).entries()[0].arguments if word in (RESUME, "memmap=512M!1G")]) == 1
        assert forget(tree, second)
        assert snapshot(tree) == before


def test_arguments_of_others_are_dropped_and_come_back(tree: Host, plant: Plant) -> None:
    plant({
        "/etc/kernel/cmdline": f'{ROOT} resume=/dev/sda5\tdyndbg="file x +p"  resume_offset=7 quiet',  # without a newline at the end
        f"{ENTRIES}/{MACHINE}-{NEW}.conf": "options resume=/dev/sda5 ro\n" + entry(NEW, ROOT + " quiet"),
    })  # fmt: skip
    before = snapshot(tree)
    ensure(tree)
    assert tree.read("/etc/kernel/cmdline") == f'{ROOT}\tdyndbg="file x +p" quiet {RESUME}'
    assert loader(tree).entries()[1].arguments == ["ro", ROOT, "quiet", RESUME]
    forget(tree)
    assert snapshot(tree) == before


def test_changes_by_hand_in_between_are_kept(tree: Host, plant: Plant) -> None:
    ensure(tree)
    path = f"{ENTRIES}/{MACHINE}-{NEW}.conf"
    changed = tree.read(path, "").replace("quiet", "quiet splash").replace("Debian GNU", "My Debian GNU")
    plant({path: changed})
    assert not ensure(tree)
    forget(tree)
    assert tree.read(path) == changed.replace(" " + RESUME, "")


def test_words_that_nobody_knows_of_any_more_are_taken_out(tree: Host) -> None:
    """The record is lost, or cannot be read."""
    before = snapshot(tree)
    ensure(tree)
    for record in (None, "no JSON", json.dumps({f"{ENTRIES}/{MACHINE}-{NEW}.conf": {"after": 1}}), "[]"):
        tree.remove(RECORD) if record is None else tree.replace(RECORD, record)
        ensure(tree)
        assert loader(tree).entries()[0].arguments.count(RESUME) == 1
    tree.remove(RECORD)
    assert forget(tree, leftovers=(RESUME,))
    left = snapshot(tree)
    assert all(left[path] == content for path, content in before.items())
    assert RESUME not in left["/etc/kernel/cmdline"]


def test_a_failure_undoes_everything(tree: Host) -> None:
    before = snapshot(tree)
    with pytest.raises(RuntimeError), Transaction(tree) as tx:
        loader(tree).ensure(tx, "resume", [RESUME], DROP)
        raise RuntimeError
    assert snapshot(tree) == before


def test_interrupted_before_a_file_was_written(tree: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(tree)
    real = Host.replace

    def cut(self: Host, path: str, content: Any, mode: int = 0o644) -> None:
        if path.endswith(f"{NEW}.conf"):
            raise SystemExit("the power is cut")
        real(self, path, content, mode)

    monkeypatch.setattr(Host, "replace", cut)
    tx = Transaction(tree)
    with pytest.raises(SystemExit):
        loader(tree).ensure(tx, "resume", [RESUME], DROP)
    monkeypatch.setattr(Host, "replace", real)
    assert ensure(tree)
    assert all(each.arguments[-1] == RESUME for each in loader(tree).entries())
    forget(tree)
    assert snapshot(tree) == before


def test_entries_of_others_are_left_alone(tree: Host, plant: Plant) -> None:
    others = {
        f"{ENTRIES}/other-machine.conf": entry(NEW, **{"machine-id": "f" * 32}),
        f"{ENTRIES}/arch.conf": entry(NEW, "root=UUID=other rw", **{"machine-id": ""}),
        f"{ENTRIES}/gone.conf": entry("5.10.0-1-amd64"),
        f"{ENTRIES}/shell.conf": "title Shell\nefi /shellx64.efi\n",
        f"{ENTRIES}/live.conf": entry(NEW, "boot=live"),
    }
    plant(others)
    ensure(tree)
    assert {path: tree.read(path) for path in others} == others
    assert len(loader(tree).entries()) == 2


def test_an_entry_without_initramfs_is_told(tree: Host, plant: Plant) -> None:
    plant({f"{ENTRIES}/plain.conf": entry(NEW, initrd="")})
    ensure(tree)
    bootloader = loader(tree)
    assert any("without an initramfs" in problem for problem in bootloader.check(bootloader.entries(), [RESUME]))


def test_a_copy_that_is_out_of_date_is_made_again(tree: Host, plant: Plant, transcript: Transcript) -> None:
    ensure(tree)
    image, copy = f"/boot/initrd.img-{NEW}", f"/boot/efi/{MACHINE}/{NEW}/initrd.img-{NEW}"
    plant({image: "built since"})
    bootloader = loader(tree)
    problems = bootloader.check(bootloader.entries(), [RESUME], DROP)
    assert len(problems) == 1 and image in problems[0] and copy in problems[0]

    def kernel_install() -> None:
        plant({copy: "built since", f"{ENTRIES}/{MACHINE}-{NEW}.conf": entry(NEW)})

    transcript.record(f"/usr/bin/kernel-install add {NEW} /boot/vmlinuz-{NEW} {image}", effect=kernel_install)
    assert ensure(tree)
    assert bootloader.check(loader(tree).entries(), [RESUME], DROP) == []
    assert not ensure(tree) and len(transcript.calls) == 1


def test_a_copy_that_nothing_makes_again(tree: Host, plant: Plant) -> None:
    plant({f"/boot/initrd.img-{NEW}": "built since"})
    tree.remove("/usr/bin/kernel-install")
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "bootloader_incomplete" and f"Copy /boot/initrd.img-{NEW} to" in refused.value.remedy


def test_settings_of_others(tree: Host, plant: Plant) -> None:
    plant({"/etc/kernel/cmdline": ROOT + " nohibernate\n"})
    assert loader(tree).find_setting(("noresume", "nohibernate")) == ("/etc/kernel/cmdline", "nohibernate")
    ensure(tree)
    assert loader(tree).find_setting((RESUME,)) is None


@pytest.mark.parametrize(
    ("files", "titles", "reason"),
    [
        ({}, [NEW], "first entry"),
        (text("LoaderEntryOneShot", f"{MACHINE}-{OLD}.conf"), [OLD], "OneShot"),
        (text("LoaderEntryDefault", f"{MACHINE}-{OLD}.conf"), [OLD], "LoaderEntryDefault"),
        ({CONF: f"timeout 3\ndefault {MACHINE}-{OLD[:8]}*\n"}, [OLD], "loader.conf"),
        ({CONF: "default @saved\n", **text("LoaderEntryLastBooted", f"{MACHINE}-{OLD}.conf")}, [OLD], "loader.conf"),
        ({CONF: "default nothing*\n"}, [NEW], "first entry"),
        ({f"{ENTRIES}/{MACHINE}-6.1.0-9+2-1.conf": entry("6.1.0-9"), f"/boot/efi/{MACHINE}/6.1.0-9/linux": "x"}, [NEW], "first"),
    ],
)  # fmt: skip
def test_what_starts_next(tree: Host, plant: Plant, files: dict[str, Any], titles: list[str], reason: str) -> None:
    plant(files)
    boot = loader(tree).next_boot()
    assert [title for title, entries in boot.choices if entries] == [f"Debian GNU/Linux 12 (bookworm) ({title})" for title in titles]
    assert reason in boot.reason
    assert boot.remedy(f"/boot/vmlinuz-{OLD}") == f"Run: bootctl set-default {MACHINE}-{OLD}.conf."


def test_another_system_starts_next(tree: Host, plant: Plant) -> None:
    plant(text("LoaderEntryOneShot", "auto-windows"))
    assert loader(tree).next_boot().choices == [("auto-windows", [])]
    other = uki("7.0", "root=UUID=other", b"", osrel="ID=arch\nNAME=Arch\n")
    plant({**text("LoaderEntryOneShot", ""), "/boot/efi/EFI/Linux/other.efi": other})
    assert loader(tree).next_boot().choices == [("other.efi (7.0)", [])]


def test_its_partition_must_be_mounted(host: Host, plant: Plant) -> None:
    plant(text("LoaderInfo", "systemd-boot 257.9"))
    with pytest.raises(Refused) as refused:
        bootloaders.detect(host)
    assert refused.value.code == "boot_not_mounted"


def test_a_unified_kernel_image_is_refused_by_name(tree: Host, plant: Plant) -> None:
    plant(text("StubInfo", "systemd-stub 257.9"))
    with pytest.raises(Refused) as refused:
        bootloaders.detect(tree)
    assert refused.value.code == "bootloader_unsupported" and "unified kernel image" in refused.value.message


def test_entries_of_random_bytes(tree: Host, plant: Plant) -> None:
    generator = random.Random(15)
    path = f"{ENTRIES}/{MACHINE}-{NEW}.conf"
    whole = entry(NEW).encode()
    for _round in range(300):
        content = bytearray(whole)
        for _change in range(generator.randrange(1, 20)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        plant({path: bytes(content)})
        before = snapshot(tree)
        ensure(tree)
        loader(tree).next_boot()
        forget(tree)
        assert snapshot(tree) == before


def test_hooks_write_entries_with_the_arguments_of_the_running_kernel(tree: Host, plant: Plant, transcript: Transcript) -> None:
    before = snapshot(tree)
    ensure(tree, arguments=(RESUME, "hibernate=nocompress"))
    with Transaction(tree) as tx:
        bootloader = loader(tree)
        bootloader.forget(tx, "resume")
        image = f"/boot/initrd.img-{NEW}"
        plant({image: "built since", f"{ENTRIES}/{MACHINE}-{OLD}.conf": entry(OLD, f"{ROOT} ro {RESUME} hibernate=nocompress quiet")})

        def kernel_install() -> None:
            plant({f"/boot/efi/{MACHINE}/{NEW}/initrd.img-{NEW}": "built since",
                   f"{ENTRIES}/{MACHINE}-{NEW}.conf": entry(NEW, f"{ROOT} ro hibernate=nocompress")})  # fmt: skip

        transcript.record(f"/usr/bin/kernel-install add {NEW} /boot/vmlinuz-{NEW} {image}", effect=kernel_install)
        bootloader.after_hooks(tx)
    assert snapshot(tree) == before


def test_removal_after_the_machine_got_grub(tree: Host, plant: Plant) -> None:
    """The settings are taken out of both."""
    before = snapshot(tree)
    ensure(tree)
    plant({**text("LoaderInfo", "GRUB 2.06"), "/usr/sbin/grub-mkconfig": "default/grub.d", "/boot/grub/grub.cfg": "", "/proc/cmdline": ""})
    os.chmod(tree.path("/usr/sbin/grub-mkconfig"), 0o755)
    assert bootloaders.detect(tree).name == "grub"
    with Transaction(tree) as tx:
        bootloaders.forget(tx, bootloaders.detect_for_removal(tree, "resume"), "resume")
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("", "x=1"),
        ("\n", "x=1\n"),
        ("ro", "ro x=1"),
        ("  ro  y=2 \n", "  ro x=1 \n"),
        ('a="b y=2 c" y=2\n', 'a="b y=2 c" x=1\n'),
        ('"y=2 3" ro\n', "ro x=1\n"),
        ("y=2\n", "x=1\n"),
    ],
)
def test_one_line(line: str, after: str) -> None:
    assert command_lines.changed(line, ["x=1"], ["y"]) == after
