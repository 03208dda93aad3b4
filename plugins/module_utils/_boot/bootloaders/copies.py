# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of an initramfs, on a filesystem that a bootloader or the firmware can read: whether they are what is in C(/boot)."""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

IMAGES = ("/boot/initrd.img-%s", "/boot/initramfs-%s.img")
STEP = 1 << 20
NEW = ".nvm-fastboot-new"


def image_of(host, version):
    """The initramfs in C(/boot) of the kernel C(version), or None."""
    return next((path for path in (name % version for name in IMAGES) if version and host.exists(path)), None)


def outdated(host, version, copies):
    """C((copy, image)) if none of the files C(copies) that are there is the same as the initramfs of the kernel C(version), or None."""
    image = image_of(host, version)
    copies = [path for path in copies if host.exists(path)]
    if image is None or not copies or any(same(host, copy, image) for copy in copies):
        return None
    return copies[-1], image


def same(host, one, other):
    """Whether two files have the same content."""
    one, other = host.path(one), host.path(other)
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    with open(one, "rb") as first, open(other, "rb") as second:
        return os.fstat(first.fileno()).st_size == os.fstat(second.fileno()).st_size and same_rest(first, second)


def same_rest(first, second):
    """Whether two files that are open have the same bytes from where they are to the end of the second."""
    while True:
        part = second.read(STEP)
        if not part:
            return True
        if first.read(len(part)) != part:
            return False


def replace(host, source, target):
    """Copy C(source) over C(target), which is there until the copy is complete. Refused C(boot_full) if there is no space for both."""
    check_space(host, os.path.dirname(target), os.stat(host.path(source)).st_size)
    new = target + NEW
    try:
        with open(host.path(source), "rb") as old, open(host.path(new), "wb") as copy:
            for part in iter(lambda: old.read(STEP), b""):
                copy.write(part)
            copy.flush()
            os.fsync(copy.fileno())
        host.rename(new, target)
    except BaseException:
        host.remove(new)
        raise


def check_space(host, directory, need):
    """Refused C(boot_full) if the filesystem at C(directory) has less than C(need) bytes free."""
    status = os.statvfs(host.path(directory))
    free = status.f_bavail * status.f_frsize
    if free < need:
        raise Refused(
            "boot_full",
            "The filesystem at %s has %d MiB free; a new file beside the old one requires %d MiB."
            % (directory, free >> 20, (need >> 20) + 1),
            "Remove unused kernels (apt autoremove --purge), or files of others from it.",
        )
