# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB with blscfg: entries in files are changed in place and brought back, beside the entries that grub-mkconfig generates."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import bls
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.loader_entries import GrubBls
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

VERSION, OLD = "7.2.12+deb14-cloud-amd64", "7.2.9+deb14-cloud-amd64"
MACHINE = "0123456789abcdef0123456789abcdef"
ROOT = "4d4e577a-b20f-4bca-a225-4268fff9091d"
GRUB_CFG, MKCONFIG = "/boot/grub/grub.cfg", "/usr/sbin/grub-mkconfig"
SETTINGS = "/etc/default/grub.d/zz-nvm-fastboot-resume.cfg"
MOUNTS = "25 1 8:2 / / rw - ext4 /dev/vda2 rw\n26 25 8:1 / /boot/efi rw - vfat /dev/vda1 rw\n"
BASE = {
    "/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-%s root=UUID=%s ro quiet\n" % (VERSION, ROOT), "/proc/self/mountinfo": MOUNTS,
    "/etc/machine-id": MACHINE + "\n", "/var/lib/dpkg/status": "", "/etc/default/grub.d/mine.cfg": "",
    **{"/boot/%s-%s" % (name, version): name for name in ("vmlinuz", "initrd.img") for version in (VERSION, OLD)},
}  # fmt: skip
# of grub-mkconfig 2.14-4
HEADER = """\
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
"""
GENERATED = """\
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
\tsearch --no-floppy --fs-uuid --set=root %s
\tlinux\t/boot/vmlinuz-%s root=UUID=%s ro  quiet
\tinitrd\t/boot/initrd.img-%s
}
""" % (ROOT, VERSION, ROOT, VERSION)
BY_HAND = """\
# mine
title    Debian with Linux %(version)s
version  %(version)s
linux    /boot/vmlinuz-%(version)s
initrd   /boot/initrd.img-%(version)s
options  root=UUID=%(root)s ro  quiet resume=/dev/vda9
"""
LISTED = "/boot/loader/entries/debian-%s.conf"
DEBIAN = {
    **BASE, MKCONFIG: "default/grub.d", "/boot/grub/x86_64-efi/command.lst": "*cat: cat\n*blscfg: blsuki\n*uki: blsuki\n",
    GRUB_CFG: HEADER + "blscfg --path /boot/loader/entries\n",
    **{LISTED % version: BY_HAND % {"version": version, "root": ROOT} for version in (VERSION, OLD)},
    LISTED % "other": BY_HAND % {"version": VERSION, "root": "dead"},
}  # fmt: skip

loader = partial(detected, name="grub-bls")


@pytest.fixture
def tree(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch, transcript: Transcript) -> Host:
    """Debian 14, with entries that an administrator wrote."""
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    plant({**DEBIAN, "/dev/vda1": "", "/dev/vda2": ""})
    os.chmod(host.path(MKCONFIG), 0o755)
    os.makedirs(host.path("/dev/disk/by-uuid"))
    os.symlink("../../vda2", host.path("/dev/disk/by-uuid/" + ROOT))
    os.symlink("../../vda1", host.path("/dev/disk/by-uuid/20B0-474F"))

    def generate() -> None:
        """As grub-mkconfig: generated entries have what our settings pass."""
        text = (host.read(GRUB_CFG) or "").replace(" " + RESUME, "")
        if RESUME in host.read(SETTINGS, ""):
            text = text.replace("ro  quiet", "ro  quiet " + RESUME)
        plant({GRUB_CFG + ".nvm-fastboot": text})

    transcript.record(MKCONFIG + " -o %s.nvm-fastboot" % GRUB_CFG, effect=generate)
    return host


@pytest.mark.parametrize("generated", ["", GENERATED])
def test_changed_and_brought_back(tree: Host, plant: Plant, generated: str) -> None:
    plant({GRUB_CFG: DEBIAN[GRUB_CFG] + generated})
    before = everything(tree)
    assert ensure(tree, check_mode=True) and everything(tree) == before
    assert ensure(tree) and not ensure(tree)
    entries = loader(tree).entries()
    assert [each.kernel for each in entries] == ["/boot/vmlinuz-" + version for version in (VERSION, OLD, VERSION)[: 2 + bool(generated)]]
    assert all(RESUME in each.arguments and each.initrds for each in entries)
    assert loader(tree).check(entries, [RESUME], DROP) == []
    assert tree.read(LISTED % VERSION, "").endswith("options  root=UUID=%s ro  quiet %s\n" % (ROOT, RESUME))
    assert tree.read(LISTED % "other") == DEBIAN[LISTED % "other"]
    assert not tree.exists("/etc/kernel/cmdline")
    assert forget(tree) and not forget(tree)
    assert everything(tree) == before


