# SPDX-License-Identifier: GPL-3.0-or-later
"""Each kind of machine, from plain to configured, through a hibernation with the power off, and back to plain.

``make reach`` runs it; ``make reach CELLS=debian13-systemd-boot`` one kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm import evidence, play
from tests.vm.conftest import MEMORY, off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.reach import encrypted
from tests.vm.reach.cells import CELLS, Cell, chosen
from tests.vm.reach.tpm import WithTpm
from tests.vm.restoring import hibernate, wake

# What decides how the machine boots. Times and inodes do not count; the initramfs is built again.
CONFIGURATION = (
    "cd / && for each in /boot/efi/loader /boot/refind_linux.conf /boot/grub/grub.cfg /boot/loader /boot/extlinux /etc"
    " /sys/firmware/efi/efivars/Boot0*; do"
    " [ ! -e $each ] || find $each -type f ! -path '/etc/ld.so.cache' ! -path '/etc/machine-id' ! -path '*random-seed' ! -path '*/grubenv'"
    " -exec sha256sum {} +; done | sort -k 2; ls /var/lib/nvm-fastboot 2>/dev/null;"
    " for each in /boot/efi/EFI/Linux/*.efi; do [ ! -e $each ] || ukify inspect $each --section=.cmdline:text; done;"
    " ls -R /boot/efi || true"
)
WAITED = ("Gave up waiting", "dracut-initqueue: timeout")  # what initramfs-tools and dracut say of a device that did not appear


@pytest.fixture(scope="module", params=chosen(CELLS), ids=lambda cell: cell.name)
def cell(request: pytest.FixtureRequest) -> Cell:
    found: Cell = request.param
    return found

def made(cell: Cell, lab: Lab) -> AbstractContextManager[Machine]:
    machine = lab.create(cell.name, cell.recipe, memory=MEMORY, nvdimm=cell.nvdimm, disk=cell.disk, nvm=cell.nvm)
    return switched_on(WithTpm(machine.folder, machine.settings) if cell.tpm else machine)


@pytest.fixture(scope="module")
def machine(cell: Cell, lab: Lab) -> Iterator[Machine]:
    with made(cell, lab) as machine:
        prepare(cell, machine)
        yield machine


def prepare(cell: Cell, machine: Machine) -> None:
    if cell.prepare:
        machine.ssh("cat >/root/prepare && sh /root/prepare && rm /root/prepare", stdin=cell.script, timeout=900)
        off(machine)
        wake(machine)


def test_it_resumes_and_is_brought_back(cell: Cell, lab: Lab, machine: Machine) -> None:
    before, same = machine.ssh(CONFIGURATION), machine.ssh(cell.same)
    machine.ssh(cell.before)
    made = (
        play.play(lab, [machine], "nvm.fastboot.configure", {**cell.variables, "nvm_reboot": True})
        .ok()
        .result("boot_resume")
    )
    assert made["bootloader"] == cell.bootloader, made
    assert "resume=" in machine.ssh("cat /proc/cmdline")
    machine.ssh(cell.again)
    assert play.play(lab, [machine], "nvm.fastboot.configure", cell.variables).ok().changed == 0
    assert machine.ssh(cell.same) == same
    memory = evidence.remember(machine)
    marker = ""
    if cell.encrypted:
        marker = encrypted.hibernate(machine)
    else:
        hibernate(machine)
    wake(machine)
    evidence.same_memory(memory, machine, power_was_off=True)
    if marker:
        encrypted.holds(machine, marker)
    machine.ssh(cell.before)
    play.play(lab, [machine], "nvm.fastboot.remove", cell.variables).ok()
    assert (machine.ssh(CONFIGURATION), machine.ssh(cell.same)) == (before, same)
    off(machine)
    wake(machine)
    assert "resume=" not in machine.ssh("cat /proc/cmdline")
    assert not [waited for waited in WAITED if waited in machine.console()], machine.console()
