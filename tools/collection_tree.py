# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays the collection out as build/ansible_collections/nvm/fastboot, where Ansible's own tools expect one.

$COLLECTION_TREES names another directory than build. After C(sync()) the tree holds the project's files as they are now and
no other, except for what ansible-test keeps in tests/output. Only what differs is written, under a lock: a tree that is
up to date can be in use by others meanwhile. The tree is a git repository of its own, without a commit, because the
tools ask git for their files, and build/ is ignored in the project's.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
from pathlib import Path

from project_files import ROOT, project_files

# Several can stand side by side: ansible-test keeps what it makes in the tree it runs in.
TREE = Path(os.environ.get("COLLECTION_TREES", ROOT / "build")) / "ansible_collections" / "nvm" / "fastboot"
KEPT = (Path("tests/output"), Path(".git"))
# Not of the collection (galaxy.yml leaves it out too), and checked by ruff and mypy: ansible-test's pylint knows neither
# pytest's fixtures nor what a module that is no Ansible module may do.
LEFT_OUT = (Path("fuse_store"), Path("tests/fuzz"), Path("tests/store"), Path("tests/vm"))


def sync() -> Path:
    """Bring the tree up to date and return its path."""
    TREE.mkdir(parents=True, exist_ok=True)
    with open(TREE.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = {path for path in project_files() if not any(out in path.parents for out in LEFT_OUT)}
        _remove_others(wanted)
        for name in sorted(wanted):
            _copy(ROOT / name, TREE / name)
        if not (TREE / ".git").exists():
            subprocess.run(["git", "-c", "init.defaultBranch=main", "init", "-q", "--template=", str(TREE)], check=True)
    return TREE


def _remove_others(wanted: set[Path]) -> None:
    for folder, folders, names in os.walk(TREE, topdown=False):
        here = Path(folder).relative_to(TREE)
        if any(kept == here or kept in here.parents for kept in KEPT):
            continue
        linked = [name for name in folders if (TREE / here / name).is_symlink()]
        for name in names + linked:
            if here / name not in wanted:
                (TREE / here / name).unlink()
        if not os.listdir(folder) and here != Path():
            os.rmdir(folder)


def _copy(source: Path, target: Path) -> None:
    if target.is_symlink() or source.is_symlink():
        if target.is_symlink() and source.is_symlink() and os.readlink(target) == os.readlink(source):
            return
        if target.is_symlink() or target.is_file():
            target.unlink()
    elif target.is_file() and filecmp.cmp(source, target) and source.stat().st_mode == target.stat().st_mode:
        return
    elif target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


if __name__ == "__main__":
    sync()
