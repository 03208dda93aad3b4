# SPDX-License-Identifier: GPL-3.0-or-later
"""Completion, man page and guide match the program."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

import fuse_store
from fuse_store.cli import manpage
from fuse_store.cli.parser import GENERAL
from fuse_store.cli.verbs import NAMES, init, load
from fuse_store.cli.verbs import put as put_verb
from fuse_store.cli.verbs import select as select_verb
from fuse_store.hibernation.preflight import CODES
from fuse_store.image.kind import KINDS
from fuse_store.repository.block import CODECS
from fuse_store.repository.config import COMPRESSIONS, DURABILITY
from fuse_store.repository.state_log import STATES
from tests.store.cli.conftest import DOCS, Run


def test_bash_completes_verbs_options_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(run("completion", "bash").out)
    (tmp_path / "image.raw").touch()
    script = """
    source ./completion
    complete_words() {
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
      _shtab_fuse_store fuse-store "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$((COMP_CWORD - 1))]}"
      echo "${COMPREPLY[*]}"
    }
    complete_words fuse-store ver
    complete_words fuse-store prune --keep-d
    complete_words fuse-store put ima
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["verify", "--keep-daily", "image.raw"]


def offers() -> list[tuple[str, str, list[str], tuple[str, ...]]]:
    """(verb, argument, the words before its value, the values) of every argument with a list of values."""
    found = []
    for verb in load():
        positionals = [one for one in verb.arguments if not one.is_option]
        for one in verb.arguments:
            values = {"code": tuple(CODES), "page size": ("4KiB", "16KiB", "64KiB")}.get(one.complete, one.settings.get("choices"))
            if values:
                before = ["x"] * positionals.index(one) if not one.is_option else [*["x"] * len(positionals), one.flags[-1]]
                found.append((verb.name, one.name, before, tuple(values)))
    return found


def test_bash_completes_the_values_of_every_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(run("completion", "bash").out)
    script = """
    source ./completion
    COMP_WORDS=("$@" ""); COMP_CWORD=$#; COMPREPLY=()
    _shtab_fuse_store fuse-store "" "${@: -1}"
    echo "${COMPREPLY[*]}"
    """
    found = {name for _verb, name, _before, _values in offers()}
    assert {"--kind", "--state", "--compression", "--durability", "--page-size", "--force", "SHELL", "resumed|failed"} <= found
    for verb, name, before, values in offers():
        for general in ([], ["--store", "s"], ["-q"]):
            words = ["bash", "-c", script, "bash", "fuse-store", *general, verb, *before]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            assert tuple(done.stdout.split()) == values, (verb, name, general)


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(run: Run, shell: str) -> None:
    script = run("completion", shell).out
    assert all(name in script for name in NAMES) and "keep-monthly" in script
    for _verb, name, _before, values in offers():
        assert " ".join(values) in script, name


def test_help_offers_what_the_store_takes() -> None:
    offered = {one.flags[0]: str(one.settings.get("metavar")).split("|") for one in init.VERB.arguments}
    assert offered["--durability"] == list(DURABILITY)
    assert sorted(offered["--compression"]) == sorted(CODECS) == sorted(COMPRESSIONS)
    (kind,) = (one for one in put_verb.VERB.arguments if one.flags == ("--kind",))
    assert all(name in str(kind.settings["help"]) for name in KINDS) and kind.settings["choices"] == tuple(KINDS)
    (state,) = (one for one in select_verb.VERB.arguments if one.flags == ("--state",))
    assert state.settings["choices"] == STATES


def test_the_man_page_is_that_of_this_program() -> None:
    assert (DOCS / "fuse-store.1").read_text() == manpage.manpage()


def test_the_man_page_shows_its_date_and_version() -> None:
    command = ["man", "--local-file", str(DOCS / "fuse-store.1")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MANWIDTH": "100"}).stdout
    assert shown.rstrip().splitlines()[-1].split() == ["fuse-store", fuse_store.__version__, manpage.RELEASED, "FUSE-STORE(1)"]


def test_the_man_page_has_the_date_of_the_release() -> None:
    """That of the changelog, once this version is in it."""
    changelog = DOCS.parent / "changelogs/changelog.yaml"
    text = changelog.read_text() if changelog.exists() else ""
    version = re.escape(fuse_store.__version__)
    release = re.search(rf"^  {version}:$.*?^    release_date: '?([-\d]+)", text, re.MULTILINE | re.DOTALL)
    assert date.fromisoformat(manpage.RELEASED)
    assert release is None or release[1] == manpage.RELEASED


def test_roff_reads_the_man_page_without_warnings() -> None:
    command = ["man", "--warnings", "--local-file", str(DOCS / "fuse-store.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MANWIDTH": "80"})
    assert done.stderr == "" and "fuse-store put [--machine M]" in done.stdout
    assert all(f"\n   {name}\n" in done.stdout for name in NAMES)


def test_the_guide_tells_of_every_verb_option_and_exit_code() -> None:
    guide = (DOCS / "fuse-store.md").read_text()
    missing = [name for name in NAMES if f"`{name}" not in guide]
    missing += [
        one.flags[-1]
        for verb in load()
        for one in (*verb.arguments, *GENERAL)
        if one.flags[-1] not in guide and one.flags[0][0] == "-"
    ]
    missing += [str(code) for code in manpage.EXIT_CODES if f"| {code} |" not in guide]
    assert missing == []
