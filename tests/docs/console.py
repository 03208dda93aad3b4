# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the ```console blocks of a document: every line that begins with ``$ ``, in order, in one shell.

``# exit code N`` at the end of a command says with which code it ends; without it, that is 0. In the output that is shown,
``…`` stands for anything. What differs from run to run (ids, times, seconds, numbers of bytes, the home directory) is not
compared.

``python -m tests.docs.console docs/tutorial.md`` writes the output of today into the document; blocks in which ``…`` is
used are printed instead, to be shortened by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = "/home/admin"  # in documents
TIMEOUT = 120  # seconds, for a whole document
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = "@@fuse-store-document@@"
_EXIT = re.compile(r"# exit code (\d+)\s*$")


@dataclass
class Command:
    """One command of a document: its text, the code with which it ends, and the lines that are shown below it."""

    text: str
    code: int = 0
    shown: list[str] = field(default_factory=list)


@dataclass
class Result:
    """How a command ended, and what it printed."""

    code: int
    lines: list[str]


def blocks(document: str) -> list[list[Command]]:
    """The commands of a document, block by block. A command that ends in a backslash goes on in the next line."""
    found = []
    for content in _BLOCK.findall(document):
        commands: list[Command] = []
        for line in content.splitlines():
            if line.startswith("$ "):
                commands.append(Command(line[2:]))
            elif commands and commands[-1].text.endswith("\\") and not commands[-1].shown:
                commands[-1].text += "\n" + line
            elif commands:
                commands[-1].shown.append(line)
        for command in commands:
            code = _EXIT.search(command.text)
            command.code = int(code[1]) if code else 0
        found.append(commands)
    return found


def run(commands: list[Command], home: Path) -> list[Result]:
    """Run all of them in one shell that begins in ``home``; errors are part of the output."""
    script = ["exec 2>&1", "cd"]
    for command in commands:
        script += [command.text, f"printf '\\n{_MARK} %s\\n' $?"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FUSE_STORE", "XDG_", "AWS_"))
    }
    environment |= {
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    results, lines = [], list[str]()
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            while lines and not lines[-1]:
                lines.pop()
            results.append(Result(int(line.split()[1]), lines))
            lines = []
        else:
            lines.append(line.replace(str(home), HOME).rstrip())
    return results


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, name in (
        (r"\d{4}-\d\d-\d\d([T ]\d\d[:-]\d\d[:-]\d\d(\.\d+)?(Z|\+00:00)?)?(-[0-9a-f]{6})?", "TIME"),
        (r"\b[0-9a-f]{12,32}\b", "ID"),
        (r"\b\d+(\.\d+)? s\b", "SECONDS"),
        (r"\b\d+(\.\d+)? (B|[KMG]iB|bytes)\b", r"N \2"),
        (r"\bratio\s+\d+(\.\d+)?", "ratio N"),
        (r"\b0x[0-9a-f]+\b", "OFFSET"),
        (r"\s+", " "),
    ):
        line = re.sub(pattern, name, line)
    return line.strip()


def is_shown(shown: str, lines: list[str]) -> bool:
    """Whether one of the lines that were printed is the one that is shown."""
    pattern = ".*".join(re.escape(plain(part)) for part in shown.split("…"))
    return any(re.fullmatch(pattern, plain(line)) for line in lines)


def main(path: Path) -> None:
    """Put the output of today into a document."""
    document = path.read_text()
    with tempfile.TemporaryDirectory() as home:
        results = iter(run([command for block in blocks(document) for command in block], Path(home)))

    def renewed(block: re.Match[str]) -> str:
        lines = []
        for command in blocks(block[0])[0]:
            lines += [f"$ {command.text}", *next(results).lines]
        content = "```console\n" + "\n".join(lines) + "\n```"
        if "…" not in block[0]:
            return content
        print(content)
        return block[0]

    path.write_text(_BLOCK.sub(renewed, document))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
