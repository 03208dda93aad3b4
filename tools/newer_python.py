# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs commands with Debian 13's Python 3.13 on a machine whose own Python is older.

Used by ansible_versions.py. ansible-core 2.20 and newer need Python 3.12; Debian 12 has 3.11, and what the project needs
comes from Debian and PyPI alone. mmdebstrap unpacks Debian 13's Python; a command then runs in a mount namespace of its
own, in which Debian 13's C(/usr) lies over the machine's. All else (home, C(/etc), the project) is the machine's. As root
or not, no process outside of the namespace sees a difference. The directory is kept in C(~/.cache/nvm-fastboot), keyed by
this file. Processes that want it at once build it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "/usr/bin/python3"
SUITE = "trixie"
PACKAGES = ("ca-certificates", "git", "libyaml-0-2", "python3", "python3-venv", "shellcheck", "systemd")
MIRROR = os.environ.get("LAB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
MONTH = 30 * 24 * 3600


def version() -> tuple[int, int]:
    """Of the machine's own Python."""
    printed = subprocess.check_output([PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], text=True).split()
    return int(printed[0]), int(printed[1])


def command(arguments: list[str]) -> list[str]:
    """C(arguments), wrapped so that C(/usr/bin/python3) is Debian 13's. Raises CalledProcessError."""
    script = f'mount --bind {shlex.quote(str(_directory() / "usr"))} /usr && PATH=/usr/bin:/usr/sbin && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", *as_root, "sh", "-c", script, "sh", *arguments]


def _directory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "nvm-fastboot" / "python"
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    directory = cache / f"{SUITE}-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            _build(directory)
            for old in cache.glob("*-" + "?" * 16):
                if time.time() - old.stat().st_mtime > MONTH:
                    shutil.rmtree(old, ignore_errors=True)
        os.utime(directory)
    return directory


def _build(directory: Path) -> None:
    """Unpack /usr alone: nearly all of it belongs to root, so one user id is enough."""
    print(f"Unpacking Debian {SUITE}'s Python into {directory}", flush=True)
    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    archive = partial / "all.tar"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--include=" + ",".join(PACKAGES),
         "--aptopt=Acquire::Languages \"none\"", SUITE, str(archive), MIRROR],
        stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    subprocess.run(
        ["tar", "-xf", str(archive), "-C", str(partial), "--no-same-owner", "--exclude=./usr/share/doc", "./usr"], check=True
    )
    archive.unlink()
    partial.rename(directory)


if __name__ == "__main__":
    sys.exit(subprocess.run(command(sys.argv[1:]), check=False).returncode)
