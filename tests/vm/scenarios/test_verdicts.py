# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdicts of C(hibernate), each on a machine to which it really happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import evidence, play, powercycle
from tests.vm.conftest import switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.lab.machine import OFF_SECONDS


@pytest.fixture(scope="module")
def _machine(lab: Lab, configured: Machine) -> Iterator[Machine]:
    with switched_on(lab.copy(configured, "verdicts")) as machine:
        yield machine


@pytest.fixture
def machine(_machine: Machine) -> Machine:
    """The machine of this file; switched on afresh if the test before left it in a bad way."""
    if not _machine.is_on():
        _machine.power_on()
    _machine.wait_up()
    return _machine


# Holds a page that no image may hold; memfd_secret(2) has no function in libc, and the number 447 on x86-64.
_SECRET = """
import ctypes, mmap, os, time
descriptor = ctypes.CDLL(None).syscall(447, 0)
os.ftruncate(descriptor, 4096)
page = mmap.mmap(descriptor, 4096)
page[:6] = b"secret"
time.sleep(900)
"""


def hibernate(lab: Lab, machine: Machine, **options: Any) -> dict[str, Any]:
    return play.module(lab, machine, "hibernate", {"wake_command": powercycle.wake_command(lab, machine), **options})


def test_inhibited(lab: Lab, machine: Machine) -> None:
    """Whether the inhibitor is there from the start or taken in the last moment, the machine goes on and the message names it."""
    before = evidence.remember(machine)
    machine.ssh("systemd-run -q --unit=blocker systemd-inhibit --what=sleep --mode=block --who=backup --why='it saves' sleep 900")
    try:
        for known in ([], ["sleep_inhibited"]):
            result = hibernate(lab, machine, ignore_blockers=known)
            assert (result.get("verdict"), result.get("code")) == ("inhibited", "sleep_inhibited"), result
            assert result["failed"] and "backup" in result["msg"], result
            evidence.same_memory(before, machine, power_was_off=False)
    finally:
        machine.ssh("systemctl stop blocker")


def test_never_slept_because_the_swap_is_gone(lab: Lab, machine: Machine) -> None:
    """Found by looking, and where nobody looks, told by systemd."""
    before = evidence.remember(machine)
    machine.ssh("swapoff /dev/NVM_SWAP")
    try:
        refused = hibernate(lab, machine)
        result = hibernate(lab, machine, ignore_blockers=["swap_inactive"])
    finally:
        machine.ssh("swapon -p 10 /dev/NVM_SWAP")
    assert (refused.get("verdict"), refused.get("code")) == ("never_slept", "swap_inactive"), refused
    assert result.get("verdict") == "never_slept" and result["failed"], result
    assert "swap" in result["msg"].lower(), result
    evidence.same_memory(before, machine, power_was_off=False)


def test_never_slept_because_the_image_does_not_fit(lab: Lab, machine: Machine) -> None:
    """The kernel makes the image, finds no room for it, and goes on."""
    before = evidence.remember(machine)
    uuid = machine.ssh("blkid -p -s UUID -o value /dev/NVM_SWAP").strip()
    machine.ssh(f"swapoff /dev/NVM_SWAP && mkswap -q -U {uuid} -L NVM_SWAP /dev/NVM_SWAP 32768 && swapon -p 10 /dev/NVM_SWAP")
    try:
        refused = hibernate(lab, machine)
        result = hibernate(lab, machine, ignore_blockers=["swap_too_small"])
    finally:
        machine.ssh(f"swapoff /dev/NVM_SWAP; mkswap -q -U {uuid} -L NVM_SWAP /dev/NVM_SWAP && swapon -p 10 /dev/NVM_SWAP")
    assert (refused.get("verdict"), refused.get("code")) == ("never_slept", "swap_too_small"), refused
    assert (result.get("verdict"), result.get("code")) == ("never_slept", "swap_too_small"), result
    evidence.same_memory(before, machine, power_was_off=False)


