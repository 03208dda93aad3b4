# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that open the LUKS mapping with the swap area, and those that do not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import drivers, initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs import unlocking
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import devices, luks, target
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot import cpio
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.encrypted.encrypted_machine import (
    KEY_FILE,
    Machine,
)

KERNEL, RESUME = "6.1.0-50-amd64", "UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4"
IMAGE = "/boot/initrd.img-" + KERNEL
KEY = bytes(range(64))
NEEDED = {
    "initramfs-tools": {
        "init": "", "scripts/local-premount/resume": "", "bin/resume": "", "scripts/init-top/nvm-fastboot": "",
        "conf/conf.d/zz-nvm-fastboot-resume-" + RESUME[5:]: "", "scripts/local-top/cryptroot": "", "usr/sbin/cryptsetup": "",
    },
    "dracut": {
        "init": "", "usr/lib/systemd/systemd": "", "usr/lib/systemd/systemd-hibernate-resume": "",
        "usr/lib/systemd/system-generators/systemd-hibernate-resume-generator": "",
        "usr/lib/systemd/system/systemd-hibernate-resume.service": "", "usr/bin/systemd-cryptsetup": "",
        "usr/lib/systemd/system-generators/systemd-cryptsetup-generator": "",
    },
}  # fmt: skip
LINES = {
    "initramfs-tools": "NVM_SWAP UUID=%s /cryptroot/keyfiles/NVM_SWAP.key luks\n",
    "dracut": "NVM_SWAP /dev/disk/by-uuid/%s /etc/cryptsetup-keys.d/NVM_SWAP.key luks,force\n",
}
KEYS = {"initramfs-tools": "cryptroot/keyfiles/NVM_SWAP.key", "dracut": "etc/cryptsetup-keys.d/NVM_SWAP.key"}


class Case:
    """A machine that is encrypted with a key file, and an image of it."""

    def __init__(self, root: Path, kind: str) -> None:
        self.machine = Machine(root, kind)
        self.kind, self.host = kind, self.machine.host
        self.machine.write(KEY_FILE, KEY, 0o600)
        self.machine.encrypted(KEY, line=KEY_FILE + " luks,initramfs,nofail")
        self.machine.write("/boot/vmlinuz-" + KERNEL, b"")
        self.machine.write("/lib/modules/%s/modules.dep" % KERNEL, b"")
        self.files: dict[str, str | bytes] = {
            **NEEDED[kind], KEYS[kind]: KEY, unlocking_table(kind): LINES[kind] % self.machine.luks_uuid
        }
        self.mode = 0o600
        self.listed: list[str] = []
        self.host._run = self._run

    def _run(self, argv: list[str], data: Any = None) -> tuple[int, str, str]:
        self.listed.append(argv[0])
        if "lsinitrd" in argv[0]:
            return 0, "".join("-rw-r--r--   1 root     root            1 Nov 22 05:10 %s\n" % name for name in self.files), ""
        return 0, "".join(name + "\n" for name in self.files), ""

    def tool(self) -> Any:
        self.machine.write(IMAGE, cpio.cpio(self.files), self.mode)
        os.chmod(self.host.path(IMAGE), self.mode)
        tool = initramfs.detect(self.host)
        tool.unlock(luks.below(self.host, "/dev/NVM_SWAP") or luks.below(self.host, "/dev/dm-0"))
        return tool

    def missing(self) -> list[str]:
        found: list[str] = self.tool().missing(KERNEL, RESUME, [])
        return found


def unlocking_table(kind: str) -> str:
    return {"initramfs-tools": "cryptroot/crypttab", "dracut": "etc/crypttab"}[kind]


