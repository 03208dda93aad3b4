# SPDX-License-Identifier: GPL-3.0-or-later
"""The root filesystem of the running system: whether it is an overlay, and a change of the disk below it.

The filesystem below an overlay must not be changed while it is in use, except where the overlay is soon given up: here, one file of the
bootloader, right before a reboot. All images on the machine's slots are then stale, and the guard of their filesystems says so.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.mounts import mounts

PLACE = "/run/nvm-fastboot-root"


@dataclass(frozen=True)
class Lower:
    """The filesystem below the overlay: its device, the directory in it that is the root, as in /proc/self/mountinfo, and whether it is
    C(ro) or C(rw) now: the kernel mounts it a second time only in the same mode."""

    device: str
    root: str
    access: str


def lower(host):
    """The Lower if the root filesystem of the running system is an overlay, else None. Refused if its lower filesystem is not found."""
    there = mounts(host)
    root = next((mount for mount in reversed(there) if mount.place == "/"), None)
    if root is None or root.kind != "overlay":
        return None
    directory = re.search(r"lowerdir=([^,]+)", root.options)
    for mount in there:
        if directory and mount.place == directory.group(1) and mount.device.startswith("/dev/"):
            return Lower(mount.device, mount.root, mount.options.split(",")[0])
    raise Refused(
        "overlay_unknown",
        "The root filesystem is an overlay, and the filesystem below it is not found.",
        "Boot the machine without the overlay, and run the module again.",
    )


def open_next_boot(tx, below, configuration, arguments):
    """Take C(arguments) out of the bootloader's C(configuration) on the disk, so that the next boot has a writable root."""
    host = tx.host
    own = any(mount.place == "/boot" for mount in mounts(host))
    text = host.read(configuration, "")  # as on the disk, unless it was changed in memory
    if _without(text, arguments) == text:
        return
    tx.note(configuration, "kernel arguments %s\n" % " ".join(arguments), "without them: the next boot has a writable root\n")
    if tx.check_mode:
        return
    if own:
        _changed(host, ["mount", "-o", "remount,rw", "/boot"], ["mount", "-o", "remount,ro", "/boot"], "/", configuration, arguments)
        return
    os.makedirs(host.path(PLACE), exist_ok=True)
    flags = below.access if below.root == "/" else below.access + ",subvol=" + below.root
    host.run(["mount", "-o", flags, below.device, PLACE])
    try:
        opened = ["mount", "-o", "remount,rw", PLACE], ["mount", "-o", "remount,ro", PLACE]
        _changed(host, *opened, PLACE, configuration, arguments)
    finally:
        host.run(["umount", PLACE])
    os.rmdir(host.path(PLACE))
    host.replace(configuration, _without(text, arguments), mode=0o600)  # what the running system sees


def _changed(host, open_words, close_words, root, configuration, arguments):
    disk = Host(host._run, root=os.path.join(host.root, root.lstrip("/")))
    host.run(open_words)
    try:
        text = disk.read(configuration, "")
        disk.replace(configuration, _without(text, arguments), mode=0o600)
        disk.flush_filesystem(os.path.dirname(configuration))
    finally:
        host.run(close_words, ok=None)  # busy where the overlay still has the old file; the disk has the new one


def _without(text, arguments):
    """C(text) without the words C(arguments) on the lines that start a kernel."""
    for word in arguments:
        text = re.sub(r"(?m)^(\s*linux\S*\s.*?)\s%s(?=\s|$)" % re.escape(word), r"\1", text)
    return text