def test_never_slept_because_of_secret_memory(lab: Lab, machine: Machine) -> None:
    """The kernel refuses as long as a process has such memory; the message names the process."""
    before = evidence.remember(machine)
    machine.ssh("cat >/run/secret.py && systemd-run -q --unit=secret python3 /run/secret.py", stdin=_SECRET)
    try:
        machine.ssh("timeout 60 sh -c 'until grep -qF [disabled] /sys/power/disk; do sleep 0.2; done'")
        info = play.module(lab, machine, "nvm_info")
        refused = hibernate(lab, machine)
        result = hibernate(lab, machine, ignore_blockers=["memfd_secret"])
        pid = machine.ssh("systemctl show --value --property=MainPID secret").strip()
    finally:
        machine.ssh("systemctl stop secret")
    (blocker,) = info["blockers"]
    assert blocker["code"] == "memfd_secret" and f"{pid} (python3)" in blocker["message"] and not info["ready"], blocker
    assert (refused.get("verdict"), refused.get("code")) == ("never_slept", "memfd_secret"), refused
    assert result.get("verdict") == "never_slept" and result["failed"], result
    evidence.same_memory(before, machine, power_was_off=False)


def test_power_cut_while_the_image_is_written(lab: Lab, machine: Machine) -> None:
    """The machine boots, and is ready to hibernate, which the test after this one does."""
    before, seen = evidence.remember(machine), len(machine.console())
    delay = evidence.moments("hibernating").uniform(0, 2)
    machine.ssh("systemd-run -q --on-active=1s systemctl hibernate")
    deadline = time.monotonic() + OFF_SECONDS
    on = True
    while "Creating image" not in machine.console()[seen:]:
        assert on and time.monotonic() < deadline, f"no image was begun:\n{machine.console()[seen:]}"
        time.sleep(0.05)
        on = machine.is_on()  # before the console is read again: it may write its last line in between
    time.sleep(delay)
    machine.power_cut()
    whole = evidence.signature(machine) == evidence.IMAGE
    print(f"power cut {delay:.1f} s after the image was begun; it was {'' if whole else 'not '}whole", flush=True)
    machine.power_on()
    machine.wait_up()
    if whole:
        evidence.same_memory(before, machine, power_was_off=True)
    else:
        assert evidence.boot_id(machine) != before.boot_id, "half an image was resumed"
    assert machine.ssh("dmesg | grep -i 'EXT4-fs error'", check=False) == ""
    machine.ssh("systemctl is-system-running --wait", check=False)  # swap that is nofail may come after the SSH server
    info = play.module(lab, machine, "nvm_info")
    assert info["ready"], info["blockers"]


def test_resumed(lab: Lab, machine: Machine) -> None:
    """By the playbook, which notes it in the journal; beside a zram swap area, which has the higher priority and cannot take an image."""
    before = evidence.remember(machine)
    machine.ssh("modprobe zram && echo 64M >/sys/block/zram0/disksize && mkswap -q /dev/zram0 && swapon -p 100 /dev/zram0")
    variables = {"nvm_wake_command": powercycle.wake_command(lab, machine)}
    result = play.play(lab, [machine], "nvm.fastboot.hibernate", variables).ok().result("hibernate")
    assert result.get("verdict") == "resumed", result
    evidence.same_memory(before, machine, power_was_off=True)
    times = play.module(lab, machine, "nvm_boot_times")
    noted = {name: seconds for name, seconds in result["seconds"].items() if seconds is not None}
    assert (times["last_hibernation"]["verdict"], times["last_hibernation"]["seconds"]) == ("resumed", noted), times
    assert 0 < times["boot"]["kernel"] < times["boot"]["userspace"] < times["boot"]["total"], times
    assert result["boot_id"] == before.boot_id
    assert evidence.signature(machine) == evidence.PLAIN, "the image can be resumed a second time"
    phases = result["seconds"]
    assert all(phases[name] is not None and phases[name] >= 0 for name in phases), phases
    assert phases["slept"] <= phases["total"], phases
    swaps = play.module(lab, machine, "nvm_info")["swaps"]
    assert max(swaps, key=lambda swap: swap["priority"])["path"] == "/dev/zram0", swaps


def test_cold_booted(lab: Lab, machine: Machine) -> None:
    """The NVM loses the image while the power is off: a fresh boot, which the task must call a failure."""
    before = evidence.remember(machine)
    result = play.module(lab, machine, "hibernate", {"wake_command": evidence.spoiling_wake_command(lab, machine)})
    assert (result.get("verdict"), result.get("code")) == ("cold_booted", "no_image_found"), result
    assert result["failed"] and "its previous memory is lost" in result["msg"], result
    assert result["boot_id"] == evidence.boot_id(machine) != before.boot_id
    assert result["blockers"] == [], "nothing is amiss with the machine itself"
