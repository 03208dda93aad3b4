# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks before a device or the memory map is changed: use, contents, hibernation images. Nothing here writes.

They read headers and C(/proc) first, and run C(blkid) only for a device that has no swap header.
"""
from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import BY_TAG
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, devices, headers, identity, luks
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import header


def check_unused(host, path, swap=True):
    """Refused C(device_in_use) if C(path) is active swap (unless C(swap) is false), mounted or held. Force does not override this."""
    block = devices.block_device(host, path)
    if swap and devices.active_swap(host, block):
        raise Refused(
            "device_in_use",
            "%s is in use as swap." % path,
            "Deactivate it first: nvm_swap with state=absent, or swapoff %s." % path,
        )
    users = devices.users(host, block)
    if users:
        raise devices.device_in_use(path, ", ".join(users))


def is_encrypted(host, path, name):
    """Whether C(path) has the LUKS header that nvm_swap makes for C(name): what it holds is checked by nvm_swap alone."""
    found = header.read(host, path)
    return found is not None and found.uuid == luks.luks_uuid(host, name)


def check_no_image(host, path, force):
    """Refused C(image_pending) if C(path) holds a hibernation image, unless forced."""
    if not force and headers.pending_image(host, path):
        raise headers.image_pending(path)


def check_contents(host, path, force, own_label=None):
    """Refused C(image_pending) or C(holds_filesystem) if C(path) is not empty, unless forced.

    An inactive swap area may be overwritten if its label is C(own_label); if C(own_label) is True, with any label.
    """
    if force:
        return
    check_no_image(host, path, force)
    swap = headers.read_header(host, path)
    if swap is not None and own_label in (True, swap.label):
        return
    contents = swap.type if swap else headers.contents(host, path)
    if contents:
        raise Refused(
            "holds_filesystem",
            "%s is not empty: %s." % (path, contents),
            "Check the contents (blkid -p %s). To overwrite them, set force=true." % path,
        )


def check_takeover(host, path, name, force):
    """Refused if C(path), a namespace that existed before the reservation, is in use or not empty.

    A swap area labelled C(name) is ours, active or not: only the udev rule is missing. Any inactive swap area may be
    taken over, because that does not change it.
    """
    swap = headers.read_header(host, path)
    if swap is not None and swap.label and swap.label == name[: identity.LABEL_BYTES]:
        return
    if is_encrypted(host, path, name):
        return
    check_unused(host, path)
    claims.check(host, devices.block_device(host, path))
    check_contents(host, path, force, own_label=True)


def check_no_image_anywhere(host, path=None):
    """Refused C(image_pending) if any device the machine may resume from, or C(path), holds a hibernation image.

    For changes of the memory map, which make every image unusable (kernel/power/snapshot.c, check_image_kernel).
    """
    for candidate in [path] + _resume_devices(host):
        try:
            pending = candidate is not None and headers.pending_image(host, candidate)
        except Refused:
            continue
        if pending:
            raise headers.image_pending(candidate, "changing the memory map would make it unusable")


def _resume_devices(host):
    """Devices that may hold an image: from the kernel, its command line, and the udev database."""
    numbers = [host.attribute("/sys/power/resume", "0:0")]
    for path in host.glob("/run/udev/data/b*"):
        if re.search(r"^E:ID_FS_TYPE=swsuspend$", host.read(path, ""), re.MULTILINE):
            numbers.append(os.path.basename(path)[1:])
    paths = []
    for number in numbers:
        entry = host.real("/sys/dev/block/%s" % number)
        if number != "0:0" and host.exists(entry):
            paths.append("/dev/%s" % os.path.basename(entry))
    for word in host.read("/proc/cmdline", "").split():
        if word.startswith("resume="):
            tag, equals, value = word[len("resume="):].partition("=")
            paths.append("%s/%s" % (BY_TAG[tag], value) if equals and tag in BY_TAG else tag)
    return [path for path in dict.fromkeys(paths) if path.startswith("/dev/") and host.exists(path)]
