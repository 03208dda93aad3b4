# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test with ansible-cores that .venv does not have: C(ansible_versions.py VERSION...), such as C(2.20 2.21).

Used by the Makefile. Each version has a virtual environment and a copy of the collection below C(build/ansible-VERSION),
and runs C(sanity) and C(units); with the machine's Python, or Debian 13's where that is too old (see newer_python.py). All
of them run even if one fails; the exit code is 0 if none did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import newer_python
from project_files import ROOT

COMMANDS = ("sanity", "units")
# The oldest and the newest Python of a controller.
PYTHONS = {
    "2.17": ((3, 10), (3, 12)),
    "2.18": ((3, 11), (3, 13)),
    "2.19": ((3, 11), (3, 13)),
    "2.20": ((3, 12), (3, 14)),
    "2.21": ((3, 12), (3, 14)),
}
# Tests that newer versions do not have any more. Galaxy would warn of an entry in tests/sanity/ignore-2.17.txt.
SKIPPED = {("2.17", "sanity"): ["--skip-test", "empty-init"]}  # __init__ with a docstring


def main() -> int:
    ended: list[tuple[str, int, float]] = []
    for version in sys.argv[1:]:
        oldest, newest = PYTHONS[version]
        if newer_python.version() > newest:
            print(f"ansible-core {version}: left out, this machine's Python is too new for it", flush=True)
            continue
        newer = newer_python.version() < oldest
        directory = ROOT / "build" / f"ansible-{version}"
        python = directory / "venv" / "bin" / "python"
        if not python.is_symlink():
            directory.mkdir(parents=True, exist_ok=True)
            _run([newer_python.PYTHON, "-m", "venv", "--clear", str(directory / "venv")], newer, check=True)
        wanted = f"ansible-core~={version}.0"
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade", wanted], newer, check=True)
        os.environ["COLLECTION_TREES"] = str(directory)
        for command in COMMANDS:
            print(f"===== ansible-core {version}: {command}", flush=True)
            started = time.monotonic()
            arguments = SKIPPED.get((version, command), [])
            code = _run([str(python), str(ROOT / "tools" / "run_ansible_test.py"), command, *arguments], newer)
            ended.append((f"ansible-core {version} {command}", code, time.monotonic() - started))
    for name, code, seconds in ended:
        print(f"{name:<28} {'FAILED' if code else 'passed'} in {seconds:.0f} s", flush=True)
    return int(any(code for _name, code, _seconds in ended))


def _run(arguments: list[str], newer: bool, check: bool = False) -> int:
    command = newer_python.command(arguments) if newer else arguments
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=check).returncode


if __name__ == "__main__":
    sys.exit(main())
