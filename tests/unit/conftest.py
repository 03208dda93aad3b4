# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the unit tests: the collection under its full name, and a machine recorded as files and transcripts."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host

    Plant = Callable[[dict[str, Any]], None]  # the type of the fixture plant

REPOSITORY = Path(__file__).resolve().parents[2]


def _offer_collection() -> None:
    """Make C(ansible_collections.nvm.fastboot) importable from this checkout, unless a test runner already does."""
    try:
        if importlib.util.find_spec("ansible_collections.nvm.fastboot") is not None:
            return
    except ModuleNotFoundError:
        pass
    link = REPOSITORY / "build" / "import" / "ansible_collections" / "nvm" / "fastboot"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(REPOSITORY, link.parent))
    sys.path.insert(0, str(link.parents[2]))


_offer_collection()


def pytest_configure(config: pytest.Config) -> None:
    """Make known to ansible-test, which has a configuration of its own, the marker that pyproject.toml has."""
    config.addinivalue_line("markers", "long: takes a tenth of a minute or more")


class Transcript:
    """Commands and what they print: a fake command runner that fails on a command that was not recorded.

    C(transcript.record("blkid -p /dev/pmem0", out="...", rc=0)) answers every such call; recorded several times, the
    answers are given in turn and the last one stays. C(transcript.calls) lists what was run.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inputs: list[str | None] = []
        self._answers: dict[str, list[tuple[int, str, str, Callable[[], object] | None]]] = {}

    def record(
        self, command: str, out: str = "", err: str = "", rc: int = 0, effect: Callable[[], object] | None = None
    ) -> None:
        self._answers.setdefault(command, []).append((rc, out, err, effect))

    def __call__(self, argv: Sequence[str], data: str | None = None) -> tuple[int, str, str]:
        command = " ".join(argv)
        self.calls.append(command)
        self.inputs.append(data)
        answers = self._answers.get(command)
        if not answers:
            raise AssertionError("command was not recorded: %s" % command)
        rc, out, err, effect = answers.pop(0) if len(answers) > 1 else answers[0]
        if effect is not None:
            effect()
        return rc, out, err


@pytest.fixture
def transcript() -> Transcript:
    return Transcript()


@pytest.fixture
def host(tmp_path: Path, transcript: Transcript) -> Host:
    """A Host on an empty root directory, whose commands come from C(transcript)."""
    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host

    return Host(transcript, root=str(tmp_path))


@pytest.fixture
def plant(host: Host) -> Plant:
    """C(plant({"/proc/swaps": "text", ...})) lays files down below the host's root."""

    def _plant(files: dict[str, Any]) -> None:
        for path, content in files.items():
            target = Path(host.path(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                target.write_text(content)

    return _plant
