# SPDX-License-Identifier: GPL-3.0-or-later
"""Links of the documents lead somewhere: to a file of the repository, and to a heading that it has."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.docs.console import ROOT
from tests.docs.test_examples import NAMES

REPOSITORY = yaml.safe_load((ROOT / "galaxy.yml").read_text())["repository"]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(document: str) -> set[str]:
    """The anchors that GitHub gives headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```", "", document, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    wrong = []
    for link in _LINK.findall(_CODE.sub("", path.read_text())):
        target, _hash, anchor = link.partition("#")
        if target.startswith(f"{REPOSITORY}/blob/main/"):
            file = ROOT / target.removeprefix(f"{REPOSITORY}/blob/main/")
        elif re.match(r"\w+:", target):
            continue
        else:
            file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(link)
    assert wrong == []


def test_links_of_the_readme_work_on_galaxy_too() -> None:
    links = _LINK.findall(_CODE.sub("", (ROOT / "README.md").read_text()))
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_documents_that_programs_refer_to_exist() -> None:
    wrong = []
    for path in (
        path
        for directory in ("fuse_store", "plugins", "tests", "tools")
        for path in sorted((ROOT / directory).rglob("*.py"))
    ):
        for document, section in re.findall(r'(docs/[\w/.-]+\.md)(?:, "([^"\n]+)")?', path.read_text()):
            file = ROOT / document
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if file.exists() else []
            if not file.exists() or (section and section not in headings):
                wrong.append((str(path.relative_to(ROOT)), document, section))
    assert wrong == []
