# SPDX-License-Identifier: GPL-3.0-or-later
"""Which slot the playbook boot_from chooses. tests/vm/fast_boot boots from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLAYBOOK = Path(__file__).resolve().parents[3] / "playbooks" / "boot_from.yml"


def slot(number: int, taken: str, application: str = "shop", event: str = "", state: str = "complete") -> dict[str, Any]:
    image = "%d" % number * 32
    return {"slot": number, "taken": taken, "application": application, "event": event, "state": state, "image": image}


SLOTS = [
    slot(4, "2026-11-29T02:00:00+00:00", event="ready"),
    slot(1, "2026-11-29T01:00:00+00:00", event="ready"),
    slot(2, "2026-11-29T03:00:00+00:00"),
    slot(3, "2026-11-29T04:00:00+00:00", application="shop2"),
    slot(5, "2026-11-29T05:00:00+00:00", state="writing"),
]
# What the user says, and the slots that fit, the chosen one last.
CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 4, 2, 3]),
    ({"nvm_application": "shop"}, [1, 4, 2]),
    ({"nvm_application": "shop", "nvm_event": "ready"}, [1, 4]),
    ({"nvm_application": "sh.p"}, []),
    ({"nvm_slot": 4}, [4]),
    ({"nvm_slot": "5"}, []),
    ({"nvm_image": "3333"}, [3]),
    ({"nvm_before": "2026-11-29T02:00Z"}, [1]),
    ({"nvm_before": "2026-11-29T03:30:00Z", "nvm_application": "shop"}, [1, 4, 2]),
    ({"nvm_listed_again": {"slots": SLOTS[:1], "skipped": False}}, [4]),
    ({"nvm_listed_again": {"skipped": True}}, [1, 4, 2, 3]),
]


def test_the_newest_slot_that_fits(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("ansible.cli")
    (play,) = yaml.safe_load(PLAYBOOK.read_text())
    task = {"ansible.builtin.set_fact": {"found": "{{ nvm_fitting | map(attribute='slot') | list }}"}}
    plays = []
    for number, (said, _fitting) in enumerate(CASES):
        content = "{{ found | to_json }}"
        write = {"ansible.builtin.copy": {"content": content, "dest": str(tmp_path / str(number)), "mode": "0600"}}
        variables = {**play["vars"], "nvm_listed": {"slots": SLOTS}, **said}
        plays.append({"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [task, write]})
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    program = "import sys; from ansible.cli.playbook import PlaybookCLI; PlaybookCLI.cli_executor(sys.argv)"
    command = [sys.executable, "-c", program, "--connection=local", "-e", "ansible_python_interpreter=" + sys.executable, "play.yml"]
    environment = dict(os.environ, ANSIBLE_LOCAL_TEMP=str(tmp_path / "tmp"), ANSIBLE_REMOTE_TEMP=str(tmp_path / "tmp"))
    done = subprocess.run(command, cwd=str(tmp_path), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [json.loads((tmp_path / str(number)).read_text()) for number in range(len(CASES))] == [fitting for _said, fitting in CASES]