def test_a_failure_leaves_nothing(tree: Host, plant: Plant) -> None:
    """An entry that no setting reaches: its options are in a key that GRUB does not read."""
    plant({LISTED % OLD: (BY_HAND % {"version": OLD, "root": ROOT}).replace("options", "\noptions")})
    before = everything(tree)
    with pytest.raises(Refused) as refused:
        ensure(tree)
    assert refused.value.code == "bootloader_incomplete" and OLD in refused.value.message
    assert everything(tree) == before


@pytest.mark.parametrize(
    ("files", "title", "reason"),
    [
        ({}, "Debian with Linux " + VERSION, "default=0"),  # by version, not by name
        ({"/boot/grub/grubenv": "# GRUB Environment Block\nnext_entry=debian-%s\n" % OLD}, "Debian with Linux " + OLD, "next_entry"),
        ({GRUB_CFG: HEADER.replace('"0"', '"2"') + "blscfg --path /boot/loader/entries\n"}, "Debian with Linux " + OLD, "default=2"),
        ({GRUB_CFG: HEADER + GENERATED + "blscfg --path /boot/loader/entries\n"}, "Debian GNU/Linux", "default=0"),
    ],
)  # fmt: skip
def test_the_next_boot(tree: Host, plant: Plant, files: dict[str, Any], title: str, reason: str) -> None:
    plant({LISTED % "other": DEBIAN[LISTED % "other"].replace("title ", "title X"), **files})
    os.rename(tree.path(LISTED % "other"), tree.path("/boot/loader/entries/debian-7.2.10.conf"))
    boot = loader(tree).next_boot()
    assert [each for each, _entries in boot.choices] == [title] and reason in boot.reason
    assert boot.choices[0][1][0].kernel.endswith(title.rpartition(" ")[2] if "with" in title else VERSION)
    assert "debian-%s" % OLD in boot.remedy("/boot/vmlinuz-" + OLD) or "next_entry" in boot.remedy(None)


def test_another_system_starts_next(tree: Host, plant: Plant) -> None:
    plant({"/boot/loader/entries/zz.conf": DEBIAN[LISTED % "other"], "/boot/loader/entries/zzz.conf": "title nothing\n"})
    assert loader(tree).next_boot().choices[0][1] == []


def test_conflicting_settings(tree: Host, plant: Plant) -> None:
    ensure(tree)
    assert loader(tree).find_setting(("noresume",)) is None
    plant({LISTED % OLD: (tree.read(LISTED % OLD) or "").replace("quiet", "quiet noresume")})
    assert loader(tree).find_setting(("noresume",)) == (LISTED % OLD, "noresume")
    plant({"/etc/default/grub.d/mine.cfg": "GRUB_CMDLINE_LINUX=noresume\n"})
    assert loader(tree).find_setting(("noresume",)) == ("/etc/default/grub.d/mine.cfg", "noresume")


def test_an_entry_without_initramfs(tree: Host, plant: Plant) -> None:
    plant({LISTED % OLD: "linux /boot/vmlinuz-%s\ninitrd /boot/missing\noptions ro\n" % OLD})
    assert "without an initramfs" in " ".join(loader(tree).check(loader(tree).entries(), [RESUME], DROP))


def test_only_what_grub_has_counts(tree: Host, plant: Plant) -> None:
    """GRUB 2.06 and 2.12 have no such command, and go on after it."""
    plant({"/boot/grub/x86_64-efi/command.lst": "*cat: cat\n", GRUB_CFG: DEBIAN[GRUB_CFG] + GENERATED})
    assert bootloaders.detect(tree).name == "grub"
    assert [each.title for each in bootloaders.detect(tree).entries()] == ["Debian GNU/Linux"]


def test_removed_after_blscfg_was_taken_out(tree: Host, plant: Plant) -> None:
    ensure(tree)
    plant({GRUB_CFG: HEADER + GENERATED.replace("quiet", "quiet " + RESUME)})
    assert bootloaders.detect(tree).name == "grub"
    with Transaction(tree) as tx:
        bootloaders.forget(tx, bootloaders.detect_for_removal(tree, "resume", [RESUME]), "resume", [RESUME])
    assert tree.read(LISTED % VERSION) == DEBIAN[LISTED % VERSION]
    assert tree.read(GRUB_CFG) == HEADER + GENERATED and not tree.exists(SETTINGS)


# kernel-install ------------------------------------------------------------------------------------------------------

