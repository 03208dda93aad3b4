# SPDX-License-Identifier: GPL-3.0-or-later
"""A root filesystem that lets any of a machine's images be resumed: its disk is read, and all it writes stays in memory.

The disk is mounted read-only below an overlay whose upper half is a tmpfs, so that
what the machine has changed is in its image, and the disk is the same for every image. A program of the machine's own does
it, which the kernel starts in place of the first process; its initramfs stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.vm.lab import Machine

PROGRAM = "/usr/local/sbin/ram-root"
WORDS = f"init={PROGRAM} fsck.mode=skip"  # on the kernel's command line
_PROGRAM = r"""#!/bin/sh
# Started by the kernel (init=) on a root filesystem that is mounted read-only: goes on with the system's own first process
# on an overlay of it and a tmpfs.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
modprobe overlay
mount -n -t tmpfs -o mode=755 ram /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -n -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
for folder in dev proc run sys; do
	mountpoint -q /$folder && mount -n --move /$folder /mnt/root/$folder
done
cd /mnt/root
sed -i '/[[:space:]]swap[[:space:]]/!d' etc/fstab # no disk is to be mounted writable, nor checked
busybox pivot_root . media # that of util-linux is in another package since Debian 14
exec chroot . /sbin/init "$@" <dev/console >dev/console 2>&1
"""


def adopt(machine: Machine) -> None:
    """Have the machine, which is on, start that way from its next boot on, and nobody check its disk, which would write."""
    machine.ssh(f"cat >{PROGRAM} && chmod 755 {PROGRAM}", stdin=_PROGRAM)
    machine.ssh(rf"sed -i '/^\s*linux\s/s|$| {WORDS}|' /boot/grub/grub.cfg && sync && fsfreeze -f / && fsfreeze -u /")


def disk_digest(machine: Machine) -> str:
    """Of every byte of the file that is the machine's disk. The machine must be off."""
    with open(machine.folder / "disk.qcow2", "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@contextlib.contextmanager
def raw_disk(machine: Machine) -> Iterator[Path]:
    """The machine's disk as a file with the bytes that the machine sees. The machine must be off."""
    place = machine.folder / "disk.raw"
    place.touch()
    image = "driver=qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=disk.qcow2"
    export = f"type=fuse,id=raw,node-name=disk,mountpoint={place},writable=off"
    command = ["qemu-storage-daemon", "--blockdev", image, "--export", export]
    with subprocess.Popen(command, cwd=machine.folder, stdin=subprocess.DEVNULL) as daemon:  # which has the disk locked
        try:
            deadline = time.monotonic() + 60
            while f" {place} " not in Path("/proc/self/mountinfo").read_text():
                assert daemon.poll() is None and time.monotonic() < deadline, f"{place} is not there"
                time.sleep(0.05)
            yield place
        finally:
            daemon.terminate()
            daemon.wait()
    place.unlink()
