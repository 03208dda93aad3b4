# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration that a kernel was built with, and its version as numbers."""

from __future__ import annotations

import re

PLACES = ("/boot/config-%s", "/lib/modules/%s/config", "/usr/lib/modules/%s/config", "/lib/modules/%s/build/.config")
VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:-(\d+))?")


def option(host, kernel, name):
    """The value of C(name) (C(CONFIG_HIBERNATION)) for C(kernel): "y", "m", a number, a quoted text, "n"; None without a configuration."""
    for place in PLACES:
        text = host.read(place % kernel)
        if text:
            match = re.search(r"^%s=(.*)$" % re.escape(name), text, re.M)
            return match.group(1).strip() if match else "n"
    return None


def version(kernel):
    """C((major, minor, patch, build)) of C(6.1.0-50-amd64); zeros for what is not there, and for a name without a version."""
    match = VERSION.match(kernel)
    return tuple(int(number or 0) for number in match.groups()) if match else (0, 0, 0, 0)
