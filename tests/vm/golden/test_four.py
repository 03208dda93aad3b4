# SPDX-License-Identifier: GPL-3.0-or-later
"""Four machines at once from one golden image out of a store, each with its own name and keys, timed beside four boots from scratch."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.vm import evidence
from tests.vm.golden import machines
from tests.vm.lab import Lab, Machine
from tests.vm.store import Store

COUNT = 4
IDENTITY = """
hostname = "web{number:02}"
[[interfaces]]
match = "virtio_net"
mac = "52:54:00:00:01:{number:02}"
addresses = ["10.0.2.15/24"]
"""


def all_up(made: list[Machine]) -> list[float]:
    """Switch machines on at once; the seconds until each answers."""
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    for machine in made:
        machine.power_on()

    def wait(machine: Machine) -> None:
        machine.wait_up(machines.SECONDS)
        seconds[machine.name] = time.monotonic() - begun

    threads = [threading.Thread(target=wait, args=(machine,)) for machine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == len(made), f"only {', '.join(sorted(seconds))} answer"
    return sorted(seconds.values())


def test_four_machines_from_one_image(lab: Lab, tmp_path: Path) -> None:
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    assert int(available.split()[1]) >> 10 > COUNT * machines.MEMORY * 1.3, "too little memory on this host"
    golden = machines.with_ram_root(lab, "golden4")
    seen = machines.seen(golden)
    memory, made = machines.made_golden(golden)
    assert made["result"] == "created", made
    golden.power_cut()
    store = Store(tmp_path)
    version = machines.put(golden, store)
    copies = [lab.copy(golden, f"web{number:02}") for number in range(1, COUNT + 1)]
    golden.destroy()
    try:
        cold = all_up(copies)
        for machine in copies:
            machine.power_cut()
        for number, machine in enumerate(copies, 1):
            machines.brought(machine, store, version)
            machines.named(machine, IDENTITY.format(number=number))
            machines.armed_slot(machine)
        restored = all_up(copies)
        found = []
        for machine in copies:
            evidence.same_memory(memory, machine, power_was_off=True)
            found.append(machines.seen(machine))
        assert [one.host_name for one in found] == [f"web{number:02}" for number in range(1, COUNT + 1)]
        for name in ("machine_id", "key", "mac", "random"):
            assert len({getattr(one, name) for one in (seen, *found)}) == COUNT + 1, f"two have the same {name}"
        table = [("from scratch", cold), ("from the golden image", restored)]
        for what, seconds in table:
            print(f"\n{COUNT} machines at once, {what}, until SSH answers: {', '.join(f'{one:.1f} s' for one in seconds)}", flush=True)
        assert restored[-1] < cold[-1], "the last one from the image is later than the last one from scratch"
    finally:
        for machine in copies:
            machine.destroy()
