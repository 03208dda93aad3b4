# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether C(/boot) is what the next boot reads: the filesystem that belongs there is mounted, and the files are not in memory only."""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import path_of

BOOT = "/boot"
UNIT = "/etc/systemd/system/boot.mount"
PROXMOX = "/etc/kernel/proxmox-boot-uuids"  # EFI system partitions that are not mounted, to which proxmox-boot-tool copies /boot
KERNEL = re.compile(r"^(.*)/((?:vmlinu[xz]|kernel|bzImage|Image)-[^/]+)$")


def check(host):
    """Refused C(boot_not_mounted) or C(boot_elsewhere) if the files in /boot are not those that the next boot reads."""
    try:
        os.listdir(host.path(BOOT))  # systemd mounts a filesystem with x-systemd.automount when it is used
    except OSError:
        pass
    found = mounts.mounts(host)
    if not found:
        return
    mounted = next((each for each in reversed(found) if each.place == BOOT and each.kind != "autofs"), None)
    declared = _declared(host)
    if mounted is None:
        _check_directory(host, declared)
    else:
        _check_mount(host, found, mounted, declared)


def _check_directory(host, declared):
    loaded = _loaded(host)
    if declared:
        cause = "%s is to be mounted at /boot (%s), and is not" % declared
    elif host.exists(UNIT):
        cause = "%s is not active" % UNIT
    elif loaded and loaded[0] == "" and not host.exists("/" + loaded[1]) and not copied_by_proxmox(host):
        cause = "the bootloader loaded /%s from a filesystem of its own for /boot, which is not mounted" % loaded[1]
    else:
        return
    raise Refused(
        "boot_not_mounted",
        "The next boot does not read the files that are in the directory /boot now: %s." % cause,
        "Run: mount %s. Then run the module again; no file in the directory beneath counts."
        % (BOOT if declared or host.exists(UNIT) else "DEVICE /boot, and add it to /etc/fstab"),
    )


def _check_mount(host, found, mounted, declared):
    device = _device(host, declared[0]) if declared else None
    if device and mounted.kind != "btrfs" and mounted.device.startswith("/dev/") and host.real(mounted.device) != device:
        raise Refused(
            "boot_elsewhere",
            "%s is mounted at /boot, and %s says %s. The bootloader reads only one of them." % (mounted.device, declared[1], declared[0]),
            "Mount the one that the bootloader reads at /boot, and correct /etc/fstab.",
        )
    loaded, root = _loaded(host), mounts.holder(found, "/")
    if not loaded or root is None or root.device == mounted.device or mounted.root != "/":
        return
    if loaded[0] == root.root.rstrip("/") + BOOT and not host.exists(BOOT + "/boot/" + loaded[1]):
        raise Refused(
            "boot_elsewhere",
            "The bootloader loaded %s/%s from the root filesystem, where %s is now mounted over it: files that are changed in /boot are "
            "not read." % (loaded + (mounted.device,)),
            "If /boot became a filesystem of its own since the last boot, install the bootloader again (grub-install) and reboot. Else "
            "take it out of /etc/fstab and unmount it.",
        )


def check_kept(host, paths):
    """Refused C(root_is_overlay) if one of C(paths), files that the next boot reads, was changed in memory only."""
    for path in paths:
        mount = mounts.memory_holding(host, path)
        if mount is None:
            continue
        directory = mounts.upper(mount)
        if directory and host.exists(directory) and not host.exists(directory + path):
            continue  # as on the disk
        raise Refused(
            "root_is_overlay",
            "The filesystem at %s is in memory (%s): the next boot does not read %s as it is now." % (mount.place, mount.kind, path),
            mounts.writable_boot(host),
        )


def copied_by_proxmox(host):
    """Whether the next boot reads the kernels and the menu that proxmox-boot-tool copied, and neither /boot nor a filesystem for it."""
    loaded = _loaded(host)
    read = (loaded and loaded[0].endswith(BOOT)) or any(mount.place == BOOT for mount in mounts.mounts(host))
    return bool(host.attribute(PROXMOX)) and not read


def _declared(host):
    """C((device, file)) of the filesystem for /boot, or None."""
    for line in host.read("/etc/fstab", "").splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith("#") and os.path.normpath(words[1]) == BOOT:
            return words[0], "/etc/fstab"
    return None


def _device(host, source):
    """The path of the device that C(source) of fstab names, or None if it is not there."""
    path = path_of(source)
    return host.real(path) if path.startswith("/dev/") and host.exists(path) else None


def _loaded(host):
    """C((directory, name)) of the running kernel's file, in the filesystem that GRUB read it from, or None."""
    word = next((each for each in host.read("/proc/cmdline", "").split() if each.startswith("BOOT_IMAGE=")), "")
    match = KERNEL.match(re.sub(r"^\([^)]*\)", "", word[len("BOOT_IMAGE="):]))
    return (match.group(1), match.group(2)) if match else None
