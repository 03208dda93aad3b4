# SPDX-License-Identifier: GPL-3.0-or-later
"""The glossary is in order, and has each word once. ``make words`` looks for words that are not used."""

from __future__ import annotations

import re

from tests.docs.console import ROOT
from tests.docs.test_examples import text


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
