# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the disk images of guests under ``~/.cache/nvm-fastboot``, keyed by what they are made from.

The key of an image is made from its recipe, from ``builder`` and from the files that are put into the guest. The versions
that the Debian archive offers are not part of it, or a cache would go stale every week; ``lab build --fresh`` builds
anew. An image that nobody has asked for in a month is removed when another one is built.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.vm.lab import builder
from tests.vm.lab.builder import BuildError, ovmf
from tests.vm.lab.recipes import RECIPES, Recipe

__all__ = ["BuildError", "cache_directory", "ensure", "ovmf"]

MONTH = 30 * 24 * 3600


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "nvm-fastboot"


def key(recipe: Recipe) -> str:
    """Sixteen hex digits that change with anything the image is made from."""
    digest = hashlib.sha256(repr(recipe).encode())
    for file in (Path(builder.__file__), *sorted(builder.GUEST_FILES.iterdir())):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def ensure(name: str, say: Callable[[str], None] = lambda text: None, fresh: bool = False) -> Path:
    """The folder with ``base.qcow2`` and ``vmlinuz`` of the guest ``name``, built if it is not in the cache.

    Raises BuildError. Two processes that want the same image at once build it once.
    """
    recipe = RECIPES[name]
    folder = cache_directory() / "guests" / f"{name}-{key(recipe)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if fresh and folder.exists():
            shutil.rmtree(folder)
        if not (folder / "base.qcow2").exists():
            builder.build(recipe, folder, cache_directory() / "accelerator", say)
            for old in folder.parent.glob("*-" + "?" * 16):
                if time.time() - old.stat().st_mtime > MONTH:
                    shutil.rmtree(old, ignore_errors=True)
        os.utime(folder)
    return folder