COPIED = "/boot/efi/loader/entries/%s-%s.conf" % (MACHINE, VERSION)
COPIES = "/boot/efi/%s/%s" % (MACHINE, VERSION)
INSTALLED = {  # as 90-loaderentry.install of systemd 261 writes it
    GRUB_CFG: HEADER + "search --no-floppy --fs-uuid --set=root 20B0-474F\nblscfg\n",
    COPIED: """\
# Boot Loader Specification type#1 entry
# File created by /usr/lib/kernel/install.d/90-loaderentry.install (systemd 261)
title      Debian GNU/Linux forky/sid
version    %s
machine-id %s
sort-key   debian
options    root=UUID=%s ro quiet systemd.machine_id=%s
linux      /%s/%s/linux
initrd     /%s/%s/initrd.img-%s
""" % (VERSION, MACHINE, ROOT, MACHINE, MACHINE, VERSION, MACHINE, VERSION, VERSION),
    COPIES + "/linux": "vmlinuz", COPIES + "/initrd.img-" + VERSION: "initrd.img", "/usr/bin/kernel-install": "",
    # not on the filesystem that is searched for
    "/loader/entries/stale.conf": BY_HAND % {"version": VERSION, "root": ROOT},
}  # fmt: skip


@pytest.fixture
def copied(tree: Host, plant: Plant) -> Host:
    plant(INSTALLED)
    os.chmod(tree.path("/usr/bin/kernel-install"), 0o755)
    return tree


def test_entries_of_kernel_install(copied: Host) -> None:
    before = everything(copied)
    assert ensure(copied) and not ensure(copied)
    [entry] = loader(copied).entries()
    assert entry.kernel == "/boot/vmlinuz-" + VERSION and entry.initrds == (COPIES + "/initrd.img-" + VERSION,)
    assert loader(copied).check([entry], [RESUME], DROP) == []
    assert copied.read("/etc/kernel/cmdline") == "root=UUID=%s ro quiet %s\n" % (ROOT, RESUME)
    assert forget(copied)
    assert everything(copied) == before


def test_a_copy_that_is_out_of_date(copied: Host, plant: Plant, transcript: Transcript) -> None:
    ensure(copied)
    plant({"/boot/initrd.img-" + VERSION: "new"})
    [problem] = loader(copied).check(loader(copied).entries(), [RESUME], DROP)
    assert "not the same as /boot/initrd.img-" in problem
    transcript.record(
        "/usr/bin/kernel-install add %s /boot/vmlinuz-%s /boot/initrd.img-%s" % (VERSION, VERSION, VERSION),
        effect=lambda: plant({COPIES + "/initrd.img-" + VERSION: "new"}))
    assert ensure(copied) and not ensure(copied)


def test_a_unified_kernel_image_in_the_menu(copied: Host, plant: Plant) -> None:
    plant({GRUB_CFG: INSTALLED[GRUB_CFG] + "uki\n", "/boot/efi/EFI/Linux/debian.efi": "MZ", "/boot/grub/grubenv":
           "# GRUB Environment Block\nnext_entry=debian.efi\n"})  # fmt: skip
    assert loader(copied).next_boot().choices == [("debian.efi", [])]


# Fedora --------------------------------------------------------------------------------------------------------------

FEDORA_VERSION = "6.17.4-300.fc43.x86_64"
FEDORA_ENTRY = "/boot/loader/entries/%s-%s.conf" % (MACHINE, FEDORA_VERSION)
FEDORA = {
    "/proc/cmdline": "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-%s root=UUID=%s ro rhgb quiet\n" % (FEDORA_VERSION, ROOT),
    "/proc/self/mountinfo": "25 1 0:30 /root / rw - btrfs /dev/vda3 rw\n26 25 8:2 / /boot rw - ext4 /dev/vda2 rw\n",
    "/etc/machine-id": MACHINE + "\n", "/etc/default/grub": 'GRUB_CMDLINE_LINUX="rhgb quiet"\nGRUB_ENABLE_BLSCFG=true\n',
    "/etc/grub.d/10_linux": "blscfg\n", "/usr/sbin/grub2-mkconfig": ". /etc/default/grub\n", "/usr/bin/kernel-install": "",
    "/boot/grub2/grub.cfg": HEADER + "insmod blscfg\nblscfg\n", "/boot/grub2/grubenv": "# GRUB Environment Block\nkernelopts=rhgb quiet\n",
    "/boot/vmlinuz-" + FEDORA_VERSION: "", "/boot/initramfs-%s.img" % FEDORA_VERSION: "", "/etc/kernel/cmdline": "root=UUID=%s ro\n" % ROOT,
    FEDORA_ENTRY: """\
title Fedora Linux (%s) 43 (Server Edition)
version %s
linux /vmlinuz-%s
initrd /initramfs-%s.img $tuned_initrd
options root=UUID=%s ro $kernelopts
grub_users $grub_users
grub_arg --unrestricted
grub_class fedora
""" % (FEDORA_VERSION, FEDORA_VERSION, FEDORA_VERSION, FEDORA_VERSION, ROOT),
    "/var/lib/rpm/rpmdb.sqlite": "",
}  # fmt: skip


