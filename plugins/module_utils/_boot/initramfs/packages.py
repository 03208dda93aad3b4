# SPDX-License-Identifier: GPL-3.0-or-later
"""What dpkg knows of a package, read from its files. On a machine without dpkg, nothing is known and nothing is installed."""

from __future__ import annotations

import re

STATUS = "/var/lib/dpkg/status"
INFO = "/var/lib/dpkg/info"


def is_installed(host, package):
    """Whether C(package) is unpacked on the machine. One that was removed and left its configuration is not."""
    for stanza in host.read(STATUS, "").split("\n\n"):
        if stanza.lstrip("\n").startswith("Package: %s\n" % package):
            status = re.search(r"^Status: \S+ \S+ (\S+)$", stanza, re.M)
            if status and status.group(1) not in ("config-files", "not-installed"):
                return True
    return False


def has_kernel(host, version):
    """Whether a package of the kernel C(version) is installed, or was and left files."""
    return any(host.exists("%s/linux-image-%s%s.list" % (INFO, kind, version)) for kind in ("", "unsigned-"))
