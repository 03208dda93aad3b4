# SPDX-License-Identifier: GPL-3.0-or-later
"""A store of images for the VM tests, used through its command line, and what a machine tells of itself to it.

What a command prints comes back as data, its error as an exit code and a
record.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.lab import Machine
from tests.vm.play import REPOSITORY

COMMAND = str(Path(sys.executable).parent / "fuse-store")
# What a kernel compares with an image, as files below /proc and /sys.
_TOLD = (
    "proc/1/mountinfo", "proc/cmdline", "proc/self/smaps", "proc/sys/kernel/arch", "proc/sys/kernel/osrelease", "proc/sys/kernel/ostype",
    "proc/sys/kernel/version", "proc/zoneinfo", "sys/firmware/memmap", "sys/kernel/security/lockdown",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The exit code of a command, the object it printed, and its error if it failed."""

    code: int
    record: dict[str, Any]
    error: dict[str, Any]


class Store:
    """A new store in ``folder``, or in a bucket: ``url``, with what ``environment`` says of it. Its keys stay below ``folder``."""

    def __init__(self, folder: Path, url: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder / "store"
        self.environment = {"XDG_CONFIG_HOME": str(folder / "config"), "FUSE_STORE": url or str(self.folder), **(environment or {})}
        self.done("init")

    @property
    def key(self) -> Path:
        (key,) = (self.folder.parent / "config").glob("fuse-store/keys/*.key")
        return key

    @property
    def variables(self) -> dict[str, str]:
        """Those with which the playbooks find the store and its command."""
        return {"nvm_store": self.environment["FUSE_STORE"], "nvm_store_key_file": str(self.key), "nvm_store_executable": COMMAND}

    @property
    def options(self) -> dict[str, str]:
        """Those with which the modules do."""
        return {name.removeprefix("nvm_store_").removeprefix("nvm_"): value for name, value in self.variables.items()}

    def __call__(self, *words: str | Path) -> Answer:
        """Run a command."""
        command = [COMMAND, "--json", *map(str, words)]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        error: dict[str, str] = next((one["error"] for one in said if "error" in one), {})
        assert done.returncode or not error, f"{shlex.join(command)}: {done.stderr}"
        assert bool(done.returncode) == bool(error), f"{shlex.join(command)} exited with {done.returncode}: {done.stderr}"
        return Answer(done.returncode, json.loads(done.stdout or "{}"), error)

    def killed(self, step: str, *words: str | Path) -> None:
        """Run a command that dies at a step (``fuse_store.repository.atomic.fault_point``), and leaves everything as it is then."""
        environment = {**os.environ, **self.environment, "FUSE_STORE_FAULT_POINT": step}
        done = subprocess.run([COMMAND, *map(str, words)], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, f"it was not killed at '{step}': {done.stderr}"

    def done(self, *words: str | Path) -> dict[str, Any]:
        """What the command printed; AssertionError if it failed."""
        answer = self(*words)
        assert answer.code == 0, f"{shlex.join(map(str, words))}: {answer.error}"
        return answer.record


def wheelhouse(python: str) -> Path:
    """A directory with the wheels of ``fuse-store``, made anew, for a guest with this version of Python (``3.11``)."""
    wheels = REPOSITORY / "build" / f"wheelhouse-{python}"
    subprocess.run([sys.executable, str(REPOSITORY / "molecule/store/wheelhouse.py"), str(wheels), python], check=True)
    return wheels


def tree_of(machine: Machine, folder: Path) -> Path:
    """What the machine, which is on, tells of its kernel and its memory, as files below ``folder``."""
    files = " ".join(f"/{path}" for path in _TOLD)
    archive = machine.ssh(
        f"rm -rf /run/tree && mkdir /run/tree && for i in {files}; do [ ! -e $i ] || cp -r --parents $i /run/tree; done;"
        " tar -C /run/tree -c . | base64"
    )
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive))) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                place = folder / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.read())
    return folder