def test_fedora(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    plant(FEDORA)
    for path in ("/usr/sbin/grub2-mkconfig", "/usr/bin/kernel-install"):
        os.chmod(host.path(path), 0o755)
    before = everything(host)
    assert ensure(host) and not ensure(host)
    [entry] = loader(host).entries()
    assert entry.arguments == ["root=UUID=%s" % ROOT, "ro", "rhgb", "quiet", RESUME]
    assert (entry.kernel, entry.initrds) == ("/boot/vmlinuz-" + FEDORA_VERSION, ("/boot/initramfs-%s.img" % FEDORA_VERSION,))
    assert host.read("/etc/kernel/cmdline") == "root=UUID=%s ro %s\n" % (ROOT, RESUME)
    assert forget(host)
    assert everything(host) == before


# 00_header of Fedora and RHEL, GRUB_DEFAULT=saved
FEDORA_HEADER = HEADER.replace(
    "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n",
    "if [ -f ${config_directory}/grubenv ]; then\n  load_env -f ${config_directory}/grubenv\nelif [ -s $prefix/grubenv ]; then\n",
).replace('"0"', '"${saved_entry}"')


def test_a_remedy_names_a_command_where_the_entries_are_files(host: Host) -> None:
    found = GrubBls(host, None, "/boot/grub2/grub.cfg")
    assert (found.generator, found.update) == ("grub2-mkconfig -o /boot/grub2/grub.cfg", "")


def test_the_default_of_fedora_is_in_a_block_that_is_named(host: Host, plant: Plant) -> None:
    """Its GRUB compares names first: the id of an entry begins with the machine id, which may begin with digits."""
    before, entry = "6.17.1-300.fc43.x86_64", FEDORA[FEDORA_ENTRY]
    plant({
        **FEDORA,
        "/etc/default/grub": "GRUB_DEFAULT=saved\n",
        "/boot/grub2/grub.cfg": FEDORA_HEADER + "blscfg\n",
        "/boot/grub2/grubenv": "# GRUB Environment Block\nsaved_entry=%s-%s\nmenu_auto_hide=1\n" % (MACHINE, before),
        "/boot/vmlinuz-" + before: "",
        FEDORA_ENTRY.replace(FEDORA_VERSION, before): entry.replace(FEDORA_VERSION, before),
    })  # fmt: skip
    boot = loader(host).next_boot()
    assert [entry.kernel for _title, entries in boot.choices for entry in entries] == ["/boot/vmlinuz-" + before]
    assert boot.reason == "saved_entry=%s-%s in /boot/grub2/grubenv" % (MACHINE, before)
    assert boot.remedy("/boot/vmlinuz-" + FEDORA_VERSION) == "Run: grub2-editenv /boot/grub2/grubenv set saved_entry=%s-%s." % (
        MACHINE, FEDORA_VERSION)


# files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("linux /a\noptions b c\noptions d\ninitrd /e\ninitrd /f\n", "linux /a b c\ninitrd /e /f\n"),
        ("  linux\t/a  \n# options x\n\noptions b\n", "linux /a \n"),
        ("linux /a\nquiet\noptions b\n", "linux /a \n"),
        ("title x\n", None),
        ("", None),
    ],
)
def test_what_grub_reads_of_a_file(text: str, commands: str | None) -> None:
    found = bls.snippet("/boot/loader/entries/a.conf", text)
    assert (found and found.commands) == commands


@pytest.mark.parametrize(
    ("words", "defaults", "names"),
    [
        ("blscfg", {"0"}, ["b-6.10", "b-6.9", "b-6.9~rc1", "a"]),
        ("blscfg -d", {"b-6.9.conf"}, ["b-6.9"]),
        ("blscfg --show-non-default", {"0"}, ["b-6.9", "b-6.9~rc1", "a"]),
        ("blscfg --path /x -e a.conf", {"0"}, ["a"]),
        ("blscfg --entry=b-6.9.conf -d", {"A"}, ["b-6.9", "a"]),
    ],
)
def test_which_entries_are_shown(words: str, defaults: set[str], names: list[str]) -> None:
    snippets = [bls.snippet("/x/%s.conf" % name, "title %s\nlinux /k\n" % name.upper()) for name in ("a", "b-6.9", "b-6.10", "b-6.9~rc1")]
    assert [each.identifier for each in bls.selected(words.split(), snippets, defaults)] == names


@pytest.mark.parametrize(
    ("words", "expected"),
    [("blscfg", "/loader/entries"), ("uki", "/EFI/Linux"), ("blscfg -p /x", "/x"), ("blscfg -f --path=(hd0,gpt1)/y -d", "(hd0,gpt1)/y")],
)
def test_the_directory(words: str, expected: str) -> None:
    assert bls.directory(words.split()) == expected
