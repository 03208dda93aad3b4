# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for words that this project does not use in the text people read: C(check_words.py), for C(make words).

The text is every string in the code of the collection and of the store (messages, help, documentation of modules,
docstrings), the whole of roles, playbooks and documents. C(WORDS) says what to write instead, docs/glossary.md what each
word means. C(ALLOWED) names the places where such a word is right; one that allows nothing any more fails as well.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from project_files import ROOT, project_files

PYTHON = ("fuse_store", "plugins")
WHOLE = ("roles", "playbooks", "docs", "README.md", "CHANGELOG.rst", "CONTRIBUTING.md", "SECURITY.md")

# A pattern, between word boundaries and in either case; what to write instead.
WORDS = {
    r"folders?": "directory",
    r"anew": "again",
    r"whoever|somebody|nobody": "name the user, the machine or the process",
    r"speaks? against": "blocker, or: refuses because",
    r"in spite of": "overrides, despite",
    r"makes? no sense(?: of)?": "cannot parse, is not valid",
    r"is owed|are owed|was owed|owes": "say who must do what",
    r"(?<=: )it (?:is not|does not|has no|was not|cannot)|(?<!if )it does not exist": "verb or state alone: 'does not exist'",
    r"(?<!if )(?<!where )there is none|there is none like this": "no such …",
    r"for ever": "permanently",
    r"aimed at": "say what it does",
    r"evidence": "filesystem state",
    r"ledgers?": "state log",
    r"sealers?|sealed|unsealed": "encrypt, decrypt, AEAD",
    r"upkeep": "maintenance",
    r"(?:fuse-store|verb) outcome|outcome IMAGE": "report IMAGE resumed|failed",
    r"(?:no|much|more|less|free|enough|take|takes|took|the) room|room (?:for|on|in|left)": "space",
}

# (file, text as it stands there in lower case): why.
ALLOWED: dict[tuple[str, str], str] = {}

_PATTERNS = [(re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE), instead) for pattern, instead in WORDS.items()]


def texts(name: Path) -> Iterator[tuple[int, str]]:
    """What people read of a file: the number of its first line, and the text."""
    try:
        text = (ROOT / name).read_text()
    except UnicodeDecodeError:
        return
    if name.suffix != ".py":
        yield 1, text
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value


def found(name: Path) -> Iterator[tuple[int, str, str]]:
    """Line, text and what to write instead, for each word of the table in a file."""
    for line, text in texts(name):
        for pattern, instead in _PATTERNS:
            for match in pattern.finditer(re.sub(r"\s", " ", text)):
                yield line + text.count("\n", 0, match.start()), match.group().lower(), instead


def main() -> int:
    wrong = 0
    used: set[tuple[str, str]] = set()
    for name in project_files():
        part = name.parts[0]
        if part in WHOLE or (part in PYTHON and name.suffix == ".py"):
            for line, text, instead in sorted(found(name)):
                if (str(name), text) in ALLOWED:
                    used.add((str(name), text))
                else:
                    wrong += 1
                    print(f"{name}:{line}: {text!r}: {instead}")
    for name_, text in sorted(ALLOWED.keys() - used):
        wrong += 1
        print(f"tools/check_words.py: ALLOWED names {text!r} in {name_}, where it does not stand any more")
    print(f"{wrong} words to replace" if wrong else "no such words", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
