# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices and active swap areas: what a path names, and what uses it. Nothing here writes to a device."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import unescape

DELETED = " (deleted)"  # in /proc/swaps, after a path whose device node was replaced


@dataclass(frozen=True)
class ActiveSwap:
    """A line of C(/proc/swaps): C(kind) "partition" or "file", C(size) and C(used) in bytes."""

    path: str
    kind: str
    size: int
    used: int
    priority: int

    @property
    def free(self):
        return self.size - self.used


@dataclass(frozen=True)
class Block:
    """A block device: path as given, kernel path, sysfs name, "major:minor", size in bytes."""

    given: str
    path: str
    name: str
    devno: str
    size: int
    read_only: bool

    def __str__(self):
        return self.given if self.given == self.path else "%s (%s)" % (self.given, self.path)


def block_device(host, device):
    """The Block that C(device) names, through symbolic links.

    Refused C(device_invalid), C(device_missing) or C(not_block_device).
    """
    if not device.startswith("/"):
        raise Refused("device_invalid", "%r is not an absolute path." % device, "Give a path such as /dev/NVM_SWAP.")
    path = host.real(device)
    if not os.path.exists(host.path(path)):
        raise device_missing(device)
    # the kernel writes the slash of a name such as cciss/c0d0 as an exclamation mark
    name = path[len("/dev/") :].replace("/", "!") if path.startswith("/dev/") else ""
    sysfs = "/sys/class/block/%s" % name
    devno = host.attribute("%s/dev" % sysfs) if name else None
    if devno is None:
        raise Refused(
            "not_block_device",
            "%s is not a block device." % device,
            "Remove it (a program may have created a plain file by writing to a missing device), then create the device "
            "with nvm_reservation.",
        )
    return Block(
        given=device,
        path=path,
        name=name,
        devno=devno,
        size=int(host.attribute("%s/size" % sysfs, "0")) * 512,
        read_only=host.attribute("%s/ro" % sysfs, "0") == "1",
    )


def active_swaps(host):
    """Every active swap area as an ActiveSwap, from C(/proc/swaps) (C(mm/swapfile.c), swap_show)."""
    swaps = []
    for line in host.read("/proc/swaps", "").splitlines()[1:]:
        fields = line.split()
        if len(fields) == 5:
            size, used, priority = (int(field) for field in fields[2:])
            swaps.append(ActiveSwap(unescape(fields[0]), fields[1], size * 1024, used * 1024, priority))
    return swaps


def active_swap(host, block):
    """The ActiveSwap on C(block), or None. The device node may have been replaced since swapon."""
    for swap in active_swaps(host):
        path = swap.path[: -len(DELETED)] if swap.path.endswith(DELETED) else swap.path
        if swap.kind == "partition" and host.real(path) == block.path:
            return swap
    return None


def active_swap_file(host, path):
    """The ActiveSwap in the file C(path), without links, or None."""
    return next((swap for swap in active_swaps(host) if swap.kind == "file" and swap.path == path), None)


def users(host, block):
    """Uses of C(block) or a partition of it other than swap: one phrase for each mount, mapping, loop and zram device."""
    names = [block.name] + [
        path.split("/")[-2] for path in host.glob("/sys/class/block/%s/*/partition" % glob.escape(block.name))
    ]
    numbers = {host.attribute("/sys/class/block/%s/dev" % name) for name in names}
    phrases = []
    for name in names:
        for holder in host.glob("/sys/class/block/%s/holders/*" % glob.escape(name)):
            phrases.append("held by %s" % os.path.basename(holder))
    for line in host.read("/proc/self/mountinfo", "").splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[2] in numbers:
            phrases.append("mounted at %s" % unescape(fields[4]))
    for pattern in ("/sys/class/block/loop*/loop/backing_file", "/sys/class/block/zram*/backing_dev"):
        for backing in host.glob(pattern):
            if host.real(host.attribute(backing, "")) == block.path:
                phrases.append("the backing of %s" % backing.split("/")[4])
    return phrases


def uses(host, device):
    """C(users) of C(device), and its use as swap; empty if it is no block device."""
    try:
        block = block_device(host, device)
    except Refused:
        return []
    return (["swap"] if active_swap(host, block) else []) + users(host, block)


@contextlib.contextmanager
def claimed(host, block, flags=os.O_RDONLY):
    """A file descriptor on C(block) that excludes every other exclusive user: mounts, mappings, RAID, swap, mkswap.

    Refused C(device_in_use) or C(device_unreadable), and C(device_changed) where the size differs from C(block.size).
    """
    phrases = users(host, block)
    if phrases:
        raise device_in_use(block, ", ".join(phrases))
    try:
        handle = os.open(host.path(block.path), flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise device_in_use(block, "claimed by another program or by the kernel") from error
        raise Refused(
            "device_unreadable", "%s cannot be opened: %s." % (block, error.strerror), "Run as root (become: true)."
        ) from error
    try:
        if os.lseek(handle, 0, os.SEEK_END) != block.size:
            raise Refused(
                "device_changed",
                "The size of %s changed during the run." % block,
                "Run again when no other program configures the device.",
            )
        yield handle
    finally:
        os.close(handle)


def device_missing(device):
    """The error Refused C(device_missing)."""
    return Refused(
        "device_missing",
        "%s does not exist." % device,
        "Create it with nvm_reservation. If nvm_reservation asked for a reboot, reboot first.",
    )


def device_in_use(device, uses):
    """The error Refused C(device_in_use): C(uses) lists what uses it."""
    return Refused(
        "device_in_use",
        "%s is in use: %s." % (device, uses),
        "Stop that use first (umount, dmsetup, mdadm, losetup, zramctl). force does not override this check.",
    )
