# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a snapshot stops a machine, and how soon its application answers from one. ``make bench-vm`` runs it and prints two tables.

One guest with an application server, its root filesystem in memory, in one run: it hibernates into its NVDIMM by the kernel alone, and
takes snapshots into the same; then it boots afresh, and comes back after a power cut: from a snapshot that the kernel is told of
(``resume=``), from one in a slot, which the initramfs selects and checks, and from a golden image in a slot, with an identity. Medians; the
seconds of one run compare with each other alone.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.vm import ram_root, snapshots, workload
from tests.vm.boot import selecting
from tests.vm.lab import Lab, LabError, Machine
from tests.vm.play import play

DEVICE = "/dev/pmem0"
MEBIBYTE = 1 << 20
IDENTITY = """
hostname = "web07"
[[interfaces]]
match = "virtio_net"
mac = "52:54:00:00:00:07"
addresses = ["10.0.2.15/24"]
"""


@dataclass(frozen=True)
class Pause:
    """Seconds for which all processes stood still, until ``size`` bytes were on the device."""

    seconds: float
    size: float

    @property
    def per_gibibyte(self) -> float:
        return self.seconds / self.size * (1 << 30)


@dataclass(frozen=True)
class Start:
    """Seconds from power-on until the SSH server greets, and until the application answers."""

    up: float
    served: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-snapshots", description="Snapshots against the kernel's hibernation and a cold boot.")
    parser.add_argument("--cycles", type=int, default=3, help="of each (default 3)")
    cycles = parser.parse_args().cycles
    lab = Lab(say=lambda text: print(text, flush=True))
    with contextlib.suppress(LabError):
        lab.machine("bench-snapshots").destroy()
    machine = lab.create("bench-snapshots", "debian12-server", memory=1024, nvdimm=1280)
    _prepare(lab, machine)
    kernel = _times(cycles, "hibernated by the kernel", lambda: _hibernated(machine))
    paused = _times(cycles, "snapshot", lambda: _paused(machine))
    starts = {
        "cold boot": _times(cycles, "cold boot", lambda: _cold(machine)),
        "its own snapshot, by resume=": _times(cycles, "its own snapshot", lambda: _restored(machine)),
    }
    _make_slots(machine)
    starts["a slot"] = _times(cycles, "a slot", lambda: _from_slot(machine))
    machine.ssh(f"cat >/run/identity.toml && fuse-store slots identity {DEVICE} /run/identity.toml", stdin=IDENTITY)
    starts["a golden image"] = _times(cycles, "a golden image", lambda: _from_slot(machine, "--golden"))
    machine.destroy()
    _print_pauses(kernel, paused)
    _print_starts(starts)
    return 0


def _times(cycles: int, name: str, measure: Callable[[], Any]) -> list[Any]:
    results = []
    for _cycle in range(cycles):
        results.append(measure())
        print(f"{name}: {results[-1]}", flush=True)
    return results


def _prepare(lab: Lab, machine: Machine) -> None:
    """The NVDIMM is swap area and ``resume=``; the command is there; from its next boot on the machine's disk is only read."""
    machine.power_on()
    machine.wait_up()
    play(lab, [machine], "nvm.fastboot.configure", {"nvm_compression": "none"}).ok()
    selecting.install(machine, "--update", device=DEVICE)
    snapshots.bring(machine)
    ram_root.adopt(machine)
    _boot(machine)


def _boot(machine: Machine) -> Start:
    """Cold: no image is armed."""
    machine.ssh("systemctl poweroff", check=False)
    machine.wait_off()
    return _power_on(machine)


def _power_on(machine: Machine) -> Start:
    machine.power_on()
    up = machine.wait_up()
    served = up + machine.wait_served()
    machine.ssh("systemctl is-system-running --wait", check=False)
    return Start(up, served)


