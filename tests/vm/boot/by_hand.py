# SPDX-License-Identifier: GPL-3.0-or-later
"""More of the selection at boot than ``make test`` has time for: ``make vm-test-boot``. dracut on Debian 13, a watchdog of the hardware,
GRUB's menu, and the power cut at random moments of the selection."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fuse_store.boot.menu import text
from fuse_store.hibernation.slots.layout import Slot, Table
from tests.vm import evidence, ram_root
from tests.vm.boot.selecting import cut, is_resumed, panics, prepare, report, restarts, taken, wake
from tests.vm.conftest import switched_on
from tests.vm.lab import Lab, Machine

MEMORY = 768


@pytest.fixture(scope="module")
def dracut(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("dracut", "debian13", memory=1024, nvdimm=0, disk=1024, erst=True)) as machine:
        prepare(machine)
        yield machine


def test_dracut(dracut: Machine) -> None:
    """The newest after a power cut, the other one after a panic."""
    first, (memory, slot) = taken(dracut, "first"), taken(dracut, "second")
    cut(dracut)
    is_resumed(dracut, memory, slot, "second", "power_loss")
    panics(dracut)
    is_resumed(dracut, first[0], first[1], "first", "panic")
    builds_no_initramfs(dracut, "dracut --force /run/initramfs.img")


def builds_no_initramfs(machine: Machine, command: str) -> None:
    """With a mistake in the policy, which it names."""
    machine.ssh("sed -i 's/\"any\"/\"amy\"/' /etc/fuse-store/snapshots.toml")
    printed = machine.ssh(f"{command} 2>&1; echo code $?", timeout=900)
    assert "boot.power_loss: 'amy': no such application" in printed and not printed.rstrip().endswith("code 0"), printed
    machine.ssh("sed -i 's/\"amy\"/\"any\"/' /etc/fuse-store/snapshots.toml")


def selects(machine: Machine, kernel: str) -> None:
    """Have it boot this kernel from now on, with its root filesystem in memory."""
    machine.ssh(select_kernel(kernel))  # 'boot install' has written the menu anew
    ram_root.adopt(machine)


def select_kernel(kernel: str) -> str:
    """A command that has GRUB boot a kernel by default."""
    number = "$(grep -o \"gnulinux-advanced-[-0-9a-f]*\" /boot/grub/grub.cfg | head -n 1)"
    entry = f"$(grep -o \"gnulinux-{kernel}-advanced-[-0-9a-f]*\" /boot/grub/grub.cfg | head -n 1)"
    return f'sed -i "s/^\\( *set default=\\).*/\\1\\"{number}>{entry}\\"/" /boot/grub/grub.cfg && sync && fsfreeze -f / && fsfreeze -u /'


@pytest.fixture(scope="module")
def generic(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("watchdog", "debian12-two-kernels", memory=MEMORY, nvdimm=0, disk=1024, watchdog=True)) as machine:
        kernel = machine.ssh("ls /boot/vmlinuz-* | grep -v cloud | sed 's/.*vmlinuz-//'").strip()
        machine.ssh(select_kernel(kernel))  # the driver has to be loaded when the initramfs is built
        machine.ssh("systemctl poweroff", check=False)
        machine.wait_off()
        wake(machine)
        assert machine.ssh("uname -r").strip() == kernel
        machine.ssh("modprobe i6300esb && cat /sys/class/watchdog/watchdog0/identity")
        prepare(machine, lambda machine: selects(machine, kernel))
        yield machine


def test_watchdog(generic: Machine) -> None:
    memory, slot = taken(generic, "first")
    taken(generic, "second")
    generic.ssh("modprobe i6300esb heartbeat=5; test -c /dev/watchdog")
    restarts(generic, "exec 3>/dev/watchdog; echo 1 >&3; sleep 3600")
    is_resumed(generic, memory, slot, "first", "watchdog")


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
