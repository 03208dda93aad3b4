# SPDX-License-Identifier: GPL-3.0-or-later
"""What compression costs and saves when hibernating into NVM. ``make bench-vm`` runs it and prints a table.

On one guest of each kind, in one run: for each compressor the guest is configured by the role, booted, given a workload,
and sent through hibernation several times. The medians of these are printed. Compare the rows of one guest; under
software emulation the seconds themselves say little.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from typing import Any

from tests.vm import workload
from tests.vm.lab import Lab, LabError, Machine
from tests.vm.play import play
from tests.vm.powercycle import hibernate

GUESTS = {"debian12": ("none", "lzo"), "debian13": ("none", "lzo", "lz4")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Compressors of hibernation images on NVM, compared.")
    parser.add_argument("--cycles", type=int, default=3, help="hibernations per compressor (default 3)")
    parser.add_argument("guests", nargs="*", metavar="GUEST", help=f"of {', '.join(GUESTS)}; default all")
    arguments = parser.parse_args()
    rows = [row for guest in arguments.guests or GUESTS for row in _measure(guest, arguments.cycles)]
    print(f"\n{'guest':10} {'compression':12} {'hibernate':>10} {'resume':>8} {'in the image':>13}   medians of {arguments.cycles}")
    for row in rows:
        print("{guest:10} {compression:12} {hibernate:8.1f} s {resume:6.1f} s {image:9.0f} MiB".format(**row))
    return 0


def _measure(guest: str, cycles: int) -> list[dict[str, Any]]:
    lab = Lab(say=lambda text: print(text, flush=True))
    name = f"bench-{guest}"
    with contextlib.suppress(LabError):
        lab.machine(name).destroy()
    machine = lab.create(name, guest, memory=1024, nvdimm=1280)
    machine.power_on()
    machine.wait_up()
    rows = []
    for compression in GUESTS[guest]:
        print(f"{guest}, compression {compression}", flush=True)
        play(lab, [machine], "nvm.fastboot.configure", {"nvm_compression": compression}).ok()
        machine.ssh("systemctl poweroff", check=False)
        machine.wait_off()
        machine.power_on()
        machine.wait_up()
        rows.append({"guest": guest, "compression": compression, **_cycles(lab, machine, cycles)})
    machine.destroy()
    return rows


def _cycles(lab: Lab, machine: Machine, cycles: int) -> dict[str, float]:
    before = workload.start(machine)
    seen = []
    for _cycle in range(cycles):
        _played, cycle = hibernate(lab, machine)
        if not before.lives_on_in(workload.ask(machine)):
            raise LabError(f"{machine.name} came back without its memory")
        seen.append(cycle)
        print(f"  hibernate {cycle.hibernate:.1f} s, resume {cycle.resume:.1f} s", flush=True)
    return {
        "hibernate": statistics.median(cycle.hibernate for cycle in seen),
        "resume": statistics.median(cycle.resume for cycle in seen),
        "image": statistics.median((cycle.image or 0) / (1 << 20) for cycle in seen),
    }


if __name__ == "__main__":
    sys.exit(main())