def _hibernated(machine: Machine) -> Pause:
    """By the kernel alone: from the moment when it begins to stop processes until it has written the image."""
    state = _state(machine)
    machine.ssh(f"grep -q ^{DEVICE} /proc/swaps || swapon {DEVICE}; echo shutdown >/sys/power/disk; sync")
    machine.ssh("systemd-run -q sh -c 'echo disk >/sys/power/state'")
    machine.wait_off()
    machine.power_on()
    machine.wait_up()
    _check(state, machine)
    console = (machine.folder / "console.old.log").read_text(errors="replace")
    frozen = re.findall(r"\[ *([\d.]+)\] Freezing user space processes", console)
    written = re.findall(r"\[ *([\d.]+)\] PM:.* Wrote (\d+) kbytes in", console)
    if not frozen or not written:
        raise LabError("the console does not say when the kernel began and when it had written the image")
    return Pause(float(written[-1][0]) - float(frozen[-1]), int(written[-1][1]) * 1024)


def _snapshot(machine: Machine) -> dict[str, Any]:
    """What the command printed when the snapshot was made."""
    machine.ssh("swapoff -a")
    return snapshots.take(machine, DEVICE, "--arm", "--replace")


def _paused(machine: Machine) -> Pause:
    record = _snapshot(machine)
    return Pause(record["pause"], record["size"])


def _cold(machine: Machine) -> Start:
    machine.ssh(f"swapoff -a; mkswap -q -U $(blkid -p -s UUID -o value {DEVICE}) {DEVICE}; sync")  # resume= names the UUID
    return _boot(machine)


def _restored(machine: Machine) -> Start:
    """Its own snapshot, with the application running, after a power cut."""
    state = _state(machine)
    _snapshot(machine)
    machine.power_cut()
    start = _power_on(machine)
    _check(state, machine)
    return start


def _make_slots(machine: Machine) -> None:
    """In place of the swap area; the kernel is told of no ``resume=`` any more."""
    grub = r"sed -i -E '/^\s*linux\s/s/ resume=[^ ]+//' /media/boot/grub/grub.cfg"
    machine.ssh(f"swapoff -a; mount -o remount,rw /media && {grub} && mount -o remount,ro /media")
    machine.ssh(f"fuse-store slots init --force {DEVICE}")
    _boot(machine)


def _from_slot(machine: Machine, *options: str) -> Start:
    """Selected at boot after a power cut, compared with its checksums, resumed."""
    state = _state(machine)
    slot = snapshots.take(machine, DEVICE, "--application", "shop", "--replace", *options)["slot"]
    machine.power_cut()
    start = _power_on(machine)
    _check(state, machine)
    if selecting.report(machine)["selected"] != slot:
        raise LabError(f"{machine.name} did not come back from slot {slot}")
    if options:
        machine.ssh(f"fuse-store slots remove --force --slot {slot} {DEVICE}")
    return start


def _state(machine: Machine) -> workload.State:
    try:
        return workload.ask(machine)
    except LabError:
        return workload.start(machine)


def _check(before: workload.State, machine: Machine) -> None:
    if not before.lives_on_in(workload.ask(machine)):
        raise LabError(f"{machine.name} came back without its memory")


def _print_pauses(kernel: list[Pause], paused: list[Pause]) -> None:
    print(f"\n{'medians':28}{'seconds':>10}{'MiB':>8}{'seconds per GiB':>18}")
    rates = []
    for name, pauses in (("hibernation by the kernel", kernel), ("snapshot, pause", paused)):
        seconds, size = (statistics.median(values) for values in zip(*((pause.seconds, pause.size) for pause in pauses), strict=True))
        rates.append(statistics.median(pause.per_gibibyte for pause in pauses))
        print(f"{name:28}{seconds:10.2f}{size / MEBIBYTE:8.0f}{rates[-1]:18.1f}")
    print(f"a snapshot takes {rates[1] / rates[0]:.2f} times as long for as much memory")


def _print_starts(measured: dict[str, list[Start]]) -> None:
    print(f"\n{'medians, seconds from power-on':34}{'SSH':>8}{'application':>14}{'times as soon':>16}")
    cold = statistics.median(start.served for start in measured["cold boot"])
    for name, starts in measured.items():
        served = statistics.median(start.served for start in starts)
        print(f"{name:34}{statistics.median(start.up for start in starts):8.1f}{served:14.1f}{cold / served:16.1f}")


if __name__ == "__main__":
    sys.exit(main())
