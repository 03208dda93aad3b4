# SPDX-License-Identifier: GPL-3.0-or-later
"""What README.md says of the store runs as it is written; and how docs/troubleshooting.md restores store.json."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from fuse_store.store import Store
from tests.docs.console import ROOT, Command, blocks, run

INSTALL = ("sudo apt-get install", "python3 -m venv")  # `make package` installs it into an empty environment


def quick_start() -> list[Command]:
    """The commands of the block that creates a store."""
    return next(block for block in blocks((ROOT / "README.md").read_text()) if any("fuse-store init" in one.text for one in block))


def test_the_quick_start_runs(tmp_path: Path) -> None:
    commands = [command for command in quick_start() if not command.text.startswith(INSTALL)]
    assert len(commands) >= 8
    for command, result in zip(commands, run(commands, tmp_path), strict=True):
        assert result.code == 0, (command.text, result.lines)
    assert (tmp_path / "restored.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()


def test_the_quick_start_installs_what_it_needs() -> None:
    """Debian's Python has no venv without its package, and takes no packages from pip outside of one."""
    install = [command.text for command in quick_start() if command.text.startswith(INSTALL)]
    assert "python3-venv" in install[0] and "fuse3" in install[0]
    assert re.match(r"python3 -m venv (\S+) && \1/bin/pip install \. && export PATH=", install[1])
    for name in ("README.md", "docs/fuse-store.md", "docs/tutorial.md"):
        for line in (ROOT / name).read_text().splitlines():
            assert not re.search(r"(?<!/bin/)\bpip3? install", line), (name, line)


def test_store_json_is_restored_as_it_is_documented(tmp_path: Path) -> None:
    documented = next(line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("sed -n"))
    with Store.create(tmp_path / "store", key_file=tmp_path / "key"):
        pass
    before = (tmp_path / "store/store.json").read_text()
    (tmp_path / "store/store.json").unlink()
    command = documented.replace("KEY_FILE", shlex.quote(str(tmp_path / "key"))).replace("STORE", shlex.quote(str(tmp_path / "store")))
    subprocess.run(["sh", "-c", command], check=True)
    with Store.open(tmp_path / "store", key_file=tmp_path / "key") as opened:
        assert opened.config.to_json().decode() == before
