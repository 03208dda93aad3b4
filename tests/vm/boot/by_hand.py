# SPDX-License-Identifier: GPL-3.0-or-later
"""More of the selection at boot than ``make test`` has time for (``make vm-test-boot``): GRUB's menu, mistakes in the policy, and the power
cut at random moments of the selection, by dracut on Debian 13."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fuse_store.boot.menu import text
from fuse_store.hibernation.slots.layout import Slot, Table
from tests.vm import evidence, ram_root
from tests.vm.boot.selecting import cut, is_resumed, prepare, report, taken, wake
from tests.vm.conftest import switched_on
from tests.vm.lab import Lab, Machine

MEMORY = 768


@pytest.fixture(scope="module")
def dracut(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("dracut", "debian13", memory=1024, nvdimm=0, disk=1024, erst=True)) as machine:
        prepare(machine)
        yield machine


def builds_no_initramfs(machine: Machine, command: str) -> None:
    """With a mistake in the policy, which it names."""
    machine.ssh("sed -i 's/\"any\"/\"amy\"/' /etc/fuse-store/snapshots.toml")
    printed = machine.ssh(f"{command} 2>&1; echo code $?", timeout=900)
    assert "boot.power_loss: 'amy': no such application" in printed and not printed.rstrip().endswith("code 0"), printed
    machine.ssh("sed -i 's/\"amy\"/\"any\"/' /etc/fuse-store/snapshots.toml")


def test_menu(lab: Lab) -> None:
    """An entry of the submenu, out of the file that the verb writes."""

    def chooses(machine: Machine) -> None:
        """In place of somebody at the menu."""
        slot = Slot(1, "complete", "m", "shop", "first", "0" * 32, "", 0, 1, 1, ((256, 1),))
        machine.ssh("cat >/boot/grub/fuse-store.cfg", stdin=text(Table("0" * 32, 4096, 4096, slots=(slot,))))
        machine.ssh("sed -i 's/^ *set default=.*/set default=\"fuse-store>fuse-store-slot-1\"/' /boot/grub/grub.cfg")
        machine.ssh("grub-script-check /boot/grub/grub.cfg && grub-script-check /boot/grub/fuse-store.cfg")
        ram_root.adopt(machine)

    with switched_on(lab.create("menu", memory=MEMORY, nvdimm=0, disk=1024)) as machine:
        prepare(machine, chooses)
        assert report(machine)["reason"] == "there is no slot of the chosen number"
        memory, slot = taken(machine, "first")
        taken(machine, "second")
        cut(machine)
        is_resumed(machine, memory, slot, "first", "power_loss")
        builds_no_initramfs(machine, "mkinitramfs -o /run/initramfs.img")


@pytest.mark.parametrize("turn", range(5))
def test_power_cuts_while_it_selects(dracut: Machine, turn: int) -> None:
    """At whatever moment: the machine comes back at the newest."""
    memory, slot = taken(dracut, f"turn{turn}")
    moments = evidence.moments("cuts")
    dracut.power_cut()
    for _cut in range(2):
        dracut.power_on()
        deadline = time.monotonic() + 300
        while "fuse-store: event" not in dracut.console():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 10))
        dracut.power_cut()
    wake(dracut)
    is_resumed(dracut, memory, slot, f"turn{turn}", "power_loss")


def test_a_mistake_in_the_policy_builds_no_initramfs(dracut: Machine) -> None:
    builds_no_initramfs(dracut, "dracut --force /run/initramfs.img")
