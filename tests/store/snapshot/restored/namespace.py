# SPDX-License-Identifier: GPL-3.0-or-later
"""Code that runs in a network, mounts and a host name of its own, so that it may do to them what a restore does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
# Two interfaces, ours and that of a neighbour, who has 192.0.2.1 and hears all packets on the link.
BEGINNING = """
import json, os, pathlib, socket, subprocess, sys, time

place = pathlib.Path(sys.argv[1])

sh = lambda command: subprocess.run(["sh", "-ec", command], check=True, capture_output=True, text=True).stdout
sh("mount -t tmpfs run /run")  # where this machine's systemd listens

def wait(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)

sh("ip link set lo up; ip link add ours type veth peer name theirs; ip addr add 192.0.2.1/24 dev theirs; ip link set theirs up")
"""


def done(code: str, place: Path) -> Any:
    """What a piece of Python prints as JSON, which runs in namespaces of its own, with a directory ``place``. Fails with what else it
    has printed."""
    command = ["unshare", "--net", "--mount", "--uts", sys.executable, "-c", BEGINNING + code, str(place)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert not ran.returncode, f"{ran.stdout}\n{ran.stderr}"
    return json.loads(ran.stdout or "null")
