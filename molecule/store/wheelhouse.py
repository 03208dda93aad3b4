# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a directory of wheels for a guest without a network: fuse-store from this checkout, and its dependencies from PyPI.

``prepare.yml`` passes the directory and the guest's Python version, ``3.11``. The wheel of fuse-store is built from a copy of
the project, because setuptools leaves files in its source directory, and includes files of removed modules again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

from project_files import project_files  # noqa: E402

# Platform tags that glibc 2.36 (Debian 12) supports; pip needs each one.
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Later wheels require an instruction (cx16) that the lab's emulated processor does not have.
CONSTRAINTS = "numpy<2.4\n"


def main(directory: Path, python: str) -> None:
    """Fill ``directory`` with wheels. Removes its previous content, also on failure."""
    shutil.rmtree(directory, ignore_errors=True)
    with tempfile.TemporaryDirectory() as made:
        temporary = Path(made)
        for name in project_files():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target, follow_symlinks=False)
        pip("wheel", "--no-deps", f"--wheel-dir={directory}", str(temporary))
        constraints = temporary / "constraints"
        constraints.write_text(CONSTRAINTS)
        pip(
            "download", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp", f"--constraint={constraints}",
            *(f"--platform={each}" for each in PLATFORMS), f"--dest={directory}", *map(str, directory.glob("fuse_store-*.whl")),
        )  # fmt: skip


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
