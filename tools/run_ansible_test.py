# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test on the collection: C(run_ansible_test.py sanity|units [ARGUMENT]...), from the virtual environment.

Used by the Makefile. The tests run in a copy of the project (see collection_tree.py), in ansible-test's own virtual
environments for the Python that runs this, and every test's outcome is recorded for test_lanes.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import check_results
import collection_tree

PYTHON = "%d.%d" % sys.version_info[:2]

# ansible-test fetches pip's bootstrap script from a host of its own, which a machine behind a package mirror cannot
# reach. It takes a script that is there already; this one installs the same pip from the configured package index.
GET_PIP = '''\
"""Installs pip and the packages named as arguments into the environment that runs this."""
import os
import subprocess
import sys

wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
environment = dict(os.environ)
environment.pop("GET_PIP", None)
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"], env=environment, stdout=subprocess.DEVNULL)
subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet"] + wanted, env=environment)
'''


def offer_get_pip() -> None:
    """Put GET_PIP where ansible-test looks for a cached bootstrap script, unless one is there."""
    from ansible_test._internal.python_requirements import get_venv_packages

    version = get_venv_packages(types.SimpleNamespace(version=PYTHON))["pip"]
    script = Path("~/.ansible/test/cache").expanduser() / f"get_pip_{version.replace('.', '_')}.py"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(GET_PIP)


def outcomes(folder: Path) -> None:
    """Record every test case of the JUnit files in C(folder), but not a sanity test that has no file to look at."""
    ansible_core = ".".join(metadata.version("ansible-core").split(".")[:2])
    for report in sorted(folder.glob("*.xml")):
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')} (ansible-core {ansible_core})"
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                check_results.record(name, "failed")
            elif skipped is not None:
                reason = skipped.get("message") or skipped.text or ""
                if reason != "No tests applicable.":
                    check_results.record(name, "skipped", reason)
            else:
                check_results.record(name, "passed")


def main() -> int:
    command, *arguments = sys.argv[1:]
    tree = collection_tree.sync()
    offer_get_pip()
    junit = tree / "tests" / "output" / "junit"
    shutil.rmtree(junit, ignore_errors=True)
    program = str(Path(sys.executable).parent / "ansible-test")
    options = ["--venv", "--python", PYTHON, "--color", "no"] + ["--junit"] * (command == "sanity")
    ansible_test = [program, command, *options, *arguments]
    finished = subprocess.run(ansible_test, cwd=tree, stdin=subprocess.DEVNULL, check=False)
    outcomes(junit)
    return finished.returncode


if __name__ == "__main__":
    sys.exit(main())
