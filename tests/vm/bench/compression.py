# SPDX-License-Identifier: GPL-3.0-or-later
"""What compression costs and saves when hibernating into NVM. ``make bench-vm`` runs it first and prints a table.

On one guest of each kind, in one run: for each compressor the guest is configured by the role, booted, given a workload,
and sent through hibernation several times. The medians of these are printed: of the seconds from the order until the power
is off and from power on until SSH answers, and of those that the kernel says it took to write and to read the image.
Compare the rows of one guest; under software emulation the seconds themselves say little.
"""

from __future__ import annotations

import argparse
import contextlib
import re
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
    print(f"\nmedians of {arguments.cycles}, in seconds; memory in MiB\n")
    print(f"{'guest':10} {'compression':12}" + "".join(f"{name:>12}" for name in rows[0]["seen"]))
    for row in rows:
        print("{guest:10} {compression:12}".format(**row) + "".join(f"{value:12.1f}" for value in row["seen"].values()))
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
        rows.append({"guest": guest, "compression": compression, "seen": _cycles(lab, machine, cycles)})
    machine.destroy()
    return rows


def _cycles(lab: Lab, machine: Machine, cycles: int) -> dict[str, float]:
    before = workload.start(machine)
    seen = []
    for _cycle in range(cycles):
        _played, cycle = hibernate(lab, machine)
        if not before.lives_on_in(workload.ask(machine)):
            raise LabError(f"{machine.name} came back without its memory")
        seen.append(
            {
                "hibernate": cycle.hibernate,
                "write": _logged(machine, "console.old.log", "Wrote"),
                "resume": cycle.resume,
                "read": _logged(machine, "console.log", "Read"),
                "memory": (cycle.image or 0) / (1 << 20),
            }
        )
        print("  " + ", ".join(f"{name} {value:.1f}" for name, value in seen[-1].items()), flush=True)
    return {name: statistics.median(each[name] for each in seen) for name in seen[0]}


def _logged(machine: Machine, log: str, done: str) -> float:
    """The seconds in the last line "Wrote 250000 kbytes in 1.20 seconds" of the kernel (swsusp_show_speed)."""
    console = (machine.folder / log).read_text(errors="replace")
    return float(re.findall(rf"PM:.* {done} \d+ kbytes in ([\d.]+) seconds", console)[-1])


if __name__ == "__main__":
    sys.exit(main())
