# SPDX-License-Identifier: GPL-3.0-or-later
"""Root directories of containers, kept under ``~/.cache/nvm-fastboot/containers``, keyed by their Debian packages and what is set up."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm.lab.builder import MIRROR
from tests.vm.lab.images import cache_directory

# Suite: the version of its Python.
SUITES = {"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13", "forky": "3.14"}
PACKAGES = ("python3", "openssh-server", "sudo", "systemd", "kmod", "mount", "procps")
DOAS = {"bullseye": "doas"}  # opendoas since then
USER = "admin"
PASSWORD = "not a secret"  # root's, for su
# With the new root directory as $1.
_CUSTOMIZE = f"""
set -eu
chroot "$1" useradd --create-home --shell /bin/bash --password '*' {USER}
echo 'root:{PASSWORD}' | chroot "$1" chpasswd
echo '{USER} ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/{USER}"
echo 'permit nopass {USER}' >"$1/etc/doas.conf"
chmod 0400 "$1/etc/doas.conf"
printf 'UsePAM no\\nMaxStartups 500\\n' >"$1/etc/ssh/sshd_config.d/containers.conf"
! chroot "$1" sshd -T 2>/dev/null | grep -qi persourcepenalties || echo 'PerSourcePenalties no' >>"$1/etc/ssh/sshd_config.d/containers.conf"
mkdir -p "$1/run/sshd" "$1/var/opt/pythons"
"""


def ensure(suite: str) -> Path:
    """The root directory of a container of ``suite``. Raises CalledProcessError."""
    return build(suite, suite, (*PACKAGES, DOAS.get(suite, "opendoas")), _CUSTOMIZE)


def build(name: str, suite: str, packages: Sequence[str], customize: str = "") -> Path:
    """A root directory with these packages of ``suite``, built if it is not in the cache, where earlier ones of that name go. ``customize``
    runs in a shell, with the new root directory as $1. Raises CalledProcessError."""
    key = hashlib.sha256(repr((packages, customize)).encode()).hexdigest()[:16]
    directory = cache_directory() / "containers" / f"{name}-{key}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            for old in directory.parent.glob(f"{name}-*"):
                shutil.rmtree(old)
            partial = directory.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run(
                # In a mount namespace of its own: what mmdebstrap mounts in the new root, the machine's /dev/shm too, stays there.
                ["unshare", "--mount", "mmdebstrap", "--quiet", "--variant=minbase", "--include=" + ",".join(packages),
                 "--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Check-Valid-Until \"false\"",
                 *(["--customize-hook=" + customize.strip()] if customize else []), suite, str(partial), MIRROR],
                stdin=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            partial.rename(directory)
    return directory
