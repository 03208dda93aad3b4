# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine unlike the others: two kernels, an NVDIMM with labels used in sector mode, another size and name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.vm import evidence, play, powercycle
from tests.vm.conftest import ODD_FILES, switched_on
from tests.vm.lab import Lab, Machine

DRIVERS = ("nfit", "libnvdimm", "nd_pmem", "nd_btt")


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    files = {**ODD_FILES, "/etc/hostname": "db-07.example.net\n"}
    with switched_on(lab.create("kernels", "debian12-two-kernels", memory=640, nvdimm=1024, labels=True, files=files)) as machine:
        machine.ssh("ndctl disable-region all && ndctl init-labels all && ndctl enable-region all")
        yield machine


def test_every_kernel_resumes_in_sector_mode(lab: Lab, machine: Machine) -> None:
    play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_mode": "sector", "nvm_reboot": True}).ok()
    (namespace,) = json.loads(machine.ssh("ndctl list --namespaces"))
    assert (namespace["mode"], namespace["name"]) == ("sector", "NVM_SWAP"), namespace
    device = machine.ssh("realpath /dev/NVM_SWAP").strip()
    assert re.fullmatch(r"/dev/pmem\d+s", device) and device in machine.ssh("cat /proc/swaps"), device

    images = machine.ssh("ls /boot/initrd.img-*").split()
    assert len(images) == 2, images
    for image in images:
        names = machine.ssh(f"lsinitramfs {image}")
        assert [driver for driver in DRIVERS if f"/{driver}.ko" not in names] == [], image
    uuid = machine.ssh(f"blkid -p -s UUID -o value {device}").strip()
    lines = re.findall(r"^\s+linux\s.*$", machine.ssh("cat /boot/grub/grub.cfg"), re.MULTILINE)
    assert len(lines) == 1 + 2 * len(images), lines  # the first entry, and a plain one and one for recovery of each kernel
    for line in lines:
        assert 'dyndbg="file nothing.c +p"' in line and re.findall(r"\sresume=(\S+)", line) == [f"UUID={uuid}"], line

    before = evidence.remember(machine)
    _played, cycle = powercycle.hibernate(lab, machine)
    assert cycle.power_was_off
    evidence.same_memory(before, machine, power_was_off=True)
