# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of the administrator that run before a snapshot and after it: the executable files of a directory, one after the other in the
order of their names. They run as root, so all that leads to them must be root's."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from fuse_store.errors import Refused
from fuse_store.snapshot.restored import commands
from fuse_store.snapshot.targets import HOOK_TIME_LIMIT

BEFORE, AFTER = Path("/etc/fuse-store/pre-snapshot.d"), Path("/etc/fuse-store/post-restore.d")
_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)  # as run-parts(8) has it: no copies that editors and packages leave


def found(directory: Path) -> list[Path]:
    """The hooks in a directory, by name. Raises OSError if it is there and cannot be read."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [directory / name for name in sorted(names) if _NAME.fullmatch(name)]
    return [path for path in paths if path.is_file() and os.access(path, os.X_OK)]


def changeable(path: Path) -> str:
    """The file or directory on the way to a hook that others than root may change; empty if there is no such."""
    way = [Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))]
    for one in (way[0], *way[0].parents, way[1], *way[1].parents):
        status = os.stat(one)
        shared = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX  # as /tmp: what is root's there stays root's
        if status.st_uid not in (0, os.geteuid()) or (status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared):
            return str(one)
    return ""


def run_before(environment: Mapping[str, str], limit: float = HOOK_TIME_LIMIT, directory: Path | None = None) -> None:
    """Run those that come before a snapshot. Raises Refused for the first that fails."""
    directory = directory or BEFORE
    try:
        hooks = found(directory)
    except OSError as error:
        raise Refused(f"directory {directory}", f"cannot be read: {error.strerror}.", "Run the command as root.") from None
    for hook in hooks:
        if problem := _problem(hook, environment, limit):
            raise Refused(f"hook {hook}", f"{problem}.", "No snapshot was made. Correct the hook, or remove it.")


def run_after(environment: Mapping[str, str], limit: float = HOOK_TIME_LIMIT, directory: Path | None = None) -> list[str]:
    """Run those that come after it, all; a message for each that fails."""
    directory = directory or AFTER
    try:
        hooks = found(directory)
    except OSError as error:
        return [f"directory {directory} cannot be read: {error.strerror}"]
    problems = ((hook, _problem(hook, environment, limit)) for hook in hooks)
    return [f"hook {hook}: {problem}" for hook, problem in problems if problem]


def _problem(hook: Path, environment: Mapping[str, str], limit: float) -> str:
    """Run one; why it failed, or empty."""
    try:
        if other := changeable(hook):
            return f"not run, because {other} may be changed by others than root"
    except OSError as error:
        return f"not run: {error.strerror}"
    return commands.run([str(hook)], limit, environment=environment).problem
