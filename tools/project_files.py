# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files belong to the project: used by collection_tree.py, and by the Makefile for its shell scripts.

In a git checkout these are the tracked files and the untracked ones that .gitignore does not name. Without git's
metadata (an unpacked archive) they are all files outside of the directories that builds and caches make.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {".git", ".venv", ".lab", ".ansible", "build", "output", "__pycache__"}  # and every .*_cache


def project_files() -> list[Path]:
    """The project's files and symbolic links, relative to its root, sorted."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        names = {Path(name) for name in listed.split("\0") if name}
        # A file deleted but not yet staged is still listed.
        return sorted(name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file())
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith("_cache")]
        found += [(Path(folder) / name).relative_to(ROOT) for name in files]
    return sorted(found)


def shell_scripts() -> list[Path]:
    """The project's files whose first line names a Bourne shell."""
    scripts = []
    for name in project_files():
        with open(ROOT / name, "rb") as file:
            first = file.readline(80).split()
        if first and first[0].startswith(b"#!") and first[-1].rsplit(b"/", 1)[-1] in (b"sh", b"bash"):
            scripts.append(name)
    return scripts


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}\n" for name in shell_scripts())
