# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of a configured machine after a boot: run by ``verify.yml`` with the scenario's inventory.

``machines.yml`` has the expectations of a scenario; ``/var/lib/molecule`` on a machine has copies of its original files.
"""

from __future__ import annotations

import re
import shlex

import pytest

testinfra_hosts = ["ansible://all"]

NAME = "NVM_SWAP"
DEVICE = "/dev/NVM_SWAP"
BEFORE = "/var/lib/molecule"


@pytest.fixture(scope="module")
def expected(host):
    """The machine's variables."""
    return host.ansible.get_variables()


@pytest.fixture(scope="module")
def block_device(host):
    """The target of the link, for example /dev/pmem0."""
    return host.check_output("readlink -e %s", DEVICE)


@pytest.fixture(scope="module")
def uuid(host, block_device):
    """The UUID of the swap area, from its header."""
    return host.check_output("blkid -p -o value -s UUID %s", block_device)


@pytest.fixture(scope="module")
def command_line(host):
    """The running kernel's arguments, as passed by the bootloader."""
    return host.check_output("cat /proc/cmdline").split()


@pytest.fixture(scope="module")
def info(host):
    return host.ansible("nvm.fastboot.nvm_info", check=False)


def test_link_leads_to_nvm(block_device):
    assert re.fullmatch(r"/dev/pmem\d+(\.\d+)?", block_device)


def test_link_is_made_by_a_rule_at_every_boot(host, block_device):
    assert NAME in host.check_output("udevadm info --query=symlink --name=%s", block_device).split()


def test_swap_is_active(host, block_device):
    areas = [line.split() for line in host.check_output("cat /proc/swaps").splitlines()[1:]]
    assert [(area[0], area[4]) for area in areas] == [(block_device, "10")]


def test_swap_has_its_label(host, block_device):
    assert host.check_output("blkid -p -o value -s LABEL %s", block_device) == NAME


def test_fstab_has_one_line_more(host, uuid):
    before = host.check_output("cat %s/etc/fstab; echo end", BEFORE).removesuffix("end")
    now = host.check_output("cat /etc/fstab; echo end").removesuffix("end")
    ours = [line for line in now.split("\n") if line not in before.split("\n")]
    assert len(ours) == 1
    assert ours[0].split()[::2][:2] == [f"UUID={uuid}", "swap"]
    lines = now.split("\n")
    lines.remove(ours[0])
    assert "\n".join(lines) == before


def test_settings_of_the_bootloader_are_untouched(host):
    host.check_output("cmp %s/etc/default/grub /etc/default/grub", BEFORE)


def test_kernel_was_told_where_to_resume_from(command_line, uuid):
    assert [word for word in command_line if word.startswith("resume")] == [f"resume=UUID={uuid}"]


def test_every_boot_entry_resumes(host, uuid):
    entries = [
        line.split()
        for line in host.check_output("cat /boot/grub/grub.cfg").splitlines()
        if re.match(r"\s+linux\s", line)
    ]
    assert len(entries) >= 2  # with the one for recovery
    for entry in entries:
        assert [word for word in entry if word.startswith("resume")] == [f"resume=UUID={uuid}"]


def test_other_arguments_reach_the_kernel(host):
    settings = host.check_output("cat /etc/default/grub")
    line = host.check_output("cat /proc/cmdline")
    arguments = shlex.split(line)
    assert "mitigations=off" in arguments
    if "note=" in settings:
        assert "note=two  words" in [word.replace('"', "") for word in arguments]
        assert 'systemd.setenv=A="b"' in line.replace("\\", "")


def test_kernel_resumes_from_the_device(host, block_device):
    numbers = host.check_output("stat -c '%%t %%T' %s", block_device).split()
    assert host.check_output("cat /sys/power/resume") == ":".join(str(int(each, 16)) for each in numbers)


def test_every_initramfs_has_the_drivers(host, expected):
    images = host.check_output("ls /boot/initrd.img-*").split()
    assert images
    for image in images:
        names = host.check_output(expected["image_listing"] + " %s", image)
        for driver in expected["expected_drivers"]:
            assert re.search(rf"/{driver}\.ko(\.\w+)?$", names, re.M), f"{image} lacks {driver}"


def test_namespace(info, expected, block_device):
    namespaces = [
        {"labelled": region["labelled"], **namespace}
        for region in info["regions"]
        for namespace in region["namespaces"]
        if namespace["blockdev"] == block_device.removeprefix("/dev/")
    ]
    assert len(namespaces) == 1
    assert {key: namespaces[0][key] for key in expected["expected_namespace"]} == expected["expected_namespace"]


def test_it_is_ready_to_hibernate(info):
    assert info["blockers"] == []
    assert info["ready"] is True
