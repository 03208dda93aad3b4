# SPDX-License-Identifier: GPL-3.0-or-later
"""The role hibernate_to_nvm with its real modules, on a recorded machine: what is refused, or looked at, before anything is changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot import cpio
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.nvm_tree import GIB, Tree

REPOSITORY = Path(__file__).resolve().parents[3]
MODULES = (
    "boot_image", "boot_resume", "boot_root", "boot_slots", "boot_snapshot", "fstab_swap", "hibernate_trigger", "nvm_info",
    "nvm_plan", "nvm_reservation", "nvm_swap", "swap_file",
)  # fmt: skip
KERNEL = "6.1.0-49-amd64"
UUID = "6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4"
# In a module: the machine is the recorded one, which has no commands but these.
RECORDED = """\
import os
from ansible_collections.nvm.fastboot.plugins.module_utils._core import host as _host
def _run(argv, data):
    answers = {"blkid": (2, "", ""), "busctl": (1, "", ""), "lsinitramfs": (0, "init\\n", "")}
    if os.path.basename(argv[0]) not in answers:
        raise AssertionError("a change: %s" % " ".join(argv))
    return answers[os.path.basename(argv[0])]
_host.Host.of = classmethod(lambda cls, module, directory="/": cls(_run, root=os.environ["ROLE_TEST"]))
"""
PLAY = {
    "hosts": "all",
    "gather_facts": False,
    "environment": {"ROLE_TEST": "{{ test_directory }}"},
    "roles": [{"role": "nvm.fastboot.hibernate_to_nvm"}],
}
FILES: dict[str, str] = {
    "/usr/sbin/grub-mkconfig": "default/grub.d",
    "/usr/sbin/mkinitramfs": "",
    "/usr/bin/lsinitramfs": "",
    "/usr/share/initramfs-tools/hook-functions": "",
    "/etc/initramfs-tools/conf.d/.keep": "",
    "/etc/kernel/postinst.d/initramfs-tools": "",
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX="quiet"\n',
    "/etc/default/grub.d/.keep": "",
    "/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/boot/config-" + KERNEL: "CONFIG_HIBERNATION=y\nCONFIG_CRYPTO_LZO=y\n",
    "/boot/vmlinuz-" + KERNEL: "",
    "/boot/grub/grub.cfg": "menuentry 'Debian' {\n\tlinux /vmlinuz-%s root=/dev/vda1 ro quiet\n\tinitrd /initrd.img-%s\n}\n"
    % (KERNEL, KERNEL),
    "/lib/modules/%s/modules.dep" % KERNEL: "".join(
        "kernel/drivers/%s.ko:\n" % name for name in ("acpi/nfit/nfit", "nvdimm/libnvdimm", "nvdimm/nd_pmem", "nvdimm/nd_btt")),
    "/proc/sys/kernel/osrelease": KERNEL + "\n",
    "/sys/power/disk": "[platform] shutdown\n",
    "/sys/power/resume": "0:0\n",
    "/sys/bus/nd/drivers/nd_pmem/uevent": "",
}  # fmt: skip


class Machine:
    """A Debian machine with an NVDIMM with labels that is free, GRUB and initramfs-tools; without ndctl."""

    def __init__(self, directory: Path, **files: str) -> None:
        self.root = directory
        directory.mkdir()
        tree = Tree(Host(lambda argv, data: (1, "", ""), root=str(directory)))
        tree.region(labelled=True, available=2 * GIB, slots=500)
        for path, text in {**FILES, **files}.items():
            tree.write(path, text)
            if "bin/" in path:
                Path(tree.root, path[1:]).chmod(0o755)
        tree.write("/boot/initrd.img-" + KERNEL, cpio.cpio({"init": ""}))
        self.remove = lambda path: Path(tree.root, path[1:]).unlink()
        self.output = ""

    def state(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file() and "/sys/" not in str(path)}


def play(
    directory: Path, machines: dict[str, Machine], variables: dict[str, Any], *flags: str, content: dict[str, Any] | None = None
) -> dict[str, dict[str, int]]:
    """Plays the role on the machines, and returns Ansible's counts for each; what was said about it is in its C(output)."""
    collection = directory / "ansible_collections" / "nvm" / "fastboot"
    if not collection.exists():
        (collection / "plugins" / "modules").mkdir(parents=True)
        (collection / "roles").symlink_to(REPOSITORY / "roles")
        (collection / "plugins" / "module_utils").symlink_to(REPOSITORY / "plugins" / "module_utils")
        for name in MODULES:
            text = (REPOSITORY / "plugins" / "modules" / (name + ".py")).read_text()
            future = "from __future__ import annotations\n"
            (collection / "plugins" / "modules" / (name + ".py")).write_text(text.replace(future, future + RECORDED, 1))
    own = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {name: {**own, **variables, "test_directory": str(machine.root)} for name, machine in machines.items()}
    (directory / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (directory / "play.yml").write_text(json.dumps([content or PLAY]))
    environment = dict(
        os.environ,
        ANSIBLE_COLLECTIONS_PATH=str(directory),
        ANSIBLE_LOCAL_TEMP=str(directory / "tmp"),
        ANSIBLE_REMOTE_TEMP=str(directory / "tmp"),
        ANSIBLE_NOCOLOR="true",
    )
    # Not by the command's name: ansible-test has another ansible-core than the one on PATH.
    program = "import sys; from ansible.cli.playbook import PlaybookCLI; PlaybookCLI.cli_executor(sys.argv)"
    command = [sys.executable, "-c", program, "-i", "inventory.json", *flags, "play.yml"]
    done = subprocess.run(command, cwd=str(directory), env=environment, capture_output=True, text=True, check=False)
    counts = {}
    for name, machine in machines.items():
        said = re.findall(r"(?ms)^fatal: \[%s\].*?(?=^\S|\Z)" % name, done.stdout)
        machine.output = said[-1] if said else done.stdout
        counted = re.search(r"(?m)^%s\s+: (.*)$" % name, done.stdout)
        assert counted, done.stdout + done.stderr
        counts[name] = {word: int(count) for word, count in re.findall(r"(\w+)=(\d+)", counted.group(1))}
    return counts


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pytest.importorskip("ansible.cli")
    return tmp_path


def test_the_first_look_at_a_machine_without_ndctl(directory: Path) -> None:
    machine = Machine(directory / "plain")
    before = machine.state()
    counts = play(directory, {"plain": machine}, {"nvm_triggers": [{"condition": "power_key"}]}, "--check", "--diff")
    assert counts["plain"]["failed"] == 0 and counts["plain"]["changed"] == 2, machine.output
    for text in ("name: NVM_SWAP", "The package ndctl would be installed", "swap swap", "resume=UUID=", "HandlePowerKey=hibernate"):
        assert text in machine.output, machine.output
    assert machine.state() == before


def test_what_refuses_at_the_boot_configuration_refuses_first(directory: Path) -> None:
    machines = {
        "bootloader": Machine(directory / "bootloader"),
        "initramfs": Machine(directory / "initramfs"),
        "argument": Machine(directory / "argument", **{"/etc/default/grub": 'GRUB_CMDLINE_LINUX="noresume"\n'}),
    }
    machines["bootloader"].remove("/usr/sbin/grub-mkconfig")
    machines["initramfs"].remove("/usr/sbin/mkinitramfs")
    before = {name: machine.state() for name, machine in machines.items()}
    counts = play(directory, machines, {"nvm_reboot": True})
    for name, text in (("bootloader", "No supported bootloader"), ("initramfs", "No supported initramfs tool"), ("argument", "noresume")):
        assert counts[name]["failed"] == 1 and text in machines[name].output, machines[name].output
        assert "Nothing was changed." in machines[name].output
        assert machines[name].state() == before[name]


def test_absent_stops_before_it_destroys_where_resume_stays(directory: Path) -> None:
    """At that moment the bootloader, or the initramfs tool, is not recognised; its settings are there."""
    settings = {"/etc/default/grub.d/zz-nvm-fastboot-resume.cfg": 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX resume=UUID=%s"\n' % UUID}
    settings["/etc/fstab"] = FILES["/etc/fstab"] + "UUID=%s swap swap nofail,pri=10 0 0\n" % UUID
    tools = {"/etc/initramfs-tools/conf.d/zz-nvm-fastboot-resume-" + UUID: "RESUME=UUID=%s\n" % UUID}
    machines = {
        "bootloader": Machine(directory / "bootloader", **settings),
        "initramfs": Machine(directory / "initramfs", **tools),
    }
    machines["bootloader"].remove("/usr/sbin/grub-mkconfig")
    machines["initramfs"].remove("/usr/sbin/mkinitramfs")
    before = {name: machine.state() for name, machine in machines.items()}
    counts = play(directory, machines, {"nvm_state": "absent"})
    for name, machine in machines.items():
        assert counts[name]["failed"] == 1 and "zz-nvm-fastboot-resume" in machine.output, machine.output
        assert "Nothing was changed." in machine.output and machine.state() == before[name]
