# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers with an SSH server each, on a port of 127.0.0.1, all of a few root directories. Needs root.

A container has a mount, process, host name and IPC namespace of its own, an overlay over its root directory, and the machine's kernel and
network. It ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.containers import roots

# With: the directory of the container, its root directory, its name and its port; then directories that it sees under their own names.
_START = """
set -eu
directory=$1 root=$2 name=$3 port=$4
shift 4
hostname "$name"
mount -t overlay -o "lowerdir=$root,upperdir=$directory/upper,workdir=$directory/work" overlay "$directory/merged"
cd "$directory/merged"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/sshd
for seen; do mkdir -p ".$seen"; mount --bind -o ro "$seen" ".$seen"; done
exec chroot . /usr/sbin/sshd -D -e -o ListenAddress=127.0.0.1 -p "$port"
"""
UP_SECONDS = 60


@dataclass
class Target:
    """One container: the host ``name`` of Ansible. ``python``: its interpreter, of the version ``version``."""

    name: str
    suite: str
    python: str
    version: str
    port: int
    variables: dict[str, Any] = field(default_factory=dict)


class Containers:
    """Containers as a context manager: as many as asked for, of all suites and further Pythons in turn."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._roots = {suite: roots.ensure(suite) for suite in roots.SUITES}
        self._key = directory / "key"
        kinds = [(suite, "/usr/bin/python3", version) for suite, version in roots.SUITES.items()]
        kinds += [("trixie", str(python), version) for version, python in further_pythons().items()]
        self.targets = []
        for each in range(number):
            suite, python, version = kinds[each % len(kinds)]
            self.targets.append(Target(f"container{each}", suite, python, version, _free_port()))

    def __enter__(self) -> Containers:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)], check=True)
        for target in self.targets:
            self._start(target)
        for target in self.targets:
            self._wait(target)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def inventory(self, *targets: Target) -> str:
        """An inventory in JSON, as ``tests.vm.play`` asks for."""
        hosts = {
            target.name: {
                "ansible_host": "127.0.0.1",
                "ansible_port": target.port,
                "ansible_user": roots.USER,
                "ansible_ssh_private_key_file": str(self._key),
                "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR",
                "ansible_python_interpreter": target.python,
                **target.variables,
            }
            for target in targets
        }
        return json.dumps({"all": {"hosts": hosts}})

    def file(self, target: Target, path: str) -> Path:
        """A file that was changed in the container, as the host sees it."""
        return self._directory / target.name / "upper" / path.lstrip("/")

    def _start(self, target: Target) -> None:
        directory = self._directory / target.name
        for name in ("upper", "work", "merged"):
            (directory / name).mkdir(parents=True)
        ssh = directory / "upper" / "home" / roots.USER / ".ssh"
        ssh.mkdir(parents=True)
        shutil.copy(self._key.with_suffix(".pub"), ssh / "authorized_keys")
        for path in (ssh.parent, ssh, ssh / "authorized_keys"):
            os.chown(path, 1000, 1000)
        (directory / "upper" / "etc").mkdir()
        (directory / "upper" / "etc" / "machine-id").write_text(f"{target.port:032x}\n")  # mmdebstrap leaves it empty
        seen = [str(Path(target.python).parents[1])] if target.python != "/usr/bin/python3" else []
        command = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", _START, "sh",
                   str(directory), str(self._roots[target.suite]), target.name, str(target.port), *seen]  # fmt: skip
        with open(directory / "log", "wb") as log:
            # The parent's death is the end of it all: setpriv has the kernel tell unshare.
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._processes.append(process)

    def _wait(self, target: Target) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while True:
            with socket.socket() as client:
                client.settimeout(5)
                if client.connect_ex(("127.0.0.1", target.port)) == 0 and client.recv(8).startswith(b"SSH-2.0"):
                    return
            if time.monotonic() > deadline:
                log = (self._directory / target.name / "log").read_text()
                raise AssertionError(f"{target.name} ({target.suite}) does not answer on port {target.port}: {log}")
            time.sleep(0.2)


def further_pythons() -> dict[str, Path]:
    """Versions that no suite has, from pyenv where this machine has it: {"3.9": path}."""
    found = {}
    for python in sorted(Path(os.path.expanduser("~/.pyenv/versions")).glob("3.*/bin/python3")):
        version = ".".join(python.parents[1].name.split(".")[:2])
        if version not in roots.SUITES.values() and int(version.split(".")[1]) >= 9:
            found[version] = python
    return found


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
