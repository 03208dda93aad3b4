# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the modules, the playbooks and the READMEs of the roles use options and variables that exist."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

REPOSITORY = Path(__file__).resolve().parents[2]
PREFIX = "nvm.fastboot."
MODULES = sorted(path.stem for path in (REPOSITORY / "plugins" / "modules").glob("[a-z]*.py"))
PLAYBOOKS = sorted((REPOSITORY / "playbooks").glob("*.yml"))
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir() if path.is_dir())
LITERAL = {"bool": False, "int": 1, "float": 1.0, "str": "text", "path": "/path", "dict": {}, "list": [], "raw": "text"}


class Stopped(Exception):
    """The module has come to its AnsibleModule, with these arguments."""


def _module(name: str) -> Any:
    return importlib.import_module("ansible_collections.nvm.fastboot.plugins.modules." + name)


def _arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that the module C(name) gives to AnsibleModule."""

    def stop(**arguments: Any) -> None:
        raise Stopped(arguments)

    module = _module(name)
    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(Stopped) as stopped:
        module.main()
    arguments: dict[str, Any] = stopped.value.args[0]
    return arguments


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def _given(options: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """C(options) with a literal of the right type in the place of a template."""
    return {
        name: spec[name].get("choices", [LITERAL[spec[name].get("type", "str")]])[0]
        if _is_template(value) and name in spec else value
        for name, value in options.items()
    }  # fmt: skip


def _check_task(name: str, options: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = _arguments(name, monkeypatch)
    spec = arguments["argument_spec"]
    rules = {
        rule: arguments.get(rule) for rule in ("mutually_exclusive", "required_together", "required_one_of", "required_if")
    }
    result = ArgumentSpecValidator(spec, **rules).validate(_given(options or {}, spec))
    assert result.error_messages == [], "%s: %s" % (name, options)


def _tasks(nodes: Any) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each task of this collection's modules in C(nodes), plays or tasks, as (module, options)."""
    for node in nodes or []:
        for key, value in node.items():
            if key.startswith(PREFIX):
                yield key[len(PREFIX) :], value
            elif key in ("tasks", "block", "rescue", "always"):
                yield from _tasks(value)


def _blocks(text: str) -> list[Any]:
    """What the YAML blocks of a Markdown file hold."""
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S)]


def _spec(role: str) -> dict[str, Any]:
    text = (REPOSITORY / "roles" / role / "meta" / "argument_specs.yml").read_text()
    options: dict[str, Any] = yaml.safe_load(text)["argument_specs"]["main"]["options"]
    return options


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = list(_tasks(yaml.safe_load(_module(name).EXAMPLES)))
    assert name in [module for module, _options in tasks]
    for module, options in tasks:
        _check_task(module, options, monkeypatch)


@pytest.mark.parametrize("name", MODULES)
def test_documentation_of_a_module_is_yaml(name: str) -> None:
    """A colon or a number sign in a sentence makes something else of it."""
    module = _module(name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    texts = [documentation["description"], documentation.get("notes", [])]
    texts += [option["description"] for option in documentation["options"].values()]
    for text in texts:
        assert all(isinstance(line, str) for line in ([text] if isinstance(text, str) else text)), text
    assert all("description" in value for value in yaml.safe_load(module.RETURN).values())


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.stem)
def test_tasks_of_a_playbook(playbook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = yaml.safe_load(playbook.read_text())
    for module, options in _tasks(plays):
        spec = _arguments(module, monkeypatch)["argument_spec"]
        assert set(options or {}) <= set(spec)
    for play in plays:
        for role in play.get("roles", []):
            assert set(role.get("vars", {})) <= set(_spec(role["role"][len(PREFIX) :]))


@pytest.mark.parametrize("role", ROLES)
def test_examples_of_a_role(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plays = _spec(role), [play for block in _blocks((REPOSITORY / "roles" / role / "README.md").read_text()) for play in block]
    used = [(entry["role"], entry.get("vars", {})) for play in plays for entry in play.get("roles", [])]
    assert used
    for name, variables in used:
        assert name == PREFIX + role
        assert ArgumentSpecValidator(spec).validate(_given(variables, spec)).error_messages == []
    for module, options in _tasks(plays):
        _check_task(module, options, monkeypatch)


@pytest.mark.parametrize("role", ROLES)
def test_variables_of_a_role(role: str) -> None:
    """README, defaults and argument_specs list the same variables with the same defaults."""
    directory, spec = REPOSITORY / "roles" / role, _spec(role)
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", (directory / "README.md").read_text(), re.M)
    documented = {name: yaml.safe_load(default) for name, default in rows}
    assert documented == yaml.safe_load((directory / "defaults" / "main.yml").read_text())
    assert documented == {name: option["default"] for name, option in spec.items()}


def test_a_wrong_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        _check_task("hibernate_trigger", {"condition": "power_key", "pres": "long"}, monkeypatch)
    with pytest.raises(AssertionError):
        _check_task("hibernate_trigger", {"schedule": "daily"}, monkeypatch)