@pytest.fixture(params=["initramfs-tools", "dracut"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, request.param)


def test_an_image_that_opens_the_mapping(case: Case) -> None:
    assert case.missing() == []
    tool = case.tool()
    assert tool.complete(KERNEL, RESUME, [])
    case.listed.clear()
    assert tool.missing(KERNEL, RESUME, []) == [] and case.listed == [], "an image that was verified is read again"


@pytest.mark.parametrize("program", ["cryptsetup", "cryptroot", "systemd-cryptsetup", "systemd-cryptsetup-generator"])
def test_a_program_that_is_not_there(case: Case, program: str) -> None:
    names = [name for name in case.files if name.rpartition("/")[2] == program]
    for name in names:
        del case.files[name]
    found = case.missing()
    assert bool(names) == any("package" in problem and "cryptsetup" in problem for problem in found), found


def test_no_line_in_the_image(case: Case) -> None:
    case.files[unlocking_table(case.kind)] = "home UUID=1 none luks\n"
    assert case.missing() == ["a line for NVM_SWAP in its " + unlocking_table(case.kind)]
    case.machine.write("/proc/cmdline", b"quiet rd.luks.uuid=%s\n" % case.machine.luks_uuid.encode())
    assert case.missing() == []


def test_no_key_in_the_image(case: Case) -> None:
    del case.files[KEYS[case.kind]]
    assert case.missing() == ["the key file of NVM_SWAP, " + KEY_FILE]


def test_another_key_in_the_image(case: Case) -> None:
    case.files[KEYS[case.kind]] = bytes(64)
    assert "another one than " + KEY_FILE in case.missing()[0]


def test_the_key_is_changed_later(case: Case) -> None:
    tool = case.tool()
    assert tool.missing(KERNEL, RESUME, []) == []
    case.machine.write(KEY_FILE, bytes(64), 0o600)
    assert "another one than" in tool.missing(KERNEL, RESUME, [])[0]


def test_an_image_with_a_key_that_others_can_read(case: Case) -> None:
    case.mode = 0o644
    assert case.missing() == ["the mode 0600: it has a key, and other users can read it (0644)"]


def test_a_passphrase_needs_no_private_image(case: Case) -> None:
    case.mode = 0o644
    case.machine.write("/etc/crypttab", b"NVM_SWAP UUID=%s none luks,initramfs\n" % case.machine.luks_uuid.encode())
    del case.files[KEYS[case.kind]]
    assert case.missing() == []


def test_modules_of_newer_dracut(tmp_path: Path) -> None:
    """Debian 13: the module crypt leaves systemd-cryptsetup to another one."""
    case = Case(tmp_path, "dracut")
    case.machine.write("/usr/lib/dracut/modules.d/01systemd-cryptsetup/module-setup.sh", b"")
    case.machine.write("/etc/crypttab", b"NVM_SWAP UUID=%s none luks,tpm2-device=auto\n" % case.machine.luks_uuid.encode())
    with Transaction(case.host) as tx:
        case.tool().configure(tx, RESUME, ["nd_pmem"])
    text = str(case.host.read("/etc/dracut.conf.d/99-nvm-fastboot.conf"))
    assert 'add_dracutmodules+=" crypt systemd-cryptsetup tpm2-tss "\n' in text and "install_items" not in text


def test_libraries_for_the_tpm(tmp_path: Path) -> None:
    case = Case(tmp_path, "dracut")
    case.machine.write("/etc/crypttab", b"NVM_SWAP UUID=%s none luks,tpm2-device=auto\n" % case.machine.luks_uuid.encode())
    assert case.missing() == [name + ", for the TPM" for name in ("libtss2-esys.so.0", "libtss2-tcti-device.so.0", "libcryptsetup.so")]
    for name in ("libtss2-esys.so.0.0.0", "libtss2-tcti-device.so.0", "libcryptsetup.so.12"):
        case.files["usr/lib/x86_64-linux-gnu/" + name] = ""
    assert case.missing() == []


@pytest.mark.parametrize(("kind", "word", "off"), [
    ("dracut", "rd.luks=0", True), ("dracut", "luks.crypttab=no", True), ("dracut", "rd.luks.crypttab=1", False),
    ("dracut", "rd.lvm=0", False), ("initramfs-tools", "luks.crypttab=no", False),  # of systemd alone
])  # fmt: skip
def test_arguments_that_switch_it_off(tmp_path: Path, kind: str, word: str, off: bool) -> None:
    case = Case(tmp_path, kind)
    assert case.missing() == []  # and a record of that
    case.machine.write("/proc/cmdline", ("root=/dev/vda1 ro %s" % word).encode())
    assert case.missing() == (["the opening of LUKS, which %s switches off" % word] if off else [])
    assert case.tool().excluded(["nd_pmem"]) == (["Remove %s from the bootloader's settings, and reboot." % word] if off else [])


# settings ----------------------------------------------------------------------------------------------------------------


def test_settings_of_the_image(case: Case) -> None:
    tool = case.tool()
    with Transaction(case.host) as tx:
        tool.configure(tx, RESUME, ["nd_pmem"])
    if case.kind == "dracut":
        text = str(case.host.read("/etc/dracut.conf.d/99-nvm-fastboot.conf"))
        assert 'add_dracutmodules+=" crypt "\n' in text and 'install_items+=" %s "\n' % KEY_FILE in text
    else:
        assert "\nUMASK=0077\n" in str(case.host.read("/etc/initramfs-tools/conf.d/zz-nvm-fastboot-resume-" + RESUME[5:]))
        assert case.machine.mode("/etc/initramfs-tools/hooks/nvm-fastboot-luks") == 0o755
    tool.unlock([])
    with Transaction(case.host) as tx:
        assert tool.configure(tx, RESUME, ["nd_pmem"])
    assert not case.host.exists("/etc/initramfs-tools/hooks/nvm-fastboot-luks")


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_the_hook_puts_key_and_line_into_the_image(tmp_path: Path, shell: str) -> None:
    """The hook itself is run, with the crypttab that the package's hook leaves of a key file that its pattern does not name."""
    if shutil.which(shell) is None:
        pytest.skip("no " + shell)
    case = Case(tmp_path / "machine", "initramfs-tools")
    tool = case.tool()
    with Transaction(case.host) as tx:
        tool.configure(tx, RESUME, [])
    image = tmp_path / "image"
    (image / "cryptroot").mkdir(parents=True)
    (image / "cryptroot/crypttab").write_text(
        "root UUID=1 none luks\nNVM_SWAP UUID=2 /FIXME-initramfs-rootmnt%s luks\nNVM_SWAP_2 UUID=3 none luks\n" % KEY_FILE
    )
    functions = tmp_path / "functions"
    functions.write_text("")
    script = str(case.host.read("/etc/initramfs-tools/hooks/nvm-fastboot-luks"))
    script = script.replace("/usr/share/initramfs-tools/hook-functions", str(functions))
    script = script.replace("cp /etc/", "cp %s/etc/" % case.host.root)
    command = [shell, "-c", script, "hook"] if shell == "dash" else [shell, "sh", "-c", script, "hook"]
    subprocess.run(command, check=True, env={"DESTDIR": str(image), "PATH": os.environ["PATH"]})
    assert (image / "cryptroot/keyfiles/NVM_SWAP.key").read_bytes() == KEY
    assert (image / "cryptroot/keyfiles/NVM_SWAP.key").stat().st_mode & 0o077 == 0
    line = "NVM_SWAP UUID=%s /cryptroot/keyfiles/NVM_SWAP.key luks,initramfs,nofail\n" % case.machine.luks_uuid
    assert (image / "cryptroot/crypttab").read_text() == "root UUID=1 none luks\nNVM_SWAP_2 UUID=3 none luks\n" + line


def test_an_image_with_a_key_is_private_from_the_start(case: Case) -> None:
    case.mode = 0o644
    tool = case.tool()
    tool._create_private(IMAGE)
    assert case.machine.mode(IMAGE + ".nvm-fastboot-new") == 0o600


# what is below, and above ---------------------------------------------------------------------------------------------------


def test_the_device_leads_to_the_mapping(case: Case) -> None:
    found = target.find(case.host, "/dev/NVM_SWAP")
    assert (found.given, found.block.name) == ("/dev/mapper/NVM_SWAP", "dm-0")
    assert target.find(case.host, "/dev/mapper/NVM_SWAP") == found
    header = found.header(case.host)
    assert header is not None and header.uuid == case.machine.swap_uuid
    found.check(case.host)


def test_drivers_of_the_mapping(case: Case) -> None:
    for module in ("dm_crypt", "xts", "aesni_intel", "dm_mod"):
        case.machine.write("/sys/module/%s/initstate" % module, b"live\n")
    found = drivers.drivers_for(case.host, devices.block_device(case.host, "/dev/mapper/NVM_SWAP"))
    assert {"dm_crypt", "xts", "aesni_intel"} <= set(found) and "cbc" not in found


def test_arguments_where_others_name_what_is_opened(tmp_path: Path) -> None:
    case = Case(tmp_path, "dracut")
    ours = "rd.luks.uuid=" + case.machine.luks_uuid
    mappings = luks.below(case.host, "/dev/mapper/NVM_SWAP")
    for words, wanted in (
        ("quiet", []),
        ("rd.luks.uuid=0b7b6c2e", [ours]),
        ("rd.luks.name=0b7b6c2e=root " + ours, [ours]),  # kept
        (ours, []),
        ("luks.name=%s=NVM_SWAP" % case.machine.luks_uuid, []),
    ):
        case.machine.write("/proc/cmdline", words.encode())
        assert unlocking.arguments(case.host, mappings) == wanted, words
    assert initramfs.TOOLS[0](Host(None)).unlock_arguments() == []
