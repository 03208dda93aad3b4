# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/threat-model.md names tests: each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs" / "threat-model.md").read_text())))


def test_there_are_some() -> None:
    assert len(NAMED) > 10


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_named_test_exists(file: str, name: str) -> None:
    path = ROOT / "tests" / "store" / file
    assert path.is_file(), f"docs/threat-model.md names {file}, which does not exist"
    functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions, f"docs/threat-model.md names {file}::{name}, which does not exist"
