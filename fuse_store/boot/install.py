# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the scripts where initramfs-tools or dracut, systemd and GRUB take them from, and takes them away. Runs nothing: what has to be run
then is in the result."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuse_store.boot.menu import NAME as MENU
from fuse_store.boot.menu import PLACES, replace_file
from fuse_store.errors import NotFound, failed

_SCRIPTS = ("select.sh", "table.sh", "events.sh", "slots.sh", "table.awk", "applets")
_HERE = Path(__file__).parent
_UNITS = "etc/systemd/system"
# What goes where, below the root: path → (file of this package, mode).
_INITRAMFS_TOOLS = {
    "etc/initramfs-tools/hooks/fuse-store": ("files/initramfs-tools-hook", 0o755),
    "etc/initramfs-tools/scripts/local-premount/fuse-store": ("files/initramfs-tools-script", 0o755),
    **{f"etc/initramfs-tools/fuse-store/{name}": (f"initramfs/{name}", 0o644) for name in _SCRIPTS},
}
_DRACUT = {
    "usr/lib/dracut/modules.d/95fuse-store/module-setup.sh": ("files/dracut-module-setup.sh", 0o755),
    "usr/lib/dracut/modules.d/95fuse-store/pre-mount.sh": ("files/dracut-pre-mount.sh", 0o755),
    **{f"usr/lib/dracut/modules.d/95fuse-store/{name}": (f"initramfs/{name}", 0o644) for name in _SCRIPTS},
}
_GRUB = {"etc/grub.d/42_fuse_store": ("files/grub", 0o755)}
_SYSTEMD = {f"{_UNITS}/{name}": (f"files/{name}", 0o644) for name in ("fuse-store-session.service", "fuse-store-boot-report.service")}
_LINKS = {
    f"{_UNITS}/sysinit.target.wants/fuse-store-session.service": "../fuse-store-session.service",
    f"{_UNITS}/multi-user.target.wants/fuse-store-boot-report.service": "../fuse-store-boot-report.service",
}
_RELOAD = (("systemctl", "daemon-reload"), ("systemctl", "start", "fuse-store-session.service"))
# Tool → (what tells that it is there, its files, the command that builds all initramfs).
_TOOLS = {
    "initramfs-tools": ("usr/share/initramfs-tools/hook-functions", _INITRAMFS_TOOLS, ("update-initramfs", "-u", "-k", "all")),
    "dracut": ("usr/lib/dracut/dracut-functions.sh", _DRACUT, ("dracut", "--force", "--regenerate-all")),
}


@dataclass(frozen=True)
class Installed:
    """``tool``: which makes the initramfs; ``changed``: whether anything did, or would; ``files``: paths that belong to it;
    ``removed``: paths that went; ``commands``: what has to be run for it to take effect."""

    tool: str
    changed: bool
    files: tuple[str, ...]
    removed: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


def own_command() -> tuple[str, ...]:
    """How this program is started: for scripts and units."""
    started = Path(sys.argv[0])
    if started.name == "fuse-store" and started.is_file():
        return (str(started.absolute()),)
    return ("/usr/bin/env", f"PYTHONPATH={_HERE.parents[1]}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "fuse_store.cli")


def install(command: Sequence[str], root: Path | str = "/", *, dry_run: bool = False) -> Installed:
    """Write what differs; ``command`` starts this program on the machine. Raises NotFound without initramfs-tools and dracut, or without
    busybox, StoreError."""
    top = Path(root)
    tool = next((name for name, (sign, _files, _command) in _TOOLS.items() if (top / sign).is_file()), None)
    if tool is None:
        raise NotFound("initramfs", "neither initramfs-tools nor dracut is installed.", "Install one of them.")
    if not any((top / place).exists() for place in ("bin/busybox", "usr/bin/busybox")):
        raise NotFound("busybox", "not installed, and the initramfs needs it.", "Install the package busybox.")
    _sign, files, rebuild = _TOOLS[tool]
    grub = (top / "etc/grub.d").is_dir()
    wanted = {**files, **_SYSTEMD, **(_GRUB if grub else {})}
    changed = False
    for path, (source, mode) in wanted.items():
        content = (_HERE / source).read_bytes().replace(b"@COMMAND@", shlex.join(command).encode())
        changed |= replace_file(top / path, content, mode, dry_run=dry_run)
    for path, target in _LINKS.items():
        changed |= _link(top / path, target, dry_run)
    return Installed(tool, changed, _paths([*wanted, *_LINKS]), (), (rebuild, *((("update-grub",),) if grub else ()), *_RELOAD))


def remove(root: Path | str = "/", *, dry_run: bool = False) -> Installed:
    """Take everything away that ``install`` wrote, and the menu. Raises StoreError."""
    top = Path(root)
    tools = {name: files for name, (_sign, files, _command) in _TOOLS.items() if any((top / path).exists() for path in files)}
    paths = [path for files in tools.values() for path in files]
    paths += [*_LINKS, *_SYSTEMD, *_GRUB, *(f"{place}/{MENU}" for place in PLACES)]
    there = [path for path in paths if (top / path).is_symlink() or (top / path).exists()]
    if not dry_run:
        for path in there:
            try:
                (top / path).unlink()
            except OSError as error:
                raise failed(f"file /{path}", error) from None
        for directory in ("etc/initramfs-tools/fuse-store", "usr/lib/dracut/modules.d/95fuse-store"):
            if (top / directory).is_dir() and not any((top / directory).iterdir()):
                (top / directory).rmdir()
    commands = [_TOOLS[name][2] for name in tools] + [("update-grub",)] * any(path in _GRUB for path in there)
    return Installed(", ".join(tools), bool(there), (), _paths(there), (*commands, *([_RELOAD[0]] if there else [])))


def _paths(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"/{path}" for path in paths)


def _link(path: Path, target: str, dry_run: bool) -> bool:
    """Have a symbolic link; whether there was another one, or none."""
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    if not dry_run:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        except OSError as error:
            raise failed(f"file {path}", error) from None
    return True
