# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of block devices, as fstab(5), crypttab(5) and the kernel command line have them."""

from __future__ import annotations

import re

BY_TAG = {  # udev's 60-persistent-storage.rules
    "UUID": "/dev/disk/by-uuid",
    "LABEL": "/dev/disk/by-label",
    "PARTUUID": "/dev/disk/by-partuuid",
    "PARTLABEL": "/dev/disk/by-partlabel",
}


def path_of(name):
    """The path of udev's link for a C(name) such as C(UUID=...); any other name as it is."""
    tag, equals, value = name.partition("=")
    return "%s/%s" % (BY_TAG[tag], value.strip("\"'")) if equals and tag in BY_TAG else name


def unescape(text):
    """C(text) from /proc or fstab with its octal escapes (C(\\\\040)) replaced by the characters they stand for."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), text)
