# SPDX-License-Identifier: GPL-3.0-or-later
"""The role, run by ansible-playbook with modules that only record their options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
MODULES = ("boot_resume", "fstab_swap", "hibernate_trigger", "nvm_reservation", "nvm_swap")
MODULE = """\
#!/usr/bin/python
import json
from ansible.module_utils.basic import AnsibleModule
names = %(options)r
module = AnsibleModule(dict.fromkeys(names, {"type": "raw"}), supports_check_mode=True)
given = {name: value for name, value in module.params.items() if value is not None}
with open(%(log)r, "a") as log:
    log.write(json.dumps([%(name)r, given]) + "\\n")
module.exit_json(changed=False, reboot_required=False)
"""
PLAYBOOK = [
    {"hosts": "localhost", "gather_facts": False, "roles": [{"role": "nvm.fastboot.hibernate_to_nvm"}]},
]


class Role:
    """C(role(**variables)) runs the role and returns C([(module, options), ...])."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        collection = directory / "ansible_collections" / "nvm" / "fastboot"
        (collection / "plugins" / "modules").mkdir(parents=True)
        (collection / "roles").symlink_to(REPOSITORY / "roles")
        for name in MODULES:
            documented = _options(name)
            text = MODULE % {"options": documented, "log": str(self.log), "name": name}
            (collection / "plugins" / "modules" / (name + ".py")).write_text(text)
        (directory / "play.yml").write_text(json.dumps(PLAYBOOK))

    def __call__(self, **variables: Any) -> list[tuple[Any, ...]]:
        done = self.run(**variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]

    def run(self, **variables: Any) -> Any:
        self.log.write_text("")
        environment = dict(
            os.environ,
            ANSIBLE_COLLECTIONS_PATH=str(self.directory),
            ANSIBLE_LOCAL_TEMP=str(self.directory / "tmp"),
            ANSIBLE_REMOTE_TEMP=str(self.directory / "tmp"),
            ANSIBLE_LOCALHOST_WARNING="false",
            ANSIBLE_NOCOLOR="true",
        )
        extra = json.dumps(dict(variables, ansible_python_interpreter=sys.executable))
        # Not by the command's name: ansible-test has another ansible-core than the one on PATH.
        program = "import sys; from ansible.cli.playbook import PlaybookCLI; PlaybookCLI.cli_executor(sys.argv)"
        command = [sys.executable, "-c", program, "--connection=local", "--extra-vars", extra, "play.yml"]
        return subprocess.run(
            command, cwd=str(self.directory), env=environment, capture_output=True, text=True, check=False
        )


def _options(module: str) -> list[str]:
    import yaml

    text = (REPOSITORY / "plugins" / "modules" / (module + ".py")).read_text()
    documentation = text.split('DOCUMENTATION = r"""')[1].split('"""')[0]
    return sorted(yaml.safe_load(documentation)["options"])


@pytest.fixture
def role(tmp_path: Path) -> Role:
    pytest.importorskip("ansible.cli")
    return Role(tmp_path)


def triggers(calls: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [options for module, options in calls if module == "hibernate_trigger"]


TRIGGERS = [
    {"condition": "schedule", "name": "night", "schedule": "*-*-* 23:00"},
    {"condition": "power_key"},
    {"name": "away", "state": "absent"},
]


def test_present_passes_every_option_of_a_trigger_on(role: Role) -> None:
    assert triggers(role(nvm_triggers=TRIGGERS)) == [
        {"condition": "schedule", "name": "night", "schedule": "*-*-* 23:00"},
        {"condition": "power_key", "name": "power_key"},
        {"name": "away", "state": "absent"},
    ]


def test_absent_removes_the_triggers_in_the_list_first_and_no_other(role: Role) -> None:
    calls = role(nvm_state="absent", nvm_triggers=TRIGGERS)
    assert triggers(calls) == [{"name": name, "state": "absent"} for name in ("night", "power_key", "away")]
    modules = [module for module, _options in calls]
    assert modules[3:] == ["boot_resume", "fstab_swap", "nvm_swap", "nvm_reservation"]


def test_absent_without_a_list_removes_no_trigger(role: Role) -> None:
    assert triggers(role(nvm_state="absent")) == []


@pytest.mark.parametrize("trigger", [{"state": "absent"}, {"condition": "lid"}, {"condition": "idle", "idel": "30min"}])
def test_an_entry_without_a_name_fails_the_role(role: Role, trigger: dict[str, Any]) -> None:
    """Without a name and a condition the module removes every trigger of the machine."""
    done = role.run(nvm_state="absent", nvm_triggers=[trigger])
    assert done.returncode == 2 and "Validation of arguments failed" in done.stdout, done.stdout + done.stderr
    assert "hibernate_trigger" not in role.log.read_text()
