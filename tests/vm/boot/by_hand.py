# SPDX-License-Identifier: GPL-3.0-or-later
"""More of snapshots and of the selection at boot than ``make test`` has time for (``make vm-test-boot``): GRUB's menu, mistakes in the
policy, the power cut at random moments of the selection, by dracut on Debian 13; the kernel of Debian 14; and twenty snapshots in a row of
a machine that swaps, has little memory left, and has connections open."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator

import pytest

from fuse_store.boot.menu import text
from fuse_store.hibernation.slots.layout import Slot, Table
from tests.vm import evidence, ram_root
from tests.vm.boot.selecting import DEVICE, cut, is_resumed, prepare, report, slots_of, taken, wake
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
        # There is no device for a root filesystem in memory, of which the drivers could be; /run is mounted noexec.
        most = "cp -r /etc/initramfs-tools tools && sed -i 's/^MODULES=.*/MODULES=most/' tools/initramfs.conf tools/conf.d/*"
        builds_no_initramfs(machine, f"cd /root && {most} && mkinitramfs -d /root/tools -o /run/initramfs.img")


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


def test_the_kernel_of_debian_14(lab: Lab) -> None:
    with switched_on(lab.create("debian14", "debian14", memory=1024, nvdimm=0, disk=1024, erst=True)) as machine:
        print(machine.ssh("uname -r"), flush=True)
        prepare(machine)
        (older, at), (newer, last) = taken(machine, "first"), taken(machine, "second")
        cut(machine)
        is_resumed(machine, newer, last, "second", "power_loss")
        machine.ssh(f"fuse-store boot select --slot {at}; echo lost >/root/lost")
        cut(machine)
        is_resumed(machine, older, at, "first", "power_loss")


# Holds so many MiB that no one can compress, goes through some of them all the time, and compares all of them when it is asked to.
_HOG = """
import hashlib, mmap, os, sys, time
name, size = sys.argv[1], int(sys.argv[2]) << 20
memory = mmap.mmap(-1, size)
for at in range(0, size, 1 << 16):
    memory[at : at + (1 << 16)] = os.urandom(1 << 16)
before = hashlib.blake2b(memory).digest()
open(f"/run/{name}.ready", "w").close()
while True:
    for at in range(0, size // 8, 4096):
        memory[at] = memory[at] ^ 0
    if os.path.exists(f"/run/{name}.check"):
        open(f"/run/{name}.checked", "w").write("sound" if hashlib.blake2b(memory).digest() == before else "other")
        os.unlink(f"/run/{name}.check")
    time.sleep(0.1)
"""
# Sends a number a line to whoever connects, and counts on.
_SERVER = r"""
import socket, time
server = socket.create_server(("127.0.0.1", 7777))
while True:
    connection, _address = server.accept()
    number = 0
    try:
        while True:
            number += 1
            connection.sendall(b"%d\n" % number)
            time.sleep(0.02)
    except OSError:
        pass
"""
_CLIENT = """
import socket
connection = socket.create_connection(("127.0.0.1", 7777))
for wanted, line in enumerate(connection.makefile(), 1):
    assert int(line) == wanted, (line, wanted)
    print(wanted, flush=True)
"""


def started(machine: Machine, name: str, program: str, *arguments: str) -> None:
    machine.ssh(f"cat >/run/{name}.py", stdin=program)
    words = shlex.join(["python3", f"/run/{name}.py", *arguments])
    machine.ssh(f"systemd-run -q --unit={name} -p StandardOutput=file:/run/{name}.out {words}")


def test_twenty_in_a_row_under_pressure(lab: Lab) -> None:
    """Each is complete, three stay; connections go on, what was in swap is there; then the power is cut."""
    with switched_on(lab.create("twenty", memory=MEMORY, nvdimm=256, disk=1536)) as machine:
        prepare(machine)
        machine.ssh("mkswap -q /dev/pmem0 && swapon /dev/pmem0 && echo 100 >/proc/sys/vm/swappiness")
        started(machine, "server", _SERVER)
        machine.ssh("until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 7777))'; do sleep 0.5; done 2>/dev/null")
        started(machine, "client", _CLIENT)
        started(machine, "hog", _HOG, "hog", "96")
        machine.ssh("until [ -e /run/hog.ready ]; do sleep 0.2; done")
        pauses = []
        for number in range(20):
            machine.ssh("echo 50M >/sys/fs/cgroup/system.slice/hog.service/memory.reclaim", check=False)  # as far as it goes
            command = f"fuse-store --json snapshot --application shop --event turn{number} --keep 3 {DEVICE}"
            record = json.loads(machine.ssh(command, timeout=600).splitlines()[-1])
            assert record["result"] == "created" and not record.get("warnings"), record
            pauses.append(f"{record['pause']:.1f} s, {record['size'] >> 20} MiB, of which {record['swapped'] >> 20} were in swap")
        print(*pauses, sep="\n", flush=True)
        assert [slot.state for slot in slots_of(machine).values()] == ["complete"] * 3
        assert any(not pause.endswith(" 0 were in swap") for pause in pauses), "nothing was in swap"
        memory, slot = taken(machine, "last")
        counted = int(machine.ssh("tail -n 1 /run/client.out"))
        cut(machine)
        is_resumed(machine, memory, slot, "last", "power_loss")
        machine.ssh("systemctl is-active server client hog && grep ^/dev/pmem0 /proc/swaps")
        machine.ssh("touch /run/hog.check; while [ -e /run/hog.check ]; do sleep 0.2; done; grep -q sound /run/hog.checked")
        time.sleep(5)
        later = int(machine.ssh("tail -n 1 /run/client.out"))
        assert counted // 2 < later, (counted, later)
        # Too much for an image is refused by its size, and nothing of what is there goes.
        before = {number: slot.image for number, slot in slots_of(machine).items()}
        started(machine, "more", _HOG, "more", "320")
        machine.ssh("until [ -e /run/more.ready ]; do sleep 0.2; done", timeout=600)
        refused = machine.ssh(f"fuse-store snapshot --application shop {DEVICE} 2>&1; echo $?", check=False, timeout=600)
        assert refused.splitlines()[-1] == "5" and "MiB of memory are in use" in refused, refused
        assert {number: slot.image for number, slot in slots_of(machine).items()} == before
