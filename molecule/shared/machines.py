#!/usr/bin/env python
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines of a scenario in the lab.

As an inventory script (``--list``, through the link in a scenario's directory), lists the existing machines of the scenario
with their addresses. ``create.yml``, ``verify.yml`` and ``destroy.yml`` call the other verbs for one machine: ``create``
(with the options of Lab.create as JSON on standard input), ``wake``, ``destroy``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.vm.lab import Lab, LabError, Machine  # noqa: E402

LOGS = REPOSITORY / "build" / "logs"


def main() -> int:
    verb, *names = sys.argv[1:] or ["--list"]
    owner = int(os.environ.get("LAB_OWNER") or 0)  # of what molecule creates, if not somebody at a terminal
    lab = Lab(say=lambda text: print(text, file=sys.stderr), keep=not owner, owner=owner)
    try:
        if verb == "--list":
            print(json.dumps(inventory(lab, Path(sys.argv[0]).absolute().parents[1].name)))
        else:
            {"create": create, "wake": wake, "destroy": destroy}[verb](lab, *names)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def inventory(lab: Lab, scenario: str) -> dict[str, object]:
    """The output of an inventory script. ``lab_folder`` is the directory with the process id of a machine's QEMU."""
    mine = [machine for machine in lab.machines() if machine.name.startswith(f"molecule-{scenario}-")]
    hostvars = {machine.name: {**machine.inventory(), "lab_folder": str(machine.folder)} for machine in mine}
    return {"_meta": {"hostvars": hostvars}, "all": {"hosts": list(hostvars)}}


def create(lab: Lab, name: str) -> None:
    """Create the machine and power it on, if necessary, and wait until it answers."""
    made_of = json.load(sys.stdin)
    machine = find(lab, name) or lab.create(name, **made_of)
    if not machine.is_on():
        machine.power_on()
    seconds = machine.wait_up()
    print(f"{name} answers after {seconds:.1f} s")


def wake(lab: Lab, name: str) -> None:
    """Wait until the machine powered itself off, then power it on."""
    machine = lab.machine(name)
    machine.wait_off()
    machine.power_on()


def destroy(lab: Lab, name: str) -> None:
    """Power the machine off and remove it. Saves its console log as ``build/logs/NAME-console.log``."""
    machine = find(lab, name)
    if machine is None:
        return
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(LOGS / f"{name}-console.log", "wb") as log:
        for part in ("console.old.log", "console.log"):
            if (machine.folder / part).exists():
                log.write((machine.folder / part).read_bytes())
    machine.destroy()


def find(lab: Lab, name: str) -> Machine | None:
    return next((machine for machine in lab.machines() if machine.name == name), None)


if __name__ == "__main__":
    sys.exit(main())
