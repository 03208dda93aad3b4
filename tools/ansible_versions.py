# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test with ansible-cores that .venv does not have: C(ansible_versions.py VERSION...), such as C(2.20 2.21).

Used by the Makefile. Each version has a virtual environment, made from Debian 13's Python (see newer_python.py), and a
copy of the collection below C(build/ansible-VERSION), and runs C(sanity) and C(units). All of them run even if one
fails; the exit code is 0 if none did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import newer_python
from project_files import ROOT

COMMANDS = ("sanity", "units")


def main() -> int:
    ended: list[tuple[str, int, float]] = []
    for version in sys.argv[1:]:
        directory = ROOT / "build" / f"ansible-{version}"
        python = directory / "venv" / "bin" / "python"
        if not python.exists():
            directory.mkdir(parents=True, exist_ok=True)
            _run([newer_python.PYTHON, "-m", "venv", "--clear", str(directory / "venv")])
        major, minor = version.split(".")
        wanted = f"ansible-core>={version},<{major}.{int(minor) + 1}"
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade", wanted])
        os.environ["COLLECTION_TREES"] = str(directory)
        for command in COMMANDS:
            print(f"===== ansible-core {version}: {command}", flush=True)
            started = time.monotonic()
            arguments = [str(python), str(ROOT / "tools" / "run_ansible_test.py"), command]
            code = subprocess.run(newer_python.command(arguments), stdin=subprocess.DEVNULL, check=False).returncode
            ended.append((f"ansible-core {version} {command}", code, time.monotonic() - started))
    for name, code, seconds in ended:
        print(f"{name:<28} {'FAILED' if code else 'passed'} in {seconds:.0f} s", flush=True)
    return int(any(code for _name, code, _seconds in ended))


def _run(arguments: list[str]) -> None:
    subprocess.run(newer_python.command(arguments), stdin=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
