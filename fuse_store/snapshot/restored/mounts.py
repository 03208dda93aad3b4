# SPDX-License-Identifier: GPL-3.0-or-later
"""Network filesystems whose server has forgotten this machine: those that do not answer are tried again."""

from __future__ import annotations

from fuse_store.hibernation.machine import Machine, mounts_in, unescaped
from fuse_store.snapshot.restored import commands

PROBE = 5.0  # seconds within which a filesystem has to answer
# Type → whether the client connects again by itself once it is told to (remount), or has to be mounted again as /etc/fstab says.
_REMOUNT = {
    "nfs": True, "nfs4": True, "cifs": True, "smb3": True, "ceph": True, "afs": True,
    "9p": False, "fuse.sshfs": False, "fuse.glusterfs": False, "fuse.s3fs": False, "fuse.rclone": False, "fuse.davfs": False,
    "fuse": False,
}  # fmt: skip


def network(machine: Machine) -> list[tuple[str, str]]:
    """(mount point, type) of the network filesystems that are mounted, the first ones first."""
    return [(one.point, one.kind) for one in mounts_in(machine.text("proc/self/mountinfo") or "") if one.kind in _REMOUNT]


def try_again(machine: Machine) -> list[str]:
    """A message for each that does not answer even then."""
    problems = []
    for point, kind in network(machine):
        if not _answers(point) and (problem := _mounted_again(machine, point, kind)):
            problems.append(f"{point} ({kind}) does not answer: {problem}")
    return problems


def _answers(point: str) -> bool:
    return commands.run(["stat", "--file-system", "--format=%T", "--", point], PROBE).code == 0


def _mounted_again(machine: Machine, point: str, kind: str) -> str:
    """Why it cannot be, or empty."""
    if _REMOUNT[kind]:
        problem = commands.run(["mount", "-o", "remount", "--", point]).problem
    elif point not in _table(machine):
        return "it is not in /etc/fstab; mount it again"
    else:
        commands.run(["umount", "-l", "--", point])
        problem = commands.run(["mount", "--", point]).problem
    return problem or ("" if _answers(point) else "mounted again, without an answer")


def _table(machine: Machine) -> list[str]:
    """The mount points in /etc/fstab."""
    lines = [line.split() for line in (machine.text("etc/fstab") or "").splitlines()]
    return [unescaped(line[1]) for line in lines if len(line) > 2 and not line[0].startswith("#")]
