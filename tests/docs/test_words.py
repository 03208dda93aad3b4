# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents use the words of the glossary, and plain English; what is not to be written is named here, with what is."""

from __future__ import annotations

import re

import pytest

from tests.docs.console import ROOT
from tests.docs.test_examples import NAMES, text

INSTEAD = {
    r"folders?": "directory",
    r"nobody|no one": "the passive, or name the subject",
    r"somebody|someone else": "another process, user, machine",
    r"whoever": "anyone who, or name the subject",
    r"anew": "again, or the verb with re-",
    r"ledgers?": "state log",
    r"seal|seals|sealed|sealers?": "encrypt",
    r"upkeep": "maintenance",
    r"for ever|forever": "permanently, or without end",
    r"in spite of": "override",
    r"speaks? against": "refuse, blocker",
    r"is owed|owes": "needs",
    r"makes no sense": "is wrong",
    r"rooms?": "space",
    r"evidence": "filesystem state",
    r"outcome": "report",
    r"aimed at|asked for by": "(aims of ours are not the reader's business)",
}
# Where a word is right: what was decided then, or another meaning.
ALLOWED = {
    "docs/decisions/0023-base-the-verdict-on-evidence-from-the-machine.md": {"evidence"},
    "docs/decisions/README.md": {"evidence"},
    "docs/kernel-notes.md": {"evidence"},
    "docs/benchmarks.md": {"aimed at|asked for by"},
}
_CODE = re.compile(r"^ *```.*?^ *```|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_words_that_are_not_used(name: str) -> None:
    prose = _CODE.sub("", text(name))
    found = {
        (match[0], instead)
        for word, instead in INSTEAD.items()
        if not any(re.fullmatch(word, allowed) or word == allowed for allowed in ALLOWED.get(name, ()))
        for match in re.finditer(rf"\b(?:{word})\b", prose, re.IGNORECASE)
    }
    assert found == set()


def test_the_glossary_is_in_order() -> None:
    for group in text("docs/glossary.md").split("\n## ")[1:]:
        words = [re.sub(r"[`*]", "", word).lower() for word in re.findall(r"^\| ([^|]+) \|", group, re.MULTILINE)[2:]]
        words = [word.replace("-", " ") for word in words]
        assert words == sorted(words), group.splitlines()[0]


def test_the_glossary_has_one_line_for_a_word() -> None:
    words = re.findall(r"^\| ([^|]+) \|", text("docs/glossary.md"), re.MULTILINE)
    words = [word for word in words if word not in ("word", "---")]
    assert sorted(set(words)) == sorted(words)
    assert len(words) > 100
    assert (ROOT / "docs/glossary.md").read_text().count("\n## ") == 6
