# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of machines of the laboratory: the command on the machine, and what it answers.

The guests' Python runs the command out of the source tree, as snapshots need nothing but the standard library.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from typing import Any

from tests.vm.lab import LabError, Machine
from tests.vm.play import REPOSITORY

DIRECTORY = "/opt/snapshot"
WITH_PACKAGE = f"env PYTHONPATH={DIRECTORY} PYTHONDONTWRITEBYTECODE=1"
FUSE_STORE = f"{WITH_PACKAGE} python3 -m fuse_store.cli --json"
_ANSWER = "/run/answer"
_SECONDS = 600


def bring(machine: Machine) -> None:
    """Put the package on a machine that is on."""
    package = subprocess.run(["tar", "-C", str(REPOSITORY), "--exclude=__pycache__", "-c", "fuse_store"], capture_output=True, check=True)
    machine.ssh(f"mkdir -p {DIRECTORY} && tar -C {DIRECTORY} -x", stdin=package.stdout)


def take(machine: Machine, device: str, *options: str) -> dict[str, Any]:
    """Take a snapshot, in a unit of its own: one in a restored system is not to wait for a connection that is gone. What the command has
    printed. Raises LabError."""
    command = f"{FUSE_STORE} snapshot {shlex.join(options)} {device} >{_ANSWER}.part; mv {_ANSWER}.part {_ANSWER}"
    machine.ssh(f"rm -f {_ANSWER}; systemd-run -q --collect --unit=takes sh -c {shlex.quote(command)}")
    deadline = time.monotonic() + _SECONDS
    # It may end between the first two looks.
    look = f"cat {_ANSWER} 2>/dev/null || systemctl is-active -q takes || cat {_ANSWER} 2>/dev/null || echo '{{}}'"
    while not (answer := machine.ssh(look, check=False)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    record: dict[str, Any] = json.loads(answer or "{}")
    if "result" not in record:
        raise LabError(f"{machine.name}: no snapshot: {machine.ssh('journalctl -n 20 -u takes', check=False)}")
    return record
