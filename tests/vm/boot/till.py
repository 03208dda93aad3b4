# SPDX-License-Identifier: GPL-3.0-or-later
"""A till on PostgreSQL: one session that is open all day, and counts what was sold in a transaction that it does not commit.

The count is in the memory of two processes with a connection between them, and in no file: whoever starts the server anew has lost it.
"""

from __future__ import annotations

import secrets
import time

from tests.vm.lab import Machine

_IN, _OUT = "/run/till/in", "/run/till/out"
_SESSION = f"tail -n +1 -f {_IN} | stdbuf -oL psql -qAtX >{_OUT} 2>&1"
_SECONDS = 120


def open_till(machine: Machine) -> None:
    """Begin the session. The machine is on, and has PostgreSQL."""
    machine.ssh(f"install -d -o postgres /run/till; install -o postgres /dev/null {_IN}")
    machine.ssh(f"systemd-run -q --unit=till -p User=postgres -p WorkingDirectory=/ sh -c '{_SESSION}'")
    ask(machine, "BEGIN; CREATE TABLE sold (number integer);")


def sell(machine: Machine) -> int:
    """One more; the count."""
    return int(ask(machine, "INSERT INTO sold VALUES (1); SELECT count(*) FROM sold;"))


def sold(machine: Machine) -> int:
    return int(ask(machine, "SELECT count(*) FROM sold;"))


def ask(machine: Machine, statements: str) -> str:
    """What the session answers. AssertionError if it does not."""
    token = secrets.token_hex(8)
    machine.ssh(f"cat >>{_IN}", stdin=f"SELECT 'begin {token}'; {statements} SELECT 'end {token}';\n")
    deadline = time.monotonic() + _SECONDS
    while f"end {token}\n" not in (printed := machine.ssh(f"cat {_OUT}", check=False)):
        assert time.monotonic() < deadline, f"{printed}{machine.ssh('systemctl status till postgresql@*', check=False)}"
        time.sleep(0.2)
    return printed.partition(f"begin {token}\n")[2].partition(f"end {token}\n")[0].strip()
