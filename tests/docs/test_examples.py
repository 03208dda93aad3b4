# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documents show can be typed: commands parse, and options of modules and variables of roles and playbooks exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuse_store.cli.parser import build
from fuse_store.cli.verbs import load
from fuse_store.errors import UsageError
from tests.docs.console import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("roles/*/README.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_INNER = re.compile(r"\$\((fuse-store [^()]*)\)")
_MODULE = re.compile(r"nvm\.fastboot\.(\w+)")
ROLES = {"nvm.fastboot." + path.parent.parent.name: path for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
# Of playbooks: variables are what they read, and what the roles take.
PLAYBOOKS = "".join(path.read_text() for path in sorted(ROOT.glob("playbooks/*.yml")))


def text(name: str) -> str:
    return (ROOT / name).read_text()


def fences(document: str, *languages: str) -> Iterator[str]:
    for indent, language, content in _FENCE.findall(document):
        if language in languages:
            yield re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)


def typed(document: str) -> Iterator[str]:
    """Lines with a prompt, and those of sh blocks; continued lines as one."""
    for content in fences(document, "console", "sh", ""):
        for line in content.replace("\\\n", " ").splitlines():
            if re.match(r"[$#] \S", line):
                yield line[2:]
    for content in fences(document, "sh"):
        yield from content.replace("\\\n", " ").splitlines()


def invocations(line: str) -> Iterator[list[str]]:
    """The arguments of every fuse-store in a line."""
    while inner := _INNER.search(line):
        yield from invocations(inner[1])
        line = line.replace(inner[0], "4f1c9a")
    if line.startswith("# "):
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    try:
        tokens = [*lexer, ";"]
    except ValueError:  # a line of a program in another language
        return
    for token in tokens:
        if token in ("|", "&&", "||", ";", "&", "(", ")", "<", ">", ">>"):
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words and words[0] == "fuse-store":
                yield words[1:]
            words = []
        else:
            words.append(token)


COMMANDS = [(name, words) for name in NAMES for line in typed(text(name)) for words in invocations(line)]


def test_documents_show_commands() -> None:
    shown = {name for name, _words in COMMANDS}
    assert {"README.md", "docs/tutorial.md", "docs/fuse-store.md", "docs/staging.md"} <= shown
    assert len(COMMANDS) > 50


@pytest.mark.parametrize(
    ("name", "words"), COMMANDS, ids=[f"{name}: {' '.join(words)}"[:80] for name, words in COMMANDS]
)
def test_commands_parse(name: str, words: list[str]) -> None:
    if "--help" in words or "VERB" in words or "…" in words:
        return
    try:
        build(load()).parse_args(words)
    except UsageError as error:
        pytest.fail(f"{name}: fuse-store {shlex.join(words)}: {error}")


# Ansible --------------------------------------------------------------------------------------------------------------


def _fragments() -> dict[str, dict[str, Any]]:
    found = {}
    for path in ROOT.glob("plugins/doc_fragments/*.py"):
        documentation = re.search(r'DOCUMENTATION = r"""\n(.*?)"""', path.read_text(), re.DOTALL)
        if documentation:
            found["nvm.fastboot." + path.stem] = yaml.safe_load(documentation[1])
    return found


def options() -> dict[str, dict[str, Any]]:
    """The options of every module."""
    fragments = _fragments()
    found = {}
    for path in ROOT.glob("plugins/modules/*.py"):
        documentation = re.search(r'DOCUMENTATION = r"""\n(.*?)"""', path.read_text(), re.DOTALL)
        assert documentation is not None, path
        value = yaml.safe_load(documentation[1])
        found[path.stem] = dict(value.get("options", {}))
        names = value.get("extends_documentation_fragment", [])
        for name in [names] if isinstance(names, str) else names:
            found[path.stem] |= fragments.get(name, {}).get("options", {})
    return found


def specs(role: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(ROLES[role].read_text())["argument_specs"]["main"]["options"]
    return value


MODULES = options()
VARIABLES = {name for role in ROLES for name in specs(role)} | set(re.findall(r"\bnvm_\w+", PLAYBOOKS))


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner)


def unknown(example: dict[str, Any]) -> Iterator[str]:
    """What one mapping of an example sets that does not exist."""
    for key, value in example.items():
        module = _MODULE.fullmatch(str(key))
        if module:
            if module[1] not in MODULES:
                yield key
            elif isinstance(value, dict):
                yield from (f"{key}: {option}" for option in value if option not in MODULES[module[1]])
        elif re.match(r"image_store_|nvm_", str(key)) and key not in VARIABLES:
            yield str(key)
        elif key == "nvm_triggers" and isinstance(value, list):
            yield from (
                f"{key}: {option}" for entry in value for option in entry if option not in MODULES["hibernate_trigger"]
            )
        elif key == "image_store_keep" and isinstance(value, dict):
            offered = specs("nvm.fastboot.image_store")["image_store_keep"]["options"]
            yield from (f"{key}: {option}" for option in value if option not in offered)
        elif key in ("role", "import_role", "include_role"):
            role = value if isinstance(value, str) else value.get("name", "")
            if role.startswith("nvm.fastboot.") and role not in ROLES:
                yield role


@pytest.mark.parametrize("name", NAMES)
def test_ansible_examples_use_what_exists(name: str) -> None:
    wrong = []
    for content in fences(text(name), "yaml"):
        for document in yaml.safe_load_all(content):
            wrong += [problem for example in mappings(document) for problem in unknown(example)]
    for line in typed(text(name)):
        if "ansible-playbook" in line:
            wrong += [
                playbook for playbook in _MODULE.findall(line) if not Path(ROOT / f"playbooks/{playbook}.yml").exists()
            ]
            wrong += [variable for variable in re.findall(r"-e '?\{?\"?(nvm_\w+)", line) if variable not in VARIABLES]
    assert wrong == []


def test_the_checks_of_examples_find_what_is_wrong() -> None:
    example = yaml.safe_load(
        """
        - nvm.fastboot.nvm_swap: {devise: /dev/x}
        - nvm.fastboot.nvm_nothing: {}
        - {role: nvm.fastboot.nothing, nvm_nothing: 1, image_store_nothing: 2, image_store_keep: {minutely: 1}}
        - {nvm_triggers: [{condition: idle, idel: 1h}]}
        """
    )
    assert [problem for inner in mappings(example) for problem in unknown(inner)] == [
        "nvm.fastboot.nvm_swap: devise", "nvm.fastboot.nvm_nothing", "nvm.fastboot.nothing", "nvm_nothing", "image_store_nothing",
        "image_store_keep: minutely", "nvm_triggers: idel",
    ]  # fmt: skip
    words = [
        words
        for line in typed("```console\n$ a=$(fuse-store list) && fuse-store gc | cat # fuse-store\n```")
        for words in invocations(line)
    ]
    assert words == [["list"], ["gc"]]
