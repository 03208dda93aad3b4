# SPDX-License-Identifier: GPL-3.0-or-later
"""The mounts of the running system, and whether what is written to a path is there after the next boot."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import unescape

MOUNTINFO = "/proc/self/mountinfo"
IN_MEMORY = ("tmpfs", "ramfs", "rootfs")
# Paths whose content is not expected to outlast a boot
TRANSIENT = ("/dev", "/proc", "/run", "/sys", "/tmp")
# Kernel arguments that make the root an overlay in memory: overlayroot, dracut, systemd, live-boot, casper
OVERLAY_ARGUMENTS = re.compile(
    r"^(overlayroot=(?!disabled)|rd\.overlay\b|rd\.live\.overlay|systemd\.volatile=(?!no\b)|boot=(live|casper)$)"
)


@dataclass(frozen=True)
class Mount:
    """A mount: C(root) is the directory of the filesystem that is at C(place), C(options) are those of the filesystem. C(read_only): the
    mount or the filesystem is."""

    root: str
    place: str
    kind: str
    device: str
    options: str
    read_only: bool = False


def mounts(host):
    """The mounts of the running system, in their order. Refused by none; a line that is not understood is left out."""
    found = []
    for line in host.read(MOUNTINFO, "").splitlines():
        words, _dash, rest = line.partition(" - ")
        fields, more = words.split(), rest.split()
        if len(fields) >= 6 and len(more) >= 3:
            read_only = "ro" in fields[5].split(",") + more[2].split(",")
            found.append(Mount(unescape(fields[3]), unescape(fields[4]), more[0], unescape(more[1]), more[2], read_only))
    return found


def holder(found, path):
    """The one of the mounts C(found) that has C(path), or None."""
    best = None
    for mount in found:
        if _is_below(path, mount.place) and (best is None or len(mount.place) >= len(best.place)):
            best = mount
    return best


def _is_below(path, place):
    return place == "/" or path == place or path.startswith(place.rstrip("/") + "/")


def upper(mount):
    """Where an overlay has what is written to it, as a path of the mount namespace that mounted it, or None."""
    match = re.search(r"(?:^|,)upperdir=([^,]+)", mount.options)
    return unescape(match.group(1)) if match else None


def local(host, beside, path):
    """The path on this machine of C(path), which starts at the root of the filesystem that has C(beside), or None if it is not mounted.

    Where the mounts are not known, the filesystem is the root or is mounted at /boot, whichever has the path.
    """
    path = os.path.normpath("/" + path.lstrip("/"))
    mount = holder(mounts(host), beside)
    if mount is None:
        return next((each for each in (path, "/boot" + path) if host.exists(each)), path)
    root = mount.root.rstrip("/")
    if not path.startswith(root + "/"):
        return None
    return mount.place.rstrip("/") + path[len(root):]


def memory_holding(host, path):
    """The Mount that holds C(path) in memory only, so that what is written there is lost at the next boot, or None.

    Where the directory of an overlay is not to be seen, as in a container, the kernel's arguments decide.
    """
    if any(_is_below(path, place) for place in TRANSIENT):
        return None
    found = mounts(host)
    mount = holder(found, path)
    if mount is None:
        return None
    directory = upper(mount)
    if mount.kind == "overlay" and directory:
        below = holder([each for each in found if each.place != "/"], directory)
        lost = below.kind in IN_MEMORY if below else bool(overlay_arguments(host))
    else:
        lost = mount.kind in IN_MEMORY
    return mount if lost else None


def read_only_holding(host, path):
    """The Mount that holds C(path) if nothing can be written there, or None."""
    mount = holder(mounts(host), path)
    return mount if mount is not None and mount.read_only else None


def overlay_arguments(host):
    """The words of the kernel command line that make the root an overlay in memory."""
    return [word for word in host.read("/proc/cmdline", "").split() if OVERLAY_ARGUMENTS.match(word)]


def writable_boot(host):
    """How the machine gets a root filesystem that keeps what is written, as a sentence."""
    words = overlay_arguments(host)
    if any(word.startswith("boot=") for word in words):
        return "This is a live system (%s), which cannot be configured: install it to a disk." % " ".join(words)
    return (
        "Boot with a root filesystem that keeps changes, and run the module again: without %s on the kernel command line (boot_root "
        "with mode=writable takes out what it set), or with overlayroot=disabled where the package overlayroot is in use."
        % (" ".join(words) or "the arguments or the configuration that make the overlay")
    )
