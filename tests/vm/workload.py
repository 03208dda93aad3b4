# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that holds state in RAM, to be found alive with it after a resume.

It keeps a random token and a block of random bytes that are
nowhere but in its memory, counts, and answers on a UNIX socket in C(/run), a tmpfs.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from tests.vm.lab import Machine

SOCKET = "/run/workload.sock"
_SERVER = """
import hashlib, json, os, socket, threading, time
block = os.urandom(%(mebibytes)d << 20)
token = os.urandom(16).hex()
count = 0
def counting():
    global count
    while True:
        count += 1
        time.sleep(0.05)
threading.Thread(target=counting, daemon=True).start()
server = socket.socket(socket.AF_UNIX)
server.bind("%(socket)s")
server.listen()
while True:
    connection, _ = server.accept()
    answer = {"pid": os.getpid(), "token": token, "digest": hashlib.sha256(block).hexdigest(), "count": count}
    connection.sendall(json.dumps(answer).encode())
    connection.close()
"""
_CLIENT = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('%s'); print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    % SOCKET
)


@dataclass(frozen=True)
class State:
    """What the process says of itself: its pid, its token, the digest of its block, how far it has counted, the boot id."""

    pid: int
    token: str
    digest: str
    count: int
    boot_id: str

    def lives_on_in(self, later: State) -> bool:
        """Whether ``later`` is the same process on the same boot with the same memory, still counting."""
        same = (self.pid, self.token, self.digest, self.boot_id) == (later.pid, later.token, later.digest, later.boot_id)
        return same and later.count > self.count


def start(machine: Machine, mebibytes: int = 64) -> State:
    """Start the process on ``machine`` and return its first answer."""
    server = _SERVER % {"mebibytes": mebibytes, "socket": SOCKET}
    machine.ssh("cat >/run/workload.py && systemd-run --quiet --unit=workload python3 /run/workload.py", stdin=server)
    machine.ssh(f"for i in $(seq 600); do [ -S {SOCKET} ] && exit 0; sleep 0.1; done; exit 1")
    return ask(machine)


def ask(machine: Machine) -> State:
    """What the process says now. Raises LabError if it is not there."""
    answer = machine.ssh(f"cat /proc/sys/kernel/random/boot_id; python3 -c {shlex.quote(_CLIENT)}")
    boot_id, text = answer.split("\n", 1)
    return State(boot_id=boot_id, **json.loads(text))
