# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a machine hibernates to: a block device that is a swap area, or a swap file on the filesystem of one.

Of a swap file, the kernel knows the device of its filesystem (C(resume=)) and the page of its first block there
(C(resume_offset=)); kernel/power/swap.c reads and writes the device, not the file. Nothing here writes.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace

from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, devices, extents, headers, luks

BY_UUID = "/dev/disk/by-uuid"


@dataclass(frozen=True)
class Target:
    """C(given): the path as configured. C(block): the devices.Block that the kernel resumes from. C(size): bytes of the device or the
    file. C(file): the path of the swap file, without links, or "". C(offset): the page of its first block; None while it is not there.
    C(kind): of the filesystem with the swap file."""

    given: str
    block: devices.Block
    size: int
    file: str = ""
    offset: int | None = 0
    kind: str = ""

    def header(self, host):
        """The headers.Signature of the swap area or the image, or None. Refused C(device_unreadable)."""
        if not self.file:
            return headers.read_header(host, self.given)
        return None if self.offset is None else headers.read_header_at(host, self.block.path, self.offset)

    def swap(self, host):
        """The devices.ActiveSwap here, or None."""
        return devices.active_swap_file(host, self.file) if self.file else devices.active_swap(host, self.block)

    def uuid(self, host, header):
        """What C(resume=UUID=) has to say, or None: the UUID of the swap area, or of the filesystem that has the swap file."""
        return filesystem_uuid(host, self.block) if self.file else header and header.uuid

    def modules(self, host):
        """The kernel modules without which the initramfs waits for the device, beside those that drive it.

        64-btrfs.rules of udev asks C(/dev/btrfs-control) whether a btrfs is complete. Without the module there is no such device, and
        systemd in the initramfs waits for the filesystem without end.
        """
        return ["btrfs"] if self.kind == "btrfs" and host.exists("/sys/module/btrfs/initstate") else []

    def check(self, host):
        """Refused where an image here would be lost: C(device_ephemeral), C(device_claimed), and for a swap file C(swap_file_unusable)."""
        if not self.file:
            claims.check(host, self.block, luks.opening_line(host, self.block))
            return
        for refused in claims.ephemeral(host, self.block) + claims.file_claimed(host, self.file):
            raise refused
        root = mounts.holder(mounts.mounts(host), "/")
        mappings = [host.attribute("/sys/class/block/%s/dm/uuid" % name) or "" for name in claims.stack(host, self.block.name)]
        encrypted = any(mapping.startswith("CRYPT-") for mapping in mappings)
        if encrypted and not (root and host.real(root.device) == self.block.path):
            raise Refused(
                "swap_file_unusable",
                "The initramfs would not find the image: %s is on an encrypted filesystem, %s, and it unlocks that of the root alone."
                % (self.given, self.block),
                "Put the swap file on the root filesystem, or on one that is not encrypted.",
            )


def is_file(device):
    """Whether the path C(device) is that of a swap file: every path that is not below /dev."""
    return device.startswith("/") and not device.startswith("/dev/")


def find(host, device):
    """The Target that C(device) names: where a LUKS mapping is open over it, the mapping.

    Refused as C(devices.block_device); for a swap file also C(swap_file_missing), C(swap_file_invalid), C(filesystem_unsupported) and
    C(swap_file_unusable).
    """
    if not is_file(device):
        device = luks.swap_device(host, device)
        block = devices.block_device(host, device)
        return Target(device, block, block.size)
    path = host.path(device)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(
            "swap_file_missing", "The swap file %s does not exist." % device, "Create it with the module swap_file."
        ) from None
    except OSError as error:
        raise not_plain(device, error.strerror) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise not_plain(device, "not a regular file")
        wanted = expected(host, device)
        return replace(wanted, size=status.st_size, offset=_offset(handle, wanted, status.st_size))
    finally:
        os.close(handle)


def expected(host, device):
    """The Target that the swap file C(device) is, or would be: without its place, which is that of the file once it is there.

    Refused C(filesystem_unsupported) where the kernel cannot resume from a file there.
    """
    file = real_file(host, device)
    mount = mounts.holder(mounts.mounts(host), file)
    kind, source = (mount.kind, mount.device) if mount else ("an unknown filesystem", "")
    if kind not in extents.FILESYSTEMS or not source.startswith("/dev/"):
        raise Refused(
            "filesystem_unsupported",
            "%s is on %s%s, from which the kernel cannot resume." % (device, kind, " (%s)" % source if source else ""),
            "Give a path on an ext4, XFS or btrfs filesystem that is on a block device.",
        )
    return Target(device, devices.block_device(host, source), 0, file, None, kind)


def real_file(host, path):
    """C(path) without links, but for one at its end."""
    directory, name = os.path.split(path)
    return path if directory == "/" else os.path.join(host.real(directory), name)


def filesystem_uuid(host, block):
    """The UUID of the filesystem on C(block), in udev's links or by blkid, or None."""
    for link in host.glob(BY_UUID + "/*"):
        if host.real(link) == block.path:
            return os.path.basename(link)
    return host.run([host.tool("blkid"), "-p", "-s", "UUID", "-o", "value", block.path], ok=None).out.strip() or None


def not_plain(device, cause):
    """The error Refused C(swap_file_invalid)."""
    return Refused(
        "swap_file_invalid",
        "%s cannot be a swap file: %s." % (device, cause),
        "Give the path of a file that is not there yet, or of a swap file, without symbolic links at its end.",
    )


def unusable(device, why, remedy="Create it again with the module swap_file: state=absent, then state=present."):
    """The error Refused C(swap_file_unusable): C(why) is a predicate."""
    return Refused(
        "swap_file_unusable",
        "The kernel cannot hibernate into %s: it %s." % (device, why),
        remedy,
    )


def _offset(handle, target, size):
    page = headers.page_size()
    if size < headers.LEAST_PAGES * page:
        raise unusable(
            target.given,
            "has %d bytes, and a swap area needs %d" % (size, headers.LEAST_PAGES * page),
            "Give a path at which nothing is, or remove the file if it is not needed.",
        )
    try:
        found = extents.of_file(handle, target.kind, size // page * page, page)
    except extents.Unusable as reason:
        raise unusable(target.given, str(reason)) from reason
    except OSError as error:
        raise Refused(
            "device_unreadable",
            "The place of %s on %s cannot be read: %s." % (target.given, target.block, error.strerror),
            "Run as root (become: true).",
        ) from error
    return found[0].physical // page
