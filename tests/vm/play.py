# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's playbooks against machines of the laboratory, as a user would against servers.

The collection is taken from this checkout; results come back as data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.vm.lab import Lab, Machine

REPOSITORY = Path(__file__).resolve().parents[2]


class Inventory(Protocol):
    """Knows how Ansible reaches its machines."""

    def inventory(self, *machines: Any) -> str: ...


@dataclass
class Played:
    """A finished run: exit code, what Ansible printed, and a record (host, task, module, status, seconds, result) per task."""

    code: int
    output: str
    seconds: float
    tasks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changed(self) -> int:
        """How many tasks changed something."""
        return sum(bool(task["result"].get("changed")) for task in self.tasks)

    def result(self, module: str, host: str | None = None) -> dict[str, Any]:
        """What the last task with that module (``nvm.fastboot.hibernate``, or its last word) returned."""
        for task in reversed(self.tasks):
            if task["module"] in (module, f"nvm.fastboot.{module}") and host in (None, task["host"]):
                assert task["status"] != "unreachable", f"{task['host']} was not reached:\n{self.output}"
                return {**task["result"], "failed": task["status"] == "failed"}
        raise AssertionError(f"no task ran {module}:\n{self.output}")

    def ok(self) -> Played:
        """This, if Ansible succeeded; AssertionError with its output otherwise."""
        assert self.code == 0, self.output
        return self


def environment(**more: str) -> dict[str, str]:
    """The environment in which Ansible finds this checkout's collection."""
    tree = REPOSITORY / "build"
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(tree),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_SSH_RETRIES": "3",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_HOST_KEY_CHECKING": "0",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        **more,
    }


def sync() -> None:
    """Bring ``build/ansible_collections/nvm/fastboot`` up to this checkout."""
    subprocess.run([sys.executable, str(REPOSITORY / "tools" / "collection_tree.py")], check=True, stdout=subprocess.DEVNULL)


def play(
    lab: Inventory,
    machines: Iterable[Any],
    playbook: str,
    variables: Mapping[str, Any] | None = None,
    *options: str,
    timeout: float = 1800,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Played:
    """Run ``playbook`` (a path, or a name such as ``nvm.fastboot.configure``) and return what came of it.

    ``on_event`` is called with each task's start and end while it runs. Raises subprocess.TimeoutExpired.
    """
    sync()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        results.touch()
        inventory = Path(folder) / "inventory.json"
        inventory.write_text(lab.inventory(*machines))
        extra = ["-e", json.dumps(dict(variables))] if variables else []
        variables_of = environment(
            ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).parent / "callbacks"),
            ANSIBLE_CALLBACKS_ENABLED="task_results",
            TASK_RESULTS=str(results),
        )
        started = time.monotonic()
        tasks, line = [], ""
        with open(Path(folder) / "output", "w+") as output, open(results) as records:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", str(inventory), *extra, *options],
                cwd=REPOSITORY, env=variables_of, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                while True:
                    ended = process.poll() is not None
                    for part in records:
                        line += part
                        if not line.endswith("\n"):
                            continue  # of a line that is still being written
                        event, line = json.loads(line), ""
                        if on_event:
                            on_event(event)
                        if event["event"] == "end":
                            tasks.append(event)
                    if ended:
                        break
                    if time.monotonic() - started > timeout:
                        raise subprocess.TimeoutExpired(playbook, timeout)
                    time.sleep(0.1)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            output.seek(0)
            return Played(process.returncode, output.read(), time.monotonic() - started, tasks)


def module(lab: Lab, machine: Machine, name: str, arguments: Mapping[str, Any] | None = None, *options: str) -> dict[str, Any]:
    """Run one module on a machine and return its result, ``failed`` included."""
    task = {f"nvm.fastboot.{name}": dict(arguments or {})}
    return tasks(lab, machine, [task], *options).result(name)


def tasks(lab: Lab, machine: Machine, tasks: Sequence[Mapping[str, Any]], *options: str, become: bool = True) -> Played:
    """Run tasks, as a playbook has them, for a machine."""
    text = [{"hosts": "all", "gather_facts": False, "become": become, "tasks": list(tasks)}]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump(text, file)
        file.flush()
        return play(lab, [machine], file.name, None, *options)
