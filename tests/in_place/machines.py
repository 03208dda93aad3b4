# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines without a kernel of their own, which run programs of Debian sid and see a store's mount. Needs root.

Each is a mount, process and host name namespace; they share a root directory, and the directory ``/work`` below it stays from one to the
next, as a disk that moves.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.containers import roots

PACKAGES = ("criu", "procps", "python3", "qemu-system-x86", "sbcl")
# With: the root directory, the directory of /work, the store's mount (or nothing), the name of the machine; then a script.
_START = """
set -eu
root=$1 work=$2 mounted=$3 name=$4 script=$5
hostname "$name"
mount --make-rprivate /
mount -t tmpfs tmpfs "$work/.over"
mkdir "$work/.over/upper" "$work/.over/inner" "$work/.over/root"
mount -t overlay -o "lowerdir=$root,upperdir=$work/.over/upper,workdir=$work/.over/inner" overlay "$work/.over/root"
cd "$work/.over/root"
mkdir work images old
mount --bind "$work" work
[ -z "$mounted" ] || mount --bind "$mounted" images
mount -t proc proc proc
mount -t tmpfs tmpfs dev
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do mknod -m 666 "dev/${node% *}" c 1 "${node#* }"; done
mount -t tmpfs tmpfs run
pivot_root . old
umount -l old
cd /work
exec sh -euc "$script"
"""


class Machines:
    """Where they run. ``work`` is what they have in common."""

    def __init__(self, directory: Path) -> None:
        self.work = directory / "work"
        (self.work / ".over").mkdir(parents=True)
        self._root = roots.build("sid-programs", "sid", PACKAGES)

    def run(self, name: str, script: str, mounted: Path | None = None, seconds: float = 300) -> str:
        """Start a machine, run a script on it, and end it; what it printed. ``mounted`` is its /images. Raises CalledProcessError with the
        output as its first note."""
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "sh", "-c", _START, "sh",
             self._root, self.work, mounted or "", name, script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, script, done.stdout)
            error.add_note(done.stdout)
            raise error
        return done.stdout
