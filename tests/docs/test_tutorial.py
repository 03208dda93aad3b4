# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/tutorial.md is true: each command is run, ends as the page says, and prints what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.console import ROOT, Command, Result, blocks, is_shown, plain, run

COMMANDS = [command for block in blocks((ROOT / "docs/tutorial.md").read_text()) for command in block]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def results(home: Path) -> list[tuple[Command, Result]]:
    results = run(COMMANDS, home)
    assert len(results) == len(COMMANDS)
    return list(zip(COMMANDS, results, strict=True))


def test_every_command_ends_as_the_page_says(results: list[tuple[Command, Result]]) -> None:
    wrong = [(command.text, result.code, result.lines) for command, result in results if result.code != command.code]
    assert wrong == []


def test_every_line_that_is_shown_is_printed(results: list[tuple[Command, Result]]) -> None:
    missing = [
        (command.text, line, result.lines)
        for command, result in results
        for line in command.shown
        if not is_shown(line, result.lines)
    ]
    assert missing == []


def test_every_line_that_is_printed_is_shown_or_left_out_by_dots(results: list[tuple[Command, Result]]) -> None:
    missing = [
        (command.text, line)
        for command, result in results
        if "…" not in command.shown
        for line in result.lines
        if not any(is_shown(shown, [line]) for shown in command.shown)
    ]
    assert missing == []


def test_the_page_leaves_nothing_behind(results: list[tuple[Command, Result]], home: Path) -> None:
    assert results
    assert [path.name for path in home.iterdir() if path.name not in (".config", ".cache")] == []


def test_what_differs_from_run_to_run_is_not_compared() -> None:
    shown = "web01/notes/2026-11-28T17-27-24Z-05f3ed → restored.raw: 1.0 GiB, 8.0 MiB written in 0.2 s"
    printed = "web01/notes/2027-01-02T03-04-05Z-abcdef → restored.raw: 1.0 GiB, 7.9 MiB written in 12 s"
    assert plain(shown) == plain(printed)
    assert is_shown("web01/… written in 3 s", [printed])
    assert not is_shown(shown, [printed.replace("written", "read")])
    assert not is_shown(shown, [printed.replace("MiB", "KiB")])
