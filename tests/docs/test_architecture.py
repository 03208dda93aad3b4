# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/architecture.md names files that exist, and every package."""

from __future__ import annotations

import re

from tests.docs.console import ROOT

DOCUMENT = (ROOT / "docs/architecture.md").read_text()
TABLES = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
BELOW = (ROOT, ROOT / "fuse_store", ROOT / "plugins/module_utils", ROOT / "docs")


def test_files_that_are_named_exist() -> None:
    named = {name for line in TABLES for name in re.findall(r"`([\w*.-]+/[\w*./-]+)`", line)}
    named -= {name for name in named if name.startswith(("locks/", "incoming/"))}  # of a store
    missing = [
        name
        for name in sorted(named)
        if not any(any(directory.glob(name.rstrip("/") + end)) for directory in BELOW for end in ("", ".py"))
    ]
    assert missing == []


def test_modules_of_a_package_are_in_it() -> None:
    missing = []
    rows = (line.split("|")[1:3] for line in TABLES if re.match(r"\| `\w+/`", line))
    for package, owns in rows:
        directory = ROOT / "fuse_store" / package.strip(" `/")
        for name in re.findall(r"`(\w+)/?`", owns):
            if not (directory / f"{name}.py").exists() and not (directory / name).is_dir() and name != directory.name:
                missing.append(f"{directory.name}/{name}")
    assert missing == []


def test_every_package_is_described() -> None:
    packages = {path.parent.name for path in (ROOT / "fuse_store").glob("*/__init__.py")}
    assert {package for package in packages if f"`{package}/`" not in DOCUMENT} == set()
